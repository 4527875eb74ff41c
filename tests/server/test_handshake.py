"""The way in: HTTP, origins, subprotocol and tokens, and peers that never get through it."""

from contextlib import suppress

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.server.config import ServerConfig, WireLimits
from tests.harness import GONE, Peer, Refused, Served, Wire, raw_frame, run_peer, serving
from tests.server.bystander import bystander

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1:7420\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)
INSPECT = b'{"jsonrpc":"2.0","id":7,"method":"lease.inspect","params":{"name":"a"}}'


async def read_to_end(stream: trio.abc.Stream) -> bytes:
    """All that comes until the server hangs up."""
    data = b""
    try:
        while chunk := bytes(await stream.receive_some(65536)):
            data += chunk
    except GONE:
        pass
    return data


async def answer_to(served: Served, request: bytes, wire: Wire = "memory") -> bytes:
    """What the server says to these first bytes, up to the end unless it accepts them."""
    stream = await served.stream(wire)
    await send_quietly(stream, request)
    try:
        answer = bytes(await stream.receive_some(65536))
        if not answer.startswith(b"HTTP/1.1 101"):
            answer += await read_to_end(stream)
    except GONE:
        answer = b""
    finally:
        await trio.aclose_forcefully(stream)
    return answer


async def send_quietly(stream: trio.abc.Stream, data: bytes) -> None:
    """Sends as much of it as the server takes."""
    with suppress(*GONE):
        for at in range(0, len(data), 10_000):
            await stream.send_all(data[at : at + 10_000])


# --- What is no handshake -------------------------------------------------------------------------

GARBAGE = {
    "noise": bytes(range(256)) * 8 + b"\r\n\r\n",
    "tls": bytes.fromhex("16030100c8010000c40303") + bytes(200) + b"\r\n\r\n",
    "plain_http": b"GET / HTTP/1.1\r\nHost: h\r\n\r\n",
    "post": b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
    "another_version": REQUEST.replace(b"Version: 13", b"Version: 8") + b"\r\n",
    "no_key": REQUEST.replace(b"Sec-WebSocket-Key", b"X-Key") + b"\r\n",
    "endless_header": REQUEST + b"X: " + b"x" * 100_000,
    "frames_at_once": raw_frame(1, INSPECT),
}


@pytest.mark.parametrize("kind", GARBAGE)
@pytest.mark.parametrize("wire", ["memory", "tcp"])
async def test_what_is_no_handshake_is_refused(kind: str, wire: Wire) -> None:
    config = ServerConfig(wire=WireLimits(handshake_ms=200))
    async with serving(config) as served, bystander(served):
        answer = await answer_to(served, GARBAGE[kind], wire)
        assert answer == b"" or answer.split()[1] in {b"400", b"405", b"426"}
        await served.idle(1)


@pytest.mark.parametrize("kind", ["noise", "plain_http", "no_key"])
async def test_what_can_never_become_a_handshake_is_forgotten_at_once(
    kind: str, autojump_clock: MockClock
) -> None:
    async with serving() as served:
        started = trio.current_time()
        await answer_to(served, GARBAGE[kind])
        await served.idle()
        assert trio.current_time() - started < 1


@pytest.mark.parametrize(
    "body", [b"Content-Length: 5\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"]
)
@pytest.mark.parametrize("wire", ["memory", "tcp"])
async def test_an_upgrade_with_a_body_is_refused(body: bytes, wire: Wire) -> None:
    async with serving() as served, bystander(served):
        assert (await answer_to(served, REQUEST + body, wire)).startswith(b"HTTP/1.1 400")
        await served.idle(1)


async def test_a_handshake_may_come_byte_by_byte() -> None:
    async with serving() as served:
        stream = await served.stream()
        for byte in REQUEST + b"\r\n":
            await stream.send_all(bytes([byte]))
        assert bytes(await stream.receive_some(100)).startswith(b"HTTP/1.1 101")


# --- Peers that never finish ----------------------------------------------------------------------


async def test_a_slow_handshake_is_gone_after_its_deadline(autojump_clock: MockClock) -> None:
    async with serving() as served, bystander(served):
        stream, started = await served.stream(), trio.current_time()
        with pytest.raises(GONE):  # noqa: PT012 # which byte hits the closed door is not the point
            for byte in REQUEST:
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.1)
        assert 5 <= trio.current_time() - started < 6
        await served.idle(1)


async def test_a_peer_that_says_nothing_is_gone_after_the_deadline(
    autojump_clock: MockClock,
) -> None:
    async with serving() as served, bystander(served):
        stream, started = await served.stream(), trio.current_time()
        assert await read_to_end(stream) == b""
        assert 5 <= trio.current_time() - started < 6


async def test_too_many_handshakes_at_once_are_refused_and_others_are_served(
    autojump_clock: MockClock,
) -> None:
    async with serving(ServerConfig(wire=WireLimits(handshakes=8))) as served, bystander(served):
        slow = [await served.stream() for _ in range(8)]
        await trio.testing.wait_all_tasks_blocked()
        peer = await served.peer()
        assert await peer.open() in {0, 503}
        assert await peer.closed() is None
        await trio.sleep(5.5)
        for stream in slow:
            await trio.aclose_forcefully(stream)
        await (await served.connect()).close()


async def test_peers_that_connect_and_close_leave_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    async with serving() as served, bystander(served):
        before = trio.lowlevel.current_statistics().tasks_living
        started = trio.current_time()
        for _ in range(200):
            stream = await served.stream()
            await trio.aclose_forcefully(stream)
        await served.idle(1)
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert trio.current_time() - started < 1


async def test_peers_that_shake_hands_and_drop_leave_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    async with serving() as served, bystander(served):
        before = trio.lowlevel.current_statistics().tasks_living
        for number in range(200):
            peer = await served.connect()
            await (peer.drop() if number % 2 else peer.close())
        await served.idle(1)
        assert trio.lowlevel.current_statistics().tasks_living == before
        assert len(served.keeper.sessions) == len(served.server.connections) == 1


async def test_peers_that_connect_and_close_keep_nobody_out(autojump_clock: MockClock) -> None:
    """Port scanners and health checks take no place in the handshake bound once they are gone."""
    async with serving(ServerConfig(wire=WireLimits(handshakes=8))) as served:
        for _ in range(20):
            await trio.aclose_forcefully(await served.stream())
        await trio.testing.wait_all_tasks_blocked()
        assert await (await served.peer()).open() == 101


async def test_past_the_connection_bound_a_peer_is_closed_with_4501() -> None:
    async with serving(ServerConfig(wire=WireLimits(connections=2))) as served:
        async with bystander(served):
            other = await served.connect()
            refused = await served.connect()
            assert await refused.closed() == 4501
            await other.close()
        await served.idle()
        again = await served.connect()
        await again.call("lease.acquire", name="a")
        await again.close()


async def test_refused_peers_that_linger_are_bounded_too(autojump_clock: MockClock) -> None:
    """Law L12: whoever is past the bound and does not read its close frame costs as much."""
    wire = WireLimits(connections=1, handshakes=8)
    async with serving(ServerConfig(wire=wire)) as served, bystander(served):
        for _ in range(100):
            stream = await served.stream()
            await stream.send_all(REQUEST + b"\r\n")
            await trio.testing.wait_all_tasks_blocked()
        assert len(served.connections.child_tasks) <= 1 + 2 * wire.handshakes


# --- Origin ---------------------------------------------------------------------------------------

LISTED = "https://app.example"


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [
        (None, "127.0.0.1:7420", 101),
        ("https://evil.example", "127.0.0.1:7420", 403),
        ("http://evil.example:7420", "127.0.0.1:7420", 403),
        ("http://evil.example:7420", "evil.example:7420", 403),
        ("http://127.0.0.1:7420", "127.0.0.1:7420", 101),
        ("http://127.0.0.1:7421", "127.0.0.1:7420", 403),
        ("http://127.0.0.1", "127.0.0.1:7420", 403),
        ("http://[::1]:7420", "[::1]:7420", 101),
        ("http://192.0.2.7:7420", "192.0.2.7:7420", 101),
        ("http://192.0.2.66:7420", "127.0.0.1:7420", 403),
        ("http://localhost:7420", "localhost:7420", 101),
        ("http://localhost.evil.example:7420", "127.0.0.1:7420", 403),
        ("http://localhost:8000", "localhost:7420", 403),
        (LISTED, "127.0.0.1:7420", 101),
        (LISTED + ":444", "127.0.0.1:7420", 403),
        (LISTED + ".evil.example", "127.0.0.1:7420", 403),
        ("http://app.example", "127.0.0.1:7420", 403),
        ("null", "127.0.0.1:7420", 403),
        ("", "127.0.0.1:7420", 403),
        ("http://127.0.0.1:7420@evil.example", "127.0.0.1:7420", 403),
        ("http://[", "127.0.0.1:7420", 403),
        ("http://127.0.0.1:port", "127.0.0.1:7420", 403),
        ("file://", "127.0.0.1:7420", 403),
    ],
)
async def test_a_page_of_another_site_is_refused(
    origin: str | None, host: str, status: int
) -> None:
    """The whole contract: listed, or equal to the Host where that is an IP literal or localhost.

    An attacker may well have an IP address and serve pages on our port number there.
    """
    async with serving(ServerConfig(allowed_origins=frozenset({LISTED}))) as served:
        peer = Peer(await served.stream(port=7420), host)
        served.peers.start_soon(peer.run)
        assert await peer.open(origin=origin) == status
        if status == 101:
            await peer.call("lease.inspect", name="a")


async def test_one_good_origin_among_two_is_not_good() -> None:
    async with serving() as served:
        two = REQUEST + b"Origin: https://evil.example\r\nOrigin: http://127.0.0.1:7420\r\n\r\n"
        assert not (await answer_to(served, two)).startswith(b"HTTP/1.1 101")


async def test_over_a_socket_file_no_page_is_ours() -> None:
    async with serving() as served:
        peer = run_peer(await served.stream(port=0), served.peers)
        assert await peer.open(origin="http://localhost:7420") == 403


# --- Subprotocol and extensions -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [
        ((), None),
        (("leasekeeper.v1",), "leasekeeper.v1"),
        (("chat", "leasekeeper.v1"), "leasekeeper.v1"),
        (("chat",), None),
    ],
)
async def test_the_subprotocol_is_agreed_on_where_it_is_offered(
    offered: tuple[str, ...], agreed: str | None
) -> None:
    async with serving() as served:
        peer = await served.peer()
        assert await peer.open(subprotocols=offered) == 101
        assert peer.subprotocol == agreed
        await peer.call("lease.inspect", name="a")


async def test_compression_is_declined() -> None:
    async with serving() as served:
        peer = await served.peer()
        offer = {"Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits"}
        assert await peer.open(headers=offer) == 101
        assert peer.response is not None
        assert "Sec-WebSocket-Extensions" not in peer.response.headers


# --- Tokens ---------------------------------------------------------------------------------------

WITH_TOKEN = ServerConfig(token="right")


async def test_without_a_token_a_peer_is_gone_after_the_deadline(
    autojump_clock: MockClock,
) -> None:
    async with serving(WITH_TOKEN) as served:
        peer, started = await served.connect(), trio.current_time()
        assert await peer.closed() == 4500
        assert 5 <= trio.current_time() - started < 6


@pytest.mark.parametrize("token", ["wrong", "right ", "righ", "", "r\u0131ght", "\0"])
async def test_a_wrong_token_is_refused_and_the_peer_sent_away(token: str) -> None:
    async with serving(WITH_TOKEN) as served:
        peer = await served.connect()
        with pytest.raises(Refused) as refused:
            await peer.call("session.open", **({"token": token} if token else {}))
        assert refused.value.code == -32010
        assert await peer.closed() == 4500


async def test_the_right_token_opens_the_session_and_all_behind_it() -> None:
    async with serving(WITH_TOKEN) as served:
        peer = await served.connect(token="right")
        await peer.call("lease.acquire", name="a")


async def test_what_follows_the_token_in_one_frame_finds_the_session_open() -> None:
    async with serving(WITH_TOKEN) as served:
        peer = await served.connect()
        first = peer.request("session.open", token="right")
        second = peer.request("lease.acquire", name="a")
        await peer.send([first, second])
        assert (await peer.answer(first["id"]))["protocol"] == 1
        assert (await peer.answer(second["id"]))["name"] == "a"


async def test_an_authenticated_session_outlives_the_deadline(autojump_clock: MockClock) -> None:
    async with serving(WITH_TOKEN) as served:
        peer = await served.connect(token="right")
        await trio.sleep(20)
        await peer.call("lease.acquire", name="a")


async def test_the_right_token_may_come_as_a_bearer_header() -> None:
    async with serving(WITH_TOKEN) as served:
        peer = await served.connect(headers={"Authorization": "Bearer right"})
        await peer.call("lease.acquire", name="a")
        await peer.call("session.open", client="c")


@pytest.mark.parametrize(
    "header", ["Bearer wrong", "right", "Basic right", "Bearer", "Token right"]
)
async def test_any_other_header_opens_nothing(header: str) -> None:
    async with serving(WITH_TOKEN) as served:
        peer = await served.peer()
        status = await peer.open(headers={"Authorization": header})
        assert status in {101, 401}
        if status == 101:
            with pytest.raises(Refused) as refused:
                await peer.call("lease.acquire", name="a")
            assert refused.value.code == -32010
            assert await peer.closed() == 4500
        assert not served.keeper.leases.tenures


async def test_another_method_first_is_refused() -> None:
    async with serving(WITH_TOKEN) as served:
        peer = await served.connect()
        requests = [
            peer.request("lease.acquire", name="a"),
            peer.request("session.open", token="wrong"),
            peer.request("lease.acquire", name="b"),
        ]
        await peer.send(requests)
        for request in requests:
            with pytest.raises(Refused) as refused:
                await peer.answer(request["id"])
            assert refused.value.code == -32010
        assert await peer.closed() == 4500
        assert not served.keeper.leases.tenures


async def test_after_a_wrong_token_the_right_one_comes_too_late() -> None:
    """One connection is one guess."""
    async with serving(WITH_TOKEN) as served:
        peer = await served.connect()
        guesses = [peer.request("session.open", token=f"guess {n}") for n in range(500)]
        right = peer.request("session.open", token="right")
        await peer.send([*guesses, right])
        with pytest.raises(Refused):
            await peer.answer(right["id"])
        assert await peer.closed() == 4500


async def test_the_token_appears_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    canary = "canary-5f0c"
    async with serving(ServerConfig(token=canary)) as served:
        peer = await served.connect()
        with pytest.raises(Refused) as refused:
            await peer.call("session.open", token=canary + "x")
        assert canary not in str(refused.value) + str(refused.value.data)
        assert canary not in "".join(peer.frames) + peer.close_reason
    assert canary not in "".join(capfd.readouterr())


# --- A handshake that ends where only one of two readers believes it ends -------------------------


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
async def test_no_line_ending_hides_frames_from_the_meter(newline: bytes) -> None:
    """The HTTP parser may be content with bare newlines; the meter must then be, too."""
    config = ServerConfig(wire=WireLimits(close_ms=300))
    async with serving(config) as served, bystander(served):
        stream = await served.stream()
        await stream.send_all(REQUEST.replace(b"\r\n", newline) + newline)
        if not bytes(await stream.receive_some(65536)).startswith(b"HTTP/1.1 101"):
            return  # refused: as good
        # What a meter that still waits for "\r\n\r\n" takes for the start of an endless frame.
        decoy = b"\r\n\r\n" + raw_frame(9, masked=False, declared_length=2**62)
        await stream.send_all(bytes([0x89, 0x80 | len(decoy), 0, 0, 0, 0]) + decoy)
        async with trio.open_nursery() as nursery:
            fragments = raw_frame(0, fin=False) * 20_000
            nursery.start_soon(send_quietly, stream, raw_frame(1, fin=False) + fragments)
            with trio.move_on_after(1) as patience:
                answer = await read_to_end(stream)
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)
        assert not patience.cancelled_caught
        assert (1008).to_bytes(2) in answer
