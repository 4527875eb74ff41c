"""How connections end: by the peer, by us, by neither; and what is left of them (laws L8, L12)."""

import orjson
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.errors import CloseCode
from leasekeeper.server.config import ServerConfig, WireLimits
from leasekeeper.service.limits import Limits
from leasekeeper.store.memory import MemoryStore
from tests.harness import GONE, Peer, PeerGone, Refused, Served, raw_frame, serving
from tests.server.bystander import bystander
from tests.server.test_handshake import REQUEST

TEXT, PING = 0x1, 0x9
TIGHT = ServerConfig(wire=WireLimits(outbox_bytes=20_000))


async def taken_after(peer: Peer, name: str) -> float:
    """How long from now until this peer gets the name, in seconds."""
    started = trio.current_time()
    await peer.call("lease.acquire", name=name, wait_ms=None)
    return trio.current_time() - started


def close_all(served: Served, code: CloseCode = CloseCode.DRAINING) -> None:
    for connection in served.server.connections:
        connection.close_soon(code, "a test says so")


def left_behind(served: Served) -> dict[str, int]:
    """How much there still is of sessions, tenures, watchers, waiters and leases of anybody."""
    keeper, store = served.keeper, served.keeper.store
    assert isinstance(store, MemoryStore)
    counts = {
        "connections": len(served.server.connections),
        "sessions": len(keeper.sessions),
        "detached": len(keeper._detached),
        "graces": len(keeper._graces),
        "watchers": len(keeper._watchers),
        "tenures": len(keeper.leases.tenures),
        "unwanted": len(keeper.leases.unwanted),
        "renewals": len(keeper.leases.renewals._alarms),
        "locks": len(store._locks),
        "alarms": len(store._alarms),
        "watched": len(store._watched),
    }
    return {what: count for what, count in counts.items() if count}


# --- By the peer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001, None])
async def test_a_clean_close_releases_at_once(code: int | None, autojump_clock: MockClock) -> None:
    async with serving() as served:
        peer, other = await served.connect(), await served.connect()
        await peer.call("lease.acquire", name="a")
        await peer.close(code)
        assert peer.close_code == (code or 1005)
        assert await taken_after(other, "a") == 0


@pytest.mark.parametrize("code", [1002, 1011, 3000, 4999, "drop", "eof"])
async def test_any_other_end_keeps_the_lease_for_the_grace(
    code: int | str, autojump_clock: MockClock
) -> None:
    async with serving() as served:
        peer, other = await served.connect(), await served.connect()
        await peer.call("lease.acquire", name="a")
        if isinstance(code, int):
            await peer.close(code)
        elif code == "eof":
            assert isinstance(peer.stream, trio.StapledStream)
            await peer.stream.send_eof()
        else:
            await peer.drop()
        assert 4.5 < await taken_after(other, "a") < 5.5


async def test_a_clean_close_that_nobody_reads_the_answer_to_is_clean(
    autojump_clock: MockClock,
) -> None:
    async with serving() as served:
        other = await served.connect()
        for _ in range(20):
            peer = await served.connect()
            await peer.call("lease.acquire", name="a")
            await peer.send_raw_frame(8, (1000).to_bytes(2))
            await peer.drop()
            await served.idle(1)
            assert await taken_after(other, "a") == 0
            await other.call("lease.break", name="a")


# --- By us ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pings", [0, 1, 50])
async def test_pings_during_a_close_that_we_began_are_harmless(
    pings: int, autojump_clock: MockClock
) -> None:
    async with serving() as served:
        peer = await served.connect()
        connection = served.server.connections.copy().pop()
        async with bystander(served):
            connection.close_soon(CloseCode.DRAINING, "a test says so")
            await peer.send_raw(raw_frame(PING, b"p") * pings)
            assert await peer.closed() == 4000
            await served.idle(1)


async def test_pings_behind_requests_during_a_close_that_we_began_are_harmless(
    autojump_clock: MockClock,
) -> None:
    """What the library has buffered already when the close begins."""
    async with serving() as served:
        peer = await served.connect()
        text = raw_frame(TEXT, b"{}")
        await peer.send_raw((text + raw_frame(PING, b"p")) * 50)
        close_all(served)
        assert await peer.closed() == 4000


@pytest.mark.parametrize("requests", [0, 200])
async def test_a_peer_that_does_not_answer_our_close_is_gone_after_the_deadline(
    requests: int, autojump_clock: MockClock
) -> None:
    """`close_ms` to write what is queued, and `close_ms` for the closing handshake."""
    async with serving() as served:
        peer = await served.connect("lockstep")
        holder = await served.connect()
        await holder.call("lease.acquire", name="a")
        peer.pause()
        for _ in range(requests):
            await peer.send_raw_frame(
                TEXT, b'{"jsonrpc":"2.0","id":7,"method":"lease.inspect","params":{"name":"a"}}'
            )
        started = trio.current_time()
        close_all(served)
        await served.idle()
        assert trio.current_time() - started <= 2 * served.config.wire.close_ms / 1000 + 0.1


async def test_answers_that_were_ready_are_written_before_our_close(
    autojump_clock: MockClock,
) -> None:
    async with serving() as served:
        peer = await served.connect("lockstep")
        peer.pause()
        asked = [await peer.ask("lease.inspect", name="a") for _ in range(20)]
        await trio.testing.wait_all_tasks_blocked()
        close_all(served)
        await trio.testing.wait_all_tasks_blocked()
        peer.resume()
        assert await peer.closed() == 4000
        for each in asked:
            await peer.answer(each)


async def test_the_first_reason_counts(autojump_clock: MockClock) -> None:
    async with serving() as served:
        peer = await served.connect()
        close_all(served, CloseCode.NO_SIGN_OF_LIFE)
        close_all(served, CloseCode.DRAINING)
        assert await peer.closed() == 4002


# --- A write that was cut short -------------------------------------------------------------------


@pytest.mark.parametrize("stalled_s", [4.0, 30.0])
async def test_nothing_follows_a_frame_that_was_cut_short(
    stalled_s: float, autojump_clock: MockClock
) -> None:
    """A stalled write ends by `write_ms`; then comes no close frame, no pong, no message."""
    async with serving() as served, bystander(served):
        stream = await served.stream("lockstep")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, REQUEST + b"\r\n")
            assert bytes(await stream.receive_some(65536)).startswith(b"HTTP/1.1 101")
        text = orjson.dumps({"jsonrpc": "2.0", "id": "x" * 60_000, "method": "nonsense"})
        await stream.send_all(raw_frame(TEXT, text))
        came = bytes(await stream.receive_some(1000))
        assert came[:2] == b"\x81\x7e"
        await stream.send_all((raw_frame(PING, b"p") + raw_frame(TEXT, b"{}")) * 3)
        await trio.sleep(stalled_s)
        try:
            while chunk := bytes(await stream.receive_some(65536)):
                came += chunk
        except GONE:
            pass
        length = 4 + int.from_bytes(came[2:4])
        assert came[4:length].startswith(b'{"jsonrpc":"2.0","id":"xxx')
        if stalled_s > served.config.wire.write_ms / 1000:
            assert came[length:] == b""
        else:
            assert came[length:].count(b"\x8a\x01p") == 3
        await trio.aclose_forcefully(stream)


# --- Slow consumers -------------------------------------------------------------------------------


async def test_without_a_pong_a_peer_is_closed_with_4002(autojump_clock: MockClock) -> None:
    async with serving() as served, bystander(served):
        peer, started = await served.connect(), trio.current_time()
        peer.answers_pings = False
        assert await peer.closed() == 4002
        assert 32 <= trio.current_time() - started < 34


async def test_a_frozen_holder_keeps_its_lease_at_most_its_ttl(autojump_clock: MockClock) -> None:
    async with serving() as served:
        peer, other = await served.connect(), await served.connect()
        await peer.call("lease.acquire", name="a", ttl_ms=3000)
        await trio.sleep(10)
        peer.answers_pings = False
        assert await taken_after(other, "a") <= 3
        assert (await peer.notification("lease.lost"))["reason"] == "expired"


async def test_a_pong_that_was_not_asked_for_is_no_sign_of_life(autojump_clock: MockClock) -> None:
    async with serving() as served:
        peer = await served.connect()
        peer.answers_pings = False

        async def pretend() -> None:
            try:
                while True:
                    await peer.send_raw_frame(0xA, b"alive!")
                    await trio.sleep(1)
            except GONE:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pretend)
            assert await peer.closed() == 4002
            nursery.cancel_scope.cancel()


# --- What is left ---------------------------------------------------------------------------------

ENDS = ["clean", "drop", "violation", "garbage", "server"]


async def end(served: Served, peer: Peer, how: str) -> None:
    match how:
        case "clean":
            await peer.send_raw_frame(8, (1000).to_bytes(2))
        case "drop":
            await peer.drop()
        case "violation":
            await peer.send_raw_frame(TEXT, declared_length=1 << 30)
        case "garbage":
            await peer.send_raw_frame(0xF, b"")
        case "server":
            close_all(served)


STATES: dict[str, list[tuple[str, dict[str, object]]]] = {
    "idle": [],
    "holding": [("lease.acquire", {"name": "a"})],
    "waiting": [("lease.acquire", {"name": "held", "wait_ms": None})],
    "waiting_a_while": [("lease.acquire", {"name": "held", "wait_ms": 1000})],
    "waiting_for_all": [
        ("lease.acquire_all", {"names": ["b", "c", "held"], "wait_ms": None}),
    ],
    "watching": [("lease.watch", {"name": "a"}), ("lease.watch", {"name": "held"})],
    "cancelling": [
        ("lease.acquire", {"name": "held", "wait_ms": None}),
        ("rpc.cancel", {"id": 1}),
    ],
    "releasing": [("lease.acquire", {"name": "a"}), ("lease.break", {"name": "a"})],
    "repeating": [
        ("lease.acquire", {"name": "held", "wait_ms": None, "lease": "0" * 32}),
        ("lease.acquire", {"name": "held", "wait_ms": None, "lease": "0" * 32}),
    ],
    "many": [("lease.acquire", {"name": f"n{n}", "ttl_ms": 3_600_000}) for n in range(200)],
    "many_waiting": [
        ("lease.acquire", {"name": "held", "wait_ms": None, "ttl_ms": 3_600_000})
        for _ in range(200)
    ],
    "many_watching": [("lease.watch", {"name": f"n{n}"}) for n in range(200)],
}


@pytest.mark.parametrize("settled", [False, True], ids=["at_once", "settled"])
@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("state", STATES)
async def test_a_connection_leaves_nothing_behind(
    state: str, how: str, settled: bool, autojump_clock: MockClock
) -> None:
    """Whatever it was doing, however it ends: after the grace there is no trace of it."""
    async with serving() as served:
        holder = await served.connect()
        held = await holder.call("lease.acquire", name="held", ttl_ms=3_600_000)
        peer = await served.connect()
        if how == "server":
            await holder.drop()
            await served.idle(1)
        if STATES[state]:
            await peer.send([peer.request(method, **params) for method, params in STATES[state]])
        if settled:
            await trio.testing.wait_all_tasks_blocked()
        await end(served, peer, how)
        await served.idle(0 if how == "server" else 1)
        await trio.sleep(served.config.limits.grace_ms / 1000 + 1)
        if how != "server":
            state_of_held = await holder.call("lease.inspect", name="held")
            assert state_of_held["waiting_total"] == 0
            assert [each["fence"] for each in state_of_held["holders"]] == [held["fence"]]
            await holder.close()
        await served.idle()
        await trio.testing.wait_all_tasks_blocked()
        assert left_behind(served) == {}


async def test_a_clean_close_behind_requests_releases_what_they_got(
    autojump_clock: MockClock,
) -> None:
    """The same, seen from outside: nobody must wait out the TTL of a client that is done."""
    async with serving() as served:
        peer, other = await served.connect(), await served.connect()
        batch = [
            peer.request("lease.acquire", name=f"n{n}", ttl_ms=3_600_000, on_drop="release")
            for n in range(300)
        ]
        await peer.send(batch)
        await peer.close()
        for number in range(300):
            assert await taken_after(other, f"n{number}") == 0


async def test_empty_sessions_push_nobody_out_of_the_grace(autojump_clock: MockClock) -> None:
    """Law L13: to connect and drop, again and again, ends no other client's grace early."""
    config = ServerConfig(limits=Limits(sessions_detached=5))
    async with serving(config) as served:
        peer, other = await served.connect(), await served.connect()
        await peer.call("lease.acquire", name="a", ttl_ms=60_000)
        await peer.drop()
        await served.idle(1)
        for _ in range(10):
            await (await served.connect()).drop()
            await served.idle(1)
        with pytest.raises(Refused):
            await other.call("lease.acquire", name="a")
        assert 4 < await taken_after(other, "a") < 5.5


async def test_answers_to_nobody_are_not_an_error(autojump_clock: MockClock) -> None:
    async with serving() as served:
        for _ in range(50):
            peer = await served.connect()
            await peer.ask("lease.acquire", name="a", wait_ms=100, on_drop="release")
            await peer.drop()
            with pytest.raises(PeerGone):
                await peer.answer(1)
        await served.idle()
        await trio.sleep(6)
        assert left_behind(served) == {}
