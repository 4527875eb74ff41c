"""Sessions, and what they have in the store.

A session is one client's connection, or what a dropped one left behind. Its tenures are what the
store knows it by: each a lease id that holds a name or waits for it.
"""

import math
from collections.abc import Callable
from enum import Enum, auto
from typing import Final

import trio
from attrs import define, field

from leasekeeper.core.lock import Claim, Granted
from leasekeeper.errors import InvalidParams, RpcError
from leasekeeper.messages import Key, Liveness, Notification, OnDrop

IN_USE_OTHERWISE: Final = "is in use with another mode or limit"


class SessionState(Enum):
    """Where a session is in its life."""

    ATTACHED = auto()
    """It has a connection."""
    DETACHED = auto()
    """Its connection dropped; what it has may be resumed until its grace ends."""
    ENDED = auto()
    """What it had was released, or resumed by others."""


class SessionEvent(Enum):
    """What can happen to a session."""

    CLOSED = auto()
    DROPPED = auto()
    GRACE_OVER = auto()


TRANSITIONS: Final = {
    (SessionState.ATTACHED, SessionEvent.CLOSED): SessionState.ENDED,
    (SessionState.ATTACHED, SessionEvent.DROPPED): SessionState.DETACHED,
    (SessionState.DETACHED, SessionEvent.GRACE_OVER): SessionState.ENDED,
}


class Stage(Enum):
    """Where a tenure is."""

    ASKED = auto()
    """The store has not answered yet."""
    WAITING = auto()
    """In the queue."""
    HELD = auto()
    OVER = auto()
    """Busy, released, lost, or moved to another session."""


@define(eq=False)
class Tenure:
    """One lease id on one name, as the session that has it sees it.

    Several requests may wait on one tenure, when a request was repeated.
    """

    name: str
    session: "Session" = field(repr=False)
    claim: Claim
    auto_renew: bool = True
    on_drop: OnDrop = OnDrop.KEEP
    wait_until: float = math.inf
    """When the wait that was asked for last ends, in seconds of Trio's clock."""
    stage: Stage = Stage.ASKED
    fence: int = 0
    """That of its grant; while it waits, one that its grant will be above."""
    due_ms: int = 0
    """When it should next be renewed."""
    expires_ms: int = 0
    """When it runs out, unless it is renewed; not later than the store says."""
    asked_ms: int = 0
    """When the store was last asked for it."""
    is_final: bool = False
    """Whether it ends with its max hold, however often it is renewed."""
    renewing_ms: int | None = None
    """Since when a renewal is being tried, until one succeeds."""
    contended_ms: int | None = None
    """When the holder was last told that others wait."""
    requests: int = 0
    """How many requests wait on it now."""
    asking: bool = False
    """Whether a request asks the store now."""
    next_to_ask: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    """The requests that will ask when it has its answer, one after the other."""
    promised: bool = False
    """Whether an answer with its grant has gone out, and its client believes in it."""
    told: bool = False
    """Whether a request was answered with its grant."""
    stays: bool = False
    """Whether the store may have it for another session, from which it was to be resumed."""
    outcome: Granted | RpcError | None = None
    settled: trio.Event = field(factory=trio.Event)

    @property
    def lease(self) -> str:
        """Its lease id."""
        return self.claim.lease

    @property
    def key(self) -> Key:
        """What it is filed under."""
        return self.name, self.claim.lease

    def left_ms(self) -> int | None:
        """What is left of its wait; None: it waits for ever."""
        if self.wait_until == math.inf:
            return None
        return max(0, int((self.wait_until - trio.current_time()) * 1000))

    def refuse_other(self, claim: Claim) -> None:
        """A lease id may not be used with another mode or limit.

        Raises:
            InvalidParams: the claim does.
        """
        known = self.claim
        if known.ttl_ms and (known.mode, known.limit) != (claim.mode, claim.limit):
            raise InvalidParams("$.lease", IN_USE_OTHERWISE)

    def settle(self, outcome: Granted | RpcError) -> None:
        """Says how the wait ended. The last word counts: what was granted may be lost again
        before those who wait for it have come to read it."""
        self.outcome = outcome
        self.settled.set()


@define(eq=False)
class Session:
    """One client. `notify` and `ping` never block; they do nothing once the connection is gone.

    It does not talk to the store; `LeaseService` does.
    """

    id: str
    notify: Callable[[Notification], None]
    ping: Callable[[], None]
    client: str | None = None
    liveness: Liveness = Liveness.PONG
    state: SessionState = SessionState.ATTACHED
    tenures: dict[Key, Tenure] = field(factory=dict, repr=False)
    watching: set[str] = field(factory=set)
    held: int = 0
    """How many of its tenures are held; the others wait."""
    lost: list[str] = field(factory=list, repr=False)
    """Lease ids lost since the last heartbeat was answered."""
    renewals_due_ms: int | None = None
    """When the earliest renewal comes due; None when there is none to do."""

    @property
    def attached(self) -> bool:
        """Whether it has a connection."""
        return self.state is SessionState.ATTACHED

    @property
    def waiting(self) -> int:
        """How many of its tenures wait."""
        return len(self.tenures) - self.held

    def step(self, event: SessionEvent) -> None:
        """Moves by the table; a step that is not in it is a bug."""
        self.state = TRANSITIONS[self.state, event]


def wait_until(wait_ms: int | None) -> float:
    """When a wait ends, in seconds of Trio's clock."""
    return math.inf if wait_ms is None else trio.current_time() + wait_ms / 1000
