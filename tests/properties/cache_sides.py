"""What a cache is to those who use it, so that one machine can be run against every cache."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Final, Protocol

from attrs import define, evolve, field

from leasekeeper.core.cache import Entry
from leasekeeper.core.fills import Ask, Closed, Conflict, Content, Intent, Seen
from leasekeeper.core.lock import Now
from leasekeeper.core.versions import Versions
from leasekeeper.messages import FillOutcome, Mark

START_MS: Final = 1_800_000_000_000


class Side(Protocol):
    """A cache with a clock of its own that moves only when it is told to.

    The calls are those of `leasekeeper.store.caches.CacheStore` and, for what is queued to be
    written, the part of a queue that concerns the cached value.
    """

    @property
    def can_step_back(self) -> bool:
        """Whether its clock may."""

    @property
    def has_replica(self) -> bool:
        """Whether it can lose part of what it knows."""

    def look(self, key: str, ask: Ask) -> Seen:
        """See `CacheStore`, also for those that follow."""

    def fill(
        self, key: str, fill: str, content: Content, *, not_modified: bool = False
    ) -> FillOutcome: ...

    def fail(
        self, key: str, fill: str, error: str, retry_after_ms: int | None, jitter: float
    ) -> None: ...

    def unshare(self, key: str, fill: str, ms: int) -> None: ...

    def give_up(self, key: str, fill: str, *, died: bool, jitter: float) -> None: ...

    def set(self, key: str, content: Content) -> int | Conflict: ...

    def invalidate(self, keys: Sequence[str], tags: Sequence[str], mark: Mark) -> None: ...

    def begin_write(
        self, key: str, write: str, tags: tuple[str, ...], ttl_ms: int
    ) -> Intent | Conflict: ...

    def close_write(
        self, key: str, write: str, content: Content | None, tags: tuple[str, ...]
    ) -> Closed: ...

    def put(self, key: str, content: Content) -> int | Conflict:
        """A write is queued."""

    def written(self, key: str, seq: int) -> None:
        """The queued write of this number is carried out."""

    def give_up_write(self, key: str, seq: int) -> None:
        """The queued write of this number will never be carried out."""

    def pass_time(self, ms: int) -> None:
        """Moves the clock; back, if this is negative."""

    def lose_all(self) -> None:
        """All that was kept is lost, and that is noticed."""

    def lose_clock(self) -> None:
        """What is known of tags, and the last number, are lost, and that is noticed."""

    def snapshot(self) -> None:
        """A replica has all until now, and then falls behind."""

    def fail_over(self) -> None:
        """The replica takes over, and that is noticed."""

    def close(self) -> None:
        """The history is over."""


@define(eq=False)
class CoreSide:
    """The rules themselves, kept as a store keeps them: what need not be remembered is forgotten.

    The classes may be others, to see what becomes of a cache with a mistake in it.
    """

    new_entry: Callable[[], Entry] = Entry
    new_versions: Callable[[], Versions] = Versions
    trusts_replica: bool = False
    """A mistake: what a replica does not know of is not made up for."""
    forgets: bool = True
    """At once, as it may; else never, as it may, too."""
    can_step_back: bool = True
    has_replica: bool = True
    ms: int = START_MS
    versions: Versions = field(init=False)
    entries: dict[str, Entry] = field(factory=dict, init=False)
    _behind: tuple[Versions, dict[str, Entry]] | None = field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.versions = self.new_versions()

    @property
    def now(self) -> Now:
        return Now(self.ms, 1000 * self.ms)

    @contextmanager
    def step(self, key: str) -> Iterator[Entry]:
        """The entry of a key, for one call."""
        entry = self.entries.setdefault(key, self.new_entry())
        yield entry
        entry.events.clear()
        self._forget()

    def _forget(self) -> None:
        for key, entry in list(self.entries.items()) if self.forgets else ():
            until_ms = entry.keep_until_ms()
            if until_ms is not None and until_ms <= self.ms:
                del self.entries[key]

    def look(self, key: str, ask: Ask) -> Seen:
        with self.step(key) as entry:
            return entry.look(ask, self.versions, self.now)

    def fill(
        self, key: str, fill: str, content: Content, *, not_modified: bool = False
    ) -> FillOutcome:
        with self.step(key) as entry:
            return entry.fill(fill, content, self.versions, self.now, not_modified=not_modified)

    def fail(
        self, key: str, fill: str, error: str, retry_after_ms: int | None, jitter: float
    ) -> None:
        with self.step(key) as entry:
            entry.fail(fill, error, retry_after_ms, jitter, self.now)

    def unshare(self, key: str, fill: str, ms: int) -> None:
        with self.step(key) as entry:
            entry.unshare(fill, ms, self.now)

    def give_up(self, key: str, fill: str, *, died: bool, jitter: float) -> None:
        with self.step(key) as entry:
            entry.give_up(fill, self.now, died=died, jitter=jitter)

    def set(self, key: str, content: Content) -> int | Conflict:
        with self.step(key) as entry:
            return entry.set(content, self.versions, self.now)

    def invalidate(self, keys: Sequence[str], tags: Sequence[str], mark: Mark) -> None:
        self.versions.mark(tags, mark, self.now)
        for key in keys:
            with self.step(key) as entry:
                entry.invalidate(mark, self.versions, self.now)

    def begin_write(
        self, key: str, write: str, tags: tuple[str, ...], ttl_ms: int
    ) -> Intent | Conflict:
        with self.step(key) as entry:
            self.versions.open(tags, write, self.ms + ttl_ms, self.now)
            begun = entry.begin(write, tags, ttl_ms, self.versions, self.now)
            if isinstance(begun, Conflict):
                self.versions.close(tags, write, self.now)
            return begun

    def close_write(
        self, key: str, write: str, content: Content | None, tags: tuple[str, ...]
    ) -> Closed:
        with self.step(key) as entry:
            return entry.close(write, content, tags, self.versions, self.now)

    def put(self, key: str, content: Content) -> int | Conflict:
        with self.step(key) as entry:
            return entry.put(content, self.versions, self.now)

    def written(self, key: str, seq: int) -> None:
        with self.step(key) as entry:
            entry.written(seq, self.versions, self.now)

    def give_up_write(self, key: str, seq: int) -> None:
        with self.step(key) as entry:
            entry.given_up(seq)

    def pass_time(self, ms: int) -> None:
        self.ms += ms
        self._forget()

    def lose_all(self) -> None:
        self.entries.clear()
        self.lose_clock()

    def lose_clock(self) -> None:
        bounds = self.versions
        self.versions = evolve(self.new_versions(), records_max=bounds.records_max)
        self.versions.distrust(self.now)

    def snapshot(self) -> None:
        self._behind = deepcopy((self.versions, self.entries))

    def fail_over(self) -> None:
        assert self._behind is not None
        (self.versions, self.entries), self._behind = self._behind, None
        if not self.trusts_replica:
            self.versions.distrust(self.now)
        self._forget()

    def close(self) -> None:
        """Nothing to do."""
