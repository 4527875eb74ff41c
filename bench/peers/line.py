"""Hand-offs of any lock that only has an acquire and a release: how long they take, in what order.

Ours queues again in the frame of the release. Other locks are asked again when the next holder has
been seen: else one that lets the releaser barge in would mostly hand the lock back to him, and
look fast for it.
"""

import math
import time

from bench.hand_offs import hand_off_figures
from bench.observed import Figures
from bench.shapes import Unexpected


class Line:
    """What waiters report. Those of threads may report at once, as the lock allows."""

    def __init__(self, waiters_count: int) -> None:
        self._asked_at = [math.inf] * waiters_count
        """Of those who wait."""
        self._gave_back_at = [math.inf] * waiters_count
        self._holder: int | None = None
        self._released_at: float | None = None
        self._latencies_ms: list[float] = []
        self._grants = [0] * waiters_count
        """Those that have a latency."""
        self._out_of_order = 0
        self.handed_off = 0

    def asks(self, waiter: int) -> None:
        """It is about to ask for the lock."""
        self._asked_at[waiter] = time.monotonic()

    def granted(self, waiter: int, *, counts: bool) -> None:
        """It has the lock.

        This is out of order if somebody still waits who had asked before this waiter gave the lock
        back the last time. Who asked at about the same time, over another connection, may be
        overtaken: no server can know better.

        Raises:
            Unexpected: somebody else has it, too.
        """
        now = time.monotonic()
        if self._holder is not None:
            raise Unexpected(f"waiters {self._holder} and {waiter} hold the same lock")
        self._holder = waiter
        last_at = min(self._asked_at[waiter], self._gave_back_at[waiter])
        self._asked_at[waiter] = math.inf
        if counts and self._released_at is not None:
            self._latencies_ms.append(1000 * (now - self._released_at))
            self._grants[waiter] += 1
            self._out_of_order += min(self._asked_at) < last_at
        self.handed_off += 1

    def gives_back(self, waiter: int) -> None:
        """It is about to release the lock."""
        self._holder = None
        self._released_at = self._gave_back_at[waiter] = time.monotonic()

    def figures(self) -> Figures:
        """What P3 reports.

        Raises:
            Unexpected: there was no hand-off.
        """
        return hand_off_figures(self._latencies_ms, self._grants, self._out_of_order)
