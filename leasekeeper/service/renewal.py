"""Renewal: when which lease is due, and one store call for all that are.

A session of liveness "pong" is pinged when one of its leases comes due, at TTL / 3 less a jitter;
its pong renews every lease that is due soon, so that its leases fall into step and one ping serves
them all. Nothing is renewed without a sign of life, and not later than it (law L8). A session of
liveness "heartbeat" is not on the schedule: it renews by itself.
"""

from collections.abc import Callable
from random import Random
from typing import Final

import trio
from attrs import define, field

from leasekeeper.core.lock import Missing
from leasekeeper.errors import Unavailable
from leasekeeper.messages import Liveness
from leasekeeper.service.limits import Limits
from leasekeeper.service.session import Session, Stage, Tenure
from leasekeeper.store.alarms import Alarms, trio_ms
from leasekeeper.store.api import Renewal, Store

_PER_TTL: Final = 3
"""A lease is renewed this many times in its TTL."""


@define(eq=False)
class Renewals:
    """The schedule of renewals. `on_missing` hears of each grant, by fence, that is gone."""

    store: Store
    limits: Limits
    on_missing: Callable[[Tenure, int], None]
    random: Random = field(factory=Random)
    _alarms: Alarms[Session] = field(init=False, repr=False)
    _batch: dict[Tenure, None] = field(factory=dict, init=False, repr=False)
    _filled: trio.Event = field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._alarms = Alarms(self._ask_for_life)

    async def run(self) -> None:
        """Asks sessions for a sign of life, and renews the leases of those that give it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._alarms.run)
            nursery.start_soon(self._renew_batches)

    def plan(self, tenure: Tenure) -> None:
        """Says when this lease, granted or renewed just now, is due again."""
        jitter = 1 - self.limits.renewal_jitter * self.random.random()
        self._set_due(tenure, tenure.claim.ttl_ms / _PER_TTL * jitter)

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
            if tenure.due_ms - now_ms <= tenure.claim.ttl_ms / _PER_TTL / 2:
                self._batch[tenure] = None
            else:
                later_ms.append(tenure.due_ms)
        session.renewals_due_ms = min(later_ms, default=None)
        if session.renewals_due_ms is not None:
            self._alarms.set(session, session.renewals_due_ms)
        if self._batch:
            self._filled.set()

    def forget(self, session: Session) -> None:
        """The session has no connection any more."""
        session.renewals_due_ms = None
        self._alarms.discard(session)

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

    async def _renew_batches(self) -> None:
        while True:
            await self._filled.wait()
            self._filled = trio.Event()
            batch = [tenure for tenure in self._batch if tenure.stage is Stage.HELD]
            self._batch = {}
            fences = [tenure.fence for tenure in batch]
            try:
                answers = await self.store.renew([Renewal(t.name, t.lease) for t in batch])
            except Unavailable:
                # Whoever is renewed later than now must have shown life later than now (L8).
                for tenure in batch:
                    soon_ms = tenure.claim.ttl_ms / _PER_TTL / 2
                    self._set_due(tenure, min(self.limits.store_retry_ms, soon_ms))
                continue
            for tenure, fence, answer in zip(batch, fences, answers, strict=True):
                if isinstance(answer, Missing):
                    self.on_missing(tenure, fence)
                elif tenure.stage is Stage.HELD:  # not released while the store was asked
                    self.plan(tenure)
