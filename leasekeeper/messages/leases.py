"""The wire vocabulary of leases."""

from typing import Annotated

import attrs
from attrs import field, frozen

from leasekeeper.messages.values import (
    NAMES_MAX,
    ORIGINAL_WAIT,
    TTL_DEFAULT_MS,
    HolderLimit,
    HoldMs,
    Items,
    Label,
    LeaseId,
    LostReason,
    Mode,
    Name,
    OnDrop,
    Range,
    Text,
    TtlMs,
    WaitMs,
)

# --- Requests ---------------------------------------------------------------------------------


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


# --- Results ----------------------------------------------------------------------------------


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
