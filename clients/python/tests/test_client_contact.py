"""A holder believes no longer than it can prove that the server still has its connection (L3, L8).

The server gives a dropped session's leases away after its grace, whatever is left of their TTL, and
it may notice the drop long before the client does.
"""

import time

import anyio
import pytest
from leasekeeper_client import LeaseLost, connect

from client_fake_server import fake_server
from client_helpers import on_both


@on_both
async def test_behind_a_silent_line_a_lease_ends_with_the_servers_grace() -> None:
    """Half-open: no data, no end. The server may have seen the end right after the grant."""
    async with fake_server(grace_ms=500) as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost) as caught:
            async with keeper.lease("orders", ttl=30) as lease:
                confirmed = time.monotonic()
                server.silent = True
                with anyio.fail_after(5):
                    await anyio.sleep_forever()
        assert 0.3 < lost_after(confirmed) < 0.6
        assert caught.value.reason == "deadline"
        assert lease.lost


@on_both
async def test_behind_a_silent_line_ensure_raises_without_the_event_loop() -> None:
    async with fake_server(grace_ms=500) as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost):
            async with keeper.lease("orders", ttl=30) as lease:
                server.silent = True
                lease.ensure()
                assert lease.remaining < 0.5
                time.sleep(0.5)  # noqa: ASYNC251  # The event loop must not be needed.
                assert lease.remaining == 0.0
                lease.ensure()


@on_both
async def test_a_line_that_goes_silent_later_is_noticed_as_fast() -> None:
    async with fake_server(grace_ms=500) as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost):
            async with keeper.lease("orders", ttl=30):
                await server.until(lambda: server.peer.pings == 4)
                silent = time.monotonic()
                server.silent = True
                with anyio.fail_after(5):
                    await anyio.sleep_forever()
        assert lost_after(silent) < 0.6


@on_both
async def test_while_pings_are_answered_nothing_is_lost_and_nothing_renewed() -> None:
    async with fake_server(grace_ms=600) as server, connect(server.url) as keeper:
        async with keeper.lease("orders", ttl=30) as lease:
            await anyio.sleep(2.1)
            lease.ensure()
            assert 0 < lease.remaining < 0.6
        assert 6 <= server.peer.pings <= 11
        assert len(server.peers) == 1
        assert not server.asked("session.heartbeat")
        assert not server.asked("lease.renew")


@on_both
async def test_answers_prove_as_much_as_pongs() -> None:
    async with fake_server(grace_ms=1500) as server, connect(server.url) as keeper:
        async with keeper.lease("orders", ttl=30) as lease:
            for _ in range(10):
                await anyio.sleep(0.1)
                await keeper.inspect("orders")
            assert lease.remaining > 1.2
        assert server.peer.pings == 0


@on_both
async def test_a_late_pong_proves_only_what_its_own_ping_asked() -> None:
    async with fake_server(grace_ms=1500) as server, connect(server.url) as keeper:
        async with keeper.lease("orders", ttl=30) as lease:
            server.peer.protocol.keeping_pongs = True
            await server.until(lambda: len(server.peer.protocol.kept_pongs) == 1)
            await anyio.sleep(0.3)
            server.peer.pong_late()
            await anyio.sleep(0.05)
            assert 1.0 < lease.remaining < 1.2, "the ping was sent 0.35 s ago"


@on_both
async def test_a_pong_of_an_old_ping_does_not_confirm_a_newer_one() -> None:
    async with fake_server(grace_ms=1500) as server, connect(server.url) as keeper:
        async with keeper.lease("orders", ttl=30) as lease:
            protocol = server.peer.protocol
            protocol.keeping_pongs = True
            await server.until(lambda: len(protocol.kept_pongs) == 1)
            await keeper.inspect("orders")
            await server.until(lambda: len(protocol.kept_pongs) == 2)
            server.peer.pong_late()
            await anyio.sleep(0.05)
            assert lease.remaining < 1.0
            server.peer.pong_late()
            await anyio.sleep(0.05)
            assert lease.remaining > 1.3
        assert len(server.peers) == 1


@on_both
async def test_a_silent_line_is_left_in_time_to_resume() -> None:
    async with fake_server(grace_ms=1200) as server, connect(server.url) as keeper:
        async with keeper.lease("orders", ttl=30) as lease:
            fence = lease.fence
            server.peer.protocol.keeping_pongs = True
            await server.until(lambda: len(server.asked("lease.resume")) == 1)
            await anyio.sleep(2.4)
            lease.ensure()
            assert lease.fence == fence
        assert len(server.peers) == 2
        assert server.peer.pings >= 4
        assert len(server.asked("lease.acquire")) == 1
        assert not server.holders


@on_both
async def test_a_drop_that_we_see_late_counts_from_the_last_proof() -> None:
    async with fake_server(grace_ms=900) as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost):
            async with keeper.lease("orders", ttl=30):
                confirmed = time.monotonic()
                await anyio.sleep(0.25)
                server.refusing = True
                await server.peer.drop()
                with anyio.fail_after(5):
                    await anyio.sleep_forever()
        assert 0.7 < lost_after(confirmed) < 1.0


@on_both
async def test_a_long_wait_counts_from_its_grant() -> None:
    """The request is older than the grace when its answer comes; the answer is not."""
    async with fake_server(grace_ms=600) as server, connect(server.url) as keeper:
        server.occupy("orders")
        async with anyio.create_task_group() as tasks:

            async def wait_for_it() -> None:
                async with keeper.lease("orders", ttl=30) as lease:
                    await anyio.sleep(0.9)
                    lease.ensure()

            tasks.start_soon(wait_for_it)
            await anyio.sleep(0.8)
            assert server.peer.pings == 0, "a waiter believes in nothing"
            server.free("orders")


@pytest.mark.parametrize(
    ("grace_ms", "ttl"),
    [
        pytest.param(None, 30, id="a server that states no grace"),
        pytest.param(0, 30, id="a server that keeps nothing"),
        pytest.param(400, 0.4, id="a grace that is no shorter than the TTL"),
    ],
)
@on_both
async def test_there_are_no_pings_where_they_prove_nothing(
    grace_ms: int | None, ttl: float
) -> None:
    async with fake_server(grace_ms=grace_ms) as server, connect(server.url) as keeper:
        async with keeper.lease("orders", ttl=ttl) as lease:
            await anyio.sleep(0.6)
            lease.ensure()
        assert server.peer.pings == 0


@on_both
async def test_there_are_no_pings_while_nothing_is_held() -> None:
    async with fake_server(grace_ms=300) as server, connect(server.url) as keeper:
        async with keeper.lease("orders", ttl=30):
            await server.until(lambda: server.peer.pings == 1)
        await anyio.sleep(0.3)
        before = server.peer.pings
        await anyio.sleep(0.4)
        assert server.peer.pings == before


@on_both
async def test_where_nothing_is_kept_a_drop_ends_the_lease_at_once() -> None:
    async with fake_server(grace_ms=0) as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost) as caught:
            async with keeper.lease("orders", ttl=30):
                await server.peer.drop()
                with anyio.fail_after(5):
                    await anyio.sleep_forever()
        assert caught.value.reason == "disconnected"


@on_both
async def test_a_proof_that_came_too_late_brings_nothing_back() -> None:
    """The program was stopped for longer than the grace; then it reads a good pong."""
    async with fake_server(grace_ms=600) as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost):
            async with keeper.lease("orders", ttl=30) as lease:
                await server.until(lambda: server.peer.pings == 1)
                time.sleep(0.7)  # noqa: ASYNC251  # The stop.
                assert lease.lost
                await keeper.inspect("orders")
                assert lease.lost
                await anyio.sleep_forever()
        async with keeper.lease("orders", ttl=30) as again:
            again.ensure()
        assert len(server.peers) == 1, "the connection was good all the time"


def lost_after(moment: float) -> float:
    return time.monotonic() - moment
