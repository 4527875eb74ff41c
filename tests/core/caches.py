"""How the tests of one cached key speak of it."""

from typing import Final

import pytest
from attrs import define, field

from leasekeeper.core.cache import Entry
from leasekeeper.core.fills import Ask, Closed, Conflict, Content, FillGrant, Intent, News, Seen
from leasekeeper.core.lock import Now
from leasekeeper.core.versions import Versions
from leasekeeper.messages import FillOutcome, Mark

ONE, TWO, SIX = "1" * 32, "2" * 32, "6" * 32
"""Fill ids."""
PEN, INK = "a" * 32, "b" * 32
"""Ids of write-throughs."""
START_MS: Final = 1_800_000_000_000
TTL_MS, STALE_MS, FILL_MS = 60_000, 20_000, 10_000
OLD, NEW = b'"old"', b'"new"'


def at(ms: int) -> Now:
    """A moment of the store's clock, `ms` after the start of a test."""
    return Now(START_MS + ms, 1000 * (START_MS + ms))


@define
class Cached:
    """One key, the clock of its partition, and the time, which stands still until it is set."""

    ms: int = 0
    """Since the start of the test."""
    versions: Versions = field(factory=Versions)
    entry: Entry = field(factory=Entry)
    jitter: float = 0.0
    """Chance, as the next calls have it."""

    @property
    def now(self) -> Now:
        return at(self.ms)

    def look(
        self, fill: str | None = None, *, early: float = 0.0, server: str | None = None
    ) -> Seen:
        """What there is; with `fill`, somebody who can load it."""
        ask = Ask(fill, FILL_MS, early=early, server=server, jitter=self.jitter)
        return self.entry.look(ask, self.versions, self.now)

    def granted(
        self, fill: str = ONE, *, early: float = 0.0, server: str | None = None
    ) -> FillGrant:
        """The fill is granted, which must be possible."""
        grant = self.look(fill, early=early, server=server).grant
        assert grant is not None
        return grant

    def fill(
        self,
        fill: str = ONE,
        value: bytes | None = OLD,
        *tags: str,
        ttl_ms: int = TTL_MS,
        stale_ms: int = 0,
        etag: str | None = None,
        not_modified: bool = False,
    ) -> FillOutcome:
        """What was loaded is handed over."""
        content = Content(value, ttl_ms, stale_ms, tags, etag)
        entry, versions = self.entry, self.versions
        return entry.fill(fill, content, versions, self.now, not_modified=not_modified)

    def loaded(
        self, value: bytes | None = OLD, *tags: str, ttl_ms: int = TTL_MS, stale_ms: int = 0
    ) -> int:
        """Granted and stored at once; returns the fence."""
        fill = f"{self.versions.seq:032}"
        fence = self.granted(fill).fence
        outcome = self.fill(fill, value, *tags, ttl_ms=ttl_ms, stale_ms=stale_ms)
        assert outcome is FillOutcome.STORED
        return fence

    def fail(self, fill: str = ONE, retry_ms: int | None = None) -> None:
        """The load has failed."""
        self.entry.fail(fill, "no luck", retry_ms, self.jitter, self.now)

    def dies(self, fill: str = ONE) -> None:
        """Its filler's session is gone."""
        self.entry.give_up(fill, self.now, died=True, jitter=self.jitter)

    def set(self, value: bytes, *tags: str, ttl_ms: int = TTL_MS) -> int | Conflict:
        """The value is replaced."""
        return self.entry.set(Content(value, ttl_ms, tags=tags), self.versions, self.now)

    def invalidate(self, mark: Mark = Mark.HARD) -> None:
        """By key."""
        self.entry.invalidate(mark, self.versions, self.now)

    def mark(self, tag: str, mark: Mark = Mark.HARD) -> None:
        """By tag."""
        self.versions.mark([tag], mark, self.now)

    def begin(self, write: str = PEN, *tags: str, ttl_ms: int = FILL_MS) -> Intent:
        """A write-through begins, as a store lets it: first for the tags. It must be possible."""
        self.versions.open(tags, write, self.now.ms + ttl_ms, self.now)
        intent = self.entry.begin(write, tags, ttl_ms, self.versions, self.now)
        assert isinstance(intent, Intent)
        return intent

    def close(self, write: str = PEN, value: bytes | None = None, *tags: str) -> Closed:
        """A write-through is over; with a value, it is committed with it."""
        content = None if value is None else Content(value, TTL_MS, tags=tags)
        return self.entry.close(write, content, tags, self.versions, self.now)

    def put(self, value: bytes, *tags: str, ttl_ms: int = 0) -> int:
        """A write is queued, which must be possible."""
        seq = self.entry.put(Content(value, ttl_ms, tags=tags), self.versions, self.now)
        assert isinstance(seq, int)
        return seq

    def written(self, seq: int) -> None:
        """The queued write of this number is done."""
        self.entry.written(seq, self.versions, self.now)

    @property
    def value(self) -> bytes | None:
        """What who takes a stale value too is given."""
        found = self.look().found
        return found.value if found else None

    @property
    def state(self) -> str:
        """In a word, what who could load it would be told. Grants nothing."""
        seen = self.look()
        if seen.found:
            return "fresh" if seen.found.fresh else "stale"
        if seen.negative_ms is not None:
            return "negative"
        return "failed" if seen.failed else "none"

    @property
    def keep_ms(self) -> int:
        """Until when the key must be remembered; 0: it need not be."""
        until_ms = self.entry.keep_until_ms()
        assert until_ms is not None
        return max(0, until_ms - START_MS)

    def told(self) -> list[str]:
        """The servers that should look again, since this was last asked."""
        events, self.entry.events = self.entry.events, []
        assert all(isinstance(each, News) for each in events)
        return [each.server for each in events]


# The ways in which what is there, and what is being loaded, becomes void. Values have these tags.


def invalidate_key(key: Cached) -> None:
    """By key."""
    key.invalidate()


def invalidate_tag(key: Cached) -> None:
    """By one of its tags."""
    key.mark("t2")


def set_value(key: Cached) -> None:
    """By a new value, which itself is out of the way by then."""
    key.set(NEW)
    key.invalidate()


def begin_and_abort(key: Cached) -> None:
    """By a write-through."""
    key.begin()
    key.close()


def begin_and_abort_tag(key: Cached) -> None:
    """By a write-through of another key with its tag."""
    key.versions.open(["t2"], PEN, at(key.ms + FILL_MS).ms, key.now)
    key.versions.close(["t2"], PEN, key.now)


def lose_data(key: Cached) -> None:
    """Something may have been lost."""
    key.versions.distrust(key.now)


WAYS = pytest.mark.parametrize(
    "void",
    [
        invalidate_key,
        invalidate_tag,
        set_value,
        begin_and_abort,
        begin_and_abort_tag,
        lose_data,
    ],
)
