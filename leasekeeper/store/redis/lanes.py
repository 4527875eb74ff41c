"""Names to be dealt with: one batch after the other for each node, and the nodes side by side.

So a node that does not answer holds up its own names, and no others.
"""

from collections.abc import Awaitable, Callable, Hashable, Sequence
from itertools import islice

import trio
from attrs import define, field


@define(eq=False)
class Lanes:
    """A lane for each node in which something is due; `work` is given at most `at_once` of a lane.

    A name that is already due is not due twice; one that is being dealt with may be.
    """

    node_of: Callable[[str], Hashable]
    work: Callable[[Sequence[str]], Awaitable[None]]
    at_once: int
    _lanes: dict[Hashable, dict[str, None]] = field(factory=dict, init=False, repr=False)
    _nursery: trio.Nursery | None = field(default=None, init=False, repr=False)

    def add(self, name: str) -> None:
        """This name is due."""
        node = self.node_of(name)
        lane = self._lanes.get(node)
        if lane is not None:
            lane[name] = None
            return
        self._lanes[node] = {name: None}
        if self._nursery is not None:
            self._nursery.start_soon(self._work_through, node)

    async def run(self) -> None:
        """Deals with what is due, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for node in self._lanes:
                    nursery.start_soon(self._work_through, node)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _work_through(self, node: Hashable) -> None:
        lane = self._lanes[node]
        while lane:
            names = list(islice(lane, self.at_once))
            for name in names:
                del lane[name]
            await self.work(names)
        del self._lanes[node]
