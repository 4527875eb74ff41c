"""One connection to one server: a reader, a writer, and the calls between them."""

from typing import TYPE_CHECKING, Final

import anyio
from anyio import CancelScope, create_task_group, move_on_after

from leasekeeper_client._contact import Lifeline
from leasekeeper_client._json import JsonObject, Malformed, as_object, decode, encode, text
from leasekeeper_client._rpc import FRAME_BYTES_MAX, Answer, Call, Outbox, constant
from leasekeeper_client._settings import Settings
from leasekeeper_client._websocket import (
    Address,
    SocketClosed,
    WebSocket,
    open_websocket,
)
from leasekeeper_client.errors import (
    TRANSIENT,
    ConnectionFailed,
    KeeperError,
    LimitReached,
    ProtocolError,
    Unauthenticated,
)
from leasekeeper_client.model import SessionInfo, session_from

if TYPE_CHECKING:
    from collections.abc import Callable

CLOSING_SECONDS: Final = 1.0
FATAL_CODES: Final = range(4500, 5000)


class Connection:
    """An open session on one server.

    Calls that are ready together share a frame: while one write is under way, the next frame
    fills up. It does not reconnect, and does not know what its calls mean.
    """

    def __init__(
        self, socket: WebSocket, address: Address, info: SessionInfo, settings: Settings
    ) -> None:
        self.address = address
        self.info = info
        self.lifeline: Lifeline = Lifeline(info.grace)
        self.dead: anyio.Event = anyio.Event()
        self.failure: KeeperError | None = None
        self.on_notice: Callable[[str, JsonObject], None] | None = None
        self._socket = socket
        self._clock = settings.clock
        self._outbox = Outbox(
            frame_bytes=min(info.message_bytes, FRAME_BYTES_MAX),
            frame_requests=max(1, info.batch_requests),
            request_bytes=info.message_bytes,
            lifeline=self.lifeline,
        )
        self._wake = anyio.Event()
        self._scope = CancelScope()
        self._close_code: int | None = None

    @property
    def alive(self) -> bool:
        """Whether calls may be given to it."""
        return not self.dead.is_set() and self._close_code is None

    @property
    def busy(self) -> bool:
        """Whether it has calls without an answer."""
        return bool(self._outbox.pending or self._outbox.queued)

    def submit(self, call: Call) -> None:
        """Queue a call. Never blocks."""
        call.carrier = self
        call.request_id = None
        self._outbox.queued.append(call)
        self._wake.set()

    def ping(self) -> float:
        """Queue a ping, and return its time, which its pong proves to the lifeline."""
        now = self._clock()
        self._socket.put_ping(self.lifeline.ping(now))
        self._wake.set()
        return now

    async def dies_within(self, seconds: float) -> bool:
        """Wait so long, or until it is dead; return whether it is."""
        with move_on_after(seconds):
            await self.dead.wait()
        return self.dead.is_set()

    def forget(self, call: Call) -> None:
        """The call was abandoned: its answer, if one comes, is dropped."""
        self._outbox.forget(call)

    def take_calls(self) -> list[Call]:
        """Take away every call that has no answer."""
        return self._outbox.take_all()

    def take_movable(self) -> list[Call]:
        """Take away every call that has no answer and may go to another connection."""
        return self._outbox.take_movable()

    async def run(self) -> None:
        """Read and write until the connection is at its end; then `dead` is set.

        Cancellation: closes the stream without ceremony.
        """
        try:
            with self._scope:
                async with create_task_group() as tasks:
                    tasks.start_soon(self._write)
                    await self._read()
                    tasks.cancel_scope.cancel()
        finally:
            self.failure = self.failure or ConnectionFailed("the connection was closed")
            self.dead.set()
            with CancelScope(shield=True):
                await self._socket.abort()

    def kill(self, why: str) -> None:
        """Drop the connection now."""
        self._fail(ConnectionFailed(f"{self.address.url}: {why}"))

    async def close(self, code: int = 1000) -> None:
        """Send what is queued, close cleanly, and wait a second at most for the peer.

        A clean close makes the server release everything that this session holds.
        """
        if not self.dead.is_set():
            self._close_code = code
            self._wake.set()
            with move_on_after(CLOSING_SECONDS):
                await self.dead.wait()
        self._scope.cancel()

    async def _read(self) -> None:
        try:
            while True:
                message = await self._socket.receive()
                if self._socket.wants_flush:
                    self._wake.set()
                for payload in self._socket.take_pongs():
                    self.lifeline.pong(payload, self._clock())
                if message is not None:
                    self._take(decode(message))
        except SocketClosed as exc:
            self._fail(_failure(self.address, exc))
        except Malformed as exc:
            self._socket.put_close(1002)
            self._fail(ProtocolError(f"{self.address.url}: {exc}"))

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                await self._write_what_is_ready()
        except SocketClosed as exc:
            self._fail(_failure(self.address, exc))

    async def _write_what_is_ready(self) -> None:
        while (frame := self._outbox.next_frame(self._clock())) is not None:
            self._socket.put_text(frame)
            await self._socket.flush()
        if self._close_code is not None:
            self._socket.put_close(self._close_code)
        await self._socket.flush()

    def _take(self, value: object) -> None:
        for item in value if isinstance(value, list) else [value]:
            message = as_object(item)
            if "method" not in message:
                self._outbox.answered(message, self._clock())
            elif self.on_notice is not None:
                self.on_notice(text(message, "method"), as_object(message.get("params", {})))

    def _fail(self, failure: KeeperError) -> None:
        self.failure = self.failure or failure
        self._scope.cancel()


async def open_connection(address: Address, settings: Settings) -> Connection:
    """Dial, shake hands and open a session; `run` must follow.

    Raises:
        ConnectionFailed: It is not there, does not answer, or does not speak the protocol.
        Unauthenticated, Forbidden, LimitReached: It is there, and does not want us.
        Overloaded, Draining, Unavailable: It is there, and cannot take us now.

    Cancellation: the stream is closed.
    """
    connection: Connection | None = None
    with move_on_after(settings.dial_timeout):
        socket = await open_websocket(address, settings.ssl_context)
        try:
            info = session_from(await _open_session(socket, settings))
            connection = Connection(socket, address, info, settings)
        except SocketClosed as exc:
            raise _failure(address, exc) from exc
        except Malformed as exc:
            raise ConnectionFailed(f"{address.url} is no leasekeeper: {exc}") from exc
        finally:
            if connection is None:
                with CancelScope(shield=True):
                    await socket.abort()
    if connection is None:
        raise ConnectionFailed(f"{address.url} did not answer within {settings.dial_timeout} s")
    return connection


async def _open_session(socket: WebSocket, settings: Settings) -> object:
    """Exchange the one request that goes before all others."""
    call = Call(
        "session.open",
        constant(client=settings.client, token=settings.token, liveness="heartbeat", batch=True),
    )
    outbox = Outbox(frame_bytes=FRAME_BYTES_MAX, frame_requests=1)
    outbox.queued.append(call)
    socket.put_text(outbox.next_frame(settings.clock()) or encode([]))
    await socket.flush()
    while call.outcome is None:
        message = await socket.receive()
        if socket.wants_flush:
            await socket.flush()
        if message is not None:
            _take_opening(outbox, decode(message), settings.clock())
    answer: Answer = call.result()
    return answer.result


def _take_opening(outbox: Outbox, value: object, now: float) -> None:
    for item in value if isinstance(value, list) else [value]:
        message = as_object(item)
        if "method" not in message:
            outbox.answered(message, now)


def _failure(address: Address, closed: SocketClosed) -> KeeperError:
    """Return what a close code means."""
    message = f"{address.url} {closed}"
    if closed.code == 4500:
        return Unauthenticated(message)
    if closed.code == 4501:
        return LimitReached(message, limit=closed.reason)
    return ConnectionFailed(message, close_code=closed.code)


def is_fatal(failure: KeeperError) -> bool:
    """Return whether a failure means that connecting again is no use."""
    if isinstance(failure, ConnectionFailed):
        return failure.close_code in FATAL_CODES
    return not isinstance(failure, (ProtocolError, *TRANSIENT))
