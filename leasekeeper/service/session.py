"""Sessions, and what they have in the store.

A session is one client's connection, or what a dropped one left behind. Its tenures are what the
store knows it by: each a lease id that holds a name or waits for it.
"""

import math
from collections.abc import Callable
from enum import Enum, auto
from secrets import token_hex
from typing import Final

import trio
from attrs import define, evolve, field

from leasekeeper.core.lock import Claim, Granted
from leasekeeper.errors import InvalidParams, RpcError
from leasekeeper.messages import Key, LeaseAcquire, Liveness, Notification, OnDrop
from leasekeeper.store.alarms import trio_ms

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
    planned_ms: int = 0
    """The same, but as it was before the store failed to renew it."""
    expires_ms: int = 0
    """When it runs out, unless it is renewed; not later than the store says."""
    renewed_ms: int = 0
    """When what `expires_ms` rests on was asked."""
    asked_ms: int = 0
    """When the store was last asked for it."""
    is_final: bool = False
    """Whether it ends with its max hold, however often it is renewed."""
    renewing_ms: int | None = None
    """Since when a renewal is being tried, until one succeeds."""
    released_s: float | None = None
    """Since when the release was under way that it was granted by, until its waiter is told."""
    contended_ms: int | None = None
    """When the holder was last told that others wait."""
    requests: int = 0
    """How many requests wait on it now."""
    promised: bool = False
    """Whether an answer with its grant has gone out, and its client believes in it."""
    told: bool = False
    """Whether a request was answered with its grant."""
    is_ours: bool = False
    """Whether the store may have it because it was asked for here."""
    stays: bool = False
    """Whether it could not be resumed, and the store may have it for another session elsewhere."""
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

    def as_heard(self, grant: Granted) -> Granted:
        """The grant, with no longer a wait than by this server's own clock.

        The store's clock may have stepped forward meanwhile, and the holder would believe in the
        lease for so much longer (law L3).
        """
        waited_ms = max(0, trio_ms() - self.asked_ms)
        return grant if grant.waited_ms <= waited_ms else evolve(grant, waited_ms=waited_ms)

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
class GrantedFill:
    """A cache fill that a session was granted, by Trio's clock in seconds."""

    fill_ms: int
    since: float = field(factory=trio.current_time)
    within: tuple[str, str] | None = field(default=None, repr=False)
    """The key and fill of the load that needs it, if one does."""

    @property
    def until(self) -> float:
        """When another may be granted."""
        return self.since + self.fill_ms / 1000


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
    fills: dict[tuple[str, str], GrantedFill] = field(factory=dict, repr=False)
    """What it is loading, by cache key and fill id."""
    claims: dict[tuple[str, str], float] = field(factory=dict, repr=False)
    """The writes that it has claimed, by queue and claim id, and until when, by Trio's clock."""
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

    def claim(self, ask: LeaseAcquire, alive_ms: int) -> Claim:
        """What it asks of the name; if it names no lease id, with a new one."""
        return Claim(
            lease=ask.lease or token_hex(16),
            ttl_ms=ask.ttl_ms,
            mode=ask.mode,
            limit=ask.limit,
            label=ask.label,
            client=self.client,
            max_hold_ms=ask.max_hold_ms,
            alive_ms=alive_ms,
            wait_ms=ask.wait_ms,
            auto_renew=ask.auto_renew,
            on_drop=ask.on_drop,
        )

    def step(self, event: SessionEvent) -> None:
        """Moves by the table; a step that is not in it is a bug."""
        self.state = TRANSITIONS[self.state, event]


def wait_until(wait_ms: int | None) -> float:
    """When a wait ends, in seconds of Trio's clock."""
    return math.inf if wait_ms is None else trio.current_time() + wait_ms / 1000
