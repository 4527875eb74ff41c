"""What is done with sockets directly: no descriptor of a closed one is used."""

import pytest
import trio
from trio.testing import memory_stream_pair

from leasekeeper.sockets import receive_some, send_now


async def pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two ends of a stream."""
    ours, theirs = trio.socket.socketpair()
    return trio.SocketStream(ours), trio.SocketStream(theirs)


async def test_what_is_sent_is_received() -> None:
    ours, theirs = await pair()
    async with ours, theirs:
        assert send_now(ours, b"data") == 4
        assert await receive_some(theirs, 10) == b"data"


async def test_a_full_socket_takes_a_part_and_then_nothing() -> None:
    ours, theirs = await pair()
    async with ours, theirs:
        data = bytes(100_000_000)
        assert 0 < send_now(ours, data) < len(data)
        assert send_now(ours, data) == 0


async def test_a_closed_socket_is_neither_written_nor_read_though_its_number_is_used_again() -> (
    None
):
    ours, theirs = await pair()
    await ours.aclose()
    others = await pair()
    async with theirs, others[0], others[1]:
        assert send_now(ours, b"data") == 0
        with pytest.raises(trio.ClosedResourceError):
            await receive_some(ours, 10)


async def test_a_peer_that_is_gone_ends_the_data_and_takes_none() -> None:
    ours, theirs = await pair()
    async with ours:
        await theirs.aclose()
        assert await receive_some(ours, 10) == b""
        assert send_now(ours, b"data") == 0


async def test_any_other_stream_is_read_its_own_way_and_not_written() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(b"data")
    assert await receive_some(ours, 10) == b"data"
    assert send_now(ours, b"data") == 0
