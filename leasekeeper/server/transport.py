"""WebSocket on Trio. The only module that knows the library, so that it can be changed.

trio-websocket 0.12 is used through its lowest door, with a stream of ours underneath, because:

- a ping during a close that we began, or after an oversize message, raises in its reader task.
  Once we close, our stream shows the library nothing more but the end;
- sizes are counted in characters, and empty fragments not at all: our stream meters frames;
- a cancelled send leaves half a frame on the wire: our stream knows, and then nothing follows it;
- a close may wait for ever: every wait here has a deadline.

What it still raises ends in the connection's own nursery (law L13).
"""

from collections.abc import Callable
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


@define(eq=False)
class GuardedStream(trio.abc.Stream):
    """A byte stream that meters what comes in, and knows whether what went out was whole.

    After a violation, or once `draining` is set, it reads on and shows the library the end only
    when the peer has closed, so that the peer can read our close frame.
    """

    stream: trio.abc.Stream
    meter: FrameMeter
    on_violation: Callable[[CloseCode], None]
    draining: bool = False
    half_written: bool = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Passes on what the meter has seen, until the connection has to end."""
        while True:
            if self.draining and self.meter.close_seen:
                return b""
            data = bytes(await self.stream.receive_some(max_bytes))
            self.meter.feed(data, trio.current_time())
            if self.meter.violation and not self.draining:
                self.draining = True
                self.on_violation(self.meter.violation)
            if not data or not self.draining:
                return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Writes all of it, or nothing ever again.

        Raises:
            trio.BrokenResourceError: an earlier write was cut short.
        """
        if self.half_written:
            raise trio.BrokenResourceError
        self.half_written = True
        await self.stream.send_all(data)
        self.half_written = False

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream beneath."""
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """As the stream beneath."""
        await self.stream.aclose()


@define(eq=False)
class WebSocket:
    """One accepted connection: text in, text out."""

    connection: trio_websocket.WebSocketConnection
    stream: GuardedStream
    limits: WireLimits
    headers: dict[str, str] = field(repr=False)
    violated: CloseCode | None = None

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

    async def close(self, code: CloseCode, reason: str) -> None:
        """Says why, waits for the peer's own close, and is gone after `close_ms` at the latest."""
        if not self.stream.half_written:
            self.stream.draining = True
            with trio.move_on_after(self.limits.close_ms / 1000):
                await self.connection.aclose(code, reason)
        await trio.aclose_forcefully(self.stream)


async def accept(
    nursery: trio.Nursery,
    stream: trio.abc.Stream,
    limits: WireLimits,
    *,
    admit: Callable[[dict[str, str]], int | None],
    on_violation: Callable[[CloseCode], None],
) -> WebSocket:
    """Makes a WebSocket of a byte stream within `handshake_ms`. Its reader runs in `nursery`.

    Args:
        nursery: the connection's own.
        stream: a fresh one.
        limits: its bounds.
        admit: looks at the headers, names in lower case; an HTTP status refuses the client.
        on_violation: told once, from the reader, if the peer breaks a bound; then close with it.

    Raises:
        HandshakeFailed: the peer was refused, too slow, or did not speak WebSocket.
    """
    meter = FrameMeter(limits.message_bytes, limits.fragments, limits.control_frames_per_second)
    guarded = GuardedStream(stream, meter, on_violation)
    with trio.move_on_after(limits.handshake_ms / 1000):
        request = await trio_websocket.wrap_server_stream(
            nursery,
            guarded,
            max_message_size=limits.message_bytes,
            receive_buffer_size=_RECEIVE_BYTES,
        )
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1")
            for name, value in request.headers
        }
        body = {"content-length", "transfer-encoding"} & headers.keys()
        status = 400 if body else admit(headers)
        if status is not None:
            await request.reject(status)
            raise HandshakeFailed(f"refused with {status}")
        offered = SUBPROTOCOL in request.proposed_subprotocols
        connection = await request.accept(subprotocol=SUBPROTOCOL if offered else None)
        return WebSocket(connection, guarded, limits, headers)
    raise HandshakeFailed("took too long")
