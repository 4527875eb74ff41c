"""One lease as its holder may believe in it. Pure: time comes in, nothing is awaited.

The law (L3): a client never believes in a lease past its own deadline. That is the earlier of two:

- the monotonic time at which the request was *sent*, plus what the server granted;
- the last time at which the server surely had the connection, plus the grace for which it keeps the
  leases of a dropped one (see `Contact`);

each less a margin for drifting clocks. Only the answer to something we sent moves it, and by the
time of that sending.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Literal, TypeAlias

from attrs import define, field

from leasekeeper_client._contact import Contact, drift_margin
from leasekeeper_client.errors import LeaseLost, LossReason

OnDrop: TypeAlias = Literal["keep", "release"]


class State(Enum):
    """Where a hold is in its life. It never goes back."""

    WAITING = auto()
    HELD = auto()
    LOST = auto()
    ENDED = auto()


@define(eq=False)
class Hold:
    """A lease asked for, held, or lost, under one name.

    Invariant: once `believed` has been false for a held lease, it is never true again.

    It does not send anything, and has no clock.
    """

    name: str
    lease_id: str = field(repr=False)
    ttl: float
    max_hold: float | None = None
    on_drop: OnDrop = "keep"
    state: State = State.WAITING
    fence: int | None = None
    lasts_until: float = 0.0
    """When its TTL ends, if it is not renewed."""
    hold_until: float | None = None
    reason: LossReason | None = None
    detail: str | None = None
    contended: int = 0
    contact: Contact = field(factory=Contact, repr=False)
    """With the connection on which it was last granted or resumed: only its heartbeats count."""
    when_lost: Callable[[], None] | None = field(default=None, repr=False)
    when_contended: Callable[[int], None] | None = field(default=None, repr=False)

    @property
    def deadline(self) -> float:
        """When its holder stops believing in it, if nothing more is heard."""
        return min(self.lasts_until, self.contact.kept_until)

    def grant(
        self,
        fence: int,
        *,
        contact: Contact | None = None,
        sent_at: float,
        received_at: float,
        waited: float,
        ttl: float,
        asked_at: float,
    ) -> None:
        """Take the first answer that grants it.

        Args:
            fence: The fencing token.
            contact: With the connection that it was granted on, which it proves.
            sent_at: When the answered request was sent.
            received_at: When the answer came. A grant is not younger than its answer, so that a
                wait measured by a fast clock cannot push the deadline out.
            waited: How long the store says the request waited.
            ttl: What is left of the lease at the grant.
            asked_at: When it was first asked for, on whatever connection.
        """
        if self.state is not State.WAITING:
            return
        granted_at = min(sent_at + waited, received_at)
        self.state = State.HELD
        self.fence = fence
        if contact is not None:
            contact.confirm(granted_at)
            self.contact = contact
        self.lasts_until = granted_at + ttl - drift_margin(ttl)
        if self.max_hold is not None:
            # A repeated request with no wait may have been granted as early as it was first sent.
            begun_at = asked_at if waited == 0 else granted_at
            end = begun_at + self.max_hold - drift_margin(self.max_hold)
            self.hold_until = max(end, self.lasts_until)

    def confirm(
        self,
        *,
        contact: Contact | None = None,
        sent_at: float,
        received_at: float,
        ttl: float | None = None,
    ) -> None:
        """Take an answer that renewed it.

        Args:
            contact: With the connection that it was moved to; None when it stays where it is.
            sent_at: When the answered request was sent.
            received_at: When the answer came; too late, and the lease is lost all the same.
            ttl: What the answer says is left of the lease (it knows of `max_hold`), or None when
                it only says that it was renewed.
        """
        self.expire(received_at)
        if self.state is not State.HELD:
            return
        if contact is not None:
            self.contact = contact
        span = self.ttl if ttl is None else ttl
        until = sent_at + span - drift_margin(span)
        if self.hold_until is not None:
            if ttl is not None:
                self.hold_until = max(self.hold_until, until)
            until = min(until, self.hold_until)
        self.lasts_until = max(self.lasts_until, until)

    def drop(self) -> None:
        """The connection is gone. What the server keeps, it keeps as long as `contact` says."""
        if self.on_drop == "release" or not self.contact.keeps:
            self.lose("disconnected")

    def expire(self, now: float) -> None:
        """Lose it if its deadline has passed."""
        if self.state is State.HELD and now >= self.deadline:
            self.lose("deadline")

    def lose(self, reason: LossReason, detail: str | None = None) -> None:
        """It is lost. The first reason stays."""
        if self.state not in (State.WAITING, State.HELD):
            return
        self.state = State.LOST
        self.reason = reason
        self.detail = detail
        if self.when_lost is not None:
            self.when_lost()

    def end(self) -> None:
        """Its holder gives it back, or gives it up."""
        if self.state is not State.LOST:
            self.state = State.ENDED

    def contend(self, waiting: int) -> None:
        """Others wait for it."""
        self.contended = waiting
        if self.when_contended is not None:
            self.when_contended(waiting)

    def believed(self, now: float) -> bool:
        """Return whether the holder may act on it."""
        return self.state is State.HELD and now < self.deadline

    def remaining(self, now: float) -> float:
        """Return the seconds for which the holder may act on it without another answer."""
        return max(0.0, self.deadline - now) if self.state is State.HELD else 0.0

    def loss(self) -> LeaseLost:
        """Return the error that says how it was lost."""
        reason = self.reason or ("released" if self.state is State.ENDED else "deadline")
        detail = f" ({self.detail})" if self.detail else ""
        return LeaseLost(
            f"the lease on {self.name!r} was lost: {reason}{detail}",
            name=self.name,
            fence=self.fence,
            reason=reason,
            detail=self.detail,
        )
