"""The client's end of a byte stream, as lean as Python allows: WebSocket frames, lines, or Redis'.

It understands what a server of ours sends (whole text frames, pings, a close) and nothing more: no
fragments, no extensions. A conforming client belongs in `clients/`.
"""

import base64
import os
import socket
import sys
from typing import Final, Protocol

import hiredis

HEADER_END: Final = b"\r\n\r\n"
TEXT: Final = 0x81
CLOSE: Final = 0x88
PING: Final = 0x89
PONG: Final = 0x8A
GOODBYE: Final = b"\x03\xe8"
"""1000: the normal end."""
HEAD_BYTES: Final = 1 << 14
CLOSE_S: Final = 60.0
"""A server that has thousands of leases and waiters to give back is busy for a while."""


class Closed(ConnectionError):
    """The server has closed the connection, or said something that is no WebSocket frame."""


def mask(payload: bytes, key: bytes) -> bytes:
    """XOR with the repeated key. One big-integer operation is the fastest way in plain Python."""
    length = len(payload)
    stream = (key * (length // 4 + 1))[:length]
    mixed = int.from_bytes(payload, sys.byteorder) ^ int.from_bytes(stream, sys.byteorder)
    return mixed.to_bytes(length, sys.byteorder)


def frame_header(first: int, length: int, mask_bit: int) -> bytes:
    """The bytes before the mask key or the payload. `mask_bit` is 0x80 for a client, else 0."""
    if length < 126:
        return bytes((first, mask_bit | length))
    if length < 1 << 16:
        return bytes((first, mask_bit | 126)) + length.to_bytes(2, "big")
    return bytes((first, mask_bit | 127)) + length.to_bytes(8, "big")


def client_frame(payload: bytes, first: int = TEXT) -> bytes:
    """A masked frame."""
    key = os.urandom(4)
    return frame_header(first, len(payload), 0x80) + key + mask(payload, key)


def payload_span(data: bytes, start: int = 0) -> tuple[int, int] | None:
    """Where the payload of the unmasked frame at `start` begins and ends; None while it is cut."""
    available = len(data) - start
    if available < 2:
        return None
    length = data[start + 1]
    begin = start + 2
    if length == 126:
        begin += 2
        length = int.from_bytes(data[start + 2 : begin], "big")
    elif length == 127:
        begin += 8
        length = int.from_bytes(data[start + 2 : begin], "big")
    end = begin + length
    return (begin, end) if begin <= len(data) and end <= len(data) else None


class Wire(Protocol):
    """Turns payloads into bytes, and received bytes into payloads."""

    def encode(self, payload: bytes) -> bytes:
        """The bytes that carry one payload."""
        ...

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes."""
        ...

    def replies(self) -> bytes:
        """Bytes that are owed to the server at once, such as pongs."""
        ...


class WebSocketWire:
    """Masked text frames out, unmasked frames in."""

    def __init__(self) -> None:
        self._rest = b""
        self._replies = b""

    def encode(self, payload: bytes) -> bytes:
        """A masked text frame."""
        return client_frame(payload)

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads of the text frames that `data` completes.

        Raises:
            Closed: at a close frame, or at anything else this reader does not understand.
        """
        if self._rest:
            data = self._rest + data
        start = 0
        payloads: list[bytes] = []
        while (span := payload_span(data, start)) is not None:
            begin, end = span
            match data[start]:
                case 0x81:
                    payloads.append(data[begin:end])
                case 0x89:
                    self._replies += client_frame(data[begin:end], PONG)
                case _:
                    raise Closed(f"frame {data[start : start + 1].hex()}: {data[begin:end]!r}")
            start = end
        self._rest = data[start:]
        return payloads

    def replies(self) -> bytes:
        """The pongs that are owed."""
        replies, self._replies = self._replies, b""
        return replies


class LineWire:
    """One payload a line, both ways: what the raw TCP echo speaks."""

    def __init__(self) -> None:
        self._rest = b""

    def encode(self, payload: bytes) -> bytes:
        """The payload and a newline."""
        return payload + b"\n"

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines

    def replies(self) -> bytes:
        """Nothing: lines need no pongs."""
        return b""


def redis_command(*words: bytes) -> bytes:
    """A command as Redis takes it."""
    parts = (b"$%d\r\n%b\r\n" % (len(word), word) for word in words)
    return b"*%d\r\n" % len(words) + b"".join(parts)


class RedisWire:
    """What Redis speaks. A payload to send is a command, or several."""

    def __init__(self) -> None:
        self._reader = hiredis.Reader()

    def encode(self, payload: bytes) -> bytes:
        """The commands."""
        return payload

    def feed(self, data: bytes) -> list[bytes]:
        """The replies that `data` completes; what is no string is described."""
        self._reader.feed(data)
        replies: list[bytes] = []
        while (reply := self._reader.gets()) is not False:
            replies.append(reply if isinstance(reply, bytes) else repr(reply).encode())
        return replies

    def replies(self) -> bytes:
        """Nothing: Redis sends no pings."""
        return b""


def connect(host: str, port: int) -> socket.socket:
    """A TCP connection that sends small writes at once."""
    connection = socket.create_connection((host, port), timeout=10)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def upgrade(connection: socket.socket, host: str, port: int) -> None:
    """Turns the connection into a WebSocket.

    Raises:
        Closed: when the server answers anything but 101.
    """
    ask_upgrade(connection, host, port)
    await_upgrade(connection)


def ask_upgrade(connection: socket.socket, host: str, port: int) -> None:
    """Sends the opening handshake."""
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: leasekeeper.v1\r\n\r\n".encode()
    )


def await_upgrade(connection: socket.socket) -> None:
    """Reads the answer to the opening handshake, and nothing of what follows it.

    Raises:
        Closed: when the server answers anything but 101.
    """
    answer = b""
    while not answer.endswith(HEADER_END):
        data = connection.recv(HEAD_BYTES, socket.MSG_PEEK)
        if not data:
            raise Closed(f"no WebSocket: {answer!r}")
        end = (answer + data).find(HEADER_END)
        ours = len(data) if end < 0 else end + len(HEADER_END) - len(answer)
        answer += connection.recv(ours)
    if not answer.startswith(b"HTTP/1.1 101"):
        raise Closed(f"no WebSocket: {answer!r}")


def close(connection: socket.socket) -> None:
    """Says goodbye, so that all is released at once, and returns when the server has hung up."""
    connection.settimeout(CLOSE_S)
    connection.sendall(client_frame(GOODBYE, CLOSE))
    while connection.recv(HEAD_BYTES):
        pass
    connection.close()
