"""The wire vocabulary of write-behind."""

from typing import Annotated

from attrs import field, frozen

from leasekeeper.messages.values import (
    TTL_DEFAULT_MS,
    FillMs,
    FreshMs,
    Items,
    Json,
    Name,
    Range,
    Text,
    WaitMs,
)

ClaimId = Annotated[str, Text(1, 300, r"[A-Za-z0-9._:/@+\-]+")]
ClaimIds = Annotated[tuple[ClaimId, ...], Items(1, 1000)]
Cursor = Annotated[str, Text(1, 400)]

# --- Requests ---------------------------------------------------------------------------------


@frozen
class WritesPut:
    """Replaces the cached value of a key, and queues the write of it, in one step."""

    queue: Name
    key: Name
    value: Json
    ttl_ms: FreshMs | None = None
    """How long the value stays cached once it is written. Absent: no longer than that."""


@frozen
class WritesClaim:
    """Takes queued writes, to carry them out."""

    queue: Name
    max: Annotated[int, Range(1, 1000)] = 16
    wait_ms: WaitMs = 0
    """How long to wait for a first one. 0: answer at once. None (null on the wire): for ever."""
    claim_ms: FillMs = TTL_DEFAULT_MS
    """How long the claims last; others may claim the same writes after that."""


@frozen
class WritesAck:
    """Says that claimed writes are carried out."""

    queue: Name
    ids: ClaimIds = field(repr=False)


@frozen
class WritesRetry:
    """Says that claimed writes have failed, and are to be claimed again later."""

    queue: Name
    ids: ClaimIds = field(repr=False)
    error: Annotated[str, Text(0, 1000)] = ""
    after_ms: Annotated[int, Range(0, 3_600_000)] | None = None
    """How much later. Absent: the server decides, longer every time."""


@frozen
class WritesDead:
    """Asks for the writes that were given up."""

    queue: Name
    limit: Annotated[int, Range(1, 1000)] = 100
    cursor: Cursor | None = None


@frozen
class WritesRevive:
    """Queues writes again that were given up."""

    queue: Name
    keys: Annotated[tuple[Name, ...], Items(1, 1000)]


# --- Results ----------------------------------------------------------------------------------


@frozen
class WriteQueued:
    """The write is queued. `seq` rises with every write of a key."""

    seq: int


@frozen
class ClaimedWrite:
    """A write to carry out: the latest value of its key. The claim is a lease."""

    id: str = field(repr=False)
    key: str
    value: Json
    seq: int
    fence: int
    """Rises with every claim of a key: the database refuses a lower one."""
    attempt: int
    """1 the first time."""


@frozen
class WritesClaimed:
    """The claimed writes, those first that have waited longest."""

    writes: tuple[ClaimedWrite, ...]


@frozen
class DeadWrite:
    """A write that was given up after too many attempts."""

    key: str
    value: Json
    seq: int
    attempts: int
    error: str


@frozen
class DeadPage:
    """A page of them; `cursor` asks for the next, None says that this was the last."""

    writes: tuple[DeadWrite, ...]
    cursor: str | None


@frozen
class WritesRevived:
    """How many were queued again. A key that was written since is not among them."""

    revived: int


@frozen
class WritesSettled:
    """How many of the claims were still held. The others had been given to somebody else."""

    settled: int
