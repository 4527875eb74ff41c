"""P5 and P6l: a hundred thousand leases, held and renewed. What does it cost, and is one lost?

The load takes the leases, gives signs of life while the window is open, asks for every fence again,
and gives every lease back. In P6l they last so long that none is renewed, and only memory counts.
"""

import heapq
import os
import random
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import orjson
from attrs import define, field, frozen

from bench.names import memory_of
from bench.observed import Figures, Observed
from bench.shapes import NAMES, Target, Unexpected, open_session, percentile, receive
from bench.wire import Wire

FRAME_REQUESTS: Final = 100
"""Some 15 KiB."""
BUSY_HOLDERS: Final = 2
"""So many connections have such a frame under way at once: P5 is about holding, not a rush."""
STALL_S: Final = 30
LASTING_MS: Final = 3_600_000
"""The longest TTL there is: none of these is renewed while it is looked at."""
PER_TTL: Final = 3
"""Heartbeats, as the protocol advises; the server renews as often by itself."""

Answer = dict[str, dict[str, object]]
Request = Callable[["Held"], bytes]
Take = Callable[["Held", Answer], None]


@frozen
class Size:
    """How much is held, for how long, and who gives the signs of life."""

    leases: int
    connections: int
    ttl_ms: int
    heartbeats: bool

    @property
    def warm_up_s(self) -> float:
        """Until every lease has been renewed, and those of a connection fell into step."""
        return 2 * self.ttl_ms / PER_TTL / 1000

    @property
    def window_s(self) -> float:
        """Whoever lived on the TTL of the grant alone would be gone by then."""
        return 1.5 * self.ttl_ms / 1000


@define(eq=False)
class Held:
    """One lease."""

    number: int
    """Among those of its connection; the id of its requests."""
    name: str
    lease: str = field(factory=lambda: os.urandom(16).hex())
    fence: int = 0
    kept: bool = False
    released: bool = False

    def request(self, method: str, **params: int) -> bytes:
        """A request about it."""
        key = {"name": self.name, "lease": self.lease}
        message = {"jsonrpc": "2.0", "id": self.number, "method": method, "params": key | params}
        return orjson.dumps(message)

    def take_grant(self, answer: Answer) -> None:
        """It was acquired.

        Raises:
            Unexpected: it was not.
        """
        if "result" not in answer:
            raise Unexpected(repr(answer))
        self.fence = int(str(answer["result"]["fence"]))

    def take_resumed(self, answer: Answer) -> None:
        """It is still the same grant, or it is lost."""
        self.kept = answer.get("result", {}).get("fence") == self.fence

    def take_released(self, answer: Answer) -> None:
        """It was held until now, or not."""
        self.released = answer.get("result", {}).get("released") is True


@define(eq=False)
class Holder:
    """One connection and its leases."""

    connection: socket.socket
    wire: Wire
    held: list[Held]
    todo: deque[Held] = field(factory=deque)
    unanswered: int = 0
    heartbeats: dict[int, float] = field(factory=dict)
    """When those that are not answered were sent; their ids are negative."""
    heartbeats_sent: int = 0

    def send(self, message: bytes) -> None:
        """One frame."""
        self.connection.sendall(self.wire.encode(message))

    def ask_next(self, request: Request) -> None:
        """Sends the next frame of what there is to do."""
        chunk = [self.todo.popleft() for _ in range(min(FRAME_REQUESTS, len(self.todo)))]
        self.unanswered = len(chunk)
        self.send(b"[" + b",".join(map(request, chunk)) + b"]")

    def beat(self) -> None:
        """Sends a heartbeat."""
        self.heartbeats_sent += 1
        self.heartbeats[-self.heartbeats_sent] = time.monotonic()
        message = {"jsonrpc": "2.0", "id": -self.heartbeats_sent, "method": "session.heartbeat"}
        self.send(orjson.dumps(message))


class Fleet:
    """All connections, kept alive whatever else is done with them."""

    def __init__(self, target: Target, size: Size) -> None:
        self.holders: list[Holder] = []
        self.losses = 0
        self.heartbeats_failed = 0
        self.renewed = 0
        self.heartbeats_ms: list[float] = []
        self._beat_every_s = size.ttl_ms / PER_TTL / 1000
        self._beats: list[tuple[float, int]] = []
        """When each holder's next heartbeat is due: a heap."""
        self._selector = selectors.DefaultSelector()
        liveness = "heartbeat" if size.heartbeats else "pong"
        for number in range(size.connections):
            connection, wire = target.connect()
            open_session(connection, wire, batch=True, liveness=liveness)
            names = range(number, size.leases, size.connections)
            held = [Held(place, f"{NAMES}/{name}") for place, name in enumerate(names)]
            self.holders.append(Holder(connection, wire, held))
            self._selector.register(connection, selectors.EVENT_READ, self.holders[-1])

    @property
    def held(self) -> list[Held]:
        """All leases."""
        return [held for holder in self.holders for held in holder.held]

    def begin_heartbeats(self, holder: Holder) -> None:
        """From now on, every third of the TTL, each holder in its own time."""
        first_s = time.monotonic() + random.random() * self._beat_every_s
        heapq.heappush(self._beats, (first_s, self.holders.index(holder)))

    def ask_all(
        self, request: Request, take: Take, done: Callable[[Holder], None] = lambda _: None
    ) -> None:
        """One request about every lease, a few connections at a time."""
        waiting = deque(self.holders)
        for holder in waiting:
            holder.todo.extend(holder.held)
        busy: set[Holder] = set()
        while waiting or busy:
            while waiting and len(busy) < BUSY_HOLDERS:
                busy.add(waiting[0])
                waiting.popleft().ask_next(request)
            self._turn(STALL_S, take)
            for holder in [each for each in busy if not each.unanswered]:
                if holder.todo:
                    holder.ask_next(request)
                else:
                    busy.remove(holder)
                    done(holder)

    def take_all(self, size: Size) -> None:
        """Returns when every lease is held; whoever gives heartbeats has begun to."""
        self.ask_all(
            lambda held: held.request("lease.acquire", ttl_ms=size.ttl_ms),
            Held.take_grant,
            self.begin_heartbeats if size.heartbeats else lambda _: None,
        )

    def hold(self, seconds: float) -> None:
        """Only gives signs of life."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            self._turn(left_s, None)

    def close(self) -> None:
        """Hangs up."""
        self._selector.close()
        for holder in self.holders:
            holder.connection.close()

    def _turn(self, timeout_s: float, take: Take | None) -> None:
        """Sends the heartbeats that are due, and reads what has come until the next is."""
        now = time.monotonic()
        while self._beats and self._beats[0][0] <= now:
            due, number = self._beats[0]
            self.holders[number].beat()
            heapq.heapreplace(self._beats, (due + self._beat_every_s, number))
        if self._beats:
            timeout_s = min(timeout_s, self._beats[0][0] - now)
        for key, _ in self._selector.select(timeout_s):
            self._read(key.data, take)

    def _read(self, holder: Holder, take: Take | None) -> None:
        for payload in holder.wire.feed(receive(holder.connection)):
            message = orjson.loads(payload)
            for answer in message if isinstance(message, list) else [message]:
                if "method" in answer:
                    self.losses += answer["method"] == "lease.lost"
                elif answer["id"] < 0:
                    self._take_heartbeat(holder, answer)
                else:
                    assert take is not None
                    take(holder.held[answer["id"]], answer)
                    holder.unanswered -= 1
        if owed := holder.wire.replies():
            holder.connection.sendall(owed)

    def _take_heartbeat(self, holder: Holder, answer: Answer) -> None:
        sent_at = holder.heartbeats.pop(int(str(answer["id"])))
        self.heartbeats_ms.append((time.monotonic() - sent_at) * 1000)
        if "result" in answer:
            self.renewed += int(str(answer["result"]["renewed"]))
        else:
            self.heartbeats_failed += 1


def held_and_renewed(target: Target, observed: Observed, size: Size) -> Figures:
    """P5: leases taken, held over a window, looked at again and given back."""
    fleet = Fleet(target, size)
    began = time.monotonic()

    def say(what: str) -> None:
        after_s = time.monotonic() - began
        print(f"  after {after_s:.0f} s: {what}, {fleet.losses} lost so far", file=sys.stderr)

    before = memory_of(observed)
    fleet.take_all(size)
    figures = {
        "leases": float(size.leases),
        "connections": float(size.connections),
        "ttl_ms": float(size.ttl_ms),
        "acquired": size.leases / (time.monotonic() - began),
    }
    say("acquired")
    fleet.hold(size.warm_up_s)
    figures |= bytes_per_lease(before, memory_of(observed), size.leases)
    say("warmed up")
    figures |= window(fleet, observed, size)
    say("held and renewed")
    fleet.ask_all(lambda held: held.request("lease.resume"), Held.take_resumed)
    say("asked for again")
    fleet.ask_all(lambda held: held.request("lease.release"), Held.take_released)
    say("released")
    fleet.close()
    figures["told_lost"] = fleet.losses
    figures["lost"] = sum(not (held.kept and held.released) for held in fleet.held)
    return figures


def held_in_memory(target: Target, observed: Observed, size: Size) -> Figures:
    """P6l: leases taken, which no sign of life is needed for meanwhile, and given back."""
    fleet = Fleet(target, size)
    before = memory_of(observed)
    observed.begin()
    began = time.monotonic()
    fleet.take_all(size)
    figures = {"rate": size.leases / (time.monotonic() - began)} | observed.shares()
    figures |= bytes_per_lease(before, memory_of(observed), size.leases)
    fleet.ask_all(lambda held: held.request("lease.release"), Held.take_released)
    fleet.close()
    return figures | {
        "leases": float(size.leases),
        "connections": float(size.connections),
        "lost": sum(not held.released for held in fleet.held),
    }


def bytes_per_lease(before: Figures, after: Figures, leases: int) -> Figures:
    """By how much a lease made memory grow: that of the servers and, if there is one, of Redis."""
    return {
        f"{whose.removesuffix('_bytes')}_lease_bytes": (after[whose] - before[whose]) / leases
        for whose in before
    }


def window(fleet: Fleet, observed: Observed, size: Size) -> Figures:
    """What counts: the renewals, and what they cost."""
    renewed, answered = fleet.renewed, len(fleet.heartbeats_ms)
    scripts = observed.store.scripts_run if observed.store else 0
    observed.begin()
    began = time.monotonic()
    fleet.hold(size.window_s)
    figures = observed.shares()
    elapsed_s = time.monotonic() - began
    if observed.store:
        figures["rate"] = (observed.store.scripts_run - scripts) / elapsed_s
    if size.heartbeats:
        figures["heartbeats_failed"] = fleet.heartbeats_failed
        figures["rate"] = (fleet.renewed - renewed) / elapsed_s
        figures["heartbeat_p99_ms"] = percentile(fleet.heartbeats_ms[answered:], 0.99)
    return figures
