"""What a stream on a socket can do in one system call; any other stream does it its own way."""

import os

import trio


def send_now(stream: trio.abc.Stream, data: bytes) -> int:
    """Sends what the kernel takes without waiting. The caller sees to it that nobody else writes.

    Returns:
        How many bytes; 0 if it has no room, if the peer is gone, or if the stream is no socket.
        To wait, or to find out which, is what `send_all` is for.
    """
    if not isinstance(stream, trio.SocketStream):
        return 0
    try:
        return os.write(stream.socket.fileno(), data)
    except OSError:
        return 0


async def receive_some(stream: trio.abc.Stream, max_bytes: int) -> bytes | bytearray:
    """As the stream's, without asking a socket first that most likely has nothing yet.

    Raises:
        trio.BrokenResourceError, trio.ClosedResourceError: as the stream's.

    Cancellation:
        Nothing is lost.
    """
    if not isinstance(stream, trio.SocketStream):
        return await stream.receive_some(max_bytes)
    if stream.socket.fileno() < 0:
        raise trio.ClosedResourceError
    try:
        await trio.lowlevel.wait_readable(stream.socket)
        return os.read(stream.socket.fileno(), max_bytes)
    except BlockingIOError:
        return await stream.receive_some(max_bytes)
    except OSError:
        raise trio.BrokenResourceError from None
