"""Drives locks that block: a thread for each worker."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from bench.observed import Figures
from bench.peers.line import Line
from bench.peers.tasks import APART_S, LOOK_S
from bench.shapes import Unexpected, Window

LEAVE_S: Final = 5.0


class Lock(Protocol):
    """A worker's lock. One thread acquires and releases it, over and over."""

    def acquire(self) -> None:
        """Returns when it is held, however long that takes."""
        ...

    def release(self) -> None:
        """Returns when that is known to have been done."""
        ...


class Crew:
    """The threads of a run."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self._failures: list[BaseException] = []

    def during(
        self,
        window: Window,
        workers_count: int,
        work: Callable[[int], None],
        counted: Callable[[], int],
    ) -> None:
        """Lets the workers run until the time is over.

        Raises:
            Unexpected: a worker failed.
        """
        threads = [
            threading.Thread(target=self._guarded, args=(work, place), daemon=True)
            for place in range(workers_count)
        ]
        for thread in threads:
            thread.start()
        while window.open(counted()) and not self._failures:
            time.sleep(LOOK_S)
        self.over.set()
        until = time.monotonic() + LEAVE_S
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        if self._failures:
            raise Unexpected("a worker failed") from self._failures[0]

    def _guarded(self, work: Callable[[int], None], place: int) -> None:
        try:
            work(place)
        except BaseException as failure:
            self._failures.append(failure)


def cycles(locks: Sequence[Lock], window: Window) -> Figures:
    """P1 and P2: lock cycles, each worker with a lock of its own."""
    crew = Crew()
    counts = [0] * len(locks)

    def work(place: int) -> None:
        lock = locks[place]
        while not crew.over.is_set():
            lock.acquire()
            lock.release()
            counts[place] += 1

    crew.during(window, len(locks), work, lambda: sum(counts))
    return {"rate": window.rate}


def hand_offs(locks: Sequence[Lock], window: Window, hold_s: float) -> Figures:
    """P3: all locks have the same name. At the end each gets it once more, and leaves."""
    crew = Crew()
    line = Line(len(locks))
    passed_on = [threading.Event() for _ in locks]
    last: int | None = None

    def work(place: int) -> None:
        nonlocal last
        time.sleep(place * APART_S)
        while not crew.over.is_set():
            passed_on[place].clear()
            line.asks(place)
            locks[place].acquire()
            line.granted(place, counts=window.begun and not crew.over.is_set())
            if last is not None:
                passed_on[last].set()
            last = place
            if hold_s:
                time.sleep(hold_s)
            line.gives_back(place)
            locks[place].release()
            while not crew.over.is_set() and not passed_on[place].wait(1.0):
                pass

    crew.during(window, len(locks), work, lambda: line.handed_off)
    return {"rate": window.rate} | line.figures()
