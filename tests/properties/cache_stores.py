"""The stores' own caches, for the machine that is run against the rules."""

from collections.abc import Sequence
from typing import Final

from attrs import define, field

from leasekeeper.core.fills import Ask, Closed, Conflict, Content, Intent, Seen
from leasekeeper.core.lock import Now
from leasekeeper.core.versions import TAG_RECORDS_MAX
from leasekeeper.messages import FillOutcome, Mark
from leasekeeper.resp.replies import Reply
from leasekeeper.resp.scripts import Argument
from leasekeeper.store.memory_cache import MemoryCache
from leasekeeper.store.redis.caches import RedisCaches
from leasekeeper.store.redis.entries import integer, listed, word
from tests.properties.cache_sides import START_MS
from tests.properties.caches_scripts import Wire, now_or_never

_MEMORY_MS: Final = 3_600_000
_OTHER_RUN: Final = "f" * 40


@define(eq=False)
class StoreSide:
    """What the sides here have in common: the calls of `CacheStore`, none of which waits."""

    @property
    def store(self) -> MemoryCache | RedisCaches:
        """The one that the next call is made of."""
        raise NotImplementedError

    def look(self, key: str, ask: Ask) -> Seen:
        return now_or_never(self.store.look(key, ask))

    def fill(
        self, key: str, fill: str, content: Content, *, not_modified: bool = False
    ) -> FillOutcome:
        return now_or_never(self.store.fill(key, fill, content, not_modified=not_modified))

    def fail(
        self, key: str, fill: str, error: str, retry_after_ms: int | None, jitter: float
    ) -> None:
        return now_or_never(self.store.fail(key, fill, error, retry_after_ms, jitter))

    def unshare(self, key: str, fill: str, ms: int) -> None:
        return now_or_never(self.store.unshare(key, fill, ms))

    def give_up(self, key: str, fill: str, *, died: bool, jitter: float) -> None:
        return now_or_never(self.store.give_up(key, fill, died=died, jitter=jitter))

    def set(self, key: str, content: Content) -> int | Conflict:
        return now_or_never(self.store.set(key, content))

    def invalidate(self, keys: Sequence[str], tags: Sequence[str], mark: Mark) -> None:
        return now_or_never(self.store.invalidate(keys, tags, mark))

    def begin_write(
        self, key: str, write: str, tags: tuple[str, ...], ttl_ms: int
    ) -> Intent | Conflict:
        return now_or_never(self.store.begin_write(key, write, tags, ttl_ms))

    def close_write(
        self, key: str, write: str, content: Content | None, tags: tuple[str, ...]
    ) -> Closed:
        return now_or_never(self.store.close_write(key, write, content, tags))


@define(eq=False)
class SteppedCache(MemoryCache):
    """The embedded cache, by a clock that is told the time."""

    ms: int = START_MS

    def now(self) -> Now:
        self._began_us = 0
        return Now(self.ms, 1000 * self.ms)

    def forget(self) -> None:
        """What its alarms would do by now."""
        for key in self._alarms._deadlines.pop_due(self.ms):
            self._forget(key)


@define(eq=False)
class MemorySide(StoreSide):
    """The embedded store. It has no replica, and its clock never steps back."""

    can_step_back: bool = False
    has_replica: bool = False
    _cache: SteppedCache = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._cache = SteppedCache(lambda: 0)

    @property
    def store(self) -> MemoryCache:
        return self._cache

    def put(self, key: str, content: Content) -> int | Conflict:
        with self._cache.step(key) as (entry, now):
            return entry.put(content, self._cache.versions, now)

    def written(self, key: str, seq: int) -> None:
        with self._cache.step(key) as (entry, now):
            entry.written(seq, self._cache.versions, now)

    def give_up_write(self, key: str, seq: int) -> None:
        with self._cache.step(key) as (entry, _):
            entry.given_up(seq)

    def pass_time(self, ms: int) -> None:
        self._cache.ms += ms
        self._cache.forget()

    def lose_all(self) -> None:
        """Its process starts anew."""
        self._cache = SteppedCache(lambda: 0, ms=self._cache.ms)

    def lose_clock(self) -> None:
        raise NotImplementedError

    snapshot = fail_over = lose_clock

    def close(self) -> None:
        """Nothing to do."""


@define(eq=False)
class RedisSide(StoreSide):
    """The store in Redis, on two servers that take turns."""

    wire: Wire
    can_step_back: bool = True
    has_replica: bool = True
    ms: int = START_MS
    _turn: int = 0
    _behind: list[tuple[bytes, bytes, int]] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.wire.begin(1000 * START_MS, _MEMORY_MS, TAG_RECORDS_MAX)

    @property
    def server(self) -> str:
        """Whose turn it is."""
        self._turn += 1
        return "ab"[self._turn % 2]

    @property
    def store(self) -> RedisCaches:
        return self.wire.caches[self.server]

    def put(self, key: str, content: Content) -> int | Conflict:
        return self.wire.put(self.server, key, content)

    def written(self, key: str, seq: int) -> None:
        self.wire.written(self.server, key, seq)

    def give_up_write(self, key: str, seq: int) -> None:
        self.wire.given_up(self.server, key, seq)

    def pass_time(self, ms: int) -> None:
        self.ms += ms
        self.wire.set_clock(1000 * self.ms)

    def lose_all(self) -> None:
        self.wire.flush()
        self._notice()

    def _notice(self) -> None:
        """It is noticed at the next call, and L2 holds if the clock is not behind by then."""
        self.invalidate(["other"], (), Mark.HARD)

    @property
    def _clock_keys(self) -> Sequence[str]:
        return self.wire.layout.partition_keys(0)

    def lose_clock(self) -> None:
        self._ask(["DEL", *self._clock_keys])
        self._notice()

    def snapshot(self) -> None:
        keys = [word(key) for key in listed(self._ask(["KEYS", "*"])[0])]
        self._behind.clear()
        for key in keys:
            dump, end_ms = self._ask(["DUMP", key], ["PEXPIRETIME", key])
            if dump is not None:
                self._behind.append((key, word(dump), max(0, integer(end_ms))))

    def fail_over(self) -> None:
        """Another process has what the replica had, and finds by its clock that it is another."""
        self.wire.flush()
        for key, dump, end_ms in self._behind:
            self._ask(["RESTORE", key, end_ms, dump, "ABSTTL"])
        clock = self._clock_keys[0]
        if self._ask(["EXISTS", clock])[0]:
            self._ask(["HSET", clock, "run", _OTHER_RUN])
        self._notice()

    def _ask(self, *commands: Sequence[Argument]) -> list[Reply]:
        return self.wire.nodes[0].ask(*commands)

    def close(self) -> None:
        """The next one begins with an empty Redis."""
