"""Embedded write-behind: `leasekeeper.core.writes` over the embedded cache. It ends with it.

As in the rest of the embedded store no call blocks, and none is a checkpoint.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from attrs import define, evolve, field

from leasekeeper.core.fills import Conflict, Content
from leasekeeper.core.writes import (
    Bounds,
    Full,
    Settled,
    Take,
    Taken,
    WriteQueue,
    parse_claim_id,
)
from leasekeeper.errors import InvalidParams
from leasekeeper.messages import DeadPage
from leasekeeper.store.alarms import Alarms, trio_ms
from leasekeeper.store.memory_cache import MemoryCache
from leasekeeper.store.writes import QueueNews, dead_cursor, parse_dead_cursor

_REFUSAL: Final = (
    "this server keeps its data in memory, so a restart would lose the write: use a Redis with "
    "AOF, or serve with --allow-volatile-writes"
)


@define(eq=False)
class MemoryWrites:
    """Queues in this process, by the clock of its cache, in one partition."""

    cache: MemoryCache
    allow_volatile: bool = False
    _queues: dict[str, WriteQueue] = field(factory=dict, init=False, repr=False)
    _alarms: Alarms[str] = field(init=False, repr=False)
    _on_event: Callable[[QueueNews], None] = field(default=lambda _: None, init=False)

    def __attrs_post_init__(self) -> None:
        self._alarms = Alarms(self._forget)

    async def run(self, on_event: Callable[[QueueNews], None]) -> None:
        """Forgets empty queues that nobody waits for any more, until cancelled."""
        self._on_event = on_event
        await self._alarms.run()

    def __len__(self) -> int:
        return len(self._queues)

    @property
    def refusal(self) -> str | None:
        """A restart loses everything, unless that is allowed."""
        return None if self.allow_volatile else _REFUSAL

    async def put(
        self, queue: str, key: str, content: Content, bounds: Bounds
    ) -> int | Conflict | Full:
        """Replaces a cached value and queues the write of it."""
        with self._step(queue) as writes, self.cache.step(key) as (entry, now):
            return writes.put(key, content, bounds, entry, self.cache.versions, now)

    async def claim(self, queue: str, take: Take) -> Taken:
        """Claims writes."""
        with self._step(queue) as writes:
            taken = writes.claim(take, self.cache.versions, self.cache.now())
        spent: list[str] = []
        for key in taken.spent:
            with self._step(queue) as writes, self.cache.step(key) as (entry, now):
                if writes.bury(key, take.attempts_max, entry, self.cache.versions, now):
                    spent.append(key)
        return evolve(taken, spent=tuple(spent))

    async def ack(self, queue: str, ids: Sequence[str]) -> Sequence[Settled]:
        """Claimed values are written."""
        answers: list[Settled] = []
        for key, token in map(parse_claim_id, ids):
            with self._step(queue) as writes, self.cache.step(key) as (entry, now):
                answers.append(writes.ack(key, token, entry, self.cache.versions, now))
        return answers

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
        answers: list[Settled] = []
        for (key, token), jitter in zip(map(parse_claim_id, ids), jitters, strict=True):
            with self._step(queue) as writes, self.cache.step(key) as (entry, now):
                settled = writes.retry(
                    key,
                    token,
                    error,
                    after_ms,
                    jitter,
                    attempts_max,
                    entry,
                    self.cache.versions,
                    now,
                )
                answers.append(settled)
        return answers

    async def give_back(self, queue: str, ids: Sequence[str], *, unseen: bool) -> Sequence[Settled]:
        """Whoever has these claims is gone, or has never heard of them."""
        answers: list[Settled] = []
        for key, token in map(parse_claim_id, ids):
            with self._step(queue) as writes:
                answers.append(writes.give_back(key, token, self.cache.now(), unseen=unseen))
        return answers

    async def dead(self, queue: str, limit: int, cursor: str | None) -> DeadPage:
        """A page of dead writes."""
        _, after = parse_dead_cursor(cursor, partitions=1)
        if after and not after.isdecimal():
            raise InvalidParams("$.cursor", "expected a cursor from an earlier page")
        with self._step(queue) as writes:
            found, last = writes.dead(int(after or 0), limit)
        return DeadPage(found, None if last is None else dead_cursor(0, str(last)))

    async def revive(self, queue: str, keys: Sequence[str]) -> int:
        """Queues dead writes again."""
        revived = 0
        for key in keys:
            with self._step(queue) as writes, self.cache.step(key) as (entry, now):
                revived += writes.revive(key, entry, self.cache.versions, now)
        return revived

    @contextmanager
    def _step(self, queue: str) -> Iterator[WriteQueue]:
        """One atomic step on a queue: afterwards its events are told, and its end is known."""
        writes = self._queues.get(queue)
        if writes is None:  # one that is empty is false, too
            writes = WriteQueue()
        yield writes
        now = self.cache.now()
        until_ms = writes.keep_until_ms()
        if until_ms is not None and until_ms <= now.ms:
            self._queues.pop(queue, None)
        else:
            self._queues[queue] = writes
        if until_ms is None or until_ms <= now.ms:
            self._alarms.discard(queue)
        else:
            # One more, for both clocks are rounded down.
            self._alarms.set(queue, trio_ms() + until_ms - now.ms + 1)
        for _ in writes.events:
            self._on_event(QueueNews(queue))
        writes.events.clear()

    def _forget(self, queue: str) -> None:
        with self._step(queue):
            pass
