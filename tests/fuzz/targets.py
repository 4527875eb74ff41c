"""Each takes any bytes, and raises if a reader of ours went wrong on them."""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio
import trio.testing
from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Frame as TheirFrame
from websockets.frames import Opcode as TheirOpcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from leasekeeper.errors import InvalidRequest, RpcError
from leasekeeper.resp.connection import Connection, pack
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.settings import Address, Settings, Topology
from leasekeeper.server.config import WireLimits
from leasekeeper.server.frames import FrameReader, Opcode
from leasekeeper.server.transport import Closed, HandshakeFailed, accept
from leasekeeper.verify.history import HistoryError, read
from leasekeeper.wire.codec import decode_frame, encode_error

MESSAGE_BYTES: Final = 4096
LIMITS: Final = WireLimits(message_bytes=MESSAGE_BYTES)
_MANY: Final = 1_000_000
_REDIS: Final = Address("10.0.0.1", 6379)


def frames(data: bytes) -> None:
    """The same whether they come at once or byte by byte; and another library reads them alike."""
    whole, pieces = (FrameReader(MESSAGE_BYTES, _MANY, _MANY) for _ in range(2))
    found = whole.feed(data, 0.0)
    by_bytes = [each for at in range(len(data)) for each in pieces.feed(data[at : at + 1], 0.0)]
    assert found == by_bytes
    assert str(whole.violation) == str(pieces.violation)
    theirs = _theirs(data)
    until_close = next((at for at, each in enumerate(found, 1) if each[0] is Opcode.CLOSE), None)
    assert theirs[: len(found)] == found[:until_close][: len(theirs)]


def _theirs(data: bytes) -> list[tuple[Opcode, bytes]]:
    """Messages and control frames as `websockets` reads them."""
    protocol = ServerProtocol(state=OPEN, max_size=MESSAGE_BYTES)
    protocol.receive_data(data)
    found: list[tuple[Opcode, bytes]] = []
    parts: list[bytes] = []
    for frame in protocol.events_received():
        assert isinstance(frame, TheirFrame)
        if frame.opcode in {TheirOpcode.TEXT, TheirOpcode.BINARY, TheirOpcode.CONT}:
            parts.append(bytes(frame.data))
            if frame.fin:
                found.append((Opcode.TEXT, b"".join(parts)))
                parts = []
        else:
            found.append((Opcode(frame.opcode), bytes(frame.data)))
    assert isinstance(protocol.parser_exc, ProtocolError | PayloadTooBig | UnicodeError | None)
    return found


def messages(data: bytes) -> None:
    """Requests, or errors that can be answered."""
    frame = decode_frame(data)
    assert frame.requests
    for request in frame.requests:
        if isinstance(request.params, RpcError):
            assert encode_error(request.id, request.params)
        elif not request.answered:
            assert request.id is None
        assert request.answered or not isinstance(request.params, InvalidRequest)


def handshake(data: bytes) -> None:
    """A connection, or none; then messages, until there are no more."""

    async def serve() -> None:
        ours, peers = trio.testing.memory_stream_pair()
        await peers.send_all(data)
        await peers.send_eof()
        try:
            socket = await accept(ours, LIMITS, admit=lambda _: None)
        except (HandshakeFailed, trio.BrokenResourceError):
            return
        try:
            while True:
                await socket.receive()
        except Closed as closed:
            await socket.close(closed.code, closed.reason)

    trio.run(serve)


def replies(data: bytes) -> None:
    """Answers to those who asked, or the end of the connection."""

    async def ask() -> None:
        ours, redis = trio.testing.memory_stream_pair()
        ends: list[Connection] = []
        connection = Connection(
            _REDIS, ours, Settings(Topology.SINGLE, (_REDIS,)), lambda _: None, ends.append
        )

        async def one() -> None:
            try:
                assert len(await connection.ask(pack(("PING",)))) == 1
            except Unanswered:
                assert ends == [connection]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.serve)
            for _ in range(3):
                nursery.start_soon(one)
            await trio.testing.wait_all_tasks_blocked()
            await redis.send_all(data)
            await redis.send_eof()
        assert ends == [connection]

    trio.run(ask)


def history(data: bytes) -> None:
    """A history, or what is wrong with which line."""
    with suppress(HistoryError):
        read(data.splitlines(keepends=True))


TARGETS: Final[dict[str, Callable[[bytes], None]]] = {
    each.__name__: each for each in (frames, messages, handshake, replies, history)
}
