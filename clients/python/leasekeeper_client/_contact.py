"""What the answers of one connection prove, and until when leases may be believed on it. Pure.

A server that sees a connection end gives its leases away after a grace (L8), however much of their
TTL is left, and it may see that end long before we do. But whoever answers what was sent at T had
the connection at T or later, and so keeps its leases until T plus the grace, at least. Nothing else
proves that; so nothing else is believed (L3).
"""

from math import inf
from typing import Final

from attrs import define, field

DRIFT_SHARE: Final = 0.01
DRIFT_MIN: Final = 0.005
GRACE_MIN: Final = 0.1
"""A shorter grace (seconds) counts as none: no connection can be proven that often."""
PINGS_PER_GRACE: Final = 3
"""One third until the next ping, one for its pong, one to connect again and resume."""


def drift_margin(span: float) -> float:
    """Return how much earlier than the server we end a span: 1 %, and 5 ms at least (seconds).

    The server's clock and ours may run at different rates; a good clock drifts by 0.01 %, a clock
    that is being slewed by 0.05 %.
    """
    return max(span * DRIFT_SHARE, DRIFT_MIN)


@define(eq=False)
class Contact:
    """An unbroken run of proofs that the server has a connection.

    Leases refer to the contact under which they were last confirmed. A contact that has lapsed is
    never taken up again, so what was believed on it cannot come back.

    Attributes:
        grace: Seconds for which the server keeps what a dropped connection held; None when it
            does not say.
        confirmed_at: The latest time at or after which the server surely had the connection.
        kept_until: What is held is not given away before this for want of the connection.
    """

    grace: float | None = None
    confirmed_at: float = -inf
    kept_until: float = -inf

    def __attrs_post_init__(self) -> None:
        if self.grace is None or not self.keeps:
            self.kept_until = inf

    @property
    def keeps(self) -> bool:
        """Whether anything outlives the connection."""
        return self.grace is None or self.grace >= GRACE_MIN

    def confirm(self, at: float) -> None:
        """Something that was sent, or granted, at this time has been answered."""
        if at <= self.confirmed_at:
            return
        self.confirmed_at = at
        if self.grace is not None and self.keeps:
            self.kept_until = at + self.grace - drift_margin(self.grace)


@define(eq=False)
class Lifeline:
    """One connection's present contact, and the pings that are to prolong it.

    Invariant: every outstanding ping, if answered, would prove something new.

    It sends nothing, has no clock, and does not know who relies on it.
    """

    grace: float | None = None
    contact: Contact = field(init=False)
    _pings: dict[bytes, float] = field(factory=dict, init=False)
    _pings_sent: int = field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.contact = Contact(self.grace)

    @property
    def interval(self) -> float | None:
        """Seconds between pings, and for a pong; None where pings would prove nothing."""
        if self.grace is None or not self.contact.keeps:
            return None
        return self.grace / PINGS_PER_GRACE

    def proven(self, at: float, now: float) -> None:
        """What was sent at `at` is answered `now`. An answer after the lapse begins anew."""
        if now >= self.contact.kept_until:
            self.contact = Contact(self.grace)
        self.contact.confirm(at)

    def ping(self, now: float) -> bytes:
        """Return the payload of a ping that is sent now."""
        self._pings_sent += 1
        payload = b"%d" % self._pings_sent
        news = self.contact.confirmed_at
        self._pings = {key: at for key, at in self._pings.items() if at > news}
        self._pings[payload] = now
        return payload

    def pong(self, payload: bytes, now: float) -> None:
        """Take a pong, which proves what its own ping asked; an unknown one proves nothing."""
        at = self._pings.pop(payload, None)
        if at is not None:
            self.proven(at, now)
