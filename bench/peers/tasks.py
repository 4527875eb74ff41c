"""Drives locks of asyncio: a task for each worker."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Final, Protocol

from bench.observed import Figures
from bench.peers.line import Line
from bench.shapes import Window

LOOK_S: Final = 0.01
"""So often it is looked whether the time is over."""
APART_S: Final = 0.01
"""Between the first requests of P3, so that their order is known."""


class Lock(Protocol):
    """A worker's lock. One worker acquires and releases it, over and over."""

    async def acquire(self) -> None:
        """Returns when it is held, however long that takes."""
        ...

    async def release(self) -> None:
        """Returns when that is known to have been done."""
        ...


Work = Callable[[int], Coroutine[None, None, None]]


class Crew:
    """The tasks of a run. None is cancelled: libraries have been seen to go on regardless."""

    def __init__(self) -> None:
        self.at_work = True

    async def during(
        self, window: Window, workers_count: int, work: Work, counted: Callable[[], int]
    ) -> None:
        """Lets the workers run until the time is over; what one of them raises ends it all."""
        async with asyncio.TaskGroup() as group:
            for place in range(workers_count):
                group.create_task(work(place))
            # The workers are to be watched, not to be disturbed by news of each cycle.
            while window.open(counted()):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_S)
            self.at_work = False


async def cycles(locks: Sequence[Lock], window: Window) -> Figures:
    """P1 and P2: lock cycles, each worker with a lock of its own."""
    crew = Crew()
    counts = [0] * len(locks)

    async def work(place: int) -> None:
        lock = locks[place]
        while crew.at_work:
            await lock.acquire()
            await lock.release()
            counts[place] += 1

    await crew.during(window, len(locks), work, lambda: sum(counts))
    return {"rate": window.rate}


async def hand_offs(locks: Sequence[Lock], window: Window, hold_s: float) -> Figures:
    """P3: all locks have the same name. At the end each gets it once more, and leaves."""
    crew = Crew()
    line = Line(len(locks))
    passed_on = [asyncio.Event() for _ in locks]
    last: int | None = None

    async def work(place: int) -> None:
        nonlocal last
        await asyncio.sleep(place * APART_S)
        while crew.at_work:
            passed_on[place].clear()
            line.asks(place)
            await locks[place].acquire()
            line.granted(place, counts=window.begun and crew.at_work)
            if last is not None:
                passed_on[last].set()
            last = place
            if hold_s:
                await asyncio.sleep(hold_s)
            line.gives_back(place)
            await locks[place].release()
            if crew.at_work:
                await passed_on[place].wait()

    await crew.during(window, len(locks), work, lambda: line.handed_off)
    return {"rate": window.rate} | line.figures()
