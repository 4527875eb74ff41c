"""The cache in Redis: the rules of a key run as Lua inside Redis, and many servers share them.

A partition of the keys has one clock, and one slot of a cluster. What concerns tags is done in
every partition, and has been done when all of them have acknowledged it.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

from attrs import define, field

from leasekeeper.core.fills import (
    Ask,
    Closed,
    Conflict,
    Content,
    Failed,
    FillGrant,
    Found,
    Intent,
    Seen,
)
from leasekeeper.errors import Outcome, Unavailable
from leasekeeper.messages import FillOutcome, Mark
from leasekeeper.resp.client import Client
from leasekeeper.resp.handshake import Identity
from leasekeeper.resp.replies import Reply
from leasekeeper.resp.scripts import Argument, Script
from leasekeeper.store.redis import scripts
from leasekeeper.store.redis.cache_calling import CacheCall, CacheCaller
from leasekeeper.store.redis.entries import integer, listed, word
from leasekeeper.store.redis.keys import CLUSTER_PARTITIONS, Layout, partition_of

_KEYS_AT_ONCE: Final = 100
_RETRY_MS: Final = 500


@define(eq=False)
class RedisCaches:
    """A `CacheStore` for one server. `partitions` says how many there are."""

    caller: CacheCaller = field(repr=False)
    partitions: Callable[[], int]

    def connected(self, identity: Identity) -> None:
        """A connection to a master was made; it has not been used yet."""
        self.caller.runs.connected(identity)

    async def look(self, key: str, ask: Ask) -> Seen:
        """What there is of a key, in one round trip."""
        reply = await self._call(key, scripts.CACHE_LOOK, *ask_args(ask))
        return seen_of(reply)

    async def fill(
        self, key: str, fill: str, content: Content, *, not_modified: bool = False
    ) -> FillOutcome:
        """Stores what a fill has loaded, if it is not too old."""
        args = (fill, int(not_modified), *content_args(content))
        [outcome] = await self._call(key, scripts.CACHE_FILL, *args)
        return FillOutcome(word(outcome).decode())

    async def fail(
        self, key: str, fill: str, error: str, retry_after_ms: int | None, jitter: float
    ) -> None:
        """A load has failed."""
        after = "" if retry_after_ms is None else retry_after_ms
        await self._call(key, scripts.CACHE_END_FILL, fill, "failed", repr(jitter), after, error)

    async def unshare(self, key: str, fill: str, ms: int) -> None:
        """For so long everybody loads for himself."""
        await self._call(key, scripts.CACHE_END_FILL, fill, "unshared", 0, ms)

    async def give_up(self, key: str, fill: str, *, died: bool, jitter: float) -> None:
        """Somebody else may have the fill."""
        how = "died" if died else "given_up"
        await self._call(key, scripts.CACHE_END_FILL, fill, how, repr(jitter), "")

    async def wait_for(self, key: str, fill: str, on: str | None) -> None:
        """Whoever has this fill waits for another key, or waits no more."""
        await self._call(key, scripts.CACHE_WAIT_FOR, fill, on or "")

    async def waits_for(self, key: str) -> str | None:
        """What whoever loads this key waits for."""
        [_, on] = await self._call(key, scripts.CACHE_WAITS_FOR)
        return word(on).decode() or None

    async def set(self, key: str, content: Content) -> int | Conflict:
        """Replaces a value."""
        kind, *fence = await self._call(key, scripts.CACHE_SET, *content_args(content))
        return Conflict() if kind == b"conflict" else integer(fence[0])

    async def invalidate(self, keys: Sequence[str], tags: Sequence[str], mark: Mark) -> None:
        """Makes values invalid. It is done when every partition has done it."""
        partitions = self.partitions()
        calls = [self._marking(each, str(mark), "", 0, tags) for each in range(partitions) if tags]
        by_partition: dict[int, list[str]] = {}
        for key in dict.fromkeys(keys):
            by_partition.setdefault(partition_of(key, partitions), []).append(key)
        for partition, its_keys in by_partition.items():
            rest = iter(its_keys)
            while some := tuple(islice(rest, _KEYS_AT_ONCE)):
                calls.append(CacheCall(partition, scripts.CACHE_INVALIDATE, some, (str(mark),)))
        if len(calls) == 1:
            await self.caller.call(calls[0])
        else:
            await self.caller.call_all(calls)

    async def begin_write(
        self, key: str, write: str, tags: tuple[str, ...], ttl_ms: int
    ) -> Intent | Conflict:
        """A write-through begins: for its tags in every other partition, then in the key's."""
        await self._elsewhere(key, "open", write, ttl_ms, tags)
        kind, *rest = await self._call(key, scripts.CACHE_BEGIN_WRITE, write, ttl_ms, *tags)
        if kind == b"conflict":
            await self._elsewhere(key, "close", write, 0, tags)
            return Conflict()
        fence, until_ms, its_tags = rest
        return Intent(integer(fence), integer(until_ms), tuple(_texts(its_tags)))

    async def close_write(
        self, key: str, write: str, content: Content | None, tags: tuple[str, ...]
    ) -> Closed:
        """A write-through is over: for its tags in every other partition, then in the key's."""
        if self.partitions() > 1:
            [_, begun] = await self._call(key, scripts.CACHE_TAGS_OF, write)
            tags = tuple(dict.fromkeys((*tags, *_texts(begun))))
            await self._elsewhere(key, "close", write, 0, tags)
        call = CacheCall(
            self._partition_of(key),
            scripts.CACHE_CLOSE_WRITE,
            (key,),
            (write, len(tags), *tags, *content_args(content)),
            repeatable=False,  # it would say that it came too late
        )
        _, stored, in_time = await self.caller.call(call)
        return Closed(stored == b"stored", in_time == b"in_time")

    # --- Calls --------------------------------------------------------------------------------

    async def _call(self, key: str, script: Script, *args: Argument) -> list[Reply]:
        call = CacheCall(self._partition_of(key), script, (key,), args)
        return await self.caller.call(call)

    async def _elsewhere(
        self, key: str, how: str, write: str, ttl_ms: int, tags: Sequence[str]
    ) -> None:
        """Opens or closes tags in all partitions but that of the key, whose script does it."""
        own = self._partition_of(key)
        others = [each for each in range(self.partitions()) if each != own and tags]
        await self.caller.call_all(
            [self._marking(each, how, write, ttl_ms, tags) for each in others]
        )

    def _marking(
        self, partition: int, how: str, write: str, ttl_ms: int, tags: Sequence[str]
    ) -> CacheCall:
        args: tuple[Argument, ...] = (how, write, ttl_ms, *tags)
        return CacheCall(partition, scripts.CACHE_MARK_TAGS, args=args)

    def _partition_of(self, key: str) -> int:
        return partition_of(key, self.partitions())


def caches_in(
    client: Client,
    layout: Layout,
    server: str,
    memory_ms: int,
    on_event: Callable[[bytes], None],
    is_clustered: Callable[[], bool],
) -> RedisCaches:
    """The cache in this Redis."""
    caller = CacheCaller(client, layout, server, memory_ms, on_event)
    return RedisCaches(caller, lambda: CLUSTER_PARTITIONS if is_clustered() else 1)


def ask_args(ask: Ask) -> tuple[Argument, ...]:
    """As arguments of look.lua. Chance goes in full: it must be the same number there."""
    waits = int(ask.server is not None)
    return (ask.fill or "", ask.fill_ms, ask.owner, repr(ask.early), repr(ask.jitter), waits)


def content_args(content: Content | None) -> tuple[Argument, ...]:
    """As arguments of a script, of which they are the last."""
    if content is None:
        return ("", "", 0, 0, "")
    kind = "none" if content.value is None else "value"
    times = (content.ttl_ms, content.stale_ms)
    return (kind, content.value or b"", *times, content.etag or "", *content.tags)


def seen_of(parts: Sequence[Reply]) -> Seen:
    """What look.lua replies.

    Raises:
        Unavailable: it makes no sense; somebody else wrote what is there.
    """
    found = grant = failed = None
    negative_ms = filling_ms = None
    for part in parts:
        match part:
            case [(b"fresh" | b"stale") as how, bytes(value), int(age_ms), int(ttl_ms)]:
                found = Found(value, age_ms, ttl_ms, fresh=how == b"fresh")
            case [b"negative", int(left_ms)]:
                negative_ms = left_ms
            case [(b"shared" | b"unshared") as how, int(fence), int(fill_ms), bytes(etag)]:
                shared = how == b"shared"
                grant = FillGrant(fence, fill_ms, shared=shared, etag=_text(etag) or None)
            case [b"filling", int(left_ms)]:
                filling_ms = left_ms
            case [b"failed", bytes(error), int(after_ms)]:
                failed = Failed(_text(error), after_ms)
            case _:
                raise Unavailable(Outcome.UNKNOWN, _RETRY_MS)
    return Seen(found, negative_ms, grant, filling_ms, failed)


def _text(found: bytes) -> str:
    try:
        return found.decode()
    except UnicodeDecodeError:
        raise Unavailable(Outcome.UNKNOWN, _RETRY_MS) from None


def _texts(reply: Reply) -> list[str]:
    return [word(each).decode() for each in listed(reply)]
