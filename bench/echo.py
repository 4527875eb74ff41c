"""The yardsticks: an echo over raw TCP, and one over the barest WebSocket, both on Trio.

`python -m bench.echo lines` answers each line with the same line. `python -m bench.echo websocket`
does the same with frames; beside the raw echo it shows what framing alone costs. Neither checks
anything, and neither should ever face a peer other than the load.
"""

import base64
import contextlib
import hashlib
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from bench.wire import HEADER_END, TEXT, frame_header, mask

WEBSOCKET_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CHUNK_BYTES: Final = 65536

Handler = Callable[[trio.SocketStream], Awaitable[None]]


async def echo_lines(stream: trio.SocketStream) -> None:
    """Sends every line back."""
    rest = b""
    while data := await stream.receive_some(CHUNK_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            await stream.send_all(line + b"\n")


def client_frame_span(data: bytes) -> tuple[int, int] | None:
    """Where the first masked frame's payload begins and ends; None while it is cut."""
    if len(data) < 2:
        return None
    length = data[1] & 0x7F
    begin = 6
    if length == 126:
        length = int.from_bytes(data[2:4], "big")
        begin = 8
    return (begin, begin + length) if len(data) >= begin + length else None


async def accept_upgrade(stream: trio.SocketStream) -> bytes:
    """Answers the opening handshake, and returns what came after it."""
    request = b""
    while HEADER_END not in request:
        request += await stream.receive_some(CHUNK_BYTES)
    head, rest = request.split(HEADER_END, 1)
    headers = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
    digest = hashlib.sha1(headers[b"Sec-WebSocket-Key"] + WEBSOCKET_GUID).digest()
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + HEADER_END
    )
    return rest


async def echo_frames(stream: trio.SocketStream) -> None:
    """Sends every text frame's payload back."""
    rest = await accept_upgrade(stream)
    while data := await stream.receive_some(CHUNK_BYTES):
        rest += data
        while (span := client_frame_span(rest)) is not None:
            begin, end = span
            payload = mask(rest[begin:end], rest[begin - 4 : begin])
            rest = rest[end:]
            await stream.send_all(frame_header(TEXT, len(payload), 0) + payload)


HANDLERS: Final[dict[str, Handler]] = {"lines": echo_lines, "websocket": echo_frames}


async def shielded(handler: Handler, stream: trio.SocketStream) -> None:
    """One connection; the load ends by hanging up, which is no failure."""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            await handler(stream)


async def serve(handler: Handler) -> None:
    """Serves until the process is told to stop, and says where in its first line of output."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    print(f"echo listening on tcp://127.0.0.1:{port}", flush=True)
    await trio.serve_listeners(partial(shielded, handler), listeners)


if __name__ == "__main__":
    trio.run(serve, HANDLERS[sys.argv[1]])
