"""A database behind a cache, and what the laws say of what is read from the cache.

Written from the laws (L10, L11), and not from the rules: it knows what was in the database when,
and what was announced, and nothing of fences but that they rise.
"""

from collections.abc import Iterable
from typing import Final

from attrs import define, field

from leasekeeper.core.fills import Content, Seen
from leasekeeper.messages import Mark

KEYS: Final = ("k1", "k2")
TAGS: Final = ("t1", "t2")
FILL_MS: Final = 200


@define(eq=False)
class Value:
    """What somebody has made of the database.

    `rows` is how new each row was then. It depends on its key's row and, as its tags say, on those
    of its tags. A negative one says that there is no such thing.
    """

    text: bytes
    rows: dict[str, int]
    tags: tuple[str, ...] = ()
    negative: bool = False

    def depends_on(self, key: str) -> tuple[str, ...]:
        """The rows that are behind it."""
        return (key, *self.tags)


@define(eq=False)
class Kept:
    """The last value of a key that the cache can have."""

    value: Value
    fence: int
    granted_ms: int
    stored_ms: int
    ttl_ms: int
    stale_ms: int = 0
    dirty: int = 0
    """The number of the queued write; 0: it is not queued."""
    carried_out: bool = False


@define(eq=False)
class Load:
    """A fill that was granted, and what its filler has loaded so far."""

    key: str
    fill: str
    fence: int
    granted_ms: int
    shared: bool
    shown: Value | None = None
    value: Value | None = None
    disturbed: bool = False
    """Something was changed of its key since its grant."""
    touched: set[str] = field(factory=set)
    """The tags of which something was changed since."""
    after: int = 0
    """How many were granted of its key since."""

    @property
    def until_ms(self) -> int:
        return self.granted_ms + FILL_MS

    @property
    def is_same(self) -> bool:
        """Whether what was loaded is what the filler was shown, as its etag would say."""
        value, shown = self.value, self.shown
        if value is None or shown is None or value.negative:
            return False
        return all(value.rows[row] == shown.rows[row] for row in shown.depends_on(self.key))


@define(eq=False)
class Writer:
    """A write-through: begun, perhaps committed in the database, perhaps never heard of again."""

    key: str
    write: str
    tags: tuple[str, ...]
    until_ms: int
    fence: int
    versions: dict[str, int] = field(factory=dict)
    """Of the rows it has written."""
    value: Value | None = None
    alone: bool = True
    """No other of its key was known when it began."""
    overlapped: bool = False
    """Another was open for certain."""
    disturbed: bool = False
    touched: set[str] = field(factory=set)
    over: bool = False
    """Its time has come."""
    forgotten: bool = False
    """The cache may have lost it."""
    late: bool = False
    """It has committed after its time, or after it was forgotten."""


@define
class Database:
    """Rows, each with the number of its last change; and what was announced of them."""

    rows: dict[str, int] = field(factory=lambda: dict.fromkeys((*KEYS, *TAGS), 0))
    version: int = 0
    announced: dict[Mark, dict[str, int]] = field(
        factory=lambda: {mark: dict.fromkeys((*KEYS, *TAGS), 0) for mark in Mark}
    )
    """Of each row the last change of which the cache has confirmed an invalidation."""
    values: int = 0

    def write(self, rows: Iterable[str]) -> dict[str, int]:
        """Changes rows."""
        self.version += 1
        changed = dict.fromkeys(rows, self.version)
        self.rows.update(changed)
        return changed

    def read(self, tags: tuple[str, ...] = (), *, negative: bool = False) -> Value:
        """What is there now."""
        self.values += 1
        return Value(f"{self.values}".encode(), dict(self.rows), tags, negative)

    def announce(self, rows: dict[str, int], mark: Mark = Mark.HARD) -> None:
        """The invalidation of these changes is confirmed. A hard one is a soft one, too."""
        for each in {mark, Mark.SOFT}:
            for row, version in rows.items():
                self.announced[each][row] = max(self.announced[each][row], version)


def check_read(database: Database, key: str, seen: Seen, kept: Kept | None, now_ms: int) -> None:
    """L11: what is read was not made before a change that was announced before the read began.

    It is the last value that was stored, and within its time.
    """
    if seen.found is None and seen.negative_ms is None:
        assert kept is None or not kept.dirty, "a queued value is read until it is written"
        return
    assert kept is not None, "where does that come from?"
    assert kept.value.negative == (seen.found is None)
    if seen.found is not None:
        assert seen.found.value == kept.value.text
    if kept.dirty:
        assert seen.found is not None
        assert seen.found.fresh
        assert seen.grant is None
        return
    fresh = seen.found is None or seen.found.fresh
    for row in kept.value.depends_on(key):
        assert kept.value.rows[row] >= database.announced[Mark.HARD][row], "L11"
        assert not fresh or kept.value.rows[row] >= database.announced[Mark.SOFT][row], "L11, soft"
    until_ms = kept.stored_ms + kept.ttl_ms
    assert now_ms < until_ms + (0 if fresh else kept.stale_ms)
    if seen.negative_ms is not None:
        assert seen.grant is None


def check_refresh(kept: Kept | None, early: float, now_ms: int) -> None:
    """A fresh value is loaded anew only as XFetch says, and in the second half of its TTL."""
    assert kept is not None
    assert now_ms >= kept.stored_ms + kept.ttl_ms // 2
    load_ms = kept.stored_ms - kept.granted_ms
    assert now_ms + load_ms * early >= kept.stored_ms + kept.ttl_ms


def content_of(value: Value, ttl_ms: int, stale_ms: int = 0) -> Content:
    """As it is handed over. Its etag is its text."""
    text = None if value.negative else value.text
    return Content(text, ttl_ms, stale_ms, value.tags, value.text.decode())
