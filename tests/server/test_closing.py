"""How connections end: by the peer, by us, by neither; and what is left of them (laws L8, L12)."""

import gc

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
        "unwanted": len(keeper.leases._unwanted),
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


async def test_a_slow_consumer_is_closed_at_the_bound_and_others_are_served(
    autojump_clock: MockClock,
) -> None:
    async with serving(TIGHT) as served, bystander(served) as other:
        peer = await served.connect("lockstep")
        await peer.call("lease.acquire", name="slow", ttl_ms=60_000)
        peer.pause()
        asked = 0
        while served.server.connections and len(served.keeper.sessions) == 2:
            await peer.ask("lease.inspect", name="slow")
            asked += 1
            await trio.testing.wait_all_tasks_blocked()
            started = trio.current_time()
            await other.call("lease.inspect", name="slow")
            assert trio.current_time() == started
        answer_bytes = 300
        assert 20_000 / answer_bytes / 3 < asked < 20_000 / answer_bytes * 5
        peer.resume()
        assert await peer.closed() == 4001


async def test_the_leases_of_a_slow_consumer_survive_until_its_grace(
    autojump_clock: MockClock,
) -> None:
    async with serving(TIGHT) as served, bystander(served):
        peer, other = await served.connect("lockstep"), await served.connect()
        grant = await peer.call("lease.acquire", name="slow", ttl_ms=60_000)
        await peer.call("lease.acquire", name="slow2", ttl_ms=60_000)
        peer.pause()
        while len(served.keeper.sessions) == 3:
            await peer.ask("lease.inspect", name="slow")
            await trio.testing.wait_all_tasks_blocked()
        await trio.sleep(1)
        again = await other.call("lease.resume", name="slow", lease=grant["lease"])
        assert again["fence"] == grant["fence"]
        assert 3.5 < await taken_after(other, "slow2") < 4.5


async def test_a_stalled_write_alone_ends_the_connection(autojump_clock: MockClock) -> None:
    async with serving() as served, bystander(served):
        peer = await served.connect("lockstep")
        peer.pause()
        for _ in range(3):  # the first is read yet: its reader waits already
            await peer.ask("lease.inspect", name="a")
        started = trio.current_time()
        await served.idle(1)
        assert trio.current_time() - started < 25


async def test_a_slow_consumer_of_a_real_socket_is_closed_and_others_stay_quick() -> None:
    config = ServerConfig(wire=WireLimits(close_ms=300))
    async with serving(config) as served, bystander(served, "tcp") as other:
        holder = await served.connect()
        await holder.call("lease.acquire", name="a", label="€" * 255)
        waits = [
            holder.request("lease.acquire", name="a", wait_ms=None, label="€" * 255)
            for _ in range(30)
        ]
        await holder.send(waits)
        peer = await served.connect("tcp")
        peer.pause()
        slowest_s = 0.0
        for _ in range(20_000):
            try:
                await peer.ask("lease.inspect", name="a")
            except GONE:
                break
            started = trio.current_time()
            await other.call("lease.inspect", name="b")
            slowest_s = max(slowest_s, trio.current_time() - started)
        else:
            pytest.fail("it was never closed")
        assert slowest_s < 0.25


async def test_a_well_behaved_reader_is_no_slow_consumer_whatever_others_write(
    autojump_clock: MockClock,
) -> None:
    """Law L13: long labels of others must not make an answer that closes who asked for it."""
    async with serving() as served:
        peer, crowd = await served.connect(), [await served.connect() for _ in range(2)]
        for each in crowd:
            for number in range(0, 1000, 25):
                batch = [
                    each.request("lease.acquire", name=f"{id(each)}.{n}", label="😀" * 255)
                    for n in range(number, number + 25)
                ]
                await each.send(batch)
            await each.until(lambda each=each: each.answered(1000))  # type: ignore[misc]
        page = await peer.call("lease.list", limit=1000)
        assert page["leases"]
        await peer.call("lease.inspect", name="a")


async def test_a_watcher_that_reads_is_no_slow_consumer_whatever_others_do(
    autojump_clock: MockClock,
) -> None:
    """Law L13: a name that changes quickly, with long labels, must not close who watches it."""
    async with serving() as served:
        watcher, crowd, breaker = [await served.connect() for _ in range(3)]
        for number in range(0, 100, 25):
            await crowd.send(
                [
                    crowd.request("lease.acquire", name="a", wait_ms=None, label="😀" * 255)
                    for _ in range(number, number + 25)
                ]
            )
        await trio.testing.wait_all_tasks_blocked()
        await watcher.call("lease.watch", name="a")
        await breaker.send([breaker.request("lease.break", name="a") for _ in range(90)])
        await trio.sleep(1)
        await watcher.call("lease.inspect", name="b")


@pytest.mark.parametrize("batch", [False, True])
async def test_the_answers_of_one_batch_are_bounded_too(
    batch: bool, autojump_clock: MockClock
) -> None:
    """Law L12: a frame of 64 KiB must not make the server hold hundreds of megabytes."""
    async with serving() as served:
        holder = await served.connect()
        for number in range(0, 500, 25):
            await holder.send(
                [
                    holder.request("lease.acquire", name=f"n{n}", label="😀" * 255)
                    for n in range(number, number + 25)
                ]
            )
        await holder.until(lambda: holder.answered(500))
        peer = await served.connect("lockstep", batch=batch)
        peer.pause()
        wait = peer.request("lease.acquire", name="n0", wait_ms=None)
        asks = [peer.request("lease.list", limit=1000) for _ in range(40)]
        await peer.send([wait, *asks])
        with trio.move_on_after(1):
            await served.idle(1)
        held = sum(
            len(each)
            for found in gc.get_objects()
            if type(found) is list and found and type(found[0]) is bytes
            for each in found
            if type(each) is bytes
        )
        assert held < 4 * served.config.wire.outbox_bytes


async def test_requests_that_cost_much_do_not_delay_others() -> None:
    """Law L13: a frame each from a few connections, on a store with some thousand leases."""
    config = ServerConfig(limits=Limits(leases_per_session=5000))
    async with serving(config) as served:
        crowd = await served.connect(batch=True)
        for number in range(0, 5000, 500):
            await crowd.send(
                [
                    crowd.request("lease.acquire", name=f"n{n}", ttl_ms=3_600_000)
                    for n in range(number, number + 500)
                ]
            )
            await crowd.until(lambda last=number + 500: crowd.answered(last + 1))  # type: ignore[misc]
        async with bystander(served) as other:
            peers = [await served.connect() for _ in range(40)]
            async with trio.open_nursery() as nursery:
                for peer in peers:
                    asks = [peer.request("lease.list", prefix="zzz") for _ in range(60)]
                    nursery.start_soon(peer.send, asks)
            slowest_s = 0.0
            for _ in range(2):
                started = trio.current_time()
                await other.call("lease.inspect", name="b")
                slowest_s = max(slowest_s, trio.current_time() - started)
            assert slowest_s < 2  # generous; what it rests on is counted in tests/store


# --- No sign of life ------------------------------------------------------------------------------


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
