"""What the load sends and counts: P1, P2 and P3 of the design, over plain sockets.

Every answer is checked. A load that counted refusals would measure how fast the server says no.
"""

import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import orjson
from attrs import define, frozen

from bench.wire import Closed, LineWire, WebSocketWire, Wire, connect, upgrade

CHUNK_BYTES: Final = 1 << 18
STALL_S: Final = 10
"""Silence of the server for so long ends the run."""

Figures = dict[str, float]
"""`rate` is what the shape counts, per second: lock cycles, messages or hand-offs."""


class Unexpected(Exception):
    """The server answered, but not what the shape is entitled to."""


@frozen
class Target:
    """Where the load goes, and what answers there."""

    host: str
    port: int
    protocol: str
    """`leasekeeper`; or `lines` or `websocket`, which send everything back as it came."""

    def connect(self) -> tuple[socket.socket, Wire]:
        """A connection that is ready for the first request."""
        connection = connect(self.host, self.port)
        if self.protocol == "lines":
            return connection, LineWire()
        upgrade(connection, self.host, self.port)
        return connection, WebSocketWire()


class Window:
    """The stretch of time that counts: after the warm-up, until the end."""

    def __init__(self, warm_up_s: float, measure_s: float, on_begin: Callable[[], None]) -> None:
        self._warm_up_s = warm_up_s
        self._measure_s = measure_s
        self._on_begin = on_begin
        self._started = time.monotonic()
        self._began: float | None = None
        self._counted_before = 0
        self.elapsed_s = 0.0
        self.counted = 0

    def open(self, counted: int) -> bool:
        """Whether to go on, given how much has been counted since the start."""
        now = time.monotonic()
        if self._began is None:
            if now - self._started >= self._warm_up_s:
                self._on_begin()
                self._began, self._counted_before = time.monotonic(), counted
            return True
        self.elapsed_s = now - self._began
        self.counted = counted - self._counted_before
        return self.elapsed_s < self._measure_s

    @property
    def begun(self) -> bool:
        """Whether what happens now counts."""
        return self._began is not None

    @property
    def rate(self) -> float:
        """Counted per second."""
        return self.counted / self.elapsed_s


class Worker:
    """Takes a lock of its own and gives it back, over and over: prebuilt text and a new lease."""

    def __init__(self, number: int, name: str) -> None:
        start = b'{"jsonrpc":"2.0","id":%d,"method":"lease.' % number
        key = b'","params":{"name":"%s","lease":"' % name.encode()
        self._acquire = start + b"acquire" + key
        self._release = start + b"release" + key
        self._lease = b""
        self._holds = False

    def next_request(self) -> bytes:
        """Acquire with a new lease id, then release it."""
        if self._holds:
            self._holds = False
            return self._release + self._lease + b'"}}'
        self._holds = True
        self._lease = os.urandom(16).hex().encode()
        return self._acquire + self._lease + b'","ttl_ms":30000}}'


def receive(connection: socket.socket) -> bytes:
    """Some bytes.

    Raises:
        Closed: at the end of the stream.
    """
    data = connection.recv(CHUNK_BYTES)
    if not data:
        raise Closed("the server hung up")
    return data


def exchange(connection: socket.socket, wire: Wire, request: bytes) -> bytes:
    """One request and its answer, on a connection that carries nothing else meanwhile."""
    connection.sendall(wire.encode(request))
    while not (payloads := wire.feed(receive(connection))):
        pass
    if b'"error"' in payloads[0]:
        raise Unexpected(payloads[0].decode())
    return payloads[0]


def open_session(connection: socket.socket, wire: Wire, *, batch: bool) -> None:
    """What every client says first."""
    params: dict[str, str | bool] = {"client": "bench", "batch": batch}
    request = {"jsonrpc": "2.0", "id": "open", "method": "session.open", "params": params}
    exchange(connection, wire, orjson.dumps(request))


# --- P1: many workers over one connection -------------------------------------------------------


def one_connection(target: Target, window: Window, workers_count: int) -> Figures:
    """P1: a worker whose answer came asks again at once; what is ready together is one frame."""
    connection, wire = target.connect()
    with connection:
        echoes = target.protocol != "leasekeeper"
        if not echoes:
            open_session(connection, wire, batch=True)
        workers = [Worker(number, f"bench/p1/{number}") for number in range(workers_count)]
        ready = list(range(workers_count))
        answered = frames = 0
        while window.open(answered):
            requests = b",".join([workers[number].next_request() for number in ready])
            connection.sendall(wire.replies() + wire.encode(b"[" + requests + b"]"))
            ready = []
            while not ready:
                payloads = wire.feed(receive(connection))
                frames += len(payloads)
                for payload in payloads:
                    ready += answered_ids(payload, echoes=echoes)
            answered += len(ready)
        return {"rate": window.rate / 2, "answers_per_frame": answered / frames}


def answered_ids(payload: bytes, *, echoes: bool) -> list[int]:
    """Whose requests a frame answers, after a look at each answer."""
    message = orjson.loads(payload)
    answers = message if isinstance(message, list) else [message]
    if not echoes:
        for answer in answers:
            result = answer.get("result")
            if result is None or not ("fence" in result or result.get("released") is True):
                raise Unexpected(repr(answer))
    return [answer["id"] for answer in answers]


# --- P2: many connections, one request each at a time -------------------------------------------


@frozen
class Caller:
    """One connection of P2."""

    connection: socket.socket
    wire: Wire
    worker: Worker

    def ask(self) -> None:
        """Sends the next request. It fits the socket's buffer: the last one has been answered."""
        self.connection.sendall(self.wire.encode(self.worker.next_request()))


def one_request_each(target: Target, window: Window, connections: int) -> Figures:
    """P2: requests answered, with one outstanding on each connection."""
    echoes = target.protocol != "leasekeeper"
    expected = (b'"method"',) if echoes else (b'"fence"', b'"released":true')
    with selectors.DefaultSelector() as selector:
        callers = [dial(target, number, echoes=echoes) for number in range(connections)]
        for caller in callers:
            selector.register(caller.connection, selectors.EVENT_READ, caller)
            caller.ask()
        answered = 0
        while window.open(answered):
            events = selector.select(STALL_S)
            if not events:
                raise Unexpected(f"no answer in {STALL_S} s")
            for key, _ in events:
                answered += answers_to(key.data, expected)
    for caller in callers:
        caller.connection.close()
    return {"rate": window.rate}


def dial(target: Target, number: int, *, echoes: bool) -> Caller:
    """A connection of P2, with its session open."""
    connection, wire = target.connect()
    if not echoes:
        open_session(connection, wire, batch=False)
    return Caller(connection, wire, Worker(1, f"bench/p2/{number}"))


def answers_to(caller: Caller, expected: tuple[bytes, ...]) -> int:
    """Reads what has come for a caller, and asks again for every answer."""
    answers = caller.wire.feed(receive(caller.connection))
    for answer in answers:
        if not any(part in answer for part in expected):
            raise Unexpected(answer.decode())
        caller.ask()
    if owed := caller.wire.replies():
        caller.connection.sendall(owed)
    return len(answers)


# --- P3: many waiters on one lock ---------------------------------------------------------------

CONTESTED: Final = "bench/p3"


@define
class Waiter:
    """One connection of P3, which waits for the lock, gives it back at once and queues again."""

    connection: socket.socket
    wire: Wire
    lease: str = ""

    def _acquire(self) -> dict[str, object]:
        self.lease = os.urandom(16).hex()
        params = {"name": CONTESTED, "lease": self.lease, "wait_ms": None}
        return {"jsonrpc": "2.0", "id": self.lease, "method": "lease.acquire", "params": params}

    def queue(self) -> None:
        """Asks for the lock for the first time."""
        self.connection.sendall(self.wire.encode(orjson.dumps(self._acquire())))

    def hand_off(self) -> float:
        """Releases and queues again, in one frame and in this order, so that the line's is known.

        Returns:
            When the release was sent, in seconds of the monotonic clock.
        """
        params = {"name": CONTESTED, "lease": self.lease}
        release = {"jsonrpc": "2.0", "id": "release", "method": "lease.release", "params": params}
        frame = self.wire.encode(orjson.dumps([release, self._acquire()]))
        sent_at = time.monotonic()
        self.connection.sendall(frame)
        return sent_at

    def granted_fence(self) -> int | None:
        """The fence, if what has come holds the grant of the lease this waiter is waiting for."""
        fence: int | None = None
        for payload in self.wire.feed(receive(self.connection)):
            message = orjson.loads(payload)
            for answer in message if isinstance(message, list) else [message]:
                if "error" in answer:
                    raise Unexpected(repr(answer))
                if answer.get("id") == self.lease:
                    fence = answer["result"]["fence"]
        if owed := self.wire.replies():
            self.connection.sendall(owed)
        return fence


class Line:
    """The order in which grants must come, and what was measured of those that came."""

    def __init__(self, waiters: list[Waiter]) -> None:
        self._expected = deque(waiters)
        self._fence = 0
        self._released_at: float | None = None
        self.handed_off = 0
        self.out_of_order = 0
        self.latencies_ms: list[float] = []

    def granted(self, waiter: Waiter, fence: int, *, counts: bool) -> None:
        """A waiter received its grant, and passes the lock on."""
        now = time.monotonic()
        if self._released_at is not None and counts:
            self.latencies_ms.append((now - self._released_at) * 1000)
        if waiter is not self._expected[0] or fence <= self._fence:
            self.out_of_order += 1
        self._fence = fence
        self._expected.remove(waiter)
        self._expected.append(waiter)
        self.handed_off += 1
        self._released_at = waiter.hand_off()


def hand_offs(target: Target, window: Window, waiters_count: int) -> Figures:
    """P3: from sending the release to the receipt of the next holder's grant."""
    waiters = stand_in_line(target, waiters_count)
    line = Line(waiters)
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
    return {
        "rate": window.rate,
        "p50_ms": percentile(line.latencies_ms, 0.50),
        "p99_ms": percentile(line.latencies_ms, 0.99),
        "hand_offs": len(line.latencies_ms),
        "out_of_order": line.out_of_order,
    }


def stand_in_line(target: Target, waiters_count: int) -> list[Waiter]:
    """Waiters in a known order: each queues once the server shows the one before it in line."""
    inspector, inspector_wire = target.connect()
    params = {"name": CONTESTED}
    inspect = {"jsonrpc": "2.0", "id": "inspect", "method": "lease.inspect", "params": params}
    waiters: list[Waiter] = []
    with inspector:
        while len(waiters) < waiters_count:
            connection, wire = target.connect()
            open_session(connection, wire, batch=True)
            waiters.append(Waiter(connection, wire))
            waiters[-1].queue()
            in_line = 0
            while in_line < len(waiters):
                answer = exchange(inspector, inspector_wire, orjson.dumps(inspect))
                state = orjson.loads(answer)["result"]
                in_line = len(state["holders"]) + len(state["waiting"])
    return waiters


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of all values lie below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
