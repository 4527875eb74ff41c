"""P3 and P3b: many waiters on one lock. How long does a hand-off take, and does the line hold?"""

import os
import selectors
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final

import orjson
from attrs import define, frozen

from bench.hand_offs import hand_off_figures
from bench.observed import Figures
from bench.shapes import (
    NAMES,
    STALL_S,
    Target,
    Unexpected,
    Window,
    exchange,
    open_session,
    receive,
)
from bench.wire import Wire

CONTESTED: Final = f"{NAMES}/contested"


@define(eq=False)
class Waiter:
    """One connection that waits for the lock, gives it back at once and queues again."""

    connection: socket.socket
    wire: Wire
    lease: str = ""

    def _acquire(self) -> dict[str, object]:
        self.lease = os.urandom(16).hex()
        params = {"name": CONTESTED, "lease": self.lease, "wait_ms": None}
        return {"jsonrpc": "2.0", "id": self.lease, "method": "lease.acquire", "params": params}

    def _release(self) -> dict[str, object]:
        params = {"name": CONTESTED, "lease": self.lease}
        return {"jsonrpc": "2.0", "id": "release", "method": "lease.release", "params": params}

    def queue(self) -> None:
        """Asks for the lock."""
        self.connection.sendall(self.wire.encode(orjson.dumps(self._acquire())))

    def hand_off(self, *, queue_again: bool) -> float:
        """Releases; and queues again, in one frame and in this order.

        Returns:
            When the release was sent, in seconds of the monotonic clock.
        """
        requests = [self._release()]
        if queue_again:
            requests.append(self._acquire())
        frame = self.wire.encode(orjson.dumps(requests))
        sent_at = time.monotonic()
        self.connection.sendall(frame)
        return sent_at

    def granted_fence(self) -> int | None:
        """The fence, if what has come holds the grant of the lease this waiter is waiting for."""
        return grants(self.connection, self.wire).get(self.lease)


def grants(connection: socket.socket, wire: Wire) -> dict[str, int]:
    """The fences that have come, by the leases that were granted with them.

    Raises:
        Unexpected: an error came.
    """
    fences: dict[str, int] = {}
    for payload in wire.feed(receive(connection)):
        message = orjson.loads(payload)
        for answer in message if isinstance(message, list) else [message]:
            if "error" in answer:
                raise Unexpected(repr(answer))
            if "fence" in answer.get("result", {}):
                fences[answer["id"]] = answer["result"]["fence"]
    if owed := wire.replies():
        connection.sendall(owed)
    return fences


@frozen
class Inspector:
    """One connection that looks on."""

    connection: socket.socket
    wire: Wire

    def wait_for(self, count: int) -> None:
        """Returns when so many hold the lock or wait for it."""
        params = {"name": CONTESTED}
        request = {"jsonrpc": "2.0", "id": "inspect", "method": "lease.inspect", "params": params}
        in_line = 0
        while in_line < count:
            answer = exchange(self.connection, self.wire, orjson.dumps(request))
            if owed := self.wire.replies():
                self.connection.sendall(owed)
            state = orjson.loads(answer)["result"]
            in_line = len(state["holders"]) + state["waiting_total"]


PassOn = Callable[[Waiter], tuple[Waiter, float]]
"""Hands the lock on. Returns who stands at the end of the line now, and when it was released."""


class Line:
    """The order in which grants must come, and what was measured of those that came."""

    def __init__(self, waiters: list[Waiter], pass_on: PassOn) -> None:
        self._expected = deque(waiters)
        self._pass_on = pass_on
        self._fence = 0
        self._released_at: float | None = None
        self.handed_off = 0
        self.out_of_order = 0
        self.latencies_ms: list[float] = []
        self.grants: Counter[Waiter] = Counter()
        """Those that have a latency."""

    def granted(self, waiter: Waiter, fence: int, *, counts: bool) -> None:
        """A waiter received its grant, and passes the lock on."""
        now = time.monotonic()
        if self._released_at is not None and counts:
            self.latencies_ms.append((now - self._released_at) * 1000)
            self.grants[waiter] += 1
        if waiter is not self._expected[0] or fence <= self._fence:
            self.out_of_order += 1
        self._fence = fence
        self._expected.remove(waiter)
        self.handed_off += 1
        last, self._released_at = self._pass_on(waiter)
        self._expected.append(last)


def hand_offs(target: Target, window: Window, waiters_count: int) -> Figures:
    """P3: from sending the release to the receipt of the next holder's grant.

    Who releases queues again in the same frame, and a server takes the two in this order.
    """
    inspector = Inspector(*target.connect())
    waiters = stand_in_line([target], inspector, waiters_count)
    line = Line(waiters, lambda waiter: (waiter, waiter.hand_off(queue_again=True)))
    return measured(line, waiters, window)


def hand_offs_between(targets: Sequence[Target], window: Window, waiters_count: int) -> Figures:
    """P3b: the same where neighbours in the line are connected to different servers.

    Requests to two servers reach the store in no known order. So nobody releases before a partner,
    on the same server, is seen at the end of the line; the clock starts after that.
    """
    inspector = Inspector(*targets[0].connect())
    waiters = stand_in_line(targets, inspector, waiters_count)
    others = [connect(targets, place) for place in range(waiters_count)]
    partners = dict(zip(waiters + others, others + waiters, strict=True))

    def pass_on(waiter: Waiter) -> tuple[Waiter, float]:
        partner = partners[waiter]
        partner.queue()
        inspector.wait_for(waiters_count + 1)
        return partner, waiter.hand_off(queue_again=False)

    return measured(Line(waiters, pass_on), waiters + others, window)


def measured(line: Line, waiters: list[Waiter], window: Window) -> Figures:
    """Lets the line run."""
    with selectors.DefaultSelector() as selector:
        for waiter in waiters:
            selector.register(waiter.connection, selectors.EVENT_READ, waiter)
        while window.open(line.handed_off):
            events = selector.select(STALL_S)
            if not events:
                raise Unexpected(f"no hand-off in {STALL_S} s: a lost wake-up")
            for key, _ in events:
                fence = key.data.granted_fence()
                if fence is not None:
                    line.granted(key.data, fence, counts=window.begun)
    for waiter in waiters:
        waiter.connection.close()
    grants = [line.grants[waiter] for waiter in waiters]
    return {
        "rate": window.rate,
        **hand_off_figures(line.latencies_ms, grants, line.out_of_order),
    }


def connect(targets: Sequence[Target], place: int) -> Waiter:
    """A waiter; its place in the line decides which server is its own."""
    connection, wire = targets[place % len(targets)].connect()
    open_session(connection, wire, batch=True)
    return Waiter(connection, wire)


def stand_in_line(
    targets: Sequence[Target], inspector: Inspector, waiters_count: int
) -> list[Waiter]:
    """Waiters in a known order: each queues once the one before it is seen in line."""
    waiters: list[Waiter] = []
    while len(waiters) < waiters_count:
        waiters.append(connect(targets, len(waiters)))
        waiters[-1].queue()
        inspector.wait_for(len(waiters))
    return waiters
