"""Vouching: this server says of its waiters that they are alive, or the queue would skip them."""

from collections.abc import Callable
from typing import Final

import structlog
import trio
from attrs import define

from leasekeeper.core.lock import Granted, Queued
from leasekeeper.errors import Lost, Unavailable
from leasekeeper.service.limits import Limits
from leasekeeper.service.session import Stage, Tenure
from leasekeeper.service.tenures import Tenures
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
    on_granted: Callable[[Tenure, Granted], None]
    on_asked: Callable[[Tenure], None]

    async def run(self) -> None:
        """Vouches for waiters, and queues those again that were dropped, until cancelled."""
        alive_ms = self.limits.waiter_alive_ms
        while True:
            await trio.sleep(alive_ms / 3 / 1000)
            waiting = [tenure for tenure in self.tenures if tenure.stage is Stage.WAITING]
            try:
                answers = await self.store.touch([t.key for t in waiting], alive_ms)
                for tenure, in_queue in zip(waiting, answers, strict=True):
                    if not in_queue and tenure.stage is Stage.WAITING:
                        await self._queue_again(tenure)
            except Unavailable as problem:
                _log.warning("waiters not vouched for", outcome=problem.outcome)

    async def _queue_again(self, tenure: Tenure) -> None:
        if tenure.claim.ttl_ms == 0:  # resumed from another server, which knew what it asked for
            self.tenures.leave(tenure, Lost())
            return
        try:
            answer = await self.store.acquire(tenure.name, tenure.claim, wait=True)
        finally:
            self.on_asked(tenure)
        if tenure.stage is not Stage.WAITING:
            return
        if isinstance(answer, Granted):
            self.on_granted(tenure, answer)
        elif not isinstance(answer, Queued):
            self.tenures.leave(tenure, Lost())
