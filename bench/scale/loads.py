"""The loads of the scale: S1, lock cycles, and S2, hand-offs in a line of any length."""

import selectors
import time
from collections.abc import Sequence
from typing import Final

from bench.line import Inspector, Line, Waiter, grants
from bench.observed import Figures, Observed
from bench.shapes import (
    NAMES,
    STALL_S,
    Target,
    Unexpected,
    Window,
    Worker,
    answered_ids,
    open_session,
    percentile,
    receive,
)
from bench.wire import close

WAITERS_EACH: Final = 1_000
"""On a connection: as many as a session may have."""


class Gang:
    """One connection, and workers that each take a lock of their own and give it back."""

    def __init__(self, target: Target, names: Sequence[int]) -> None:
        self.connection, self._wire = target.connect()
        open_session(self.connection, self._wire, batch=True)
        self._workers = [Worker(number, f"{NAMES}/{name}") for number, name in enumerate(names)]
        self._asked_at = [0.0] * len(names)
        self.latencies_ms: list[float] = []
        """From sending a request until its answer was read."""

    def begin(self) -> None:
        """All ask."""
        self._ask(range(len(self._workers)))

    def go_on(self, *, counts: bool) -> int:
        """Whose answer has come asks again, in one frame; how many these were."""
        payloads = self._wire.feed(receive(self.connection))
        if owed := self._wire.replies():
            self.connection.sendall(owed)
        ready = [each for payload in payloads for each in answered_ids(payload, echoes=False)]
        if counts:
            now = time.monotonic()
            self.latencies_ms += [1000 * (now - self._asked_at[number]) for number in ready]
        if ready:
            self._ask(ready)
        return len(ready)

    def _ask(self, numbers: Sequence[int]) -> None:
        requests = [self._workers[number].next_request() for number in numbers]
        frame = self._wire.encode(b"[" + b",".join(requests) + b"]")
        now = time.monotonic()
        for number in numbers:
            self._asked_at[number] = now
        self.connection.sendall(frame)


def cycles(
    targets: Sequence[Target], window: Window, observed: Observed, workers_count: int
) -> Figures:
    """S1: workers over one connection to each server, as in P1; latencies are those of requests."""
    shares = [range(place, workers_count, len(targets)) for place in range(len(targets))]
    gangs = [Gang(target, names) for target, names in zip(targets, shares, strict=True)]
    with selectors.DefaultSelector() as selector:
        for gang in gangs:
            selector.register(gang.connection, selectors.EVENT_READ, gang)
            gang.begin()
        answered = 0
        while window.open(answered):
            answered += sum(key.data.go_on(counts=window.begun) for key in readable(selector))
    figures = observed.shares()
    latencies_ms = [each for gang in gangs for each in gang.latencies_ms]
    for gang in gangs:
        close(gang.connection)
    return figures | {"rate": window.rate / 2, "p50_ms": percentile(latencies_ms, 0.50)}


def readable(selector: selectors.BaseSelector) -> list[selectors.SelectorKey]:
    """Those on which something has come.

    Raises:
        Unexpected: nothing does.
    """
    events = selector.select(STALL_S)
    if not events:
        raise Unexpected(f"nothing came in {STALL_S} s")
    return [key for key, _ in events]


def long_line(target: Target, window: Window, observed: Observed, waiters_count: int) -> Figures:
    """S2: as P3, but waiters share connections, and the queue is always as long as is asked for."""
    waiters = stand_in_line(target, waiters_count + 1)
    line = Line(waiters, lambda waiter: (waiter, waiter.hand_off(queue_again=True)))
    by_lease = {waiter.lease: waiter for waiter in waiters}
    with selectors.DefaultSelector() as selector:
        for waiter in waiters[::WAITERS_EACH]:
            selector.register(waiter.connection, selectors.EVENT_READ, waiter)
        while window.open(line.handed_off):
            for key in readable(selector):
                for lease, fence in grants(key.data.connection, key.data.wire).items():
                    waiter = by_lease.pop(lease)
                    line.granted(waiter, fence, counts=window.begun)
                    by_lease[waiter.lease] = waiter
    figures = observed.shares()
    for waiter in waiters[::WAITERS_EACH]:
        close(waiter.connection)
    return figures | {
        "rate": window.rate,
        "p50_ms": percentile(line.latencies_ms, 0.50),
        "out_of_order": line.out_of_order,
    }


def stand_in_line(target: Target, waiters_count: int) -> list[Waiter]:
    """Waiters in a known order: those of a connection queue once all before them are in line."""
    inspector = Inspector(*target.connect())
    waiters: list[Waiter] = []
    while len(waiters) < waiters_count:
        connection, wire = target.connect()
        open_session(connection, wire, batch=True)
        here = min(WAITERS_EACH, waiters_count - len(waiters))
        group = [Waiter(connection, wire) for _ in range(here)]
        for waiter in group:
            waiter.queue()
        waiters += group
        inspector.wait_for(len(waiters))
    inspector.connection.close()
    return waiters
