"""One name: its holders, its queue, its last fence. The executable specification.

A name is free, or held by one exclusive lease, or held by shared leases. Who cannot have it now may
wait, in one queue for both modes, and the queue moves from its head only: a reader behind a waiting
writer waits too (law L4). Every grant carries a fence greater than all before it (law L2).

Time goes in as `Now`; what others must be told comes out in `Lock.events`. Every call first lets
time pass: leases that have run out are lost, waiters nobody vouches for any more are dropped, and
the head of the queue is granted while it fits (laws L1, L5). Whoever holds a `Lock` calls `advance`
no later than `next_ms()`.

A lease id names its holder or waiter in every call, so a call repeated has the same answer and
never a second grant (law L6).

Several servers may act on one name. Each holder and waiter has an owner, SERVER.SERIAL: who asked
for it last. `by` says which server acts, None where there is only one. A waiter that another
server's call grants is held for no longer than its own server's word for it, until that server
renews it: a dead server's turn passes by.
"""

from collections import OrderedDict
from collections.abc import Iterator
from enum import StrEnum
from functools import partial
from itertools import islice
from operator import attrgetter

from attrs import define, evolve, field, frozen

from leasekeeper.core.deadlines import Deadlines
from leasekeeper.messages import (
    ORIGINAL_WAIT,
    HolderView,
    LeaseState,
    LostReason,
    Mode,
    OnDrop,
    WaiterView,
)


@frozen
class Now:
    """The store's clock.

    `ms` decides expiry and must not step back. `us`, microseconds since 1970, is the floor of
    fences, so that they rise even where the last fence was forgotten.
    """

    ms: int
    us: int


@frozen
class Claim:
    """What one lease id asks of one name. `alive_ms`: how long a waiter stays without a touch.

    `wait_ms`, `auto_renew` and `on_drop` change nothing here: they are kept for the server that
    the lease id is resumed on.
    """

    lease: str = field(repr=False)
    ttl_ms: int
    mode: Mode = Mode.EXCLUSIVE
    limit: int | None = None
    label: str | None = None
    client: str | None = None
    owner: str | None = None
    max_hold_ms: int | None = None
    alive_ms: int = 12_000
    wait_ms: int | None = None
    """How long it is to wait, from when it was last asked for; None: for ever."""
    auto_renew: bool = True
    on_drop: OnDrop = OnDrop.KEEP

    def owned_by(self, owner: str | None) -> "Claim":
        """The same, of another owner. Every grant makes one, and `evolve` takes thrice as long."""
        return Claim(
            self.lease,
            self.ttl_ms,
            self.mode,
            self.limit,
            self.label,
            self.client,
            owner,
            self.max_hold_ms,
            self.alive_ms,
            self.wait_ms,
            self.auto_renew,
            self.on_drop,
        )


@frozen
class Granted:
    """It is held, for `ttl_ms` from now, having waited `waited_ms` since it was last asked for."""

    fence: int
    ttl_ms: int
    waited_ms: int


@frozen
class Queued:
    """It waits; position 1 is next. Whatever it is granted has a fence above `fence`."""

    position: int
    fence: int


@frozen
class Busy:
    """Others have it, or are ahead, and it was not to wait."""


@frozen
class QueueFull:
    """No more may wait for this name."""

    waiting_max: int


@frozen
class Mismatch:
    """The lease id is in use on this name with another mode or limit."""


@frozen
class Elsewhere:
    """The lease id belongs to another server now, and was not to be taken over."""


@frozen
class Resumed:
    """What the lease id asked for, with what is left of `wait_ms`, and what it has."""

    claim: Claim
    answer: Granted | Queued


@frozen
class Renewed:
    """It is held for `ttl_ms` from now."""

    ttl_ms: int


@frozen
class Missing:
    """The lease id neither holds this name nor, where that counts, waits for it."""


class Left(StrEnum):
    """What a lease id gave up when it was released."""

    HELD = "held"
    WAITING = "waiting"
    NOTHING = "nothing"


@frozen
class WaiterGranted:
    """A waiter got it."""

    lease: str = field(repr=False)
    grant: Granted
    owner: str | None = None


@frozen
class HolderLost:
    """A holder has it no more, and did not release it."""

    lease: str = field(repr=False)
    fence: int
    reason: LostReason
    detail: str | None = None
    owner: str | None = None


@frozen
class Contended:
    """Somebody began to wait. `owners` are those of the holders."""

    waiting: int
    owners: tuple[str | None, ...] = ()


@frozen
class Moved:
    """What the lease id has does not belong to `owner` any more."""

    lease: str = field(repr=False)
    owner: str | None = None


Event = WaiterGranted | HolderLost | Contended | Moved


@define
class Holder:
    """One lease that is held. `hold_until_ms`: no renewal goes past it."""

    claim: Claim
    fence: int
    since_ms: int
    expires_ms: int
    hold_until_ms: int | None

    def renew(self, now: Now) -> int:
        """Extends to the full TTL, within `max_hold_ms`; returns what is left, in ms."""
        self.expires_ms = now.ms + self.claim.ttl_ms
        if self.hold_until_ms is not None:
            self.expires_ms = min(self.expires_ms, self.hold_until_ms)
        return self.expires_ms - now.ms


@define
class Waiter:
    """One lease id in the queue. `asked_ms`: when it was last asked for."""

    claim: Claim
    since_ms: int
    asked_ms: int
    alive_until_ms: int

    def left_ms(self, now: Now) -> int | None:
        """What is left of its wait; None: it waits for ever."""
        wait_ms = self.claim.wait_ms
        return None if wait_ms is None else max(0, wait_ms - (now.ms - self.asked_ms))


@define
class Lock:
    """The rules of one name.

    However many hold it or wait, a call looks at few; only who begins to wait concerns all holders.
    It does not read clocks, sleep, make lease ids, know connections, or say who may do what.
    """

    waiting_max: int = 10_000
    fence: int = 0
    revision: int = 0
    """Counts the changes of holders."""
    events: list[Event] = field(factory=list)
    _holders: dict[str, Holder] = field(factory=dict, repr=False)
    _mode: Mode = field(default=Mode.EXCLUSIVE, repr=False)
    """That of the last grant, and so of every holder."""
    _limits: dict[int, int] = field(factory=dict, repr=False)
    """How many holders have each limit."""
    _ends: Deadlines[str] = field(factory=partial(Deadlines[str], grain_ms=1), repr=False)
    """When each holder runs out."""
    _queue: dict[str, Waiter] = field(factory=OrderedDict, repr=False)
    """A plain dict is slow to find its head where others have left before it."""

    # Invariants, whenever a call returns: exclusive and shared holders are never mixed, nor two
    # exclusive ones; no holder's limit is exceeded; a queue's head is alive and does not fit.

    def acquire(
        self, claim: Claim, *, wait: bool, take_over: bool = True, now: Now
    ) -> Granted | Queued | Busy | QueueFull | Mismatch | Elsewhere:
        """Asks for the name. A holder is renewed and keeps its fence, a waiter keeps its place.

        Both belong to the claim's owner from then on; unless `take_over` is false and they belong
        to another server. With `wait` false it leaves the queue if it was in it.
        """
        self.advance(now, by=server_of(claim.owner))
        if (known := self._find(claim.lease)) and (
            (known.mode, known.limit) != (claim.mode, claim.limit)
        ):
            return Mismatch()
        if known and not take_over and server_of(known.owner) != server_of(claim.owner):
            return Elsewhere()
        if claim.lease in self._holders:
            return self._hold_again(claim.lease, claim.owner, now)
        if claim.lease in self._queue:
            if wait:
                return self._queue_again(claim.lease, claim.owner, claim.wait_ms, now)
            return self._give_up(claim.lease, claim.owner, now)
        if not self._queue and self._fits(claim):
            return self._grant(claim, asked_ms=now.ms, now=now)
        if not wait:
            return Busy()
        if len(self._queue) >= self.waiting_max:
            return QueueFull(self.waiting_max)
        self._queue[claim.lease] = Waiter(claim, now.ms, now.ms, now.ms + claim.alive_ms)
        owners = tuple(holder.claim.owner for holder in self._holders.values())
        self.events.append(Contended(len(self._queue), owners))
        return Queued(len(self._queue), self.fence)

    def resume(
        self, lease: str, owner: str | None, *, wait_ms: int | None = ORIGINAL_WAIT, now: Now
    ) -> Resumed | Busy | Missing:
        """Takes over, for `owner`, what this lease id holds or waits for.

        `wait_ms` is how long a waiter is to wait from now on; ORIGINAL_WAIT goes on with what is
        left, and 0 leaves the queue.
        """
        self.advance(now, by=server_of(owner))
        if holder := self._holders.get(lease):
            grant = self._hold_again(lease, owner, now)
            return Resumed(holder.claim, grant)
        if waiter := self._queue.get(lease):
            if wait_ms == 0:
                return self._give_up(lease, owner, now)
            if wait_ms == ORIGINAL_WAIT:
                wait_ms = waiter.left_ms(now)
            queued = self._queue_again(lease, owner, wait_ms, now)
            return Resumed(waiter.claim, queued)
        return Missing()

    def renew(
        self, lease: str, ttl_ms: int | None = None, *, now: Now, by: str | None = None
    ) -> Renewed | Missing:
        """Extends a lease that is held, from now on with `ttl_ms` if given. It never resurrects."""
        self.advance(now, by=by)
        holder = self._holders.get(lease)
        if holder is None:
            return Missing()
        if ttl_ms is not None:
            holder.claim = evolve(holder.claim, ttl_ms=ttl_ms)
        return Renewed(self._extend(holder, now))

    def release(
        self, lease: str, *, now: Now, by: str | None = None, only_of: str | None = None
    ) -> Left:
        """Gives the lease back, or leaves the queue: after it the id has nothing (law L6).

        With `only_of`, only if it belongs to that server: it may have been resumed on another.
        """
        self.advance(now, by=by)
        known = self._find(lease)
        if known is None or only_of not in {None, server_of(known.owner)}:
            return Left.NOTHING
        if by not in {None, server_of(known.owner)}:
            self.events.append(Moved(lease, known.owner))
        left = self._leave(lease)
        self.advance(now, by=by)
        return left

    def touch(self, lease: str, alive_ms: int, *, now: Now, by: str | None = None) -> bool:
        """Vouches for a waiter for another `alive_ms`. False: it does not wait here."""
        self.advance(now, by=by)
        waiter = self._queue.get(lease)
        if waiter is not None:
            waiter.alive_until_ms = now.ms + alive_ms
        return waiter is not None

    def break_(self, detail: str | None = None, *, now: Now, by: str | None = None) -> int:
        """Puts every holder out, and says how many they were. The queue moves up."""
        self.advance(now, by=by)
        broken = len(self._holders)
        for holder in list(self._holders.values()):
            self._lose(holder, LostReason.BROKEN, detail)
        self.advance(now, by=by)
        return broken

    def advance(self, now: Now, *, by: str | None = None) -> None:
        """Lets time pass: expires holders, drops dead waiters at the head, grants what fits."""
        due = [self._holders[lease] for lease in self._ends.pop_due(now.ms)]
        for holder in sorted(due, key=attrgetter("fence")):
            at_end = holder.expires_ms == holder.hold_until_ms
            self._lose(holder, LostReason.MAX_HOLD if at_end else LostReason.EXPIRED)
        while self._queue:
            lease, head = next(iter(self._queue.items()))
            if head.alive_until_ms <= now.ms:
                del self._queue[lease]
            elif self._fits(head.claim):
                del self._queue[lease]
                known = by in {None, server_of(head.claim.owner)}
                known_ms = None if known else head.alive_until_ms
                grant = self._grant(head.claim, asked_ms=head.asked_ms, now=now, known_ms=known_ms)
                self.events.append(WaiterGranted(lease, grant, head.claim.owner))
            else:
                break

    def next_ms(self) -> int | None:
        """When time changes something by itself: the first expiry, or the head's last sign."""
        end_ms = self._ends.next_ms()
        head = next(iter(self._queue.values()), None)
        return end_ms if head is None or end_ms is None else min(end_ms, head.alive_until_ms)

    @property
    def idle(self) -> bool:
        """Nobody holds it and nobody waits."""
        return not self._holders and not self._queue

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    def state(self, name: str, *, holders_max: int, waiting_max: int, now: Now) -> LeaseState:
        """What others may see: the first holders and waiters. It changes nothing."""
        return LeaseState(
            name,
            tuple(islice(self.holders(now), holders_max)),
            tuple(self._waiters(waiting_max, now)),
            len(self._queue),
        )

    def holders(self, now: Now) -> Iterator[HolderView]:
        """The holders, in the order of their fences."""
        for holder in self._holders.values():
            claim, held_ms = holder.claim, now.ms - holder.since_ms
            left_ms = max(0, holder.expires_ms - now.ms)
            yield HolderView(holder.fence, claim.mode, claim.label, held_ms, left_ms, claim.client)

    def _waiters(self, waiting_max: int, now: Now) -> Iterator[WaiterView]:
        for position, waiter in enumerate(self._queue.values(), start=1):
            if position > waiting_max:
                return
            claim, waiting_ms = waiter.claim, now.ms - waiter.since_ms
            yield WaiterView(position, claim.mode, claim.label, waiting_ms, claim.client)

    def _find(self, lease: str) -> Claim | None:
        known = self._holders.get(lease) or self._queue.get(lease)
        return known.claim if known else None

    def _hold_again(self, lease: str, owner: str | None, now: Now) -> Granted:
        holder = self._holders[lease]
        holder.claim = self._moved(holder.claim, owner)
        return Granted(holder.fence, self._extend(holder, now), waited_ms=0)

    def _queue_again(self, lease: str, owner: str | None, wait_ms: int | None, now: Now) -> Queued:
        waiter = self._queue[lease]
        waiter.claim = evolve(self._moved(waiter.claim, owner), wait_ms=wait_ms)
        waiter.asked_ms = now.ms
        waiter.alive_until_ms = now.ms + waiter.claim.alive_ms
        return Queued(list(self._queue).index(lease) + 1, self.fence)

    def _give_up(self, lease: str, owner: str | None, now: Now) -> Busy:
        self._moved(self._queue[lease].claim, owner)
        self._leave(lease)
        self.advance(now, by=server_of(owner))
        return Busy()

    def _moved(self, claim: Claim, owner: str | None) -> Claim:
        if claim.owner != owner:
            self.events.append(Moved(claim.lease, claim.owner))
        return claim.owned_by(owner)

    def _fits(self, claim: Claim) -> bool:
        if not self._holders:
            return True
        if claim.mode is Mode.EXCLUSIVE or self._mode is Mode.EXCLUSIVE:
            return False
        limits = [*self._limits, *([] if claim.limit is None else [claim.limit])]
        return not limits or len(self._holders) < min(limits)

    def _grant(
        self, claim: Claim, *, asked_ms: int, now: Now, known_ms: int | None = None
    ) -> Granted:
        """`known_ms`: its server is known to live until then, if that is not the one that acts."""
        self.fence = max(self.fence + 1, now.us)
        self.revision += 1
        until_ms = None if claim.max_hold_ms is None else now.ms + claim.max_hold_ms
        holder = Holder(claim, self.fence, now.ms, now.ms, until_ms)
        self._holders[claim.lease] = holder
        self._mode = claim.mode
        if claim.limit is not None:
            self._limits[claim.limit] = self._limits.get(claim.limit, 0) + 1
        holder.renew(now)
        if known_ms is not None:
            holder.expires_ms = min(holder.expires_ms, known_ms)
        self._ends.set(claim.lease, holder.expires_ms)
        return Granted(self.fence, holder.expires_ms - now.ms, waited_ms=now.ms - asked_ms)

    def _lose(self, holder: Holder, reason: LostReason, detail: str | None = None) -> None:
        claim = holder.claim
        self._leave(claim.lease)
        self.events.append(HolderLost(claim.lease, holder.fence, reason, detail, claim.owner))

    def _extend(self, holder: Holder, now: Now) -> int:
        """Renews it; returns what is left, in ms."""
        holder.renew(now)
        self._ends.set(holder.claim.lease, holder.expires_ms)
        return holder.expires_ms - now.ms

    def _leave(self, lease: str) -> Left:
        if holder := self._holders.pop(lease, None):
            self._ends.discard(lease)
            if (limit := holder.claim.limit) is not None:
                self._limits[limit] -= 1
                if not self._limits[limit]:
                    del self._limits[limit]
            self.revision += 1
            return Left.HELD
        return Left.WAITING if self._queue.pop(lease, None) else Left.NOTHING


def server_of(owner: str | None) -> str | None:
    """The server of an owner, SERVER.SERIAL."""
    return owner and owner.partition(".")[0]
