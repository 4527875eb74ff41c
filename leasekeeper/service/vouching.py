"""Vouching: this server says of its waiters that they are alive, or the queue would skip them."""

from collections.abc import Callable
from typing import Final

import structlog
import trio
from attrs import define, evolve

from leasekeeper.core.lock import Elsewhere, Granted, Queued
from leasekeeper.errors import Cancelled, Lost, Unavailable
from leasekeeper.service.limits import Limits
from leasekeeper.service.session import Stage, Tenure
from leasekeeper.service.tenures import Tenures
from leasekeeper.service.turns import Turns
from leasekeeper.store.alarms import trio_ms
from leasekeeper.store.api import Store

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)


@define(eq=False)
class Vouching:
    """Touches all waiters, a few times in the life of a touch.

    `on_granted` hears of one that turned out to be granted; `on_asked` of each that was queued
    again, for it may have been left meanwhile.
    """

    store: Store
    limits: Limits
    tenures: Tenures
    turns: Turns
    on_granted: Callable[[Tenure, Granted], None]
    on_asked: Callable[[Tenure], None]

    async def run(self) -> None:
        """Vouches for waiters, and queues those again that were dropped, until cancelled."""
        alive_ms = self.limits.waiter_alive_ms
        pause_ms: float = alive_ms / 3
        while True:
            await trio.sleep(pause_ms / 1000)
            pause_ms = alive_ms / 3
            waiting = [tenure for tenure in self.tenures if tenure.stage is Stage.WAITING]
            try:
                answers = await self.store.touch([t.key for t in waiting], alive_ms)
                for tenure, in_queue in zip(waiting, answers, strict=True):
                    # Whoever has dropped may have been resumed elsewhere, and is left there. If a
                    # request asks for it now, its answer counts.
                    left = tenure.stage is not Stage.WAITING or not tenure.session.attached
                    left = left or tenure.key in self.turns
                    if in_queue is False and not left and not await self._queue_again(tenure):
                        pause_ms = self.limits.store_retry_ms
                if any(isinstance(answer, Unavailable) for answer in answers):
                    pause_ms = self.limits.store_retry_ms
            except Unavailable as problem:
                _log.warning("waiters not vouched for", outcome=problem.outcome)
                pause_ms = self.limits.store_retry_ms

    async def _queue_again(self, tenure: Tenure) -> bool:
        """Whether the store answered."""
        tenure.asked_ms = trio_ms()
        async with self.turns.of(tenure.key):
            try:
                claim = evolve(tenure.claim, wait_ms=tenure.left_ms())
                answer = await self.store.acquire(tenure.name, claim, wait=True, take_over=False)
            except Unavailable as problem:
                _log.warning("a waiter was not queued again", outcome=problem.outcome)
                return False
            finally:
                self.on_asked(tenure)
        if tenure.stage is not Stage.WAITING:
            return True
        if isinstance(answer, Granted):
            self.on_granted(tenure, answer)
        elif isinstance(answer, Elsewhere):  # and the message that said so was lost
            self.tenures.leave(tenure, Cancelled("another connection took it over"))
        elif not isinstance(answer, Queued):
            self.tenures.leave(tenure, Lost())
        return True
