"""Frames that no honest client sends. Each is answered with a close code, and harms nobody else.

In every test a bystander keeps a lease of 300 ms, which takes a ping and a pong every 100 ms.
"""

import time
import tracemalloc

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.server.config import ServerConfig, WireLimits
from tests.harness import GONE, Peer, PeerGone, Served, Wire, raw_frame, serving
from tests.server.bystander import bystander

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
WIRES: list[Wire] = ["memory", "tcp"]
MESSAGE_BYTES = 64 * 1024
BRIEF = ServerConfig(wire=WireLimits(close_ms=150, message_bytes=MESSAGE_BYTES))
"""For peers that do not take part in the closing handshake, and for messages that are too big.

The default bound is played by the vectors; here a small one keeps the tests quick.
"""

INSPECT = b'{"jsonrpc":"2.0","id":7,"method":"lease.inspect","params":{"name":"a"}}'


def padded(size: int, filler: str = " ") -> bytes:
    """A request of exactly so many bytes: the rest is a member that the server ignores."""
    body = b'{"jsonrpc":"2.0","id":7,"method":"lease.inspect","params":{"name":"a"},"x":"'
    room = size - len(body) - 2
    text = filler.encode() * (room // len(filler.encode()))
    return body + text + b"x" * (room - len(text)) + b'"}'


async def flood(peer: Peer, data: bytes) -> None:
    """Sends all this, or as much as the server takes."""
    try:
        for at in range(0, len(data), 16 * 1024):
            await peer.send_raw(data[at : at + 16 * 1024])
    except GONE:
        pass


async def code_after(served: Served, wire: Wire, data: bytes) -> int | None:
    """The code that the server closes with, after a peer has sent these bytes."""
    peer = await served.connect(wire)
    await flood(peer, data)
    with trio.fail_after(10):
        return await peer.closed()


# --- What the protocol forbids --------------------------------------------------------------------

FORBIDDEN = {
    "unmasked": (1002, raw_frame(TEXT, INSPECT, masked=False)),
    "reserved_bit_1": (1002, raw_frame(TEXT, INSPECT, rsv=4)),
    "reserved_bit_2": (1002, raw_frame(TEXT, INSPECT, rsv=2)),
    "reserved_bit_3": (1002, raw_frame(TEXT, INSPECT, rsv=1)),
    "unknown_data_opcode": (1002, raw_frame(0x3, b"x")),
    "unknown_control_opcode": (1002, raw_frame(0xB, b"x")),
    "fragmented_ping": (1002, raw_frame(PING, b"x", fin=False)),
    "long_ping": (1002, raw_frame(PING, b"x" * 126)),
    "continuation_of_nothing": (1002, raw_frame(CONTINUATION, b"x")),
    "text_within_a_message": (1002, raw_frame(TEXT, b"x", fin=False) + raw_frame(TEXT, b"y")),
    "long_form_of_a_short_length": (
        1002,
        b"\x81\xff" + (5).to_bytes(8) + b"\0\0\0\0hello",
    ),
    "length_with_the_top_bit": (1009, b"\x81\xff" + b"\xff" * 8 + b"\0\0\0\0"),
    "close_of_one_byte": (1002, raw_frame(CLOSE, b"\x03")),
    "close_with_a_code_of_no_wire": (1002, raw_frame(CLOSE, (1006).to_bytes(2))),
    "invalid_utf_8": (1007, raw_frame(TEXT, b"\xff\xfe")),
    "surrogate": (1007, raw_frame(TEXT, b"\xed\xa0\x80")),
    "cut_utf_8": (1007, raw_frame(TEXT, b"\xe2\x82")),
    "invalid_utf_8_in_a_fragment": (
        1007,
        raw_frame(TEXT, b"ok", fin=False) + raw_frame(CONTINUATION, b"\xff"),
    ),
    "invalid_utf_8_in_a_close": (1007, raw_frame(CLOSE, b"\x03\xe8\xff")),
    "binary": (1003, raw_frame(BINARY, INSPECT)),
    "empty_binary": (1003, raw_frame(BINARY)),
    "one_mebibyte": (1009, raw_frame(TEXT, b"x" * (1 << 20))),
    "one_mebibyte_in_fragments": (
        1009,
        raw_frame(TEXT, b"x" * (1 << 16), fin=False)
        + raw_frame(CONTINUATION, b"x" * (1 << 16), fin=False) * 14
        + raw_frame(CONTINUATION, b"x" * (1 << 16)),
    ),
    "one_byte_over": (1009, raw_frame(TEXT, padded(MESSAGE_BYTES + 1))),
    "a_lie_about_a_gibibyte": (1009, raw_frame(TEXT, b"{", declared_length=1 << 30)),
    "65_fragments": (
        1008,
        raw_frame(TEXT, b"x", fin=False)
        + raw_frame(CONTINUATION, b"x", fin=False) * 63
        + raw_frame(CONTINUATION, b"x"),
    ),
    "pings": (1008, raw_frame(PING, b"x") * 5_000),
    "pongs": (1008, raw_frame(PONG, b"x") * 5_000),
}


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("kind", FORBIDDEN)
async def test_what_is_forbidden_is_answered_with_its_close_code(kind: str, wire: Wire) -> None:
    code, data = FORBIDDEN[kind]
    async with serving(BRIEF) as served, bystander(served, wire):
        assert await code_after(served, wire, data) == code
        await served.idle(1)
        assert len(served.keeper.sessions) == 1


@pytest.mark.parametrize("kind", FORBIDDEN)
async def test_a_ping_behind_it_changes_nothing(kind: str) -> None:
    """The library's own reader would raise: it answers pings while it is closing."""
    code, data = FORBIDDEN[kind]
    async with serving(BRIEF) as served, bystander(served):
        assert await code_after(served, "memory", data + raw_frame(PING, b"p") * 3) == code
        await served.idle(1)


async def test_a_frame_that_never_comes_blocks_nobody(autojump_clock: MockClock) -> None:
    """A declared length that is within the bound, and not kept: other frames wait, pings fail."""
    async with serving() as served, bystander(served):
        peer = await served.connect()
        peer.answers_pings = False
        await peer.send_raw_frame(TEXT, b'{"json', declared_length=60_000)
        assert await peer.closed() == 4002
        await served.idle(1)


# --- What is allowed, up to its bound -------------------------------------------------------------


@pytest.mark.parametrize("filler", ["x", "é", "€", "😀"])
async def test_the_size_of_a_message_is_counted_in_bytes(filler: str) -> None:
    async with serving(BRIEF) as served, bystander(served):
        peer = await served.connect()
        await peer.send_raw_frame(TEXT, padded(MESSAGE_BYTES, filler))
        assert "result" in await peer.receive()
        await peer.send_raw_frame(TEXT, padded(MESSAGE_BYTES + 1, filler))
        assert await peer.closed() == 1009


async def test_64_fragments_and_pings_between_them_are_one_message() -> None:
    async with serving() as served, bystander(served):
        peer = await served.connect()
        text = padded(640)
        for number in range(64):
            piece = text[number * 10 : number * 10 + 10]
            opcode = CONTINUATION if number else TEXT
            await peer.send_raw(raw_frame(opcode, piece, fin=number == 63) + raw_frame(PING, b"p"))
        assert "result" in await peer.receive()
        await peer.until(lambda: len(peer.pongs) == 64)
        await peer.close()


async def test_a_character_may_be_cut_between_fragments() -> None:
    async with serving() as served:
        peer = await served.connect()
        text = INSPECT[:-1] + ',"x":"€"}'.encode()
        at = text.index(b"\xe2") + 1
        await peer.send_raw(
            raw_frame(TEXT, text[:at], fin=False) + raw_frame(CONTINUATION, text[at:])
        )
        assert "result" in await peer.receive()


async def test_a_message_may_come_byte_by_byte() -> None:
    async with serving() as served, bystander(served):
        peer = await served.connect()
        for byte in raw_frame(TEXT, INSPECT):
            await peer.send_raw(bytes([byte]))
        assert "result" in await peer.receive()


@pytest.mark.parametrize(
    "text", [b"", b"null", b"{", b"[]", b"[[]]", b"7", b'"\\ud800"', b"[" * 5000]
)
async def test_bad_json_leaves_the_connection_open(text: bytes) -> None:
    async with serving() as served, bystander(served):
        peer = await served.connect()
        await peer.send_text(text)
        answer = await peer.receive()
        error = (answer[0] if isinstance(answer, list) else answer)["error"]
        assert error["code"] in {-32700, -32600}
        await peer.call("lease.inspect", name="a")


# --- Floods ---------------------------------------------------------------------------------------


EMPTY_FRAGMENTS = raw_frame(TEXT, fin=False) + raw_frame(CONTINUATION, fin=False) * 100_000


@pytest.mark.parametrize("wire", WIRES)
async def test_a_hundred_thousand_empty_fragments_are_cheap(wire: Wire) -> None:
    async with serving(BRIEF) as served, bystander(served, wire):
        peer, cpu_s = await served.connect(wire), time.process_time()
        await flood(peer, EMPTY_FRAGMENTS)
        assert await peer.closed() == 1008
        assert time.process_time() - cpu_s < 2
        await served.idle(1)


async def test_a_hundred_thousand_empty_fragments_are_not_kept() -> None:
    async with serving(BRIEF) as served:
        peer = await served.connect("tcp")
        tracemalloc.start()
        try:
            await flood(peer, EMPTY_FRAGMENTS)
            assert await peer.closed() == 1008
            assert tracemalloc.get_traced_memory()[1] < 500_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("wire", WIRES)
async def test_bytes_that_go_on_after_a_violation_are_not_kept(wire: Wire) -> None:
    async with serving(BRIEF) as served, bystander(served, wire):
        peer = await served.connect(wire)
        await peer.send_raw_frame(TEXT, declared_length=1 << 40)
        started = trio.current_time()
        chunk, sent = b"x" * 65536, 0
        try:
            while not peer.ended.is_set():
                await peer.send_raw(chunk)
                sent += len(chunk)
                await trio.sleep(0.005)
        except GONE:
            pass
        assert await peer.closed() == 1009
        assert trio.current_time() - started < 2


async def test_pings_below_the_bound_are_answered(autojump_clock: MockClock) -> None:
    async with serving() as served, bystander(served):
        peer = await served.connect()
        for number in range(300):
            await peer.send_raw_frame(PING, str(number).encode())
            await trio.sleep(0.011)
        await peer.until(lambda: len(peer.pongs) == 300)
        assert peer.pongs == [str(number).encode() for number in range(300)]
        await peer.close()


async def test_a_storm_of_messages_that_mean_nothing_is_answered_and_harms_nobody() -> None:
    """No bound forbids it; it costs its sender as much as the server, and others are served."""
    async with serving() as served, bystander(served) as other:
        peer = await served.connect()
        slowest_s, done, began_at = 0.0, trio.Event(), trio.current_time()

        async def probe() -> None:
            nonlocal slowest_s
            while not done.is_set():
                started = trio.current_time()
                await other.call("lease.inspect", name="b")
                slowest_s = max(slowest_s, trio.current_time() - started)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(probe)
            await flood(peer, raw_frame(TEXT, b"{}") * 3_000)
            await peer.until(lambda: len(peer.frames) == 3_000)
            done.set()
        # Not as long as the storm, however slow the machine is.
        assert slowest_s < max(0.5, (trio.current_time() - began_at) / 3)
        await peer.close()


@pytest.mark.parametrize("method", ["lease.inspect", "lease.watch", "lease.release", "nonsense"])
async def test_many_requests_in_each_of_many_frames_are_served(
    method: str,
) -> None:
    async with serving() as served, bystander(served):
        peer = await served.connect()
        for _ in range(3):
            batch = [peer.request(method, name=f"n{n}") for n in range(650)]
            await peer.send(batch)
        await peer.until(lambda: len(peer.frames) == 3)
        await peer.close()


async def test_more_requests_than_may_be_outstanding_are_refused_by_name() -> None:
    config = ServerConfig(wire=WireLimits(requests_outstanding=10))
    async with serving(config) as served:
        holder, peer = await served.connect(), await served.connect()
        await holder.call("lease.acquire", name="a")
        waits = [peer.request("lease.acquire", name="a", wait_ms=None) for _ in range(15)]
        for wait in waits:
            await peer.send(wait)
        await peer.until(lambda: sum(peer.answered(wait["id"]) for wait in waits) == 5)
        refused = [wait["id"] for wait in waits if peer.answered(wait["id"])]
        assert refused == [wait["id"] for wait in waits[10:]]
        with pytest.raises(Exception, match="requests_outstanding"):
            await peer.answer(refused[0])
        await peer.close()
        await served.idle(1)
        assert len(served.keeper.leases.tenures) == 1


# --- Odds and ends --------------------------------------------------------------------------------


async def test_an_id_is_given_back_as_it_came() -> None:
    async with serving() as served:
        peer = await served.connect()
        for given in ["", "é€😀", -1, 0.5, 2**53, "x" * 60_000, None]:
            await peer.send({"jsonrpc": "2.0", "id": given, "method": "nonsense"})
            assert (await peer.receive())["id"] == given


@pytest.mark.parametrize("wire", WIRES)
async def test_a_peer_that_vanishes_in_mid_frame_is_gone(wire: Wire) -> None:
    async with serving() as served, bystander(served, wire):
        peer = await served.connect(wire)
        await peer.send_raw_frame(TEXT, b"{", declared_length=1000)
        await peer.drop()
        await served.idle(1)
        with pytest.raises(PeerGone):
            await peer.receive()
