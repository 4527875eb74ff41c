"""The task that ends leases when their own deadline passes, online or not."""

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

import anyio
from anyio import move_on_after

from leasekeeper_client._hold import Hold, State


class Deadlines:
    """Holds in the order of their deadlines.

    A renewed hold keeps its old place until that comes up, so renewing costs nothing here.
    It does not know how deadlines come about.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._heap: list[tuple[float, int, Hold]] = []
        self._count = count()
        self._wake = anyio.Event()

    def watch(self, hold: Hold) -> None:
        """Look after a hold from now on; say so again when its deadline has come nearer."""
        first = self._heap[0][0] if self._heap else math.inf
        heappush(self._heap, (hold.deadline, next(self._count), hold))
        if hold.deadline < first:
            self._wake.set()

    async def run(self) -> None:
        """Lose each hold at its deadline, until cancelled."""
        while True:
            self._wake = anyio.Event()
            pause = self._end_overdue()
            with move_on_after(pause):
                await self._wake.wait()

    def _end_overdue(self) -> float:
        """Lose what is overdue; return the seconds until the next deadline."""
        while self._heap:
            now = self._clock()
            due, _, hold = self._heap[0]
            if hold.state is State.HELD and due > now:
                return due - now
            heappop(self._heap)
            hold.expire(now)
            if hold.state is State.HELD:
                heappush(self._heap, (hold.deadline, next(self._count), hold))
        return math.inf
