"""What the load sends and counts, over plain sockets: P1 and P2, and what all shapes share.

Every answer is checked. A load that counted refusals would measure how fast the server says no.
"""

import os
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

import orjson
from attrs import frozen

from bench.observed import Figures
from bench.wire import Closed, LineWire, RedisWire, WebSocketWire, Wire, connect, upgrade

NAMES: Final = f"bench/{os.getpid()}"
"""What names begin with: those of the load before may still be held, for the server's grace."""
CHUNK_BYTES: Final = 1 << 18
STALL_S: Final = 10
"""Silence of the server for so long ends the run."""


class Unexpected(Exception):
    """The server answered, but not what the shape is entitled to."""


@frozen
class Target:
    """Where the load goes, and what answers there."""

    host: str
    port: int
    protocol: str
    """`leasekeeper`; `redis`; or `lines` or `websocket`, which send all back as it came."""

    def connect(self) -> tuple[socket.socket, Wire]:
        """A connection that is ready for the first request."""
        connection = connect(self.host, self.port)
        if self.protocol == "lines":
            return connection, LineWire()
        if self.protocol == "redis":
            return connection, RedisWire()
        upgrade(connection, self.host, self.port)
        return connection, WebSocketWire()


class Window:
    """The stretch of time that counts: after the warm-up, until the end."""

    def __init__(self, warm_up_s: float, measure_s: float, on_begin: Callable[[], None]) -> None:
        self._warm_up_s = warm_up_s
        self._measure_s = measure_s
        self._on_begin = on_begin
        self._started: float | None = None
        self._began: float | None = None
        self._counted_before = 0
        self.elapsed_s = 0.0
        self.counted = 0

    def open(self, counted: int) -> bool:
        """Whether to go on, given how much has been counted. The first call begins the warm-up."""
        now = time.monotonic()
        if self._started is None:
            self._started = now
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
        self._start = b'{"jsonrpc":"2.0","id":%d,"method":"lease.' % number
        self._lease = b""
        self._holds = False
        self.rename(name)

    def rename(self, name: str) -> None:
        """From now on it takes this lock."""
        key = b'","params":{"name":"%s","lease":"' % name.encode()
        self._acquire = self._start + b"acquire" + key
        self._release = self._start + b"release" + key

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
    return answer_on(connection, wire)


def answer_on(connection: socket.socket, wire: Wire) -> bytes:
    """The next message, which is to be an answer.

    Raises:
        Unexpected: it is an error.
    """
    while not (payloads := wire.feed(receive(connection))):
        pass
    if b'"error"' in payloads[0]:
        raise Unexpected(payloads[0].decode())
    return payloads[0]


def open_session(
    connection: socket.socket, wire: Wire, *, batch: bool, liveness: str = "pong"
) -> None:
    """What every client says first."""
    ask_session(connection, wire, batch=batch, liveness=liveness)
    answer_on(connection, wire)


def ask_session(
    connection: socket.socket, wire: Wire, *, batch: bool, liveness: str = "pong"
) -> None:
    """The same without waiting for the answer."""
    params: dict[str, str | bool] = {"client": "bench", "batch": batch, "liveness": liveness}
    request = {"jsonrpc": "2.0", "id": "open", "method": "session.open", "params": params}
    connection.sendall(wire.encode(orjson.dumps(request)))


# --- P1: many workers over one connection -------------------------------------------------------


def one_connection(target: Target, window: Window, workers_count: int) -> Figures:
    """P1: a worker whose answer came asks again at once; what is ready together is one frame."""
    connection, wire = target.connect()
    with connection:
        echoes = target.protocol != "leasekeeper"
        if not echoes:
            open_session(connection, wire, batch=True)
        workers = [Worker(number, f"{NAMES}/{number}") for number in range(workers_count)]
        ready = list(range(workers_count))
        answered = frames = 0
        while window.open(answered):
            requests = [workers[number].next_request() for number in ready]
            ready, frames_read = ask_together(connection, wire, requests, echoes=echoes)
            frames += frames_read
            answered += len(ready)
        return {"rate": window.rate / 2, "answers_per_frame": answered / frames}


def ask_together(
    connection: socket.socket, wire: Wire, requests: list[bytes], *, echoes: bool = False
) -> tuple[list[int], int]:
    """Sends requests in one frame. Returns the ids of those answered next, and in how many frames.

    With no requests it only waits for answers.
    """
    if requests:
        connection.sendall(wire.encode(b"[" + b",".join(requests) + b"]"))
    ready: list[int] = []
    frames = 0
    while not ready:
        payloads = wire.feed(receive(connection))
        if owed := wire.replies():
            connection.sendall(owed)
        frames += len(payloads)
        for payload in payloads:
            ready += answered_ids(payload, echoes=echoes)
    return ready, frames


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
    return Caller(connection, wire, Worker(1, f"{NAMES}/{number}"))


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


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all values lie below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
