"""The rest of the keeper: sets, semaphores, decorators, elections, watches, and looking."""

from contextlib import aclosing

import anyio
import pytest
from leasekeeper_client import Busy, ConnectionFailed, Keeper, Lease, LeaseLost, connect

from client_fake_server import fake_server
from client_helpers import on_both


@on_both
async def test_modes_and_limits_go_out_as_asked() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        async with keeper.shared("a"), keeper.semaphore("b", 3, max_hold=60):
            pass
    shared, limited = server.asked("lease.acquire")
    assert (shared["mode"], shared.get("limit")) == ("shared", None)
    assert (limited["mode"], limited["limit"]) == ("shared", 3)
    assert limited["max_hold_ms"] == 60_000


@on_both
async def test_several_leases_are_held_together_under_one_id() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        async with keeper.lease_all(["b", "a"]) as leases:
            assert set(server.holders) == {"a", "b"}
            assert len({h.lease for h in server.holders.values()}) == 1
            assert leases.fences == {n: h.fence for n, h in server.holders.items()}
            assert leases["a"].name == "a"
            leases.ensure()
        assert not server.holders
        server.occupy("b")
        with pytest.raises(Busy):
            async with keeper.lease_all(["b", "a"], wait=0):
                pytest.fail("unreachable")


@on_both
async def test_the_loss_of_one_is_the_loss_of_all() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost) as caught:
            async with keeper.lease_all(["b", "a"]):
                server.lose("b", "broken")
                await anyio.sleep_forever()
        assert caught.value.name == "b"
        await server.until(lambda: not server.holders)


@on_both
async def test_a_decorated_function_runs_under_its_lease() -> None:
    async with fake_server() as server, connect(server.url) as keeper:

        @keeper.locked("order-{number}", ttl=5)
        async def settle(number: int, *, fast: bool = False) -> str:
            return ",".join(server.holders)

        assert await settle(7) == "order-7"
        assert await settle(number=8) == "order-8"
        assert not server.holders
        assert settle.__name__ == "settle"
        with pytest.raises(ValueError, match="no parameters"):
            keeper.locked("order-{nmber}")(settle)


@on_both
async def test_a_leader_is_cancelled_when_it_is_deposed_and_stands_again() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        terms: list[int] = []

        async def lead(lease: Lease) -> str:
            terms.append(lease.fence)
            if len(terms) == 1:
                server.lose("leader", "broken")
                await anyio.sleep_forever()
            return "done"

        assert await keeper.campaign("leader", lead) == "done"
        assert terms == [101, 102]
        assert not server.holders


@on_both
async def test_a_leader_that_fails_fails_the_campaign() -> None:
    async with fake_server() as server, connect(server.url) as keeper:

        async def lead(lease: Lease) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await keeper.campaign("leader", lead)

        async def lose_another(lease: Lease) -> None:
            raise LeaseLost("another", name="another", fence=1)

        with pytest.raises(LeaseLost, match="another"):
            await keeper.campaign("leader", lose_another)


@on_both
async def test_a_holder_hears_that_others_wait() -> None:
    heard: list[int] = []
    async with fake_server() as server, connect(server.url) as keeper:
        async with keeper.lease("orders", on_contended=heard.append) as lease:
            held = server.holders["orders"].lease
            server.peer.notify("lease.contended", name="orders", lease=held, waiting=2)
            assert await lease.wait_contended() == 2
            assert lease.contended == 2
        assert heard == [2]


@on_both
async def test_a_failing_callback_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(waiting: int) -> None:
        raise ZeroDivisionError

    async with fake_server() as server, connect(server.url) as keeper:
        async with keeper.lease("orders", on_contended=fail) as lease:
            held = server.holders["orders"].lease
            server.peer.notify("lease.contended", name="orders", lease=held, waiting=2)
            await lease.wait_contended()
        await keeper.inspect("orders")
    assert "on_contended failed" in caplog.text
    assert held not in caplog.text


@on_both
async def test_a_watch_yields_the_present_and_every_change() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        async with aclosing(keeper.watch("orders")) as states:
            assert (await anext(states)).holders == ()
            async with keeper.lease("orders") as lease:
                server.tell_watchers("orders")
                (holder,) = (await anext(states)).holders
                assert holder.fence == lease.fence
            assert (await anext(states)).holders == ()
        await server.until(lambda: server.watched["orders"] == [])


@on_both
async def test_a_watch_goes_on_after_a_drop() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        async with aclosing(keeper.watch("orders")) as states:
            await anext(states)
            server.occupy("orders")
            await server.peer.drop()
            assert len((await anext(states)).holders) == 1


@on_both
async def test_watchers_of_one_name_share_a_subscription() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        async with aclosing(keeper.watch("a")) as one, aclosing(keeper.watch("a")) as two:
            assert await anext(one) == await anext(two)
        assert len(server.asked("lease.watch")) == 1


@on_both
async def test_looking_at_leases() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        for name in ("a1", "a2", "a3", "b"):
            server.occupy(name)
        assert [lease.name async for lease in keeper.list("a")] == ["a1", "a2", "a3"]
        state = await keeper.inspect("b")
        assert state.holders[0].ttl == 1.0
        assert await keeper.break_lease("b", "because") == 1
        assert await keeper.break_lease("b") == 0


@on_both
async def test_a_lease_can_be_renewed_by_hand() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost):
            async with keeper.lease("orders") as lease:
                before = lease.remaining
                await lease.renew()
                assert lease.remaining > before - 1
                del server.holders["orders"]
                await lease.renew()


@on_both
async def test_a_closed_keeper_says_so() -> None:
    async with fake_server() as server:
        keeper: Keeper
        async with connect(server.url) as keeper:
            pass
        with pytest.raises(ConnectionFailed, match="closed"):
            await keeper.inspect("orders")
