"""A WebSocket client that does what it is told, right or wrong.

It stands on the sans-I/O core of the ``websockets`` library, an implementation that has nothing in
common with the server's, because a vector must also be able to stop reading, to leave pings
unanswered, to drop TCP, and to send bytes that no client would.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias
from urllib.parse import urlsplit

import attrs
import trio
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import Protocol
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from tests.conformance.patterns import cut, equal
from tests.conformance.vectors import Json

NO_CODE: Final = 1005
NO_CLOSE_FRAME: Final = 1006
RECEIVE_BYTES: Final = 65536

Sender: TypeAlias = Callable[[Protocol], None]


class Malformed(ValueError):
    """A message from the server that is no JSON-RPC 2.0 (MSG-9)."""


@attrs.frozen
class Accepted:
    """How the server answered the upgrade."""

    status: int
    headers: dict[str, Json]


@attrs.define(eq=False)
class Peer:
    """One connection.

    Everything that comes in is kept in ``inbox``, parsed, until somebody takes it. ``closed`` is
    the close code once the server's close frame has come or TCP has ended.

    It does not decide what is right: that is the player's.
    """

    url: str
    ignore: tuple[str, ...] = ()
    flatten: bool = False
    trace: Callable[[str], None] = lambda line: None
    inbox: list[Json] = attrs.field(factory=list)
    closed: int | None = None
    violation: str | None = None
    subprotocol: str | None = None

    _pongs: list[bytes] = attrs.field(factory=list, init=False)
    _fragments: bytearray = attrs.field(factory=bytearray, init=False)
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    _may_read: trio.Event = attrs.field(factory=trio.Event, init=False)
    _sending: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _response: Response | None = attrs.field(default=None, init=False)
    _stream: trio.abc.Stream | None = attrs.field(default=None, init=False)
    _protocol: ClientProtocol | None = attrs.field(default=None, init=False)

    # Connecting

    async def connect(
        self, nursery: trio.Nursery, subprotocols: Sequence[str], headers: Mapping[str, str]
    ) -> Accepted:
        """Dial and upgrade. Its reader runs in the nursery until TCP ends.

        Raises:
            OSError: If there is nobody, or the connection ends before an answer.
        """
        uri = parse_uri("ws://localhost/" if self.url.startswith("ws+unix:") else self.url)
        self._protocol = ClientProtocol(
            uri, subprotocols=[Subprotocol(name) for name in subprotocols] or None, max_size=None
        )
        try:
            self._stream = await _dial(self.url)
        except OSError:
            self._end(NO_CLOSE_FRAME)
            raise
        request = self._protocol.connect()
        for name, value in headers.items():
            if name in request.headers:
                del request.headers[name]
            request.headers[name] = value
        self._protocol.send_request(request)
        self._may_read.set()
        nursery.start_soon(self._read)
        await self._flush()
        await self.until(lambda: self._response is not None or self.closed is not None)
        if self._response is None:
            raise ConnectionError("the connection ended before the upgrade was answered")
        if self._response.status_code == 101 and self._protocol.handshake_exc is not None:
            raise Malformed(f"a bad upgrade: {self._protocol.handshake_exc}")
        self.subprotocol = self._protocol.subprotocol
        answered: dict[str, Json] = {k.lower(): v for k, v in self._response.headers.raw_items()}
        return Accepted(self._response.status_code, answered)

    # Sending

    async def send_text(self, text: str) -> None:
        self.trace(f"-> {cut(text)}")
        await self._send(lambda protocol: protocol.send_text(text.encode()))

    async def send_bytes(self, data: bytes, *, binary: bool) -> None:
        self.trace(f"-> {'binary' if binary else 'text'} {data.hex()}")
        await self._send(
            lambda protocol: protocol.send_binary(data) if binary else protocol.send_text(data)
        )

    async def send_fragments(self, texts: Sequence[str]) -> None:
        self.trace(f"-> {len(texts)} fragments")

        def send(protocol: Protocol) -> None:
            for i, text in enumerate(texts):
                write = protocol.send_continuation if i else protocol.send_text
                write(text.encode(), fin=i == len(texts) - 1)

        await self._send(send)

    async def send_tcp(self, data: bytes) -> None:
        self.trace(f"-> tcp {data.hex()[:200]}")
        await self._write([data])

    async def flood_pings(self, times: int) -> None:
        self.trace(f"-> {times} pings")

        def send(protocol: Protocol) -> None:
            for _ in range(times):
                protocol.send_ping(b"")

        await self._send(send)

    async def ping(self, payload: bytes) -> None:
        """Send a ping and await its pong; returns when the connection ends, too."""
        await self._send(lambda protocol: protocol.send_ping(payload))
        await self.until(lambda: payload in self._pongs or self.closed is not None)

    # Ending

    async def close(self, code: int | None) -> None:
        """Send a close frame and await the server's, or the end of TCP."""
        self.trace(f"-> close {code}")
        await self._send(lambda protocol: protocol.send_close(code))
        await self.until(lambda: self.closed is not None)

    async def drop(self) -> None:
        """End TCP without a close frame. Quietly, if it has ended."""
        self.trace("-> drop")
        self._may_read.set()
        if self._stream is not None:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)
        self._end(NO_CLOSE_FRAME)

    def freeze(self, frozen: bool) -> None:
        """Stop reading altogether, or go on."""
        self.trace("-- freeze" if frozen else "-- thaw")
        if frozen:
            self._may_read = trio.Event()
        else:
            self._may_read.set()

    # Waiting

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until it holds. The caller bounds the time."""
        while not holds():
            await self._changed.park()

    def take_answer(self, request_id: Json) -> dict[str, Json] | None:
        """Take the answer to a request out of the inbox, wherever it stands in it."""
        for i, message in enumerate(self.inbox):
            if (
                isinstance(message, dict)
                and "method" not in message
                and equal(message.get("id"), request_id)
            ):
                del self.inbox[i]
                return message
        return None

    # Inside

    async def _send(self, send: Sender) -> None:
        assert self._protocol is not None
        try:
            send(self._protocol)
        except InvalidState:
            raise ConnectionError(f"the connection has ended: {self.closed}") from None
        await self._flush()

    async def _flush(self) -> None:
        assert self._protocol is not None
        await self._write(self._protocol.data_to_send())

    async def _write(self, chunks: Sequence[bytes]) -> None:
        """Write to TCP. Nobody who reads there is no error: what matters is what came back."""
        stream = self._stream
        assert stream is not None
        async with self._sending:
            try:
                data = b"".join(chunks)
                if data:
                    await stream.send_all(data)
                if b"" in chunks and isinstance(stream, trio.SocketStream):
                    await stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self.trace("-- nobody reads what was sent")

    async def _read(self) -> None:
        assert self._protocol is not None
        assert self._stream is not None
        try:
            while True:
                await self._may_read.wait()
                data = await self._stream.receive_some(RECEIVE_BYTES)
                await self._may_read.wait()
                if not data:
                    break
                self._protocol.receive_data(data)
                self._take_events(self._protocol)
                await self._flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.trace("<- reset")
        finally:
            self._end(NO_CLOSE_FRAME)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(self._stream)

    def _take_events(self, protocol: ClientProtocol) -> None:
        for event in protocol.events_received():
            if isinstance(event, Response):
                self._response = event
            elif isinstance(event, Frame):
                self._take_frame(event)
        if protocol.parser_exc is not None and self.violation is None and self.closed is None:
            self.violation = f"the server broke WebSocket: {protocol.parser_exc}"
        self._changed.unpark_all()

    def _take_frame(self, frame: Frame) -> None:
        match frame.opcode:
            case Opcode.TEXT | Opcode.CONT:
                self._fragments += frame.data
                if frame.fin:
                    data, self._fragments = bytes(self._fragments), bytearray()
                    self._take_message(data)
            case Opcode.BINARY:
                self.violation = "the server sent a binary frame"
            case Opcode.PONG:
                self._pongs.append(bytes(frame.data))
            case Opcode.CLOSE:
                code = int.from_bytes(frame.data[:2], "big") if frame.data else NO_CODE
                reason = bytes(frame.data[2:]).decode(errors="replace")
                self.trace(f"<- close {code} {reason}")
                self._end(code)

    def _take_message(self, data: bytes) -> None:
        self.trace(f"<- {cut(data.decode(errors='replace'))}")
        try:
            message = parse(data)
            check_envelope(message)
        except ValueError as problem:
            self.violation = f"{problem}: {data[:400]!r}"
            return
        parts = message if self.flatten and isinstance(message, list) else [message]
        for part in parts:
            if not (isinstance(part, dict) and part.get("method") in self.ignore):
                self.inbox.append(part)

    def _end(self, code: int) -> None:
        if self.closed is None:
            self.closed = code
        self._changed.unpark_all()


async def _dial(url: str) -> trio.abc.Stream:
    if url.startswith("ws+unix:"):
        return await trio.open_unix_socket(urlsplit(url).path)
    uri = parse_uri(url)
    return await trio.open_tcp_stream(uri.host, uri.port)


def parse(data: bytes) -> Json:
    """The JSON of a message, strictly: no NaN, no member twice.

    Raises:
        ValueError: If it is none.
    """
    parsed: Json = json.loads(
        data.decode(), parse_constant=_no_constant, object_pairs_hook=_no_duplicates
    )
    return parsed


def _no_constant(name: str) -> Json:
    raise Malformed(f"{name} is not JSON")


def _no_duplicates(members: list[tuple[str, Json]]) -> dict[str, Json]:
    value = dict(members)
    if len(value) != len(members):
        raise Malformed("a member comes twice")
    return value


def check_envelope(message: Json) -> None:
    """MSG-9: an answer, a notification, or an array of one or more of these.

    Raises:
        Malformed: If it is none.
    """
    parts = message if isinstance(message, list) else [message]
    if not parts:
        raise Malformed("the server sent an empty array")
    for part in parts:
        if not isinstance(part, dict) or part.get("jsonrpc") != "2.0":
            raise Malformed("no JSON-RPC 2.0")
        if not (_is_notification(part) or _is_answer(part)):
            raise Malformed("neither an answer nor a notification")


def _is_notification(part: dict[str, Json]) -> bool:
    return (
        part.keys() == {"jsonrpc", "method", "params"}
        and isinstance(part["method"], str)
        and isinstance(part["params"], dict)
    )


def _is_answer(part: dict[str, Json]) -> bool:
    if part.keys() == {"jsonrpc", "id", "result"}:
        return isinstance(part["result"], dict)
    error = part.get("error")
    return (
        part.keys() == {"jsonrpc", "id", "error"}
        and isinstance(error, dict)
        and type(error.get("code")) is int
        and isinstance(error.get("message"), str)
        and error.keys() <= {"code", "message", "data"}
    )
