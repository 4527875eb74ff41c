"""The core of write-behind, kept as a store keeps it: queues by name, beside the cached keys."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

from attrs import define, evolve, field

from leasekeeper.core.fills import Conflict, Content
from leasekeeper.core.writes import (
    Bounds,
    Full,
    Grave,
    Settled,
    Take,
    Taken,
    Write,
    WriteQueue,
    parse_claim_id,
)
from leasekeeper.messages import DeadWrite
from tests.properties.caches_core import CoreCache

Facts: TypeAlias = dict[str, object]
"""What is kept, by names; nothing that is 0 or empty."""


@define(eq=False)
class CoreWrites:
    """`WriteQueue`, as the specification of what is answered, told and kept, in one partition."""

    cache: CoreCache
    queues: dict[str, WriteQueue] = field(factory=dict)

    @contextmanager
    def step(self, queue: str) -> Iterator[WriteQueue]:
        """One step on a queue."""
        writes = self.queues.get(queue)
        if writes is None:
            writes = WriteQueue()
        yield writes
        self.queues[queue] = writes
        self.cache.told += [(news.server, f"queue {queue}") for news in writes.events]
        writes.events.clear()

    # --- As WriteStore ------------------------------------------------------------------------

    def put(self, queue: str, key: str, content: Content, bounds: Bounds) -> int | Conflict | Full:
        """As `WriteStore.put`."""
        with self.step(queue) as writes, self.cache.step(key) as (entry, versions):
            return writes.put(key, content, bounds, entry, versions, self.cache.now)

    def claim(self, queue: str, take: Take) -> Taken:
        """As `WriteStore.claim`."""
        with self.step(queue) as writes:
            taken = writes.claim(take, self.cache.clock(0), self.cache.now)
        spent: list[str] = []
        for key in taken.spent:
            with self.step(queue) as writes, self.cache.step(key) as (entry, versions):
                if writes.bury(key, take.attempts_max, entry, versions, self.cache.now):
                    spent.append(key)
        return evolve(taken, spent=tuple(spent))

    def ack(self, queue: str, claim: str) -> Settled:
        """As `WriteStore.ack`, of one claim."""
        key, token = parse_claim_id(claim)
        with self.step(queue) as writes, self.cache.step(key) as (entry, versions):
            return writes.ack(key, token, entry, versions, self.cache.now)

    def retry(
        self, queue: str, claim: str, error: str, after_ms: int | None, jitter: float, most: int
    ) -> Settled:
        """As `WriteStore.retry`, of one claim."""
        key, token = parse_claim_id(claim)
        now = self.cache.now
        with self.step(queue) as writes, self.cache.step(key) as (entry, versions):
            return writes.retry(key, token, error, after_ms, jitter, most, entry, versions, now)

    def give_back(self, queue: str, claim: str, *, unseen: bool) -> Settled:
        """As `WriteStore.give_back`, of one claim."""
        key, token = parse_claim_id(claim)
        self.cache.clock(0)
        with self.step(queue) as writes:
            return writes.give_back(key, token, self.cache.now, unseen=unseen)

    def revive(self, queue: str, key: str) -> bool:
        """As `WriteStore.revive`, of one key."""
        with self.step(queue) as writes, self.cache.step(key) as (entry, versions):
            return writes.revive(key, entry, versions, self.cache.now)

    def dead(self, queue: str) -> list[DeadWrite]:
        """All of them."""
        self.cache.clock(0)
        with self.step(queue) as writes:
            return list(writes.dead(0, 1_000)[0])

    # --- What is kept -------------------------------------------------------------------------

    def kept(self, queue: str) -> Facts:
        """What is kept of a queue, by the names of `writes_rules.lua`."""
        writes = self.queues.get(queue)
        if writes is None:
            return {}
        now_ms = self.cache.now.ms
        live = {server: until for server, until in writes._news.items() if until > now_ms}
        graves = sorted(writes._graves.items(), key=lambda each: each[1].number)
        return {
            "writes": {key: _write(each) for key, each in writes._writes.items()},
            "due": [f"{place:016} {key}" for _, place, key in writes._due],
            "log": sorted(each.content.value or b"" for each in writes._writes.values()),
            "dead": [_grave(key, each) for key, each in graves],
            "bytes": writes._bytes,
            "news": live,
        }


def _write(write: Write) -> Facts:
    facts: Facts = {
        "seq": str(write.seq),
        "place": str(write.place),
        "ready": str(write.ready_ms),
        "attempts": str(write.attempts),
        "size": str(len(write.content.value or b"")),
        "error": write.error,
    }
    if hold := write.hold:
        facts |= {"token": hold.token, "held": str(hold.seq), "ends": str(hold.until_ms)}
        facts |= {"attempt": str(hold.attempt)}
    return facts


def _grave(key: str, grave: Grave) -> Facts:
    return {
        "key": key,
        "value": grave.content.value,
        "ttl": str(grave.content.ttl_ms),
        "seq": str(grave.seq),
        "attempts": str(grave.attempts),
        "error": grave.error,
    }


def claims_of(taken: Taken) -> Sequence[str]:
    """The ids of what was claimed."""
    return [write.id for write in taken.writes]
