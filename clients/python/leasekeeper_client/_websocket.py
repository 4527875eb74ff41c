"""A WebSocket over an anyio byte stream: the only module that knows the `websockets` library.

Its sans-IO protocol does the framing; here are the dialling, the handshake and the closing. Writing
is split in two, so that one task may own the stream's sending side: `put_text` only queues, `flush`
sends. Frames are never logged, because they carry lease ids and the token.
"""

import ssl
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

import anyio
from anyio.abc import ByteStream
from attrs import frozen
from websockets.client import ClientProtocol
from websockets.exceptions import (
    InvalidHandshake,
    InvalidState,
    InvalidStatus,
    InvalidURI,
)
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.typing import Subprotocol
from websockets.uri import WebSocketURI, parse_uri

from leasekeeper_client.errors import (
    ConnectionFailed,
    Forbidden,
    KeeperError,
    Unauthenticated,
)

SUBPROTOCOL: Final = "leasekeeper.v1"
MESSAGE_BYTES_MAX: Final = 8 * 1024 * 1024
"""A server joins what is ready, and lets 4 MiB pile up by default."""
READ_BYTES: Final = 65536


class SocketClosed(Exception):
    """The WebSocket is at its end.

    Attributes:
        code: The close code; 1006 when the stream broke without one.
        reason: The words that came with it.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"closed with {code} {reason}".rstrip())
        self.code = code
        self.reason = reason


@frozen
class Address:
    """Where a server is.

    Attributes:
        url: For people, without user and password.
        uri: What the WebSocket handshake says.
        path: Of the Unix socket, or None for TCP.
    """

    url: str
    uri: WebSocketURI
    path: str | None


def parse_address(url: str) -> Address:
    """Read `ws://`, `wss://` or `ws+unix:///abs/path`.

    Raises:
        ValueError: It is none of these.
    """
    parts = urlsplit(url)
    if parts.scheme == "ws+unix":
        if parts.netloc or not parts.path.startswith("/"):
            raise ValueError("a Unix socket's address is ws+unix:///absolute/path")
        return Address(f"ws+unix://{parts.path}", parse_uri("ws://localhost/"), parts.path)
    try:
        uri = parse_uri(url)
    except InvalidURI as exc:
        raise ValueError("a server's address begins with ws://, wss:// or ws+unix:///") from exc
    host = f"[{uri.host}]" if ":" in uri.host else uri.host
    return Address(f"{parts.scheme}://{host}:{uri.port}{uri.resource_name}", uri, None)


async def open_websocket(address: Address, ssl_context: ssl.SSLContext | None) -> "WebSocket":
    """Dial, and shake hands.

    Raises:
        ConnectionFailed: Nobody listens there, or it is no leasekeeper.
        Unauthenticated, Forbidden: The handshake was answered with 401 or 403.

    Cancellation: the stream is closed.
    """
    stream = await _dial(address, ssl_context)
    try:
        socket = WebSocket(stream, address)
        await socket.shake_hands()
    except BaseException:
        await anyio.aclose_forcefully(stream)
        raise
    return socket


async def _dial(address: Address, ssl_context: ssl.SSLContext | None) -> ByteStream:
    try:
        if address.path is not None:
            return await anyio.connect_unix(address.path)
        host, port = address.uri.host, address.uri.port
        if not address.uri.secure:
            return await anyio.connect_tcp(host, port)
        return await anyio.connect_tcp(
            host, port, tls=True, ssl_context=ssl_context, tls_standard_compatible=False
        )
    except (OSError, anyio.BrokenResourceError, anyio.EndOfStream) as exc:
        raise ConnectionFailed(f"cannot connect to {address.url}: {exc}") from exc


class WebSocket:
    """An open WebSocket. One task reads, one task flushes; queueing never blocks.

    It does not reconnect, keep alive, or know what its messages mean.
    """

    def __init__(self, stream: ByteStream, address: Address) -> None:
        self._stream = stream
        self._address = address
        self._protocol = ClientProtocol(
            address.uri,
            origin=None,
            extensions=None,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            max_size=MESSAGE_BYTES_MAX,
        )
        # At debug level the library would log every frame, and with it lease ids (L7).
        self._protocol.debug = False
        self._messages: deque[str] = deque()
        self._parts: list[bytes] = []
        self._pongs: list[bytes] = []

    async def shake_hands(self) -> None:
        """Do the opening handshake.

        Raises:
            ConnectionFailed, Unauthenticated, Forbidden: As in `open_websocket`.
        """
        protocol = self._protocol
        protocol.send_request(protocol.connect())
        try:
            await self.flush()
            while protocol.state is State.CONNECTING and protocol.handshake_exc is None:
                await self._read()
        except SocketClosed as exc:
            raise ConnectionFailed(f"{self._address.url} hung up in the handshake") from exc
        if protocol.handshake_exc is not None:
            raise _refusal(self._address, protocol.handshake_exc)
        if protocol.subprotocol != SUBPROTOCOL:
            raise ConnectionFailed(f"{self._address.url} does not speak {SUBPROTOCOL}")
        self._take_events()

    def put_text(self, text: str) -> None:
        """Queue a message; nothing when the socket is closing."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_text(text.encode())

    def put_ping(self, payload: bytes) -> None:
        """Queue a ping, whose pong will have this payload; nothing when the socket is closing."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_ping(payload)

    def take_pongs(self) -> list[bytes]:
        """Take away the payloads of the pongs received."""
        pongs, self._pongs = self._pongs, []
        return pongs

    def put_close(self, code: int) -> None:
        """Queue the closing of the connection; nothing when it is closing."""
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code)

    @property
    def wants_flush(self) -> bool:
        """Whether something is queued, such as the pong for a ping."""
        return bool(self._protocol.writes)

    async def flush(self) -> None:
        """Send what is queued.

        Raises:
            SocketClosed: The stream is broken.

        Cancellation: may leave half a frame on the stream; close it then.
        """
        data = b"".join(self._protocol.data_to_send())
        if data:
            with self._closed_by_stream_errors():
                await self._stream.send(data)

    async def receive(self) -> str | None:
        """Wait for bytes; return the next message, or None when they did not complete one.

        Raises:
            SocketClosed: There will be no more.
        """
        if not self._messages:
            if self._protocol.state is not State.OPEN:
                raise self._closed()
            await self._read()
            self._take_events()
        return self._messages.popleft() if self._messages else None

    async def drain(self) -> None:
        """Read to the end of the stream, for the peer's part of a closing handshake."""
        try:
            while True:
                await self._read()
        except SocketClosed:
            return

    async def abort(self) -> None:
        """Close the stream without ceremony."""
        await anyio.aclose_forcefully(self._stream)

    async def _read(self) -> None:
        with self._closed_by_stream_errors():
            self._protocol.receive_data(await self._stream.receive(READ_BYTES))

    @contextmanager
    def _closed_by_stream_errors(self) -> Iterator[None]:
        try:
            yield
        except (
            anyio.EndOfStream,
            anyio.BrokenResourceError,
            anyio.ClosedResourceError,
            InvalidState,
            OSError,
        ) as exc:
            raise self._closed() from exc

    def _closed(self) -> SocketClosed:
        close = self._protocol.close_rcvd or self._protocol.close_sent
        if close is None:
            return SocketClosed(1006, "the connection broke")
        return SocketClosed(int(close.code), close.reason)

    def _take_events(self) -> None:
        for event in self._protocol.events_received():
            if not isinstance(event, Frame):
                continue
            if event.opcode in DATA:
                self._take_data(event)
            elif event.opcode is Opcode.PONG:
                self._pongs.append(bytes(event.data))

    def _take_data(self, frame: Frame) -> None:
        if frame.data:
            self._parts.append(bytes(frame.data))
        if not frame.fin:
            return
        parts, self._parts = self._parts, []
        try:
            self._messages.append(b"".join(parts).decode())
        except UnicodeDecodeError:
            self._protocol.fail(1007, "not UTF-8")


DATA: Final = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


def _refusal(address: Address, exc: Exception) -> KeeperError:
    """Return what a failed handshake means."""
    if isinstance(exc, InvalidStatus):
        status = exc.response.status_code
        message = f"{address.url} answered the handshake with HTTP {status}"
        if status == 401:
            return Unauthenticated(message)
        if status == 403:
            return Forbidden(message)
        return ConnectionFailed(message)
    kind = "an invalid handshake" if isinstance(exc, InvalidHandshake) else "an error"
    error = ConnectionFailed(f"{address.url} answered with {kind}: {exc}")
    error.__cause__ = exc
    return error
