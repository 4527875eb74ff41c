"""Renewal: when which lease is due, and one store call for all that are.

A session of liveness "pong" is pinged when one of its leases comes due, at TTL / 3 less a jitter;
its pong renews every lease that is due soon, so that its leases fall into step and one ping serves
them all. Nothing is renewed without a sign of life, and not later than it (law L8). A session of
liveness "heartbeat" is not on the schedule: it renews by itself.

A lease that the store does not renew in time is given up a moment before it would run out, while
its holder can still be told (law L3). To the store it goes back when that moment is over: a holder
that did not hear of it believes in it until then.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Final

import trio
from attrs import define, field

from leasekeeper.core.lock import Missing, Renewed
from leasekeeper.errors import Unavailable
from leasekeeper.messages import Liveness
from leasekeeper.service.limits import Limits
from leasekeeper.service.metrics import Metrics
from leasekeeper.service.session import Session, Stage, Tenure
from leasekeeper.store.alarms import Alarms, trio_ms
from leasekeeper.store.api import Renewal, Store

_PER_TTL: Final = 3
"""A lease is renewed this many times in its TTL."""
_WARN_MS: Final = 1000
"""A holder is told at most this long, and a tenth of its TTL, before its lease runs out."""


@define(eq=False)
class Renewals:
    """The schedule of renewals.

    `on_missing` hears of each grant, by fence, that is gone; `on_late` of each that is about to
    run out because the store does not answer, and `on_over` of the same when it has.
    """

    store: Store
    limits: Limits
    metrics: Metrics
    on_missing: Callable[[Tenure, int], None]
    on_late: Callable[[Tenure], None]
    on_over: Callable[[Tenure], None]
    random: Random = field(factory=Random)
    _alarms: Alarms[Session] = field(init=False, repr=False)
    _last_calls: Alarms[Tenure] = field(init=False, repr=False)
    _ends: Alarms[Tenure] = field(init=False, repr=False)
    _batch: dict[Tenure, None] = field(factory=dict, init=False, repr=False)
    _under_way: set[Tenure] = field(factory=set, init=False, repr=False)
    _filled: trio.Event = field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._alarms = Alarms(self._ask_for_life)
        self._last_calls = Alarms(self._last_call)
        self._ends = Alarms(self.on_over)

    async def run(self) -> None:
        """Asks sessions for a sign of life, and renews the leases of those that give it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._alarms.run)
            nursery.start_soon(self._last_calls.run)
            nursery.start_soon(self._ends.run)
            nursery.start_soon(self._renew_batches)

    def plan(self, tenure: Tenure, asked_ms: int, ttl_ms: int) -> None:
        """Says when this lease, of which we heard just now, is due again.

        It runs out `ttl_ms` after the store was asked, or later: then it began to count. An answer
        to what was asked earlier than that on which its end rests takes nothing from it.
        """
        tenure.renewing_ms = None
        if asked_ms >= tenure.renewed_ms:
            tenure.renewed_ms, tenure.expires_ms = asked_ms, asked_ms + ttl_ms
        tenure.is_final = ttl_ms < tenure.claim.ttl_ms
        self._last_calls.discard(tenure)
        jitter = 1 - self.limits.renewal_jitter * self.random.random()
        self._set_due(tenure, tenure.claim.ttl_ms / _PER_TTL * jitter)
        tenure.planned_ms = tenure.due_ms

    def alive(self, session: Session) -> None:
        """The session gave a sign of life just now: what is due soon joins the next batch."""
        if session.liveness is not Liveness.PONG or not session.attached:
            return
        now_ms = trio_ms()
        if session.renewals_due_ms is not None and now_ms < session.renewals_due_ms:
            return
        later_ms: list[int] = []
        for tenure in session.tenures.values():
            if tenure.stage is not Stage.HELD or not tenure.auto_renew:
                continue
            if tenure.due_ms - now_ms > tenure.claim.ttl_ms / _PER_TTL / 2:
                later_ms.append(tenure.due_ms)
            elif tenure not in self._under_way:
                self._batch[tenure] = None
        session.renewals_due_ms = min(later_ms, default=None)
        if session.renewals_due_ms is not None:
            self._alarms.set(session, session.renewals_due_ms)
        if self._batch:
            self._filled.set()

    def forget(self, session: Session) -> None:
        """The session has no connection any more."""
        session.renewals_due_ms = None
        self._alarms.discard(session)

    async def renew(self, tenures: Sequence[Tenure]) -> Sequence[Renewed | Missing | Unavailable]:
        """Renews these for a sign of life that came just now. Returns the answers, in order.

        Cancellation:
            Those that were renewed nevertheless are planned as if they were not.
        """
        now_ms = trio_ms()
        for tenure in tenures:
            if tenure.renewing_ms is None:
                tenure.renewing_ms = now_ms
                self._last_calls.set(tenure, _last_call_ms(tenure, now_ms))
        fences = [tenure.fence for tenure in tenures]
        try:
            answers = await self.store.renew([Renewal(t.name, t.lease) for t in tenures])
        except Unavailable as problem:
            answers = [problem] * len(tenures)
        for tenure, fence, answer in zip(tenures, fences, answers, strict=True):
            if isinstance(answer, Missing):
                self.on_missing(tenure, fence)
            elif tenure.stage is not Stage.HELD:
                pass  # it was released while the store was asked
            elif isinstance(answer, Unavailable):
                # Whoever is renewed later than now must have shown life later than now (L8).
                soon_ms = tenure.claim.ttl_ms / _PER_TTL / 2
                self._set_due(tenure, min(self.limits.store_retry_ms, soon_ms))
            else:
                self._observe_lag(tenure)
                self.plan(tenure, now_ms, answer.ttl_ms)
        return answers

    def _observe_lag(self, tenure: Tenure) -> None:
        """Who sends heartbeats is renewed when one comes, and is due by no other schedule."""
        pongs = tenure.session.liveness is Liveness.PONG
        due_ms = tenure.planned_ms if pongs else tenure.renewing_ms or 0
        self.metrics.lease_renewal_lag.observe(max(0, trio_ms() - due_ms) / 1000)

    def _set_due(self, tenure: Tenure, delay_ms: float) -> None:
        tenure.due_ms = trio_ms() + int(delay_ms)
        session = tenure.session
        if session.liveness is Liveness.PONG and tenure.auto_renew and session.attached:
            due_ms = session.renewals_due_ms
            if due_ms is None or tenure.due_ms < due_ms:
                session.renewals_due_ms = tenure.due_ms
                self._alarms.set(session, tenure.due_ms)

    def _ask_for_life(self, session: Session) -> None:
        # It stays due, so that the next sign of life counts, whatever is planned until then.
        session.ping()

    def _last_call(self, tenure: Tenure) -> None:
        if tenure.stage is Stage.HELD and tenure.renewing_ms is not None and not tenure.is_final:
            self.on_late(tenure)
            self._ends.set(tenure, tenure.expires_ms)

    async def _renew_batches(self) -> None:
        """A batch does not wait for those before it: they may be at a store that is stuck."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._filled.wait()
                self._filled = trio.Event()
                batch = [tenure for tenure in self._batch if tenure.stage is Stage.HELD]
                self._batch = {}
                self._under_way.update(batch)
                nursery.start_soon(self._renew_batch, batch)

    async def _renew_batch(self, batch: Sequence[Tenure]) -> None:
        try:
            await self.renew(batch)
        finally:
            self._under_way.difference_update(batch)


def _last_call_ms(tenure: Tenure, now_ms: int) -> int:
    """When its holder must be told; a renewal that begins late has half of what is left."""
    margin_ms = min(_WARN_MS, tenure.claim.ttl_ms // 10)
    return max(tenure.expires_ms - margin_ms, (now_ms + tenure.expires_ms) // 2)
