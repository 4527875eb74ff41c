"""What the values of messages may be, and the words that messages share."""

from enum import StrEnum
from typing import Annotated, Final

from attrs import field, frozen


@frozen
class Text:
    """A string of `minimum` to `maximum` characters that matches `pattern` as a whole."""

    minimum: int
    maximum: int
    pattern: str | None = None


@frozen
class Range:
    """An integer from `minimum` to `maximum`, both allowed."""

    minimum: int
    maximum: int


@frozen
class Null:
    """Null is a value here. Elsewhere a field may be absent, but never null."""


@frozen
class Absent:
    """Of a result: it is left out where it is None, instead of being null."""


@frozen
class Items:
    """A list of `minimum` to `maximum` items."""

    minimum: int
    maximum: int


@frozen
class Json:
    """Any JSON value, null too, as its text in UTF-8. Nobody but its peers looks into it."""

    text: bytes = field(repr=False)


TTL_MIN_MS: Final = 100
TTL_MAX_MS: Final = 3_600_000
TTL_DEFAULT_MS: Final = 30_000
NAMES_MAX: Final = 16
INTEGER_MAX: Final = 2**53 - 1
"""The largest integer that JSON, JavaScript and Lua all hold exactly."""
FILL_MIN_MS: Final = 100
FILL_MAX_MS: Final = 600_000
FILL_DEFAULT_MS: Final = 10_000
GET_WAIT_DEFAULT_MS: Final = 30_000
LIFE_MAX_MS: Final = 30 * 24 * 3_600_000
"""The longest TTL, and the longest time beyond it, of a cached value: thirty days."""
INTENT_DEFAULT_MS: Final = 10_000
TAGS_MAX: Final = 16
ORIGINAL_WAIT: Final = -1
"""Stands for an absent `wait_ms` in `lease.resume`. No peer can send it."""

Name = Annotated[str, Text(1, 255, r"[A-Za-z0-9._:/@+\-]+")]
LeaseId = Annotated[str, Text(32, 32, r"[0-9a-fA-F]+")]
Label = Annotated[str, Text(0, 255)]
Token = Annotated[str, Text(1, 4096)]
TtlMs = Annotated[int, Range(TTL_MIN_MS, TTL_MAX_MS)]
WaitMs = Annotated[int | None, Range(0, INTEGER_MAX), Null()]
HoldMs = Annotated[int, Range(TTL_MIN_MS, INTEGER_MAX)]
HolderLimit = Annotated[int, Range(1, 10_000)]
FillMs = Annotated[int, Range(FILL_MIN_MS, FILL_MAX_MS)]
FreshMs = Annotated[int, Range(1, LIFE_MAX_MS)]
StaleMs = Annotated[int, Range(0, LIFE_MAX_MS)]
Tags = Annotated[tuple[Name, ...], Items(0, TAGS_MAX)]
Etag = Annotated[str, Text(1, 255)]
RequestId = str | int | float | None

Key = tuple[str, str]
"""(name, lease id): what everything about a lease is filed under."""


class Mode(StrEnum):
    """How a name is held."""

    EXCLUSIVE = "exclusive"
    SHARED = "shared"


class Liveness(StrEnum):
    """What counts as a sign of life of a session."""

    PONG = "pong"
    HEARTBEAT = "heartbeat"


class OnDrop(StrEnum):
    """What a dropped connection does to a lease."""

    KEEP = "keep"
    RELEASE = "release"


class LostReason(StrEnum):
    """Why a lease was lost."""

    EXPIRED = "expired"
    BROKEN = "broken"
    MAX_HOLD = "max_hold"
    STORE_LOST = "store_lost"


class Mark(StrEnum):
    """What an invalidation does to a value."""

    HARD = "hard"
    """It is gone."""
    SOFT = "soft"
    """It is stale from now on, and may be served as such while its `stale_ms` last."""


class CacheState(StrEnum):
    """What a `cache.get` comes to."""

    HIT = "hit"
    STALE = "stale"
    FILL = "fill"
    NEGATIVE = "negative"


class FillOutcome(StrEnum):
    """What became of a fill."""

    STORED = "stored"
    VOIDED = "voided"
    """What it was loaded from may have changed since: an invalidation, a write, lost data."""
    SUPERSEDED = "superseded"
    """A later fill was stored already."""
    TOO_LATE = "too_late"
    """Nobody remembers this fill."""
    TOO_LARGE = "too_large"
