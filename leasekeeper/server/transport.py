"""WebSocket on Trio: the handshake, and messages in and out of a byte stream.

The HTTP part of the handshake is `websockets`', of which only what does no I/O is used; the frames
are ours (ADR 13). Here is what a server needs besides a protocol:

- one task reads a connection, and only when the messages before have been taken;
- what the kernel takes at once is written without waiting for a task to do it;
- a cancelled write leaves half a frame on the wire, so nothing follows it;
- every wait has a deadline: the handshake, a write, a pong, the closing handshake.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from typing import Final

import trio
from attrs import define, field
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from leasekeeper.errors import CloseCode
from leasekeeper.server.config import WireLimits
from leasekeeper.server.frames import (
    FrameReader,
    Opcode,
    Violation,
    close_code,
    close_frame,
    frame,
    text_of,
)
from leasekeeper.sockets import receive_some, send_now

SUBPROTOCOL: Final = Subprotocol("leasekeeper.v1")
_RECEIVE_BYTES: Final = 16 * 1024
_HANDSHAKE_BYTES_MAX: Final = 16 * 1024
_IN_A_ROW_BYTES: Final = 4 * 1024
"""After so much that came together, other connections get their turn."""
_MESSAGE_BYTES: Final = 256
"""What a message counts for besides its own bytes."""
_AT_ONCE_BYTES: Final = 64 * 1024
"""More is not tried to be written at once: the kernel would hardly take it."""
_SWITCHING_PROTOCOLS: Final = 101
_GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


class Closed(Exception):
    """The connection is closed or closing. `code` is the peer's, or what it is to be told."""

    def __init__(self, code: int, reason: str = "") -> None:
        super().__init__(f"closed with {code}")
        self.code: Final = code
        self.reason: Final = reason


class HandshakeFailed(Exception):
    """The peer did not become a WebSocket client."""


@define(eq=False)
class WebSocket:
    """One accepted connection: text in, text out. One task may read; any may write."""

    stream: trio.abc.Stream
    limits: WireLimits
    headers: dict[str, str] = field(repr=False)
    """By lower-case name; one that comes twice has both values, which no check of ours accepts."""
    on_owed: Callable[[], None] = field(default=lambda: None, init=False, repr=False)
    """Told when `send_owed` has something to do. It must not block."""
    _reader: FrameReader = field(init=False, repr=False)
    _messages: deque[str] = field(factory=deque, init=False, repr=False)
    _in_a_row: int = field(default=0, init=False)
    _ended: Closed | None = field(default=None, init=False)
    """Why there are no more messages than these."""
    _is_at_end: bool = field(default=False, init=False)
    _violated: bool = field(default=False, init=False)
    _close_received: bytes | None = field(default=None, init=False)
    """What the peer's close frame says."""
    _close_sent: bool = field(default=False, init=False)
    _pongs: bytearray = field(factory=bytearray, init=False, repr=False)
    """The answers to the peer's pings, to be written."""
    _answers_pings: bool = field(default=True, init=False)
    _pings: dict[bytes, trio.Event] = field(factory=dict, init=False, repr=False)
    _ping_numbers: Iterator[int] = field(factory=count, init=False, repr=False)
    _writing: trio.Lock = field(factory=trio.Lock, init=False, repr=False)
    _rest: bytes = field(default=b"", init=False, repr=False)
    """What is to be written before all else: the end of a frame that the kernel took in part."""
    _half_written: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self._reader = FrameReader(
            self.limits.message_bytes, self.limits.fragments, self.limits.control_frames_per_second
        )

    # --- In -----------------------------------------------------------------------------------

    @property
    def has_message(self) -> bool:
        """Whether `receive` does not wait for the peer."""
        return bool(self._messages)

    async def receive(self) -> str:
        """The next text message.

        Raises:
            Closed: there is none any more.

        Cancellation:
            No message is lost.
        """
        while not self._messages:
            self._in_a_row = 0
            if self._ended is not None:
                raise Closed(self._ended.code, self._ended.reason)  # a new one keeps no frames
            await self._read()
        if self._in_a_row > _IN_A_ROW_BYTES:
            self._in_a_row = 0
            await trio.lowlevel.checkpoint()
        message = self._messages.popleft()
        self._in_a_row += _MESSAGE_BYTES + len(message)
        return message

    def stop_reading(self) -> None:
        """From now on no ping is answered, and nothing is looked at but the peer's close frame."""
        self._answers_pings = False
        self._pongs.clear()

    async def _read(self) -> None:
        try:
            data = await receive_some(self.stream, _RECEIVE_BYTES)
        except _GONE:
            data = b""
        if data:
            self.feed(data)
        else:
            self._is_at_end = True
            self._end(Closed(CloseCode.ABNORMAL))

    def feed(self, data: bytes | bytearray) -> None:
        """Takes bytes that came from the peer."""
        try:
            for opcode, payload in self._reader.feed(data, trio.current_time()):
                if opcode is Opcode.CLOSE:
                    self._end(Closed(close_code(payload)))
                    self._close_received = payload
                elif self._ended is None:
                    self._take(opcode, payload)
            if self._reader.violation is not None:
                raise self._reader.violation
        except Violation as violation:
            self._violated = True
            self._end(Closed(violation.code, violation.reason))

    def _take(self, opcode: Opcode, payload: bytes) -> None:
        if opcode is Opcode.TEXT:
            self._messages.append(text_of(payload))
        elif opcode is Opcode.PONG:
            if payload in self._pings:
                self._pings[payload].set()
        elif self._answers_pings:
            self._pongs += frame(Opcode.PONG, payload)
            self.on_owed()

    def _end(self, why: Closed) -> None:
        self._ended = self._ended or why

    # --- Out ----------------------------------------------------------------------------------

    async def send(self, text: bytes) -> None:
        """Writes one text message within `write_ms`.

        Raises:
            Closed: it could not be written.

        Cancellation:
            If the message was cut short, the connection can only be aborted.
        """
        await self._send(frame(Opcode.TEXT, text))

    def send_now(self, texts: Sequence[bytes]) -> bool:
        """Sends text messages as far as that needs no waiting.

        What the kernel does not take is owed, and comes before whatever is sent later. False: they
        cannot be sent now, and none was.
        """
        if self._rest or self._closing or self._writing.locked() or self._half_written:
            return False
        if not isinstance(self.stream, trio.SocketStream):
            return False
        if sum(map(len, texts)) > _AT_ONCE_BYTES:
            return False
        data = b"".join([frame(Opcode.TEXT, text) for text in texts])
        written = send_now(self.stream, data)  # who writes what is owed finds out if it is gone
        if written < len(data):
            self._rest = data[written:]
            self.on_owed()
        return True

    async def send_owed(self) -> None:
        """Writes what the peer's pings and `send_now` have left to be written within `write_ms`.

        Raises:
            Closed: it could not be written.

        Cancellation:
            As that of `send`.
        """
        pongs = bytes(self._pongs)
        self._pongs.clear()
        if self._rest or pongs:
            await self._send(pongs)

    async def ping(self) -> bool:
        """Sends a ping, and says whether its pong came within `pong_ms`.

        Raises:
            Closed: the connection is closed.
        """
        number = next(self._ping_numbers).to_bytes(8)
        answered = self._pings[number] = trio.Event()
        try:
            with trio.move_on_after(self.limits.pong_ms / 1000):
                await self._write(frame(Opcode.PING, number))
                await answered.wait()
            return answered.is_set()
        except _GONE:
            raise Closed(CloseCode.ABNORMAL) from None
        finally:
            del self._pings[number]

    async def _send(self, data: bytes) -> None:
        with trio.move_on_after(self.limits.write_ms / 1000):
            try:
                await self._write(data)
            except _GONE:
                raise Closed(CloseCode.ABNORMAL) from None
            return
        raise Closed(CloseCode.SLOW_CONSUMER)

    async def _write(self, data: bytes) -> None:
        """Writes all of it, or nothing ever again.

        Raises:
            trio.BrokenResourceError: an earlier write was cut short, or a close frame was sent.
        """
        try:
            self._writing.acquire_nowait()
        except trio.WouldBlock:
            await self._writing.acquire()
        try:
            if self._half_written or self._closing:
                raise trio.BrokenResourceError
            await self._write_after_rest(data)
        finally:
            self._writing.release()

    async def _write_after_rest(self, data: bytes) -> None:
        self._half_written = True
        rest, self._rest = self._rest, b""
        await self.stream.send_all(rest + data)
        self._half_written = False

    @property
    def _closing(self) -> bool:
        return self._close_sent or self._close_received is not None

    # --- The end ------------------------------------------------------------------------------

    async def close(self, code: int, reason: str) -> None:
        """Says why, waits for the peer's own close, and is gone after `close_ms` at the latest."""
        self.stop_reading()
        self._end(Closed(code))
        with trio.move_on_after(self.limits.close_ms / 1000), suppress(*_GONE):
            await self._say_goodbye(code, reason)
        await trio.aclose_forcefully(self.stream)

    async def _say_goodbye(self, code: int, reason: str) -> None:
        """The closing handshake, as far as the peer takes part in it."""
        async with self._writing:
            if self._half_written:
                return  # whatever followed would be taken for the rest of that frame
            if self._close_received is not None:
                await self._write_after_rest(frame(Opcode.CLOSE, self._close_received))
                return
            if code != CloseCode.ABNORMAL:
                self._close_sent = True
                await self._write_after_rest(close_frame(code, reason))
            if self._violated and isinstance(self.stream, trio.abc.HalfCloseableStream):
                # Its frames are read no more, so its close frame cannot be told from them.
                await self.stream.send_eof()
        while not self._is_over:
            await self._read()

    @property
    def _is_over(self) -> bool:
        return self._close_received is not None or self._is_at_end


async def accept(
    stream: trio.abc.Stream,
    limits: WireLimits,
    *,
    admit: Callable[[dict[str, str]], int | None],
) -> WebSocket:
    """Makes a WebSocket of a byte stream within `handshake_ms`.

    Args:
        stream: a fresh one.
        limits: its bounds.
        admit: looks at the headers, names in lower case; an HTTP status refuses the client.

    Raises:
        HandshakeFailed: the peer was refused, too slow, or did not speak WebSocket.
        trio.BrokenResourceError: it is gone.
    """
    with trio.move_on_after(limits.handshake_ms / 1000):
        return await _shake_hands(stream, limits, admit)
    raise HandshakeFailed("took too long")


async def _shake_hands(
    stream: trio.abc.Stream, limits: WireLimits, admit: Callable[[dict[str, str]], int | None]
) -> WebSocket:
    protocol = ServerProtocol(select_subprotocol=_choose)
    request = await _request(stream, protocol)
    headers = _headers(request)
    named = len(request.headers.get_all("Host")) == 1
    has_body = not {"content-length", "transfer-encoding"}.isdisjoint(headers)
    status = admit(headers) if named and not has_body else 400
    response = protocol.accept(request) if status is None else protocol.reject(status, "")
    await stream.send_all(response.serialize())
    if response.status_code != _SWITCHING_PROTOCOLS:
        raise HandshakeFailed(f"refused with {response.status_code}")
    socket = WebSocket(stream, limits, headers)
    socket.feed(protocol.reader.buffer)  # frames may have come right behind it
    return socket


async def _request(stream: trio.abc.Stream, protocol: ServerProtocol) -> Request:
    size = 0
    while True:
        data = await stream.receive_some(_RECEIVE_BYTES)
        size += len(data)
        if not data or size > _HANDSHAKE_BYTES_MAX:
            raise HandshakeFailed("it is none, or endless")
        protocol.receive_data(data)
        for event in protocol.events_received():
            if isinstance(event, Request):
                return event
        if protocol.handshake_exc is not None:
            await stream.send_all(protocol.reject(400, "").serialize())
            raise HandshakeFailed("it is none") from protocol.handshake_exc


def _choose(_: ServerProtocol, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    return SUBPROTOCOL if SUBPROTOCOL in offered else None


def _headers(request: Request) -> dict[str, str]:
    headers: dict[str, str] = {}
    for raw_name, value in request.headers.raw_items():
        name = raw_name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers
