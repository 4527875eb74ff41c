"""WebSocket on Trio. The only module that knows the library, so that it can be changed.

trio-websocket 0.12 is used through its lowest door, with a stream of ours underneath, because:

- a ping during a close that we began, or after an oversize message, raises in its reader task, and
  a frame that breaks the protocol ends the stream with no close frame. So the closing handshake is
  ours: we stop its reader, write the close frame, and wait for the peer's;
- sizes are counted in characters, and empty fragments not at all: our stream meters frames;
- a cancelled send leaves half a frame on the wire: our stream knows, and then nothing follows it;
- a handshake that fails, and a close, may take for ever: every wait here has a deadline.

What it still raises ends in the connection's own nursery (law L13).
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio
import trio_websocket
from attrs import define, field

from leasekeeper.errors import CloseCode
from leasekeeper.server.config import WireLimits
from leasekeeper.server.frames import FrameMeter

SUBPROTOCOL: Final = "leasekeeper.v1"
_RECEIVE_BYTES: Final = 16 * 1024


class Closed(Exception):
    """The connection is closed or closing. `code` is the peer's, or 1006."""

    def __init__(self, code: int) -> None:
        super().__init__(f"closed with {code}")
        self.code: Final = code


class HandshakeFailed(Exception):
    """The peer did not become a WebSocket client."""


_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)
_CLOSE_FRAME: Final = 0x88


@define(eq=False)
class GuardedStream(trio.abc.Stream):
    """A byte stream that meters what comes in, and knows what went out.

    After a violation, or once it is drained, it reads on and shows the library the end only when
    the peer has closed. It is never closed by the library, which only says that it is done.
    """

    stream: trio.abc.Stream
    meter: FrameMeter
    on_violation: Callable[[CloseCode], None]
    on_end: Callable[[], None]
    """Told when the library has nothing more to read."""
    half_written: bool = False
    close_sent: bool = False
    quiet: trio.Event = field(factory=trio.Event)
    """Set once it is drained and the library handles nothing any more that it was given before."""
    _draining: bool = False
    _closed: bool = False
    _ended: bool = False
    _reading: trio.Lock = field(factory=trio.Lock)

    def drain(self) -> None:
        """From now on the library is given nothing but the end."""
        self._draining = True
        if self._reading.locked() or self._ended:
            self.quiet.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Passes on what the meter has seen, until the connection has to end.

        Raises:
            trio.ClosedResourceError: the library has closed it.
        """
        if self._closed:
            raise trio.ClosedResourceError
        return await self._receive(max_bytes)

    async def _receive(self, max_bytes: int | None) -> bytes:
        if self._draining:
            self.quiet.set()
        async with self._reading:
            while not (self._draining and self.meter.close_seen):
                data = bytes(await self.stream.receive_some(max_bytes))
                self.meter.feed(data, trio.current_time())
                if self.meter.violation and not self._draining:
                    self.drain()
                    self.on_violation(self.meter.violation)
                if not data or not self._draining:
                    if not data:
                        self._end()
                    return data
        return b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Writes all of it, or nothing ever again.

        Raises:
            trio.BrokenResourceError: an earlier write was cut short, or a close frame was sent.
        """
        if self.half_written or self.close_sent:
            raise trio.BrokenResourceError
        self.close_sent = data[:1] == bytes([_CLOSE_FRAME])
        self.half_written = True
        await self.stream.send_all(data)
        self.half_written = False

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream beneath."""
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """The library is done with it."""
        self._closed = True
        self._end()
        await trio.lowlevel.checkpoint()

    def _end(self) -> None:
        self._ended = True
        if self._draining:
            self.quiet.set()
        self.on_end()

    async def say_goodbye(self, code: int, reason: str) -> None:
        """The closing handshake, once it is quiet, as far as the peer takes part in it."""
        if self.half_written:
            return  # whatever followed would be taken for the rest of that frame
        with suppress(*_GONE):
            if not self.close_sent:
                body = code.to_bytes(2) + reason.encode()
                await self.send_all(bytes([_CLOSE_FRAME, len(body)]) + body)
            while await self._receive(_RECEIVE_BYTES):
                pass


@define(eq=False)
class WebSocket:
    """One accepted connection: text in, text out."""

    connection: trio_websocket.WebSocketConnection
    stream: GuardedStream
    limits: WireLimits
    headers: dict[str, str] = field(repr=False)
    violated: CloseCode | None = None

    def tell_of_violations(self, on_violation: Callable[[CloseCode], None]) -> None:
        """Calls back, once, when the peer breaks a bound; at once, if it has. Then close."""
        self.stream.on_violation = on_violation
        if self.stream.meter.violation is not None:
            on_violation(self.stream.meter.violation)

    async def receive(self) -> str:
        """The next text message.

        Raises:
            Closed: there is none any more.
        """
        try:
            message = await self.connection.get_message()
        except trio_websocket.ConnectionClosed as closed:
            raise Closed(closed.reason.code if closed.reason else CloseCode.ABNORMAL) from None
        if isinstance(message, bytes):
            self.violated = CloseCode.UNSUPPORTED_DATA
            raise Closed(CloseCode.UNSUPPORTED_DATA)
        return message

    async def send(self, text: bytes) -> None:
        """Writes one text message within `write_ms`.

        Raises:
            Closed: it could not be written.

        Cancellation:
            If the message was cut short, the connection can only be aborted.
        """
        with trio.move_on_after(self.limits.write_ms / 1000):
            try:
                await self.connection.send_message(text.decode())
            except trio_websocket.ConnectionClosed:
                raise Closed(CloseCode.ABNORMAL) from None
            return
        raise Closed(CloseCode.SLOW_CONSUMER)

    async def ping(self) -> bool:
        """Sends a ping, and says whether its pong came within `pong_ms`.

        Raises:
            Closed: the connection is closed.
        """
        with trio.move_on_after(self.limits.pong_ms / 1000):
            try:
                await self.connection.ping()
            except trio_websocket.ConnectionClosed:
                raise Closed(CloseCode.ABNORMAL) from None
            return True
        return False

    def stop_reading(self) -> None:
        """From now on nothing that the peer sends is looked at, but its close frame."""
        self.stream.drain()

    async def close(self, code: int, reason: str) -> None:
        """Says why, waits for the peer's own close, and is gone after `close_ms` at the latest."""
        with trio.move_on_after(self.limits.close_ms / 1000):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._discard)
                self.stop_reading()
                await self.stream.quiet.wait()
                await self.stream.say_goodbye(code, reason)
                nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(self.stream.stream)

    async def _discard(self) -> None:
        """Takes what the library still hands over, so that it comes to rest."""
        with suppress(trio_websocket.ConnectionClosed):
            while True:
                await self.connection.get_message()


async def accept(
    nursery: trio.Nursery,
    stream: trio.abc.Stream,
    limits: WireLimits,
    *,
    admit: Callable[[dict[str, str]], int | None],
) -> WebSocket:
    """Makes a WebSocket of a byte stream within `handshake_ms`. Its reader runs in `nursery`.

    Args:
        nursery: the connection's own.
        stream: a fresh one.
        limits: its bounds.
        admit: looks at the headers, names in lower case; an HTTP status refuses the client.

    Raises:
        HandshakeFailed: the peer was refused, too slow, or did not speak WebSocket.
    """
    meter = FrameMeter(limits.message_bytes, limits.fragments, limits.control_frames_per_second)
    with trio.move_on_after(limits.handshake_ms / 1000) as scope:
        # Of a handshake that fails the library tells nobody but the stream.
        guarded = GuardedStream(stream, meter, lambda _: scope.cancel(), on_end=scope.cancel)
        request = await trio_websocket.wrap_server_stream(
            nursery,
            guarded,
            max_message_size=limits.message_bytes,
            receive_buffer_size=_RECEIVE_BYTES,
        )
        headers = _headers(request)
        body = {"content-length", "transfer-encoding"} & headers.keys()
        status = 400 if body else admit(headers)
        try:
            if status is None:
                # The peer may go wrong as soon as the answer is written, and before we go on.
                guarded.on_violation, guarded.on_end = _ignore, _nobody
                offered = SUBPROTOCOL in request.proposed_subprotocols
                connection = await request.accept(subprotocol=SUBPROTOCOL if offered else None)
                return WebSocket(connection, guarded, limits, headers)
            await request.reject(status)
        except trio_websocket.ConnectionClosed:
            raise HandshakeFailed("the peer is gone") from None
        raise HandshakeFailed(f"refused with {status}")
    raise HandshakeFailed("took too long, or is none")


def _headers(request: trio_websocket.WebSocketRequest) -> dict[str, str]:
    """By lower-case name; one that comes twice has both values, which no check of ours accepts."""
    headers = {"host": request._event.host}  # shown nowhere else
    for raw_name, raw_value in request.headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _nobody() -> None:
    """Stands in for a handshake that is over."""


def _ignore(_: CloseCode) -> None:
    """Stands in for a connection that is not there yet, and will ask."""
