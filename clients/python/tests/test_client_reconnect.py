"""What happens to leases, waits and requests when the connection goes."""

import time

import anyio
import pytest
from leasekeeper_client import (
    ConnectionFailed,
    KeeperError,
    LeaseLost,
    LimitReached,
    Unauthenticated,
    Unavailable,
    connect,
)

from client_fake_server import Peer, Refused, fake_server
from client_helpers import Clock, on_both


@on_both
async def test_a_lease_survives_a_drop_with_its_fence() -> None:
    async with fake_server(grace_ms=60_000) as server, connect(server.url) as keeper:
        async with keeper.lease("orders") as lease:
            fence = lease.fence
            await server.peer.drop()
            await server.until(lambda: len(server.asked("lease.resume")) == 1)
            await keeper.inspect("orders")
            assert lease.fence == fence
            assert lease.remaining > 29
            lease.ensure()
        assert len(server.peers) == 2
        assert len(server.asked("lease.acquire")) == 1
        assert not server.holders


@on_both
async def test_a_lease_that_cannot_be_resumed_is_lost() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost):
            async with keeper.lease("orders"):
                del server.holders["orders"]
                await server.peer.drop()
                await anyio.sleep_forever()
        assert len(server.peers) == 2


@on_both
async def test_a_lease_granted_anew_is_not_the_old_one() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost) as caught:
            async with keeper.lease("orders"):
                server.holders["orders"].fence += 1
                await server.peer.drop()
                await anyio.sleep_forever()
        assert caught.value.reason == "store_lost"


@on_both
async def test_a_store_that_is_away_while_resuming_is_asked_again() -> None:
    def refuse_once(peer: Peer, _: object) -> object:
        del server.hooks["lease.resume"]
        raise Refused(-32020, {"outcome": "none", "retry_after_ms": 1})

    async with fake_server(grace_ms=60_000) as server, connect(server.url) as keeper:
        server.hooks["lease.resume"] = refuse_once
        async with keeper.lease("orders") as lease:
            await server.peer.drop()
            await server.until(lambda: len(server.asked("lease.resume")) == 2)
            await keeper.inspect("orders")
            assert lease.remaining > 29


@on_both
async def test_a_loss_offline_cancels_the_body_at_the_deadline() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        began = time.monotonic()
        with pytest.raises(LeaseLost) as caught:
            async with keeper.lease("orders", ttl=0.5):
                server.refusing = True
                await server.peer.drop()
                await anyio.sleep_forever()
        assert caught.value.reason == "deadline"
        assert 0.4 < time.monotonic() - began < 1.5


@on_both
async def test_offline_a_lease_lasts_no_longer_than_the_servers_grace() -> None:
    """The server gives it to the next one then, whatever the TTL was (L8)."""
    async with fake_server(grace_ms=300) as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost):
            async with keeper.lease("orders", ttl=60):
                server.refusing = True
                await server.peer.drop()
                with anyio.fail_after(5):
                    await anyio.sleep_forever()


@on_both
async def test_a_lease_may_be_asked_to_end_with_the_connection() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost) as caught:
            async with keeper.lease("orders", on_drop="release"):
                await server.peer.drop()
                await anyio.sleep_forever()
        assert caught.value.reason == "disconnected"
        assert server.asked("lease.acquire")[0]["on_drop"] == "release"


@on_both
async def test_a_silent_connection_is_dropped_and_made_again() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        async with keeper.lease("orders", ttl=1.5) as lease:
            server.peer.muted = True
            await server.until(lambda: len(server.asked("lease.resume")) == 1)
            await keeper.inspect("orders")
            lease.ensure()
        assert server.peers[0].gone.is_set()


@on_both
async def test_a_wait_goes_on_after_a_drop_with_the_same_id() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        server.occupy("orders")
        async with anyio.create_task_group() as tasks:

            async def wait_for_it() -> None:
                async with keeper.lease("orders", wait=60) as lease:
                    lease.ensure()

            tasks.start_soon(wait_for_it)
            await server.until(lambda: len(server.asked("lease.acquire")) == 1)
            await server.peer.drop()
            await server.until(lambda: len(server.asked("lease.acquire")) == 2)
            server.free("orders")
        first, second = server.asked("lease.acquire")
        assert first["lease"] == second["lease"]
        assert 0 < second["wait_ms"] < first["wait_ms"]


@on_both
async def test_a_lost_answer_is_fetched_again_and_the_grant_is_one() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        server.peer.muted = True
        async with anyio.create_task_group() as tasks:

            async def take_it() -> None:
                async with keeper.lease("orders") as lease:
                    assert lease.fence == server.fence == 101

            tasks.start_soon(take_it)
            await server.until(lambda: "orders" in server.holders)
            await server.peer.drop()


@on_both
async def test_a_wait_that_was_cancelled_offline_is_given_back_later() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        server.peer.muted = True
        with anyio.move_on_after(5) as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(keeper.lease("orders").__aenter__)
                await server.until(lambda: "orders" in server.holders)
                await server.peer.drop()
                tasks.cancel_scope.cancel()
        assert not scope.cancelled_caught
        await server.until(lambda: "orders" not in server.holders)
        assert len(server.asked("lease.acquire")) == 1


@on_both
async def test_what_is_not_safe_is_not_repeated() -> None:
    async with fake_server() as server, connect(server.url) as keeper:

        def drop(peer: Peer, _: object) -> None:
            server.tasks.start_soon(peer.drop)

        server.hooks["lease.break"] = drop
        with pytest.raises(Unavailable) as caught:
            await keeper.break_lease("orders")
        assert caught.value.outcome == "unknown"
        await keeper.inspect("orders")
        assert len(server.asked("lease.break")) == 1


@on_both
async def test_a_question_is_repeated_after_a_drop() -> None:
    async with fake_server() as server, connect(server.url) as keeper:

        def drop_once(peer: Peer, _: object) -> None:
            del server.hooks["lease.inspect"]
            server.tasks.start_soon(peer.drop)

        server.hooks["lease.inspect"] = drop_once
        assert (await keeper.inspect("orders")).holders == ()
        assert len(server.peers) == 2


@on_both
async def test_another_address_is_tried_when_one_is_down() -> None:
    async with fake_server() as one, fake_server() as two:
        one.refusing = True
        async with connect([one.url, two.url]) as keeper:
            await keeper.inspect("orders")
        assert not one.peers
        assert len(two.peers) == 1


@on_both
async def test_a_draining_server_is_left_without_a_loss() -> None:
    async with fake_server() as one, fake_server() as two:
        two.holders = one.holders
        async with connect([one.url, two.url]) as keeper:
            async with keeper.lease("orders") as lease:
                one.peer.notify("server.draining", reconnect_after_ms=20)
                await two.until(lambda: len(two.asked("lease.resume")) == 1)
                await one.until(one.peer.gone.is_set)
                assert one.peer.close_code == 1000
                assert keeper.connected
                lease.ensure()
        assert not one.asked("lease.release")
        assert len(two.asked("lease.release")) == 1


@on_both
async def test_a_draining_server_is_not_told_to_release_what_has_not_moved() -> None:
    """L1, L3: the connection that was to follow breaks before the lease has moved to it."""
    async with fake_server() as one, fake_server() as two:
        two.holders = one.holders

        def drop_once(peer: Peer, _: object) -> None:
            del two.hooks["lease.resume"]
            two.tasks.start_soon(peer.drop)

        two.hooks["lease.resume"] = drop_once
        async with connect([one.url, two.url]) as keeper, keeper.lease("orders") as lease:
            first = one.peer
            first.notify("server.draining", reconnect_after_ms=20)
            await one.until(first.gone.is_set)
            assert first.close_code != 1000
            await one.until(lambda: len(one.asked("lease.resume")) == 1)
            lease.ensure()


@on_both
async def test_a_wait_moves_off_a_draining_server() -> None:
    async with fake_server() as one, fake_server() as two:
        one.occupy("orders")
        async with connect([one.url, two.url]) as keeper, anyio.create_task_group() as tasks:

            async def wait_for_it() -> None:
                async with keeper.lease("orders"):
                    assert "orders" in two.holders

            tasks.start_soon(wait_for_it)
            await one.until(lambda: bool(one.queues.get("orders")))
            one.peer.notify("server.draining", reconnect_after_ms=0)
        (first,), (second,) = one.asked("lease.acquire"), two.asked("lease.acquire")
        assert first["lease"] == second["lease"]


@on_both
async def test_no_server_is_a_connection_failure() -> None:
    async with fake_server() as server:
        server.refusing = True
        with pytest.raises(ConnectionFailed):
            async with connect(server.url, connect_timeout=0.2):
                pytest.fail("unreachable")


@pytest.mark.parametrize(
    ("code", "kind"), [(4500, Unauthenticated), (4501, LimitReached), (4700, ConnectionFailed)]
)
@on_both
async def test_some_close_codes_are_final(code: int, kind: type[KeeperError]) -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost) as lost:
            async with keeper.lease("orders"):
                server.peer.close(code)
                await anyio.sleep_forever()
        assert lost.value.reason == "disconnected"
        with pytest.raises(kind):
            await keeper.inspect("orders")
        assert len(server.peers) == 1


@on_both
async def test_other_close_codes_are_not() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        server.peer.close(4002)
        await server.until(lambda: len(server.peers) == 2)
        await keeper.inspect("orders")


@on_both
async def test_a_wrong_token_is_told_at_once() -> None:
    async with fake_server() as server:
        server.opening = Refused(-32010)
        with pytest.raises(Unauthenticated):
            async with connect(server.url):
                pytest.fail("unreachable")
        assert len(server.peers) == 1


@on_both
async def test_time_spent_stopped_is_not_forgiven_by_a_late_heartbeat() -> None:
    """The whole program was stopped with a heartbeat on its way; then its answer is read."""
    clock = Clock()
    async with fake_server() as server, connect(server.url, clock=clock) as keeper:

        def answer_late(peer: Peer, _: object) -> object:
            clock.ahead += 60
            return {"lost": [], "renewed": 1}

        server.hooks["session.heartbeat"] = answer_late
        with pytest.raises(LeaseLost) as caught:
            async with keeper.lease("orders", ttl=0.9):
                await anyio.sleep_forever()
        assert caught.value.reason == "deadline"


@on_both
async def test_who_holds_something_tries_more_often() -> None:
    """L3: a server that is away for a while, but not for as long as the grace, costs no lease."""
    async with fake_server() as server, connect(server.url) as keeper:
        async with keeper.lease("orders") as lease:
            server.refusing = True
            await server.peer.drop()
            await anyio.sleep(2.5)
            server.refusing = False
            with anyio.fail_after(1.25):
                await server.until(lambda: bool(server.asked("lease.resume")))
            lease.ensure()
