"""Peers that do not read, and what others write or ask for: bounds and isolation (L12, L13)."""

import gc

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.server.config import ServerConfig, WireLimits
from leasekeeper.service.limits import Limits
from tests.harness import GONE, serving
from tests.server.bystander import bystander
from tests.server.test_closing import taken_after

TEXT, PING = 0x1, 0x9
TIGHT = ServerConfig(wire=WireLimits(outbox_bytes=20_000))


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


async def test_a_reader_who_asks_for_much_at_once_is_no_slow_consumer() -> None:
    """Law L13: it asks for a little more than may wait, and reads some of it meanwhile."""
    async with serving() as served:
        crowd = await served.connect()
        for mode in ("shared", "exclusive"):
            for _ in range(0, 100, 25):
                shown = {"name": "a", "mode": mode, "label": "😀" * 255, "wait_ms": None}
                await crowd.send([crowd.request("lease.acquire", **shown) for _ in range(25)])
        await crowd.call("lease.inspect", name="a")
        peer = await served.connect("tcp", batch=True)
        asks = [peer.request("lease.inspect", name="a") for _ in range(20)]
        await peer.send(asks)
        for ask in asks:
            assert len((await peer.answer(ask["id"]))["holders"]) == 100


@pytest.mark.parametrize("batch", [False, True])
async def test_the_answers_of_one_batch_are_bounded_too(
    batch: bool, autojump_clock: MockClock
) -> None:
    """Law L12: one small frame must not make the server hold much more than its bound."""
    config = ServerConfig(wire=WireLimits(outbox_bytes=1024 * 1024))
    async with serving(config) as served:
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
