"""How the tests of one queue of writes speak of it."""

from typing import Final

from attrs import define, field

from leasekeeper.core.cache import Entry
from leasekeeper.core.fills import Ask, Conflict, Content, Found
from leasekeeper.core.lock import Now
from leasekeeper.core.versions import Versions
from leasekeeper.core.writes import Bounds, Full, Settled, Take, Taken, WriteQueue
from leasekeeper.messages import ClaimedWrite, DeadWrite
from tests.core.caches import at

ANN, BEN, CID = "a" * 32, "b" * 32, "c" * 32
"""Tokens of claims."""
CLAIM_MS: Final = 1_000
ATTEMPTS_MAX: Final = 3
PLENTY: Final = Bounds(count=100, bytes=10_000)


@define
class Queued:
    """A queue, the cached keys beside it, and the time, which stands still until it is set."""

    ms: int = 0
    """Since the start of the test."""
    bounds: Bounds = PLENTY
    attempts_max: int = ATTEMPTS_MAX
    versions: Versions = field(factory=Versions)
    queue: WriteQueue = field(factory=WriteQueue)
    entries: dict[str, Entry] = field(factory=dict)

    @property
    def now(self) -> Now:
        return at(self.ms)

    def entry(self, key: str) -> Entry:
        return self.entries.setdefault(key, Entry())

    def try_put(self, key: str, value: bytes = b"1", ttl_ms: int = 0) -> int | Conflict | Full:
        """A write is put."""
        content = Content(value, ttl_ms)
        return self.queue.put(key, content, self.bounds, self.entry(key), self.versions, self.now)

    def put(self, key: str, value: bytes = b"1", ttl_ms: int = 0) -> int:
        """The same, which must be possible."""
        seq = self.try_put(key, value, ttl_ms)
        assert isinstance(seq, int), seq
        return seq

    def take(
        self, token: str = ANN, count: int = 16, *, claim_ms: int = CLAIM_MS, server: str = ""
    ) -> Taken:
        """Whatever can be claimed."""
        take = Take(token, count, claim_ms, self.attempts_max, server or None)
        return self.queue.claim(take, self.versions, self.now)

    def claim(self, token: str = ANN) -> ClaimedWrite:
        """The one write that can be claimed."""
        [write] = self.take(token).writes
        return write

    def keys(self, token: str = ANN, count: int = 16) -> list[str]:
        """The keys that are claimed."""
        return [write.key for write in self.take(token, count).writes]

    def ack(self, key: str, token: str = ANN) -> Settled:
        return self.queue.ack(key, token, self.entry(key), self.versions, self.now)

    def retry(
        self,
        key: str,
        token: str = ANN,
        *,
        error: str = "no luck",
        after_ms: int | None = None,
        jitter: float = 1.0,
    ) -> Settled:
        return self.queue.retry(
            key,
            token,
            error,
            after_ms,
            jitter,
            self.attempts_max,
            self.entry(key),
            self.versions,
            self.now,
        )

    def give_back(self, key: str, token: str = ANN, *, unseen: bool = False) -> Settled:
        return self.queue.give_back(key, token, self.now, unseen=unseen)

    def bury(self, key: str) -> bool:
        return self.queue.bury(key, self.attempts_max, self.entry(key), self.versions, self.now)

    def dies(self, key: str) -> None:
        """Its write, the only one that is ready, fails until it is dead."""
        settled = Settled.QUEUED
        while settled is Settled.QUEUED:
            assert self.claim().key == key
            settled = self.retry(key, after_ms=0)
        assert settled is Settled.DEAD

    def dead(self, after: int = 0, limit: int = 100) -> list[DeadWrite]:
        """Those that died, all of which are on the page."""
        found, last = self.queue.dead(after, limit)
        assert last is None
        return list(found)

    def revive(self, key: str) -> bool:
        return self.queue.revive(key, self.entry(key), self.versions, self.now)

    def found(self, key: str) -> Found | None:
        """What is cached."""
        return self.entry(key).look(Ask(), self.versions, self.now).found

    def cached(self, key: str) -> bytes | None:
        """The cached value."""
        found = self.found(key)
        return found.value if found else None

    def told(self) -> list[str]:
        """The servers that should claim again, since this was last asked."""
        events, self.queue.events = self.queue.events, []
        return [each.server for each in events]
