"""What the server does with cached keys, without sockets.

    get ── Desk ── look ──> CacheStore            one look for all callers of a key
           ^                    │
           └───── KeyNews ──────┘                 filled, failed, given up: look again

A caller is answered with a value, or told to load it (its session then has a *fill*), or waits for
whoever loads it. A fill whose session ends is given up at once, and one of those who wait, on
whatever server, gets it in its place.
"""

import math
from collections.abc import Awaitable, Callable
from random import Random
from secrets import token_hex
from typing import Final

import structlog
import trio
from attrs import define, field

from leasekeeper.core.fills import Ask, Content, Seen
from leasekeeper.errors import Busy, InternalError, LimitReached, Outcome, Unavailable
from leasekeeper.messages import (
    CacheFail,
    CacheFill,
    CacheFilled,
    CacheGet,
    CacheHit,
    CacheNegative,
    CacheState,
    CacheToFill,
    Done,
    FillOutcome,
)
from leasekeeper.service.desks import (
    LOOK_MS,
    Answer,
    Caller,
    Desk,
    Offer,
    answer_from,
    early_of,
    is_settled,
)
from leasekeeper.service.limits import Limits
from leasekeeper.service.metrics import Metrics
from leasekeeper.service.nesting import Nesting, Within, within_of
from leasekeeper.service.session import GrantedFill, Session
from leasekeeper.store.alarms import Alarms, trio_ms
from leasekeeper.store.caches import CacheStore

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

_UNSHARED_MAX_MS: Final = 60_000
"""A value that is too large cannot be shared; for so long at most nobody waits for another."""


@define(eq=False)
class Caches:
    """Cached keys, for the sessions of this server. It knows no connections."""

    store: CacheStore
    server: str
    limits: Limits
    metrics: Metrics = field(repr=False)
    random: Random = field(factory=Random, repr=False)
    _desks: dict[str, Desk] = field(factory=dict, init=False, repr=False)
    _alarms: Alarms[str] = field(init=False, repr=False)
    _waits: Alarms[Caller] = field(init=False, repr=False)
    """When those who wait want to hear that it is in vain."""
    _nesting: Nesting = field(init=False, repr=False)
    _nursery: trio.Nursery | None = field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._alarms = Alarms(self.news)
        self._waits = Alarms(self._wait_is_over)
        self._nesting = Nesting(self.store, self.metrics)

    async def run(self) -> None:
        """Looks again for those who wait, and gives up fills of those who are gone, until
        cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._waits.run)
            try:
                await self._alarms.run()
            finally:
                self._nursery = None

    def __len__(self) -> int:
        """The keys that somebody asks for now."""
        return len(self._desks)

    # --- Requests -----------------------------------------------------------------------------

    async def get(self, session: Session, ask: CacheGet) -> CacheHit | CacheToFill | CacheNegative:
        """A value, or the fill of it: `begin`, and waits.

        Raises:
            Busy: the wait is over, and somebody else still loads it; or nobody does, and the
                caller cannot.
            FillFailed: whoever loaded it has failed, and it is not to be tried again yet.
            As `begin`.

        Cancellation:
            A fill that was granted meanwhile is given up.
        """
        begun = await self.begin(session, ask)
        if not isinstance(begun, Caller):
            return begun
        try:
            await begun.answered()
        except trio.Cancelled:
            begun.withdraw()
            raise
        return begun.result()

    async def begin(
        self, session: Session, ask: CacheGet
    ) -> CacheHit | CacheToFill | CacheNegative | Caller:
        """A value, or the fill of it, or who will be told: one `Caller` costs less than a task.

        Raises:
            Deadlock: who loads it waits for what the caller is loading.
            LimitReached, Unavailable: as the contract says.
            As `get`, if it is known at once.

        Cancellation:
            A fill that was granted meanwhile is given up.
        """
        if ask.can_fill:
            self._refuse_too_many(session)
        desk = self._desks.get(ask.key)
        if desk is None:
            desk = self._desks[ask.key] = Desk(ask.key)
        if len(desk.callers) >= self.limits.waiters_per_key:
            raise LimitReached("waiters_per_key", self.limits.waiters_per_key)
        caller = Caller(session, ask, self._withdraw)
        desk.enter(caller)
        try:
            if not desk.looking:
                await self._look(desk)
            if within := within_of(ask):
                await self._nested(desk, caller, within)
        except BaseException:
            caller.withdraw()
            raise
        return caller if caller.answer is None else caller.result()

    async def fill(self, session: Session, ask: CacheFill) -> CacheFilled:
        """Stores what was loaded, if it is not too old. The fill is over.

        Raises:
            Unavailable: the store did not answer; the request may be repeated.
        """
        content = Content(
            ask.value.text if ask.value is not None else None,
            ask.ttl_ms,
            ask.stale_ms,
            ask.tags,
            ask.etag,
        )
        if content.value is not None and len(content.value) > self.limits.value_bytes:
            await self.store.unshare(ask.key, ask.fill, min(ask.ttl_ms, _UNSHARED_MAX_MS))
            outcome = FillOutcome.TOO_LARGE
        else:
            outcome = await self.store.fill(
                ask.key, ask.fill, content, not_modified=ask.not_modified
            )
        self.metrics.cache_fills[outcome.value].inc()
        if granted := await self._is_over(session, ask.key, ask.fill):
            self.metrics.cache_fill.observe(trio.current_time() - granted.since)
        return CacheFilled(outcome)

    async def fail(self, session: Session, ask: CacheFail) -> Done:
        """The load has come to nothing: failed, given up, not to be shared, or nothing is there.

        Raises:
            Unavailable: the store did not answer; the request may be repeated.
        """
        key, fill = ask.key, ask.fill
        if ask.not_found:
            content = Content(None, ask.ttl_ms or 1, 0, ask.tags)
            await self.store.fill(key, fill, content)
        elif ask.private_ms is not None:
            await self.store.unshare(key, fill, ask.private_ms)
        elif ask.promote:
            await self.store.give_up(key, fill, died=False, jitter=self.random.random())
        else:
            self.metrics.cache_fill_failures.inc()
            jitter = self.random.random()
            await self.store.fail(key, fill, ask.error, ask.retry_after_ms, jitter)
        await self._is_over(session, key, fill)
        return Done()

    # --- The end of sessions, and news --------------------------------------------------------

    def end(self, session: Session) -> None:
        """Its connection is gone: what it was loading is given up at once (law L8)."""
        for key, fill in session.fills:
            self._give_up_soon(key, fill, session.fills[key, fill], died=True)
        session.fills.clear()

    def news(self, key: str) -> None:
        """There is reason to look at a key for those who wait."""
        desk = self._desks.get(key)
        if desk is None or not desk.callers:
            return
        if desk.looking:
            desk.again = True
        elif self._nursery is not None:
            self._nursery.start_soon(self._look_again, desk)

    # --- One look -----------------------------------------------------------------------------

    async def _look_again(self, desk: Desk) -> None:
        if desk.looking:
            desk.again = True
        elif desk.callers:
            await self._look_for_all(desk)

    async def _look_for_all(self, desk: Desk) -> None:
        """A look in nobody's own task: what goes wrong is told to those who wait."""
        try:
            await self._look(desk)
        except Exception:
            _log.exception("a look failed", key=desk.key)
            for caller in tuple(desk.callers):
                self._settle(desk, caller, InternalError())

    async def _take_over(self, desk: Desk) -> None:
        """Whoever was looking is gone. Nobody else has begun to look meanwhile."""
        desk.looking = False
        if desk.callers:
            await self._look_for_all(desk)
        self._tidy(desk)

    async def _look(self, desk: Desk) -> None:
        """One look for all who are there when it begins. Nobody else looks meanwhile.

        Cancellation:
            The service looks in its place, at once, for those for whom it was.
        """
        first_for, offer = desk.begin(), desk.offer(self.limits.fills_per_session)
        ask = Ask(
            fill=offer.fill if offer else None,
            fill_ms=offer.granted.fill_ms if offer else 0,
            owner=self.server,
            early=early_of(max(1, first_for), self.random),
            server=self.server,
            jitter=self.random.random(),
        )
        try:
            seen = await self.store.look(desk.key, ask)
            settled = is_settled(seen)
            if settled:
                self._decide(desk, offer, seen)
            if not settled or desk.callers:
                self._plan(desk, seen)
        except Unavailable as problem:
            if offer and problem.outcome is Outcome.UNKNOWN:
                self._give_up_soon(desk.key, offer.fill, offer.granted, died=False)
            for caller in desk.waiting():
                self._settle(desk, caller, problem)
        except BaseException:
            if offer:
                self._give_up_soon(desk.key, offer.fill, offer.granted, died=False)
            desk.undo()
            desk.end()
            if self._nursery is not None:
                desk.looking = True
                self._nursery.start_soon(self._take_over, desk)
            raise
        for caller in desk.end():
            self._begin_wait(desk, caller)
        if desk.again or desk.unseen:
            self.news(desk.key)
        self._tidy(desk)

    def _decide(self, desk: Desk, offer: Offer | None, seen: Seen) -> None:
        """Answers whom it can."""
        unshared = seen.grant is not None and not seen.grant.shared
        if seen.grant is None or unshared or (offer and not self._hand_over(desk, offer)):
            offer = None
        alike = {ok: answer_from(seen, stale_ok=ok) for ok in (True, False)}
        for caller in desk.waiting():
            fill = offer.fill if offer and offer.caller is caller else None
            if unshared and caller.ask.can_fill:
                fill = token_hex(16)
            stale_ok = caller.ask.stale_ok
            answer = answer_from(seen, stale_ok=stale_ok, fill=fill) if fill else alike[stale_ok]
            if answer is not None:
                self._count_grant(caller, answer)
                self._settle(desk, caller, answer)

    def _hand_over(self, desk: Desk, offer: Offer) -> bool:
        """The fill was granted. Whether there is still somebody to have it."""
        caller = offer.caller
        if caller in desk.callers and caller.session.attached:
            caller.session.fills[desk.key, offer.fill] = offer.granted
            return True
        self._give_up_soon(desk.key, offer.fill, offer.granted, died=False)
        return False

    def _plan(self, desk: Desk, seen: Seen) -> None:
        """The next look: when the fill ends that they wait for, but before long in any case."""
        left_ms = LOOK_MS
        if seen.filling_ms is not None:
            left_ms = seen.filling_ms
        elif seen.grant is not None and seen.grant.shared:
            left_ms = seen.grant.fill_ms
        desk.filling_until = trio.current_time() + left_ms / 1000
        self._alarms.set(desk.key, trio_ms() + min(left_ms + 1, LOOK_MS))

    def _tidy(self, desk: Desk) -> None:
        if not desk.callers and not desk.looking and self._desks.get(desk.key) is desk:
            del self._desks[desk.key]
            self._alarms.discard(desk.key)

    # --- Waiting ------------------------------------------------------------------------------

    def _begin_wait(self, desk: Desk, caller: Caller) -> None:
        """The first look had no answer for it."""
        self._count(caller)
        if caller.ask.wait_ms == 0:
            self._settle(desk, caller, self._busy(desk))
            return
        caller.waits = True
        self.metrics.cache_waiting.inc()
        if caller.until < math.inf:
            self._waits.set(caller, math.ceil(caller.until * 1000))

    def _wait_is_over(self, caller: Caller) -> None:
        desk = self._desks[caller.ask.key]
        self._settle(desk, caller, self._busy(desk))

    def _settle(self, desk: Desk, caller: Caller, answer: Answer) -> None:
        first = desk.owes_a_look(caller)
        self._leave(desk, caller)
        caller.settle(answer)
        if first:
            self._count(caller)

    def _leave(self, desk: Desk, caller: Caller) -> None:
        desk.leave(caller)
        self._tidy(desk)
        if caller.waits:
            caller.waits = False
            self._waits.discard(caller)
            self.metrics.cache_waiting.dec()
            self.metrics.cache_wait.observe(trio.current_time() - caller.since)

    async def _nested(self, desk: Desk, caller: Caller, within: Within) -> None:
        """Waits for the answer of one that is loading another key meanwhile."""
        while desk.owes_a_look(caller):
            if desk.looking:
                await desk.seen.wait()
            else:
                await self._look(desk)
        if caller.answer is None:
            try:
                await self._nesting.refuse_cycle(within, desk.key)
                await caller.answered()
            except trio.Cancelled:
                self._in_background(self._nesting.unmark, within)
                raise
            await self._nesting.unmark(within)
        if isinstance(caller.answer, CacheToFill):
            await self._is_to_load(caller, caller.answer, within)

    async def _is_to_load(self, caller: Caller, answer: CacheToFill, within: Within) -> None:
        """Within another load: that one waits until this is over."""
        granted = caller.session.fills.get((caller.ask.key, answer.fill))
        if granted:
            granted.within = within
            await self._nesting.mark(within, caller.ask.key)

    def _busy(self, desk: Desk) -> Busy:
        left_ms = max(0, int((desk.filling_until - trio.current_time()) * 1000))
        return Busy(holders=(), waiting=len(desk.callers) - 1, retry_after_ms=left_ms)

    # --- Fills --------------------------------------------------------------------------------

    async def _is_over(self, session: Session, key: str, fill: str) -> GrantedFill | None:
        """What this session was loading, if it was."""
        granted = session.fills.pop((key, fill), None)
        if granted and granted.within:
            await self._nesting.unmark(granted.within)
        return granted

    def _refuse_too_many(self, session: Session) -> None:
        most = self.limits.fills_per_session
        if len(session.fills) < most:
            return
        now = trio.current_time()
        for key in [key for key, granted in session.fills.items() if granted.until <= now]:
            del session.fills[key]
        if len(session.fills) >= most:
            raise LimitReached("fills_per_session", most)

    def _withdraw(self, caller: Caller) -> None:
        """Its request was cancelled: a fill that it was granted is somebody else's."""
        key, answer = caller.ask.key, caller.answer
        if desk := self._desks.get(key):
            self._leave(desk, caller)
        fill = None
        if isinstance(answer, CacheToFill):
            fill = answer.fill
        elif isinstance(answer, CacheHit) and answer.refresh is not None:
            fill = answer.refresh.fill
        if fill is not None and (granted := caller.session.fills.pop((key, fill), None)):
            self._give_up_soon(key, fill, granted, died=False)

    def _give_up_soon(self, key: str, fill: str, granted: GrantedFill, *, died: bool) -> None:
        self._in_background(self._give_up, key, fill, granted, died)

    async def _give_up(self, key: str, fill: str, granted: GrantedFill, died: bool) -> None:
        """Until the store has confirmed it, or the fill's time is over."""
        while trio.current_time() < granted.until:
            try:
                await self.store.give_up(key, fill, died=died, jitter=self.random.random())
                return
            except Unavailable:
                await trio.sleep(self.limits.store_retry_ms / 1000)

    def _in_background(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(work, *args)

    # --- Counting -----------------------------------------------------------------------------

    def _count(self, caller: Caller) -> None:
        """What came of the first look that was made for this caller."""
        match caller.answer:
            case CacheHit(CacheState.HIT):
                self.metrics.cache_hits["fresh"].inc()
            case CacheHit():
                self.metrics.cache_hits["stale"].inc()
            case CacheNegative():
                self.metrics.cache_hits["negative"].inc()
            case _:
                self.metrics.cache_misses.inc()
        if caller.answer is None:
            caller.waited = True
            self.metrics.cache_coalesced_waiters.inc()

    def _count_grant(self, caller: Caller, answer: object) -> None:
        match answer:
            case CacheHit(refresh=None) | CacheNegative():
                return
            case CacheHit():
                self.metrics.cache_fill_grants["refresh"].inc()
            case CacheToFill(shared=False):
                self.metrics.cache_fill_grants["unshared"].inc()
            case CacheToFill() if caller.waited:
                self.metrics.cache_fill_grants["promotion"].inc()
                self.metrics.cache_promotions.inc()
            case CacheToFill():
                self.metrics.cache_fill_grants["miss"].inc()
