"""Write-behind in Redis: the rules run as Lua inside Redis, on the queue and the cached value of a
key in one step.

A queue has a part in every partition of the cache, for a key's value and its write are in one slot.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Final

import trio
from attrs import define, evolve, field, frozen

from leasekeeper.core.fills import Conflict, Content
from leasekeeper.core.writes import (
    ANSWER_BYTES_MAX,
    Bounds,
    Full,
    Settled,
    Take,
    Taken,
    claim_id,
    parse_claim_id,
)
from leasekeeper.errors import InvalidParams, Outcome, Unavailable
from leasekeeper.messages import ClaimedWrite, DeadPage, DeadWrite, Json
from leasekeeper.resp.replies import Reply
from leasekeeper.resp.scripts import Argument
from leasekeeper.store.redis import scripts
from leasekeeper.store.redis.cache_calling import CacheCall, CacheCaller
from leasekeeper.store.redis.caches import content_args
from leasekeeper.store.redis.entries import integer, listed, word
from leasekeeper.store.redis.keys import partition_of
from leasekeeper.store.writes import dead_cursor, parse_dead_cursor

_RETRY_MS: Final = 500
_ENTRY_ID: Final = re.compile(r"[0-9]{1,16}-[0-9]{1,16}")


@frozen
class _Part:
    """What a claim in one partition came to. `ready_ms`: when the next can be claimed, or could
    have been, by the partition's clock, None: there is none; `size`: the bytes of its value."""

    partition: int
    now_ms: int
    ready_ms: int | None
    size: int
    writes: tuple[ClaimedWrite, ...]
    spent: tuple[str, ...]


@define(eq=False)
class RedisWrites:
    """A `WriteStore` for one server. `partitions` says how many there are."""

    caller: CacheCaller = field(repr=False)
    partitions: Callable[[], int]
    refuse: Callable[[], str | None] | None = None

    @property
    def refusal(self) -> str | None:
        """As the last look at Redis has it."""
        return self.refuse() if self.refuse is not None else None

    async def put(
        self, queue: str, key: str, content: Content, bounds: Bounds
    ) -> int | Conflict | Full:
        """Replaces a cached value and queues the write of it."""
        shares = (_share(most, self.partitions()) for most in (bounds.count, bounds.bytes))
        call = CacheCall(
            self._partition_of(key),
            scripts.WRITES_PUT,
            (key,),
            (queue, key, *shares, *content_args(content)),
            queue=queue,
        )
        kind, *seq = await self.caller.call(call)
        if kind == b"conflict":
            return Conflict()
        return Full() if kind == b"full" else integer(seq[0])

    async def claim(self, queue: str, take: Take) -> Taken:
        """Claims writes: in several partitions, first where some have been ready for longest."""
        partitions = self.partitions()
        if partitions == 1:
            parts = await self._claim(queue, take, {0: (take.count, ANSWER_BYTES_MAX)})
        else:
            parts = await self._claim_in_rounds(queue, take, partitions)
        spent = [key for part in parts for key in part.spent]
        settled = await self._settle(
            queue, [(key, "") for key in spent], "spent", take.attempts_max
        )
        times_ms = [part.ready_ms - part.now_ms for part in parts if part.ready_ms is not None]
        return Taken(
            tuple(write for part in parts for write in part.writes),
            max(0, min(times_ms)) if times_ms else None,
            tuple(
                key for key, answer in zip(spent, settled, strict=True) if answer is Settled.DEAD
            ),
        )

    async def ack(self, queue: str, ids: Sequence[str]) -> Sequence[Settled]:
        """Claimed values are written."""
        return await self._settle(queue, [parse_claim_id(each) for each in ids], "ack")

    async def retry(
        self,
        queue: str,
        ids: Sequence[str],
        error: str,
        after_ms: int | None,
        jitters: Sequence[float],
        attempts_max: int,
    ) -> Sequence[Settled]:
        """Claimed values could not be written."""
        after = "" if after_ms is None else after_ms
        rests = [(repr(jitter), after, error) for jitter in jitters]
        claims = [parse_claim_id(each) for each in ids]
        return await self._settle(queue, claims, "retry", attempts_max, rests)

    async def give_back(self, queue: str, ids: Sequence[str], *, unseen: bool) -> Sequence[Settled]:
        """Whoever has these claims is gone, or has never heard of them."""
        how = "unseen" if unseen else "gone"
        return await self._settle(queue, [parse_claim_id(each) for each in ids], how)

    async def dead(self, queue: str, limit: int, cursor: str | None) -> DeadPage:
        """A page of dead writes, one partition after the other."""
        partitions = self.partitions()
        partition, after = parse_dead_cursor(cursor, partitions)
        if after and not _ENTRY_ID.fullmatch(after):
            raise InvalidParams("$.cursor", "expected a cursor from an earlier page")
        found: list[DeadWrite] = []
        size = 0
        while True:
            args = (queue, after, limit - len(found))
            call = CacheCall(partition, scripts.WRITES_DEAD, args=args, queue=queue)
            kind, last, writes = await self.caller.call(call)
            some = [_dead(each) for each in listed(writes)]
            found += some
            size += sum(len(each.value.text) for each in some)
            if kind == b"more":
                return DeadPage(tuple(found), dead_cursor(partition, word(last).decode()))
            partition, after = partition + 1, ""
            if partition == partitions:
                return DeadPage(tuple(found), None)
            if len(found) == limit or size >= ANSWER_BYTES_MAX:
                return DeadPage(tuple(found), dead_cursor(partition, after))

    async def revive(self, queue: str, keys: Sequence[str]) -> int:
        """Queues dead writes again."""
        calls = [
            CacheCall(
                self._partition_of(key), scripts.WRITES_REVIVE, (key,), (queue, key), queue=queue
            )
            for key in keys
        ]
        answers = await self.caller.call_all(calls)
        return sum(answer[0] == b"revived" for answer in answers)

    # --- Calls --------------------------------------------------------------------------------

    async def _settle(
        self,
        queue: str,
        claims: Sequence[tuple[str, str]],
        how: str,
        attempts_max: int = 0,
        rests: Sequence[Sequence[Argument]] | None = None,
    ) -> Sequence[Settled]:
        """One answer for each key and token."""
        if not claims:
            return ()
        calls = [
            CacheCall(
                self._partition_of(key),
                scripts.WRITES_SETTLE,
                (key,),
                (queue, key, token, how, attempts_max, *rest),
                queue=queue,
                repeatable=False,  # it would say that it is not held
            )
            for (key, token), rest in zip(claims, rests or [()] * len(claims), strict=True)
        ]
        answers = await self.caller.call_all(calls)
        return [Settled(word(answer[0]).decode()) for answer in answers]

    async def _claim(
        self, queue: str, take: Take, shares: dict[int, tuple[int, int]]
    ) -> list[_Part]:
        """So many writes, and bytes, at most in each of these partitions; a node without an answer
        is left out.

        Raises:
            Unavailable: none has an answer.
        """
        waits = int(take.server is not None)
        by_node: dict[Hashable, list[CacheCall]] = {}
        for partition, (count, size) in shares.items():
            args = (queue, take.token, count, take.claim_ms, take.attempts_max, waits, size)
            call = CacheCall(
                partition, scripts.WRITES_CLAIM, args=args, queue=queue, repeatable=False
            )
            by_node.setdefault(self.caller.node_of(partition), []).append(call)
        parts: list[_Part] = []
        problems: list[Unavailable] = []

        async def ask(calls: Sequence[CacheCall]) -> None:
            try:
                answers = await self.caller.call_all(calls)
            except Unavailable as problem:
                problems.append(problem)
                return
            for call, answer in zip(calls, answers, strict=True):
                parts.append(_part(call.partition, take.token, answer))

        if len(by_node) == 1:
            await ask(next(iter(by_node.values())))
        else:
            async with trio.open_nursery() as nursery:
                for calls in by_node.values():
                    nursery.start_soon(ask, calls)
        if not parts and problems:
            raise problems[0]
        return parts

    async def _claim_in_rounds(self, queue: str, take: Take, partitions: int) -> list[_Part]:
        """What all partitions come to. A round shares out what is wanted as if each of them had
        enough; the next one asks those that have more for what others had not."""
        heads = await self._claim(queue, take, dict.fromkeys(range(partitions), (0, 0)))
        found = heads
        count, room = take.count, ANSWER_BYTES_MAX
        while shares := _shared_out(heads, count, room):
            there = await self._claim(queue, take, shares)
            found = [*found, *there]
            writes = [write for part in there for write in part.writes]
            if not writes:
                break
            count -= len(writes)
            room -= sum(len(write.value.text) for write in writes)
            heads = there
        newest = {part.partition: part for part in found}
        return [
            evolve(part, ready_ms=part.ready_ms if part is newest[part.partition] else None)
            for part in found
        ]

    def _partition_of(self, key: str) -> int:
        return partition_of(key, self.partitions())


def _share(most: int, partitions: int) -> int:
    """What one of so many partitions may have, so that all of them have at least `most`."""
    return -(-most // partitions)


def _shared_out(parts: Sequence[_Part], count: int, room: int) -> dict[int, tuple[int, int]]:
    """How many writes, and bytes, to claim in which partitions, of so many: where they have waited
    longest. The first of all always fits, unless others have been claimed."""
    ready = [
        (part.ready_ms, part.partition, part.size)
        for part in parts
        if part.ready_ms is not None and part.ready_ms <= part.now_ms
    ]
    sizes: dict[int, int] = {}
    left = room
    for _, partition, size in sorted(ready)[:count]:
        if size > left and (sizes or room < ANSWER_BYTES_MAX):
            break
        sizes[partition] = size
        left = max(0, left - size)
    if not sizes:
        return {}
    each, more = divmod(count, len(sizes))
    return {
        partition: (each + (at < more), size + left // len(sizes))
        for at, (partition, size) in enumerate(sizes.items())
    }


def _part(partition: int, token: str, answer: Sequence[Reply]) -> _Part:
    now_ms, ready_ms, size, writes, spent = answer
    return _Part(
        partition,
        integer(now_ms),
        ready_ms if isinstance(ready_ms, int) else None,
        integer(size),
        tuple(_claimed(token, each) for each in listed(writes)),
        tuple(word(key).decode() for key in listed(spent)),
    )


def _claimed(token: str, reply: Reply) -> ClaimedWrite:
    match reply:
        case [bytes(key), bytes(value), int(seq), int(fence), int(attempt)]:
            name = key.decode()
            return ClaimedWrite(claim_id(token, name), name, Json(value), seq, fence, attempt)
        case _:
            raise Unavailable(Outcome.UNKNOWN, _RETRY_MS)


def _dead(reply: Reply) -> DeadWrite:
    match reply:
        case [bytes(key), bytes(value), int(seq), int(attempts), bytes(error)]:
            return DeadWrite(key.decode(), Json(value), seq, attempts, error.decode())
        case _:
            raise Unavailable(Outcome.UNKNOWN, _RETRY_MS)
