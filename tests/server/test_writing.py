"""What is written without waiting, and what becomes of it when the kernel takes only a part."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from trio.testing import MockClock, memory_stream_pair

from leasekeeper.server.config import WireLimits
from leasekeeper.server.frames import Opcode, close_frame, frame
from leasekeeper.server.transport import Closed, WebSocket

SMALL = b"small"
LARGE = b"l" * 60_000
"""More than a socket with a small buffer takes."""


@asynccontextmanager
async def connected(
    buffer_bytes: int | None = None,
) -> AsyncIterator[tuple[WebSocket, trio.SocketStream]]:
    """A server's WebSocket and its peer's end, with the handshake behind them."""
    ours, theirs = socket.socketpair()
    if buffer_bytes is not None:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    streams = [trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in (ours, theirs)]
    async with streams[0], streams[1]:
        yield WebSocket(streams[0], WireLimits(), {}), streams[1]


def text(payload: bytes) -> bytes:
    """The frame of a message."""
    return frame(Opcode.TEXT, payload)


async def read(peer: trio.SocketStream, count: int) -> bytes:
    """So many bytes, as far as they come within a second."""
    data = b""
    with trio.move_on_after(1):
        while len(data) < count:
            data += await peer.receive_some(count - len(data))
    return data


async def test_what_fits_is_sent_without_waiting() -> None:
    async with connected() as (ours, peer):
        with trio.testing.assert_no_checkpoints():
            assert ours.send_now([SMALL, b"second"])
        expected = text(SMALL) + text(b"second")
        assert await read(peer, len(expected)) == expected


async def test_a_part_is_followed_by_its_rest_and_only_then_by_others() -> None:
    told: list[None] = []
    async with connected(buffer_bytes=4096) as (ours, peer):
        ours.on_owed = lambda: told.append(None)
        assert ours.send_now([LARGE])
        assert told == [None]
        assert not ours.send_now([SMALL])
        expected = text(LARGE) + text(b"waits")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send, b"waits")
            assert await read(peer, len(expected)) == expected
        assert ours.send_now([SMALL])
        assert await read(peer, len(text(SMALL))) == text(SMALL)


async def test_what_is_owed_can_be_sent_by_itself() -> None:
    async with connected(buffer_bytes=4096) as (ours, peer):
        assert ours.send_now([LARGE])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_owed)
            assert await read(peer, len(text(LARGE))) == text(LARGE)
        await ours.send_owed()
        assert await read(peer, 1) == b""


async def test_a_ping_comes_behind_the_rest() -> None:
    async with connected(buffer_bytes=4096) as (ours, peer):
        assert ours.send_now([LARGE])
        expected = text(LARGE) + frame(Opcode.PING, bytes(8))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.ping)
            assert await read(peer, len(expected)) == expected
            nursery.cancel_scope.cancel()


async def test_a_goodbye_comes_behind_the_rest() -> None:
    async with connected(buffer_bytes=4096) as (ours, peer):
        assert ours.send_now([LARGE])
        expected = text(LARGE) + close_frame(4000, "bye")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.close, 4000, "bye")
            assert await read(peer, len(expected)) == expected
            await peer.aclose()


async def test_a_rest_that_is_cut_short_is_the_last_that_was_written() -> None:
    async with connected(buffer_bytes=4096) as (ours, _):
        assert ours.send_now([LARGE])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_owed)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert not ours.send_now([SMALL])
        with pytest.raises(Closed):
            await ours.send(SMALL)


async def test_while_another_writes_nothing_is_written_at_once() -> None:
    async with connected(buffer_bytes=4096) as (ours, peer), trio.open_nursery() as nursery:
        nursery.start_soon(ours.send, LARGE)
        await trio.testing.wait_all_tasks_blocked()
        assert not ours.send_now([SMALL])
        assert await read(peer, len(text(LARGE))) == text(LARGE)


async def test_a_peer_that_is_gone_is_found_out_by_who_sends_what_is_owed() -> None:
    async with connected() as (ours, peer):
        await peer.aclose()
        assert ours.send_now([SMALL])
        with pytest.raises(Closed):
            await ours.send_owed()


async def test_after_a_goodbye_nothing_is_sent(autojump_clock: MockClock) -> None:
    async with connected() as (ours, peer):
        await ours.close(4000, "bye")
        assert not ours.send_now([SMALL])
        assert await peer.receive_some() == close_frame(4000, "bye")


async def test_much_and_other_streams_than_sockets_are_left_to_who_waits() -> None:
    async with connected() as (ours, _):
        assert not ours.send_now([LARGE, LARGE])
    assert not WebSocket(memory_stream_pair()[0], WireLimits(), {}).send_now([SMALL])
