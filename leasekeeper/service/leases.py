"""What the server does with leases, without sockets.

A request becomes a tenure, the tenure asks the store, and what the store says later arrives as an
event. Whatever is not wanted any more, because its client is gone or its request was cancelled, is
given back by lease id until the store confirms it.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from itertools import count
from typing import Final, assert_never

import structlog
import trio
from attrs import define, evolve, field

from leasekeeper.core.lock import (
    Busy,
    Claim,
    Contended,
    Elsewhere,
    Granted,
    HolderLost,
    Left,
    Mismatch,
    Missing,
    Moved,
    Queued,
    QueueFull,
    Renewed,
    Resumed,
    WaiterGranted,
)
from leasekeeper.errors import (
    Busy as BusyError,
)
from leasekeeper.errors import (
    Cancelled,
    Draining,
    InvalidParams,
    LimitReached,
    Lost,
    RpcError,
    Unavailable,
)
from leasekeeper.messages import (
    TTL_MAX_MS,
    HeartbeatSeen,
    LeaseAcquire,
    LeaseContended,
    LeaseGrant,
    LeaseLost,
    LeaseRelease,
    LeaseReleased,
    LeaseRenew,
    LeaseRenewed,
    LeaseResume,
    LostReason,
)
from leasekeeper.service.limits import Limits
from leasekeeper.service.metrics import Metrics
from leasekeeper.service.renewal import Renewals
from leasekeeper.service.session import IN_USE_OTHERWISE, Session, Stage, Tenure, wait_until
from leasekeeper.service.tenures import Tenures
from leasekeeper.service.turns import Turns
from leasekeeper.service.unwanted import Unwanted
from leasekeeper.service.vouching import Vouching
from leasekeeper.store.alarms import trio_ms
from leasekeeper.store.api import Renewal, Store

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

Answer = Granted | Queued | Busy | QueueFull | Mismatch | Missing | Elsewhere


@define(eq=False)
class Leases:
    """Leases of this server's sessions. It knows no connections, and does not open sessions."""

    store: Store
    server: str
    limits: Limits
    metrics: Metrics = field(repr=False)
    draining_ms: int | None = None
    """Set once this server is going away: when to come back to its successor."""
    tenures: Tenures = field(init=False)
    _serials: Iterator[int] = field(factory=lambda: count(1), init=False, repr=False)
    renewals: Renewals = field(init=False)
    unwanted: Unwanted = field(init=False, repr=False)
    _vouching: Vouching = field(init=False, repr=False)
    _turns: Turns = field(factory=Turns, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.tenures = Tenures(self.metrics)
        self.renewals = Renewals(
            self.store, self.limits, self.metrics, self._missing, self._late, self._give_back
        )
        self.unwanted = Unwanted(self.store, self.limits, lambda key: key in self.tenures)
        on_asked = self._give_back_left_over
        self._vouching = Vouching(
            self.store, self.limits, self.tenures, self._turns, self._hold, on_asked
        )

    async def run(self) -> None:
        """Renews, vouches for waiters and gives back what is unwanted, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.renewals.run)
            nursery.start_soon(self._vouching.run)
            nursery.start_soon(self.unwanted.run)

    # --- Requests -----------------------------------------------------------------------------

    async def acquire(
        self, session: Session, ask: LeaseAcquire, *, alone: bool = True
    ) -> LeaseGrant:
        """Asks for one name; if not `alone`, for one of several, and the answer waits for all.

        Raises:
            Busy, LimitReached, Unavailable, Draining: as the contract says.
            InvalidParams: the lease id is in use with another mode or limit.
            Cancelled: another request took the wait over, or released the lease.

        Cancellation:
            What was asked for is given back, unless the session's connection is gone: then its
            grace decides.
        """
        self._refuse_while_draining()
        claim = session.claim(ask, self.limits.waiter_alive_ms)
        until = wait_until(ask.wait_ms)
        await self.unwanted.settled((ask.name, claim.lease))
        if known := self.tenures.find((ask.name, claim.lease)):
            known.refuse_other(claim)
        tenure = self._tenure_of(session, ask.name, claim)
        tenure.auto_renew, tenure.on_drop = ask.auto_renew, ask.on_drop
        tenure.wait_until = until

        async def acquire() -> Answer:
            tenure.is_ours = True
            owned = claim.owned_by(self._own(tenure))
            return await self.store.acquire(ask.name, owned, wait=ask.wait_ms != 0)

        return await self._obtain(tenure, acquire, alone=alone)

    async def resume(self, session: Session, ask: LeaseResume) -> LeaseGrant:
        """Takes a lease, or a place in the queue, over into this session.

        Raises:
            Lost: the lease id has neither.
            As `acquire`.

        Cancellation:
            As `acquire`.
        """
        self._refuse_while_draining()
        await self.unwanted.settled((ask.name, ask.lease))
        left_over = (ask.name, ask.lease) in self.unwanted
        tenure = self._tenure_of(session, ask.name, Claim(ask.lease, ttl_ms=0))
        tenure.is_ours |= left_over
        return await self._obtain(tenure, lambda: self._take_over(tenure, ask.wait_ms))

    async def _take_over(self, tenure: Tenure, wait_ms: int | None) -> Answer:
        try:
            answer = await self.store.resume(*tenure.key, self._own(tenure), wait_ms=wait_ms)
        except Unavailable:
            # What it has was not got by this request, and its client may still believe in it.
            tenure.stays = tenure.stage is Stage.ASKED
            raise
        if not isinstance(answer, Resumed):
            return answer
        if isinstance(answer.answer, Granted):
            tenure.fence = answer.answer.fence  # it was granted long ago
        claim = tenure.claim = answer.claim
        tenure.auto_renew, tenure.on_drop = claim.auto_renew, claim.on_drop
        tenure.wait_until = wait_until(claim.wait_ms)
        return answer.answer

    async def renew(self, ask: LeaseRenew) -> LeaseRenewed:
        """Extends a held lease, whoever has it.

        Raises:
            Lost: it is not held.
            Unavailable: the store did not answer.
        """
        tenure = self.tenures.find((ask.name, ask.lease))
        fence = tenure.fence if tenure else 0
        asked_ms = trio_ms()
        try:
            (answer,) = await self.store.renew([Renewal(ask.name, ask.lease, ask.ttl_ms)])
            if isinstance(answer, Unavailable):
                raise answer
        except (Unavailable, trio.Cancelled):
            if tenure and ask.ttl_ms is not None and ask.ttl_ms < tenure.claim.ttl_ms:
                tenure.claim = evolve(tenure.claim, ttl_ms=ask.ttl_ms)  # for it may be so
                left_ms = min(tenure.expires_ms - asked_ms, ask.ttl_ms)
                self.renewals.plan(tenure, asked_ms, left_ms)
            raise
        if isinstance(answer, Missing):
            if tenure:
                self._missing(tenure, fence)
            raise Lost
        known = self.tenures.find((ask.name, ask.lease))
        if tenure and not known:
            raise Lost  # it went while the store was asked
        if tenure := known:
            if ask.ttl_ms is not None:
                tenure.claim = evolve(tenure.claim, ttl_ms=ask.ttl_ms)
            self.renewals.plan(tenure, asked_ms, answer.ttl_ms)
        return LeaseRenewed(answer.ttl_ms)

    async def release(self, ask: LeaseRelease) -> LeaseReleased:
        """Gives a lease back, or leaves the queue.

        Raises:
            Unavailable: the store did not answer; it will be asked until it does.

        Cancellation:
            The store will be asked until it answers.
        """
        key = (ask.name, ask.lease)
        if tenure := self.tenures.find(key):
            self.tenures.leave(tenure, Cancelled("its lease id was released"))
        left = await self.unwanted.release(key)
        return LeaseReleased(released=left is Left.HELD)

    async def heartbeat(self, session: Session) -> HeartbeatSeen:
        """Renews every lease of the session that renews by itself.

        Raises:
            Unavailable: the store did not answer for some; `renewed` names the others.
        """
        held = [t for t in session.tenures.values() if t.stage is Stage.HELD and t.auto_renew]
        answers = await self.renewals.renew(held) if held else ()
        asked = list(zip(held, answers, strict=True))
        renewed = [tenure.lease for tenure, answer in asked if isinstance(answer, Renewed)]
        failed = {tenure.lease for tenure, answer in asked if isinstance(answer, Unavailable)}
        for answer in answers:
            if isinstance(answer, Unavailable):  # a set's id stands for all its names
                raise answer.beside(renewed=[each for each in renewed if each not in failed])
        lost, session.lost = session.lost, []
        return HeartbeatSeen(tuple(dict.fromkeys(lost)), len(renewed))

    # --- The end of sessions ------------------------------------------------------------------

    def end(self, tenures: Iterable[Tenure]) -> None:
        """Their session is gone: gives back what was not resumed elsewhere."""
        for tenure in list(tenures):
            self.tenures.leave(tenure, Cancelled("its session is gone"))
            self._give_back(tenure)

    # --- Events of the store ------------------------------------------------------------------

    def granted(self, name: str, event: WaiterGranted) -> None:
        """A waiter got it; if nobody here waits any more, it goes back."""
        tenure = self.tenures.find((name, event.lease))
        if tenure is None:
            self.unwanted.add((name, event.lease), self.server)
        elif tenure.stage is Stage.ASKED and event.owner != tenure.claim.owner:
            return  # of an earlier wait; of this one the answer will say
        elif tenure.fence < event.grant.fence:  # or an answer has told us already
            tenure.released_s = self.unwanted.since_s(name)
            self._hold(tenure, event.grant)

    def lost(self, name: str, event: HolderLost) -> None:
        """A holder has it no more, and did not release it."""
        tenure = self.tenures.find((name, event.lease))
        if tenure is None or event.fence < tenure.fence:  # it was granted again since
            return
        if tenure.stage is Stage.WAITING:
            tenure.fence = event.fence  # nobody was told of this grant: it is asked for again
            return
        if tenure.stage is not Stage.HELD:
            if event.fence == tenure.fence or event.owner != tenure.claim.owner:
                return  # it was lost before this wait began
            self._give_back(tenure)  # the answer to its request comes after this
        self._lose(tenure, event.reason, event.detail, fence=event.fence)

    def moved(self, name: str, event: Moved) -> None:
        """It was resumed by another owner, maybe on another server."""
        tenure = self.tenures.find((name, event.lease))
        if tenure and tenure.claim.owner == event.owner:
            self.tenures.leave(tenure, Cancelled("another connection took it over"))

    def contended(self, name: str, event: Contended) -> None:
        """Somebody began to wait for what these hold."""
        now_ms = trio_ms()
        for tenure in self.tenures.held(name):
            told_ms = tenure.contended_ms
            if told_ms is None or now_ms - told_ms >= self.limits.contended_every_ms:
                tenure.contended_ms = now_ms
                note = LeaseContended(name, tenure.lease, event.waiting)
                tenure.session.notify(note)

    def lose_all(self) -> None:
        """The store ends with this process: every holder is told so."""
        for tenure in [t for t in self.tenures if t.stage is Stage.HELD]:
            self._lose(tenure, LostReason.STORE_LOST, None)

    # --- How a tenure goes --------------------------------------------------------------------

    def _refuse_while_draining(self) -> None:
        if self.draining_ms is not None:
            raise Draining(self.draining_ms)

    def _tenure_of(self, session: Session, name: str, claim: Claim) -> Tenure:
        """The session's tenure of this key: its own, one taken over from another, or a new one."""
        if not session.attached:
            raise Cancelled("its connection is gone")
        old = self.tenures.find((name, claim.lease))
        if old and old.session is session:
            return old
        if session.held >= self.limits.leases_per_session:
            raise LimitReached("leases_per_session", self.limits.leases_per_session)
        if old is None:
            new = Tenure(name, session, claim)
            self.tenures.enter(new)
            return new
        new = Tenure(name, session, old.claim, old.auto_renew, old.on_drop, old.wait_until)
        grant = old.outcome
        held = old.stage is Stage.HELD
        new.stage = Stage.ASKED if held else old.stage
        new.told, new.is_ours = old.told, old.is_ours
        self.tenures.leave(old, Cancelled("another connection took the wait over"))
        self.tenures.enter(new)
        if held and isinstance(grant, Granted):
            new.fence = grant.fence
            self._hold(new, grant)
            new.renewed_ms, new.expires_ms = old.renewed_ms, old.expires_ms
        return new

    def _own(self, tenure: Tenure) -> str:
        """A new owner for each asking: who moves it tells thereby which asking that undoes."""
        owner = f"{self.server}.{next(self._serials)}"
        tenure.claim = tenure.claim.owned_by(owner)
        tenure.asked_ms = trio_ms()
        return owner

    async def _obtain(
        self, tenure: Tenure, ask: Callable[[], Awaitable[Answer]], *, alone: bool = True
    ) -> LeaseGrant:
        """Asks the store, waits if it says so, and answers with the grant or raises.

        What no request waits for any more, and no client was told of, is given back.
        """
        tenure.requests += 1
        try:
            grant = await self._grant(tenure, ask)
            tenure.told, tenure.promised = True, tenure.promised or alone
        except trio.Cancelled:
            if tenure.requests == 1:
                tenure.told = False  # for cancel means to release it, too (law L6)
            raise
        finally:
            tenure.requests -= 1
            if not tenure.requests and not tenure.told:
                self.abandon(tenure)
        return LeaseGrant(tenure.name, tenure.lease, grant.fence, grant.ttl_ms, grant.waited_ms)

    async def _grant(self, tenure: Tenure, ask: Callable[[], Awaitable[Answer]]) -> Granted:
        answer = await self._ask(tenure, ask)
        if isinstance(answer, Queued):
            await self._begin_waiting(tenure)
            answer = await self._wait(tenure)
        match answer:
            case Granted():
                self._hold(tenure, answer)
                if isinstance(tenure.outcome, RpcError):
                    raise tenure.outcome
                return tenure.outcome or answer
            case Busy():
                self.tenures.leave(tenure, Cancelled("its lease id left the queue"))
                raise await self._busy(tenure)
            case Missing():
                self.tenures.leave(tenure, Lost())
                raise Lost
            case QueueFull(waiting_max):
                self.tenures.leave(tenure, LimitReached("waiters_per_name", waiting_max))
                raise LimitReached("waiters_per_name", waiting_max)
            case Elsewhere():
                raise AssertionError("only vouching leaves it there")
            case Mismatch():
                if tenure.stage is Stage.ASKED and tenure.requests == 1:
                    self.tenures.leave(tenure, Lost())
                raise InvalidParams("$.lease", IN_USE_OTHERWISE)
            case _:
                assert_never(answer)

    async def _ask(self, tenure: Tenure, ask: Callable[[], Awaitable[Answer]]) -> Answer:
        """The store's answer, if the tenure is still there to take it."""
        async with self._turns.of(tenure.key):
            if isinstance(tenure.outcome, RpcError):
                raise tenure.outcome
            try:
                answer = await ask()
            except (Unavailable, trio.Cancelled):
                self._give_back_left_over(tenure)
                raise
            tenure.is_ours = True  # what it has now was got here
        if isinstance(answer, Queued) and tenure.fence <= answer.fence:
            self._missing(tenure, tenure.fence)  # what it held when it asked is lost
            tenure.fence = answer.fence
        if isinstance(tenure.outcome, RpcError):
            if isinstance(answer, Granted | Queued):
                self._give_back_left_over(tenure)
            raise tenure.outcome
        return answer

    def _give_back_left_over(self, tenure: Tenure) -> None:
        """It was left while the store was asked for it, and perhaps nobody has taken it over."""
        if tenure.stage is not Stage.OVER:
            return
        if (successor := self.tenures.find(tenure.key)) is None:
            self._give_back(tenure)
        else:
            successor.is_ours |= tenure.is_ours

    async def _begin_waiting(self, tenure: Tenure) -> None:
        """It is in the queue, and may stay there if its session has not too many there already."""
        if tenure.stage is Stage.ASKED:
            tenure.stage = Stage.WAITING
            most = self.limits.waiters_per_session
            if tenure.session.waiting > most:
                reached = LimitReached("waiters_per_session", most)
                await self._leave_queue(tenure, reached)
                raise reached

    async def _wait(self, tenure: Tenure) -> Granted | Busy:
        """Until it is granted (`Granted`), or the wait is over (`Busy`)."""
        with trio.move_on_at(tenure.wait_until):
            await tenure.settled.wait()
        if tenure.outcome is None:
            if tenure.requests > 1:  # a repeat of this request goes on waiting
                raise await self._busy(tenure)
            await self._leave_queue(tenure, Cancelled("its lease id left the queue"))
            return Busy()
        if isinstance(tenure.outcome, RpcError):
            raise tenure.outcome
        self.tenures.told(tenure)
        return tenure.outcome

    async def _leave_queue(self, tenure: Tenure, outcome: RpcError) -> None:
        """Its wait is over. What was granted at the very last moment goes back, too (law L6)."""
        self.tenures.leave(tenure, outcome)
        with suppress(Unavailable):
            await self.unwanted.release(tenure.key, self.server)

    async def _busy(self, tenure: Tenure) -> BusyError:
        shown = self.limits.holders_in_busy
        state = await self.store.inspect(tenure.name, holders_max=shown, waiting_max=0)
        left_ms = [holder.ttl_ms for holder in state.holders]
        return BusyError(
            holders=state.holders,
            waiting=state.waiting_total,
            retry_after_ms=min(left_ms, default=0),
        )

    def _hold(self, tenure: Tenure, grant: Granted) -> None:
        most = self.limits.leases_per_session
        if tenure.stage is not Stage.HELD and tenure.session.held >= most:
            self.tenures.leave(tenure, LimitReached("leases_per_session", most))
            self._give_back(tenure)
            return
        if tenure.claim.ttl_ms == 0:  # granted before the resume's answer, which has the TTL
            tenure.claim = evolve(tenure.claim, ttl_ms=grant.ttl_ms)
        grant = tenure.as_heard(grant)
        self.tenures.hold(tenure, grant)
        self.renewals.plan(tenure, tenure.asked_ms + grant.waited_ms, grant.ttl_ms)

    def _lose(
        self, tenure: Tenure, reason: LostReason, detail: str | None, *, fence: int | None = None
    ) -> None:
        session = tenure.session
        self.metrics.leases_lost[reason].inc()
        self.tenures.leave(tenure, Lost())
        if len(session.lost) < self.limits.leases_per_session:
            session.lost.append(tenure.lease)
        session.notify(LeaseLost(tenure.name, tenure.lease, fence or tenure.fence, reason, detail))

    def _late(self, tenure: Tenure) -> None:
        """The store did not renew it in time: its holder is told while there is time."""
        _log.warning("lease given up", lock=tenure.name, why="it was not renewed in time")
        self._lose(tenure, LostReason.STORE_LOST, "the store does not answer")

    def _missing(self, tenure: Tenure, fence: int) -> None:
        """The store says that this grant is gone; no event said why."""
        if tenure.stage is Stage.HELD and tenure.fence == fence:
            self._lose(tenure, LostReason.EXPIRED, None)

    def _give_back(self, tenure: Tenure) -> None:
        """Releases it in the background, until the store has confirmed it."""
        self.unwanted.add(tenure.key, self.server, tenure.claim.ttl_ms or TTL_MAX_MS)

    def abandon(self, tenure: Tenure) -> None:
        """Nobody here wants it any more: out of the session, and back to the store.

        If its connection is gone, the grace decides.
        """
        if tenure.stage is not Stage.OVER and tenure.session.attached:
            self.tenures.leave(tenure, Cancelled())
            if tenure.is_ours or not tenure.stays:
                self._give_back(tenure)
