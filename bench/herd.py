"""P4: ten thousand callers of one missing key. How often is it loaded, and when are all served?

One caller is told to load the value. It takes its time until all others are known to wait; then it
hands the value over, and what counts is how long the others go on waiting.
"""

import selectors
import socket
import time
from collections.abc import Sequence
from typing import Final

import orjson
from attrs import define, field

from bench.observed import Figures, Observed
from bench.shapes import (
    NAMES,
    STALL_S,
    Target,
    Unexpected,
    open_session,
    percentile,
    receive,
)
from bench.wire import Wire

KEY: Final = f"{NAMES}/missing"
"""Each round is a process of its own, and so has a key that nobody has asked for."""
VALUE: Final = "0123456789abcdef" * 64
"""1 KiB."""
LOAD_S: Final = 1.0
"""How long the load takes once all callers have come."""
HERE: Final = "here"
HIT: Final = b'"state":"hit"'

Answer = dict[str, dict[str, object]]


@define(eq=False)
class Group:
    """The callers on one connection."""

    connection: socket.socket
    wire: Wire
    callers: int
    """They ask in one frame: there may be 1,000, as many as a batch may have."""
    received: list[tuple[float, bytes]] = field(factory=list)
    """What came, and when."""

    def send(self, message: bytes) -> None:
        """One frame."""
        self.connection.sendall(self.wire.encode(message))

    def come(self) -> None:
        """All ask, and then the connection asks for something else.

        A server begins with requests in the order in which they came. So with the answer to the
        last it is known that all callers are there.
        """
        self.send(b"[" + b",".join(map(get, range(self.callers))) + b"]")
        self.send(orjson.dumps({"jsonrpc": "2.0", "id": HERE, "method": "session.heartbeat"}))

    def read(self) -> int:
        """Takes what has come, and says how many hits are in it. Nobody looks at them yet."""
        data = receive(self.connection)
        now = time.monotonic()
        payloads = self.wire.feed(data)
        self.received += [(now, payload) for payload in payloads]
        if owed := self.wire.replies():
            self.connection.sendall(owed)
        return sum(payload.count(HIT) for payload in payloads)

    def answers(self) -> list[tuple[float, Answer]]:
        """What has come since the last time, and when each came."""
        received, self.received = self.received, []
        return [
            (at, answer)
            for at, payload in received
            for message in [orjson.loads(payload)]
            for answer in (message if isinstance(message, list) else [message])
        ]


def get(number: int) -> bytes:
    """A caller's request: it waits for ever, and would load the value itself."""
    params = {"key": KEY, "wait_ms": None, "fill_ms": 60_000}
    return orjson.dumps({"jsonrpc": "2.0", "id": number, "method": "cache.get", "params": params})


class Herd:
    """All callers."""

    def __init__(self, targets: Sequence[Target], groups_count: int, callers_each: int) -> None:
        self.fills: list[tuple[Group, str]] = []
        """Who was told to load the value, each with its fill."""
        self._selector = selectors.DefaultSelector()
        self.groups = []
        for number in range(groups_count):
            connection, wire = targets[number % len(targets)].connect()
            open_session(connection, wire, batch=True)
            self.groups.append(Group(connection, wire, callers_each))
            self._selector.register(connection, selectors.EVENT_READ, self.groups[-1])

    def gather(self) -> None:
        """All ask. Returns when somebody loads the value, and all others wait for it."""
        for group in self.groups:
            group.come()
        here: set[Group] = set()
        while len(here) < len(self.groups) or not self.fills:
            if self._read(STALL_S) is None:
                raise Unexpected(f"nothing came for {STALL_S} s: nobody is to load the value")
            here |= self._take_early()
        until = time.monotonic() + LOAD_S
        while (left_s := until - time.monotonic()) > 0:
            self._read(left_s)
        self._take_early()

    def hand_over(self) -> float:
        """The value is there, with whoever was to load it.

        Returns:
            When it was sent, in seconds of the monotonic clock.
        """
        sent_at = time.monotonic()
        for filler, fill in self.fills:
            params = {"key": KEY, "fill": fill, "value": VALUE, "ttl_ms": 60_000}
            request = {"jsonrpc": "2.0", "id": fill, "method": "cache.fill", "params": params}
            filler.send(orjson.dumps(request))
        return sent_at

    def await_hits(self) -> None:
        """Returns when all who waited are served.

        Raises:
            Unexpected: somebody is not.
        """
        waiting = sum(group.callers for group in self.groups) - len(self.fills)
        while waiting > 0:
            hits = self._read(STALL_S)
            if hits is None:
                raise Unexpected(f"{waiting} callers were not served within {STALL_S} s")
            waiting -= hits

    def served_at(self) -> list[float]:
        """When each of those who waited was served.

        Raises:
            Unexpected: somebody was served something else.
        """
        times: list[float] = []
        for group in self.groups:
            for at, answer in group.answers():
                result = answer.get("result", {})
                if result.get("state") == "hit" and result.get("value") == VALUE:
                    times.append(at)
                elif "outcome" not in result:
                    raise Unexpected(repr(answer))
        return times

    def close(self) -> None:
        """Hangs up."""
        self._selector.close()
        for group in self.groups:
            group.connection.close()

    def _read(self, timeout_s: float) -> int | None:
        """How many hits have come; None: nothing has, for so long."""
        events = self._selector.select(timeout_s)
        return sum(key.data.read() for key, _ in events) if events else None

    def _take_early(self) -> set[Group]:
        """What comes before the value is there: the groups that are complete now."""
        complete = set()
        for group in self.groups:
            for _, answer in group.answers():
                result = answer.get("result", {})
                if result.get("state") == "fill":
                    self.fills.append((group, str(result["fill"])))
                elif str(answer["id"]) == HERE and "result" in answer:
                    complete.add(group)
                else:
                    raise Unexpected(repr(answer))
        return complete


def one_load_for_all(
    targets: Sequence[Target], observed: Observed, connections: int, callers: int
) -> Figures:
    """P4: from sending the value to the receipt of the last caller's.

    To read what was received is the callers' work, and is done when all of it is there.
    """
    callers_each = max(1, callers // connections)
    herd = Herd(targets, connections, callers_each)
    herd.gather()
    observed.begin()
    sent_at = herd.hand_over()
    herd.await_hits()
    figures = observed.shares()
    latencies_ms = [1000 * (at - sent_at) for at in herd.served_at()]
    herd.close()
    return figures | {
        "rate": 1000 * len(latencies_ms) / max(latencies_ms),
        "callers": connections * callers_each,
        "connections": connections,
        "loads": len(herd.fills),
        "p50_ms": percentile(latencies_ms, 0.50),
        "last_ms": max(latencies_ms),
    }
