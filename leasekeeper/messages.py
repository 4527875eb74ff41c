"""The wire vocabulary: frozen attrs classes, nothing else.

Durations are integers of milliseconds and end in `_ms`; fences are integers below 2**53. What a
value may be stands in its type, as `Text` or `Range`, where the decoder enforces it and the
generated schema shows it. Lease ids are capabilities (law L7) and stay out of every `repr`.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Final

import attrs
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
class Items:
    """A list of `minimum` to `maximum` items."""

    minimum: int
    maximum: int


TTL_MIN_MS: Final = 100
TTL_MAX_MS: Final = 3_600_000
TTL_DEFAULT_MS: Final = 30_000
NAMES_MAX: Final = 16
INTEGER_MAX: Final = 2**53 - 1
"""The largest integer that JSON, JavaScript and Lua all hold exactly."""
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


# --- Requests ---------------------------------------------------------------------------------


@frozen
class SessionOpen:
    """Says who the client is, and how it shows that it is alive."""

    client: Label | None = None
    token: Token | None = field(default=None, repr=False)
    liveness: Liveness = Liveness.PONG
    batch: bool = False


@frozen
class SessionHeartbeat:
    """A sign of life that renews every lease of the session."""


@frozen
class RpcCancel:
    """Cancels an outstanding request of the same connection."""

    id: RequestId


@frozen
class LeaseAcquire:
    """Asks for one name."""

    name: Name
    ttl_ms: TtlMs = TTL_DEFAULT_MS
    wait_ms: WaitMs = 0
    """0: answer at once. None (null on the wire): wait for ever."""
    mode: Mode = Mode.EXCLUSIVE
    limit: HolderLimit | None = None
    label: Label | None = None
    lease: LeaseId | None = field(default=None, repr=False)
    auto_renew: bool = True
    max_hold_ms: HoldMs | None = None
    on_drop: OnDrop = OnDrop.KEEP


@frozen
class LeaseAcquireAll:
    """Asks for several names: all or nothing, under one lease id, taken in sorted order."""

    names: Annotated[tuple[Name, ...], Items(2, NAMES_MAX)]
    ttl_ms: TtlMs = TTL_DEFAULT_MS
    wait_ms: WaitMs = 0
    mode: Mode = Mode.EXCLUSIVE
    limit: HolderLimit | None = None
    label: Label | None = None
    lease: LeaseId | None = field(default=None, repr=False)
    auto_renew: bool = True
    max_hold_ms: HoldMs | None = None
    on_drop: OnDrop = OnDrop.KEEP

    def one(self, name: str, lease: str) -> LeaseAcquire:
        """The request for one of the names."""
        fields = attrs.asdict(self, recurse=False)
        del fields["names"]
        return LeaseAcquire(**(fields | {"name": name, "lease": lease}))


@frozen
class LeaseRenew:
    """Extends a held lease to its full TTL, or to a new one."""

    name: Name
    lease: LeaseId = field(repr=False)
    ttl_ms: TtlMs | None = None


@frozen
class LeaseRelease:
    """Gives a lease back, or leaves the queue."""

    name: Name
    lease: LeaseId = field(repr=False)


@frozen
class LeaseResume:
    """Takes a lease, or a place in the queue, over into this session."""

    name: Name
    lease: LeaseId = field(repr=False)
    wait_ms: WaitMs = ORIGINAL_WAIT
    """Absent: a wait goes on to its own deadline. 0 and None as in `LeaseAcquire`."""


@frozen
class LeaseInspect:
    """Asks who holds a name, and who waits for it."""

    name: Name


@frozen
class LeaseList:
    """Asks for all held leases, a page at a time, ordered by name and fence."""

    prefix: Annotated[str, Text(0, 255, r"[A-Za-z0-9._:/@+\-]*")] = ""
    limit: Annotated[int, Range(1, 1000)] = 100
    cursor: Annotated[str, Text(1, 300)] | None = None


@frozen
class LeaseBreak:
    """Puts every holder of a name out."""

    name: Name
    reason: Label | None = None


@frozen
class LeaseWatch:
    """Asks to be told of every change of a name's holders."""

    name: Name


@frozen
class LeaseUnwatch:
    """Ends a watch."""

    name: Name


Params = (
    SessionOpen
    | SessionHeartbeat
    | RpcCancel
    | LeaseAcquire
    | LeaseAcquireAll
    | LeaseRenew
    | LeaseRelease
    | LeaseResume
    | LeaseInspect
    | LeaseList
    | LeaseBreak
    | LeaseWatch
    | LeaseUnwatch
)


# --- Results ----------------------------------------------------------------------------------


@frozen
class SessionOpened:
    """The session, and what the server allows."""

    session: str
    server: str
    version: str
    protocol: int
    heartbeat_ms: int
    """A client of liveness "heartbeat" shows life at least this often, and within TTL / 3."""
    limits: Mapping[str, int]


@frozen
class HeartbeatSeen:
    """What a heartbeat renewed, and what was found to be gone."""

    lost: tuple[str, ...] = field(repr=False)
    renewed: int


@frozen
class CancelAnswer:
    """Whether there was something to cancel."""

    cancelled: bool


@frozen
class LeaseGrant:
    """A lease. The holder's deadline is send time + waited_ms + ttl_ms - its drift margin."""

    name: str
    lease: str = field(repr=False)
    fence: int
    ttl_ms: int
    waited_ms: int


@frozen
class LeaseGrants:
    """All the leases of `lease.acquire_all`, ordered by name."""

    leases: tuple[LeaseGrant, ...]


@frozen
class LeaseRenewed:
    """How long the lease lasts from now, unless it is renewed again."""

    ttl_ms: int


@frozen
class LeaseReleased:
    """Whether the lease was held until now."""

    released: bool


@frozen
class HolderView:
    """A holder, as others may see it: never its lease id."""

    fence: int
    mode: Mode
    label: str | None
    held_ms: int
    ttl_ms: int
    client: str | None
    foreign: bool = False
    """True for a lock that another program took on the same key of a shared store."""


@frozen
class WaiterView:
    """A waiter, as others may see it. Position 1 is next."""

    position: int
    mode: Mode
    label: str | None
    waiting_ms: int
    client: str | None


@frozen
class LeaseState:
    """A name: its holders in the order of their fences, and the first of its waiters."""

    name: str
    holders: tuple[HolderView, ...]
    waiting: tuple[WaiterView, ...]
    waiting_total: int


@frozen
class ListedLease:
    """One held lease in `lease.list`."""

    name: str
    fence: int
    mode: Mode
    label: str | None
    held_ms: int
    ttl_ms: int
    client: str | None
    foreign: bool
    waiting: int


@frozen
class LeasePage:
    """A page of leases; `cursor` asks for the next, None says that this was the last."""

    leases: tuple[ListedLease, ...]
    cursor: str | None


@frozen
class LeaseBroken:
    """How many holders were put out."""

    broken: int


@frozen
class Done:
    """Nothing to report."""


Result = (
    SessionOpened
    | HeartbeatSeen
    | CancelAnswer
    | LeaseGrant
    | LeaseGrants
    | LeaseRenewed
    | LeaseReleased
    | LeaseState
    | LeasePage
    | LeaseBroken
    | Done
)


# --- Notifications ----------------------------------------------------------------------------


@frozen
class LeaseLost:
    """Sent to the session that held the lease: stop now."""

    name: str
    lease: str = field(repr=False)
    fence: int
    reason: LostReason
    detail: str | None = None
    """What the one who broke it said."""


@frozen
class LeaseContended:
    """Sent to a holder, at most once a second per lease, when others start to wait."""

    name: str
    lease: str = field(repr=False)
    waiting: int


@frozen
class LeaseChanged:
    """Sent to those who watch, on every change of holders: the new state."""

    name: str
    holders: tuple[HolderView, ...]
    waiting: tuple[WaiterView, ...]
    waiting_total: int


@frozen
class ServerDraining:
    """This server is going away; connect to another after this time."""

    reconnect_after_ms: int


Notification = LeaseLost | LeaseContended | LeaseChanged | ServerDraining

METHODS: Final[Mapping[str, tuple[type[Params], type[Result]]]] = {
    "session.open": (SessionOpen, SessionOpened),
    "session.heartbeat": (SessionHeartbeat, HeartbeatSeen),
    "rpc.cancel": (RpcCancel, CancelAnswer),
    "lease.acquire": (LeaseAcquire, LeaseGrant),
    "lease.acquire_all": (LeaseAcquireAll, LeaseGrants),
    "lease.renew": (LeaseRenew, LeaseRenewed),
    "lease.release": (LeaseRelease, LeaseReleased),
    "lease.resume": (LeaseResume, LeaseGrant),
    "lease.inspect": (LeaseInspect, LeaseState),
    "lease.list": (LeaseList, LeasePage),
    "lease.break": (LeaseBreak, LeaseBroken),
    "lease.watch": (LeaseWatch, LeaseState),
    "lease.unwatch": (LeaseUnwatch, Done),
}

NOTIFICATIONS: Final[Mapping[type[Notification], str]] = {
    LeaseLost: "lease.lost",
    LeaseContended: "lease.contended",
    LeaseChanged: "lease.changed",
    ServerDraining: "server.draining",
}
