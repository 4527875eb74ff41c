"""The wire vocabulary of the cache."""

from typing import Annotated, Literal

from attrs import field, frozen

from leasekeeper.messages.values import (
    FILL_DEFAULT_MS,
    GET_WAIT_DEFAULT_MS,
    INTENT_DEFAULT_MS,
    Absent,
    CacheState,
    Etag,
    FillMs,
    FillOutcome,
    FreshMs,
    Items,
    Json,
    LeaseId,
    Mark,
    Name,
    Range,
    StaleMs,
    Tags,
    Text,
    WaitMs,
)

# --- Requests ---------------------------------------------------------------------------------


@frozen
class CacheGet:
    """Asks for a value: to have it, to wait for it, or to be the one who loads it."""

    key: Name
    wait_ms: WaitMs = GET_WAIT_DEFAULT_MS
    """0: answer at once. None (null on the wire): wait for ever."""
    can_fill: bool = True
    stale_ok: bool = True
    fill_ms: FillMs = FILL_DEFAULT_MS
    """How long the fill may take, if the caller is to load it."""
    within_key: Name | None = None
    """The key that the caller is loading meanwhile, so that a deadlock can be told."""
    within_fill: LeaseId | None = field(default=None, repr=False)
    """The fill of `within_key`."""


@frozen
class CacheFill:
    """Hands over what a fill has loaded."""

    key: Name
    fill: LeaseId = field(repr=False)
    ttl_ms: FreshMs
    value: Json | None = None
    """Left out only with `not_modified`."""
    stale_ms: StaleMs = 0
    """How long after its TTL the value may be served as stale."""
    tags: Tags = ()
    etag: Etag | None = None
    """What the next filler is shown, to find out whether the value has changed."""
    not_modified: bool = False
    """The value that is there is as good as new."""


@frozen
class CacheFail:
    """Says that a fill has come to nothing."""

    key: Name
    fill: LeaseId = field(repr=False)
    error: Annotated[str, Text(0, 1000)]
    """What those who wait are told."""
    retry_after_ms: Annotated[int, Range(0, 3_600_000)] | None = None
    """Until then nobody is asked to load it. Absent: the server decides, longer every time."""
    not_found: bool = False
    """There is no such thing: that is remembered for `ttl_ms`."""
    ttl_ms: FreshMs | None = None
    tags: Tags = ()
    """Those of the negative entry."""
    private_ms: FreshMs | None = None
    """The value is for this caller alone: for so long, everybody loads for himself."""
    promote: bool = False
    """The caller gives up, and it is nobody's fault: one of those who wait takes over."""


@frozen
class CacheSet:
    """Replaces a value. Any fill under way is void."""

    key: Name
    value: Json
    ttl_ms: FreshMs
    stale_ms: StaleMs = 0
    tags: Tags = ()
    etag: Etag | None = None


@frozen
class CacheInvalidate:
    """Makes values invalid, by key and by tag, and the fills that are under way."""

    keys: Annotated[tuple[Name, ...], Items(0, 1000)] = ()
    tags: Annotated[tuple[Name, ...], Items(0, 100)] = ()
    mode: Mark = Mark.HARD


@frozen
class CacheBeginWrite:
    """Says that what a key and these tags are loaded from is about to change."""

    key: Name
    tags: Tags = ()
    ttl_ms: FillMs = INTENT_DEFAULT_MS
    """How long the write may take. Its transaction must be over by then."""
    write: LeaseId | None = field(default=None, repr=False)
    """Chosen by the client, for retries."""


@frozen
class CacheCommitWrite:
    """Says that the write is done; with `value`, what is true now."""

    key: Name
    write: LeaseId = field(repr=False)
    value: Json | None = None
    ttl_ms: FreshMs | None = None
    """Goes with `value`."""
    stale_ms: StaleMs = 0
    tags: Tags = ()
    etag: Etag | None = None


@frozen
class CacheAbortWrite:
    """Says that the write was given up. What it may have changed is invalidated all the same."""

    key: Name
    write: LeaseId = field(repr=False)
    tags: Tags = ()
    """Those of its begin, should that be forgotten."""


# --- Results ----------------------------------------------------------------------------------


@frozen
class Refresh:
    """The caller is asked to load the value anew, while others have the present one."""

    fill: str = field(repr=False)
    fence: int
    fill_ms: int
    etag: Annotated[str | None, Absent()] = None


@frozen
class CacheHit:
    """A value: fresh ("hit"), or past its TTL ("stale")."""

    state: Literal[CacheState.HIT, CacheState.STALE]
    value: Json
    age_ms: int
    ttl_ms: int
    """What is left of its TTL; 0 when it is stale."""
    refresh: Annotated[Refresh | None, Absent()] = None


@frozen
class CacheToFill:
    """The caller is to load the value, within `fill_ms` from the grant."""

    fill: str = field(repr=False)
    fence: int
    fill_ms: int
    shared: bool
    """Whether others wait for it. If not, it need not be handed over: it will not be stored."""
    etag: Annotated[str | None, Absent()] = None
    """Of the old value that `not_modified` would make new."""
    state: Literal[CacheState.FILL] = CacheState.FILL


@frozen
class CacheNegative:
    """There is no such thing, as was found out lately."""

    retry_after_ms: int
    state: Literal[CacheState.NEGATIVE] = CacheState.NEGATIVE


@frozen
class CacheFilled:
    """What became of the fill. Whatever it is, the caller has its value."""

    outcome: FillOutcome


@frozen
class CacheWriting:
    """A write-through: until its commit, its abort, or its end, nothing older is cached."""

    write: str = field(repr=False)
    fence: int
    ttl_ms: int


@frozen
class CacheWritten:
    """The end of a write-through; the old state is not cached anywhere."""

    stored: bool
    """Whether the given value is cached now. It is not if another write went on meanwhile."""
    in_time: bool
    """Whether the write was still open. If not, its transaction may have come too late."""
