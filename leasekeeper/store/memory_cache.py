"""The embedded cache: `leasekeeper.core.cache`, a clock, and a bound for the memory it takes.

As in the rest of the embedded store no call blocks, and none is a checkpoint.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import trio
from attrs import define, field

from leasekeeper.core.cache import Entry
from leasekeeper.core.fills import Ask, Closed, Conflict, Content, Intent, Seen
from leasekeeper.core.lock import Now
from leasekeeper.core.versions import Versions
from leasekeeper.messages import FillOutcome, Mark
from leasekeeper.store.alarms import Alarms
from leasekeeper.store.caches import KeyNews

_BYTES_MAX: Final = 256 * 1024 * 1024
_ENTRY_BYTES: Final = 1_000
"""What an entry takes beside its value, about."""
_EVICTED_AT_ONCE: Final = 100


@define(eq=False)
class MemoryCache:
    """Values in this process. All keys share one clock, so fences rise over all.

    The clock is Trio's, counted from 1970: it never steps, and fences rise across restarts.

    When values take more than `bytes_max`, those that were not used for longest are given up.
    """

    wall_us: Callable[[], int]
    bytes_max: int = _BYTES_MAX
    versions: Versions = field(factory=Versions, init=False)
    _entries: OrderedDict[str, Entry] = field(factory=OrderedDict, init=False, repr=False)
    """Those that were used last are at the end."""
    _bytes: int = field(default=0, init=False)
    _alarms: Alarms[str] = field(init=False, repr=False)
    _began_us: int | None = field(default=None, init=False)
    """What the wall clock showed when Trio's showed zero."""
    _on_event: Callable[[KeyNews], None] = field(default=lambda _: None, init=False)

    def __attrs_post_init__(self) -> None:
        self._alarms = Alarms(self._forget)

    async def run(self, on_event: Callable[[KeyNews], None]) -> None:
        """Forgets what does not matter any more, until cancelled."""
        self._on_event = on_event
        await self._alarms.run()

    def __len__(self) -> int:
        return len(self._entries)

    async def look(self, key: str, ask: Ask) -> Seen:
        """What there is of a key."""
        with self.step(key) as (entry, now):
            return entry.look(ask, self.versions, now)

    async def fill(
        self, key: str, fill: str, content: Content, *, not_modified: bool = False
    ) -> FillOutcome:
        """Stores what a fill has loaded, if it is not too old."""
        with self.step(key) as (entry, now):
            return entry.fill(fill, content, self.versions, now, not_modified=not_modified)

    async def fail(
        self, key: str, fill: str, error: str, retry_after_ms: int | None, jitter: float
    ) -> None:
        """A load has failed."""
        with self.step(key) as (entry, now):
            entry.fail(fill, error, retry_after_ms, jitter, now)

    async def unshare(self, key: str, fill: str, ms: int) -> None:
        """For so long everybody loads for himself."""
        with self.step(key) as (entry, now):
            entry.unshare(fill, ms, now)

    async def give_up(self, key: str, fill: str, *, died: bool, jitter: float) -> None:
        """Somebody else may have the fill."""
        with self.step(key) as (entry, now):
            entry.give_up(fill, now, died=died, jitter=jitter)

    async def wait_for(self, key: str, fill: str, on: str | None) -> None:
        """Whoever has this fill waits for another key, or waits no more."""
        with self.step(key) as (entry, _):
            entry.wait_for(fill, on)

    async def waits_for(self, key: str) -> str | None:
        """What whoever loads this key waits for."""
        with self.step(key) as (entry, _):
            return entry.waits_for

    async def set(self, key: str, content: Content) -> int | Conflict:
        """Replaces a value."""
        with self.step(key) as (entry, now):
            return entry.set(content, self.versions, now)

    async def invalidate(self, keys: Sequence[str], tags: Sequence[str], mark: Mark) -> None:
        """Makes values invalid."""
        if tags:
            self.versions.mark(tags, mark, self.now())
        for key in keys:
            with self.step(key) as (entry, now):
                entry.invalidate(mark, self.versions, now)

    async def begin_write(
        self, key: str, write: str, tags: tuple[str, ...], ttl_ms: int
    ) -> Intent | Conflict:
        """A write-through begins."""
        with self.step(key) as (entry, now):
            self.versions.open(tags, write, now.ms + ttl_ms, now)
            begun = entry.begin(write, tags, ttl_ms, self.versions, now)
            if isinstance(begun, Conflict):
                self.versions.close(tags, write, now)
            return begun

    async def close_write(
        self, key: str, write: str, content: Content | None, tags: tuple[str, ...]
    ) -> Closed:
        """A write-through is over."""
        with self.step(key) as (entry, now):
            return entry.close(write, content, tags, self.versions, now)

    @contextmanager
    def step(self, key: str) -> Iterator[tuple[Entry, Now]]:
        """One atomic step on a key: afterwards its events are told, and its end is known."""
        now = self.now()
        entry = self._entries.pop(key, None)
        if entry is None:
            entry = Entry()
        else:
            self._bytes -= entry.size + _ENTRY_BYTES
        try:
            yield entry, now
        finally:
            self._keep(key, entry, now)
            for _ in entry.events:
                self._on_event(KeyNews(key))
            entry.events.clear()
            self._make_room()

    def _make_room(self) -> None:
        for _ in range(_EVICTED_AT_ONCE):
            if self._bytes <= self.bytes_max or not self._entries:
                return
            key, entry = self._entries.popitem(last=False)
            self._bytes -= entry.size + _ENTRY_BYTES
            entry.evict()
            self._keep(key, entry, self.now())

    def _keep(self, key: str, entry: Entry, now: Now) -> None:
        """Puts an entry back where it was taken from, unless it does not matter any more."""
        until_ms = entry.keep_until_ms()
        if until_ms is not None and until_ms <= now.ms:
            self._alarms.discard(key)
            return
        self._entries[key] = entry
        self._bytes += entry.size + _ENTRY_BYTES
        if until_ms is None:
            self._alarms.discard(key)
        else:
            self._alarm(key, until_ms)

    def _forget(self, key: str) -> None:
        with self.step(key):
            pass

    def now(self) -> Now:
        """The time of its clock."""
        trio_us = int(trio.current_time() * 1_000_000)
        if self._began_us is None:
            self._began_us = self.wall_us() - trio_us
        us = self._began_us + trio_us
        return Now(us // 1000, us)

    def _alarm(self, key: str, until_ms: int) -> None:
        assert self._began_us is not None
        # One more, for both clocks are rounded down.
        self._alarms.set(key, until_ms - self._began_us // 1000 + 1)
