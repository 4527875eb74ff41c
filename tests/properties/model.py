"""The laws of one name over two plain lists: the model that the property machine compares with."""

from attrs import define, evolve, field

from leasekeeper.core.lock import (
    Busy,
    Claim,
    Contended,
    Event,
    Granted,
    HolderLost,
    Left,
    Mismatch,
    Missing,
    Moved,
    Now,
    Queued,
    QueueFull,
    Resumed,
    WaiterGranted,
)
from leasekeeper.messages import (
    ORIGINAL_WAIT,
    HolderView,
    LeaseState,
    LostReason,
    Mode,
    WaiterView,
)

WAITING_MAX = 3
FAR_MS = 10**9


@define
class One:
    """A lease id that holds or waits. `end_ms` ends the lease, or the trust in the waiter."""

    claim: Claim
    since_ms: int
    end_ms: int
    asked_ms: int = 0
    ttl_ms: int = 0
    last_ms: int = FAR_MS
    fence: int = 0
    owner: str | None = None
    wait_end_ms: int | None = None
    """When a waiter gives up, as its owner would reckon it."""


@define
class Model:
    """The laws of one name over two plain lists. What happened goes to `events`."""

    holders: list[One] = field(factory=list)
    queue: list[One] = field(factory=list)
    fence: int = 0
    changes: int = 0
    events: list[Event] = field(factory=list)

    def fits(self, claim: Claim) -> bool:
        """L1: alone, or all shared and no more than anyone's limit."""
        together = [one.claim for one in self.holders] + [claim]
        return len(together) == 1 or all(
            each.mode is Mode.SHARED and (each.limit is None or each.limit >= len(together))
            for each in together
        )

    def settle(self, now: Now, by: str | None) -> None:
        """What time alone brings about: leases end, the dead leave, the head moves up (L4, L5).

        Whom another server grants it, for that server, trusts no longer than before.
        """
        for one in [one for one in self.holders if one.end_ms <= now.ms]:
            self.put_out(
                one, LostReason.MAX_HOLD if one.end_ms == one.last_ms else LostReason.EXPIRED
            )
        while self.queue and (self.queue[0].end_ms <= now.ms or self.fits(self.queue[0].claim)):
            head = self.queue.pop(0)
            if head.end_ms > now.ms:
                self.grant(head.claim, now, head.owner)
                one = self.holders[-1]
                if by is not None and not (head.owner or "").startswith(by + "."):
                    one.end_ms = min(one.end_ms, head.end_ms)
                grant = Granted(one.fence, one.end_ms - now.ms, now.ms - head.asked_ms)
                self.events.append(WaiterGranted(head.claim.lease, grant, head.owner))

    def grant(self, claim: Claim, now: Now, owner: str | None) -> Granted:
        """L2: above every fence before it, and not below the clock."""
        self.fence = now.us if now.us > self.fence else self.fence + 1
        last_ms = now.ms + (FAR_MS if claim.max_hold_ms is None else claim.max_hold_ms)
        one = One(claim, now.ms, 0, 0, claim.ttl_ms, last_ms, self.fence, owner)
        self.holders.append(one)
        self.changes += 1
        return Granted(self.fence, self.extend(one, now), 0)

    def extend(self, one: One, now: Now) -> int:
        """To the full TTL, but not past the longest hold."""
        one.end_ms = min(now.ms + one.ttl_ms, one.last_ms)
        return one.end_ms - now.ms

    def put_out(self, one: One, reason: LostReason, detail: str | None = None) -> None:
        """A holder is lost, and told so."""
        self.holders.remove(one)
        self.changes += 1
        self.events.append(HolderLost(one.claim.lease, one.fence, reason, detail, one.owner))

    def find(self, ones: list[One], lease: str) -> One | None:
        """Whoever has this lease id."""
        return next((one for one in ones if one.claim.lease == lease), None)

    def move(self, one: One, owner: str | None) -> None:
        """L6: whoever had it before is told."""
        if one.owner != owner:
            self.events.append(Moved(one.claim.lease, one.owner))
            one.owner = owner

    def ask_again(
        self, lease: str, owner: str | None, wait_ms: int | None, now: Now
    ) -> Granted | Queued | Busy | None:
        """L6: the same grant, the same place; or, with a wait of 0, the place is given up."""
        if one := self.find(self.holders, lease):
            self.move(one, owner)
            return Granted(one.fence, self.extend(one, now), 0)
        if not (one := self.find(self.queue, lease)):
            return None
        self.move(one, owner)
        if wait_ms != 0:
            one.asked_ms, one.end_ms = now.ms, now.ms + one.claim.alive_ms
            if wait_ms != ORIGINAL_WAIT:
                one.wait_end_ms = None if wait_ms is None else now.ms + wait_ms
            elif one.wait_end_ms is not None:
                one.wait_end_ms = max(one.wait_end_ms, now.ms)
            return Queued(self.queue.index(one) + 1, self.fence)
        self.queue.remove(one)
        self.settle(now, server(owner))
        return Busy()

    def resume(
        self, lease: str, owner: str | None, wait_ms: int | None, now: Now
    ) -> Resumed | Busy | Missing:
        """L8: with all that whoever serves it from now on must know."""
        answer = self.ask_again(lease, owner, wait_ms, now)
        if answer is None or isinstance(answer, Busy):
            return answer or Missing()
        one = self.find(self.holders + self.queue, lease)
        assert one is not None
        claim = evolve(one.claim, owner=owner, ttl_ms=one.ttl_ms or one.claim.ttl_ms)
        if isinstance(answer, Queued):
            left_ms = None if one.wait_end_ms is None else one.wait_end_ms - now.ms
            claim = evolve(claim, wait_ms=left_ms)
        else:
            claim = evolve(claim, wait_ms=None)  # it does not wait any more
        return Resumed(claim, answer)

    def ask(
        self, claim: Claim, wait: bool, now: Now
    ) -> Granted | Queued | Busy | QueueFull | Mismatch:
        """L1, L4: at once if nobody is ahead and it fits; else at the end of the queue."""
        known = self.find(self.holders + self.queue, claim.lease)
        if known and (known.claim.mode, known.claim.limit) != (claim.mode, claim.limit):
            return Mismatch()
        if known:
            wait_ms = claim.wait_ms if wait else 0
            return self.ask_again(claim.lease, claim.owner, wait_ms, now) or Busy()
        if not self.queue and self.fits(claim):
            return self.grant(claim, now, claim.owner)
        if wait and len(self.queue) >= WAITING_MAX:
            return QueueFull(WAITING_MAX)
        if not wait:
            return Busy()
        end_ms = None if claim.wait_ms is None else now.ms + claim.wait_ms
        one = One(claim, now.ms, now.ms + claim.alive_ms, now.ms, owner=claim.owner)
        one.wait_end_ms = end_ms
        self.queue.append(one)
        owners = tuple(one.owner for one in self.holders)
        self.events.append(Contended(len(self.queue), owners))
        return Queued(len(self.queue), self.fence)

    def leave(self, lease: str, by: str | None, only_of: str | None) -> Left:
        """L6: afterwards the lease id has nothing; unless it belongs to another than that."""
        one = self.find(self.holders + self.queue, lease)
        if one and only_of is not None and server(one.owner) != only_of:
            return Left.NOTHING
        if one and by is not None and server(one.owner) != by:
            self.events.append(Moved(lease, one.owner))
        if one := self.find(self.holders, lease):
            self.holders.remove(one)
            self.changes += 1
            return Left.HELD
        if one := self.find(self.queue, lease):
            self.queue.remove(one)
            return Left.WAITING
        return Left.NOTHING

    def view(self, holders_max: int, waiting_max: int, now: Now) -> LeaseState:
        """L7: all that anyone may see."""
        holders = [
            HolderView(
                one.fence,
                one.claim.mode,
                one.claim.label,
                now.ms - one.since_ms,
                max(one.end_ms - now.ms, 0),
                one.claim.client,
            )
            for one in self.holders
        ]
        waiting = [
            WaiterView(
                position, one.claim.mode, one.claim.label, now.ms - one.since_ms, one.claim.client
            )
            for position, one in enumerate(self.queue, start=1)
        ]
        shown = (tuple(holders[:holders_max]), tuple(waiting[:waiting_max]))
        return LeaseState("n", *shown, len(self.queue))


def server(owner: str | None) -> str | None:
    """Whose owner it is."""
    return owner[0] if owner else None
