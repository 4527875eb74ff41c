"""Loads within loads: who waits for whom, and waits that would never end."""

from typing import Final

import structlog
from attrs import define, field

from leasekeeper.errors import Deadlock, Unavailable
from leasekeeper.messages import CacheGet
from leasekeeper.service.metrics import Metrics
from leasekeeper.store.caches import CacheStore

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

_CHAIN_MAX: Final = 32
"""So many fills that wait for each other are followed; longer chains end by their time."""

Within = tuple[str, str]
"""The key and fill of the load that asks for another key."""


def within_of(ask: CacheGet) -> Within | None:
    """The load that this is asked within."""
    if ask.within_key is None or ask.within_fill is None:
        return None
    return ask.within_key, ask.within_fill


@define(eq=False)
class Nesting:
    """Says in the store what a fill waits for, so that every server can follow the chain.

    It knows of one wait for each fill: of several at once, the last.
    """

    store: CacheStore
    metrics: Metrics = field(repr=False)

    async def refuse_cycle(self, within: Within, on: str) -> None:
        """Marks that `within` waits for a key, and then looks for a cycle.

        Two that close a cycle at the same moment have both said so before either looks: so it is
        never missed, and both may be refused.

        Raises:
            Deadlock: there is one. Nothing stays marked.
            Unavailable: the store did not answer.

        Cancellation:
            The mark may stay: unmark it.
        """
        key, fill = within
        await self.store.wait_for(key, fill, on)
        cycle, at = [key], on
        while len(cycle) < _CHAIN_MAX:
            if at == key:
                await self.unmark(within)
                self.metrics.cache_deadlocks.inc()
                raise Deadlock(cycle)
            cycle.append(at)
            after = await self.store.waits_for(at)
            if after is None:
                return
            at = after

    async def mark(self, within: Within, on: str) -> None:
        """What `within` needs is being loaded by the same caller: that is a wait, too."""
        await self._say(within, on)

    async def unmark(self, within: Within) -> None:
        """It waits no more."""
        await self._say(within, None)

    async def _say(self, within: Within, on: str | None) -> None:
        try:
            await self.store.wait_for(*within, on)
        except Unavailable as problem:
            # At worst a wait is refused that would end, or one is not that ends by its time.
            _log.warning("a nested load was not marked", outcome=problem.outcome)
