"""Taking, losing and leaving leases, over a good connection."""

import logging

import anyio
import pytest
from leasekeeper_client import (
    Busy,
    ConnectionFailed,
    Forbidden,
    LeaseLost,
    LimitReached,
    Overloaded,
    Unavailable,
    connect,
)

from client_fake_server import Peer, Refused, fake_server
from client_helpers import Clock, on_both


@on_both
async def test_a_lease_is_held_inside_and_free_after() -> None:
    async with (
        fake_server(grace_ms=60_000) as server,
        connect(server.url, client="me", token="t") as keeper,
    ):
        async with keeper.lease("orders", ttl=20, label="job 7") as lease:
            assert server.holders["orders"].fence == lease.fence
            assert 19 < lease.remaining <= 19.8
            assert not lease.lost
            lease.ensure()
        assert not server.holders
        assert lease.lost
        assert lease.lost_reason == "released"
    (asked,) = server.asked("lease.acquire")
    assert asked["ttl_ms"] == 20_000
    assert asked["wait_ms"] is None
    assert asked["label"] == "job 7"
    assert len(asked["lease"]) == 32
    assert server.peer.opened == {
        "client": "me",
        "token": "t",
        "liveness": "heartbeat",
        "batch": True,
    }


@on_both
async def test_leaving_the_keeper_closes_cleanly_and_no_origin_is_sent() -> None:
    async with fake_server() as server:
        async with connect(server.url) as keeper:
            assert keeper.connected
        await server.until(server.peer.gone.is_set)
        assert server.peer.close_code == 1000
        assert server.peer.origin is None


@on_both
async def test_a_ping_is_answered_while_nothing_is_held() -> None:
    async with fake_server() as server, connect(server.url):
        server.peer.ping()
        await server.until(lambda: server.peer.pongs == 1)
        assert not server.asked("session.heartbeat")


@on_both
async def test_ensure_raises_before_it_is_too_late() -> None:
    clock = Clock()
    async with fake_server(grace_ms=60_000) as server, connect(server.url, clock=clock) as keeper:
        with pytest.raises(LeaseLost):
            async with keeper.lease("orders", ttl=30) as lease:
                clock.ahead = 20
                lease.ensure(margin=5)
                with pytest.raises(LeaseLost):
                    lease.ensure(margin=15)
                assert not lease.lost
                clock.ahead = 29.8
                with pytest.raises(LeaseLost) as caught:
                    lease.ensure()
                assert caught.value.reason == "deadline"
                assert caught.value.fence == lease.fence


@on_both
async def test_a_body_that_noticed_nothing_still_ends_in_a_loss() -> None:
    """As after a SIGSTOP: the body never awaited, and has finished."""
    clock = Clock()
    async with fake_server() as server, connect(server.url, clock=clock) as keeper:
        finished = False
        with pytest.raises(LeaseLost) as caught:
            async with keeper.lease("orders", ttl=30):
                clock.ahead = 60
                finished = True
        assert finished
        assert caught.value.reason == "deadline"


@on_both
async def test_a_loss_that_the_server_tells_cancels_the_body() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost) as caught:
            async with keeper.lease("orders") as lease:
                server.lose("orders", "broken", "maintenance")
                await anyio.sleep_forever()
        assert caught.value.reason == "broken"
        assert caught.value.detail == "maintenance"
        assert lease.lost


@on_both
async def test_a_loss_right_behind_the_grant_is_not_missed() -> None:
    def grant_and_lose(peer: Peer, params: dict[str, str]) -> None:
        request = server.requests[-1]
        peer.answer(request["id"], server.grant("orders", params["lease"], peer, 30000, 0))
        server.lose("orders", "broken")

    async with fake_server() as server, connect(server.url) as keeper:
        server.hooks["lease.acquire"] = grant_and_lose
        with pytest.raises(LeaseLost) as caught:
            async with keeper.lease("orders"):
                await anyio.sleep_forever()
        assert caught.value.reason == "broken"


@on_both
async def test_a_heartbeat_moves_the_deadline_and_names_the_lost() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        async with keeper.lease("short", ttl=0.6) as lease:
            with anyio.fail_after(5):
                while len(server.asked("session.heartbeat")) < 5:  # 1 s: longer than the TTL
                    await server.changed.wait()
                    server.changed = anyio.Event()
            lease.ensure()
        server.hooks["session.heartbeat"] = lambda peer, _: {
            "lost": [server.holders["short"].lease],
            "renewed": 0,
        }
        with pytest.raises(LeaseLost) as caught:
            async with keeper.lease("short", ttl=0.6):
                await anyio.sleep_forever()
        assert caught.value.reason == "unknown"


@on_both
async def test_a_heartbeat_that_failed_renews_nothing() -> None:
    def refuse(peer: Peer, _: object) -> object:
        raise Refused(-32020, {"outcome": "none"})

    async with fake_server() as server, connect(server.url) as keeper:
        server.hooks["session.heartbeat"] = refuse
        with pytest.raises(LeaseLost) as caught:
            async with keeper.lease("short", ttl=0.4):
                await anyio.sleep_forever()
        assert caught.value.reason == "deadline"
        assert len(server.peers) == 1


@on_both
async def test_cancellation_from_outside_stays_cancellation() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        with anyio.CancelScope() as scope:
            async with keeper.lease("orders"):
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert not server.holders


@on_both
async def test_cancelling_everything_still_gives_back() -> None:
    async with fake_server() as server:
        with anyio.CancelScope() as scope:
            async with connect(server.url) as keeper, keeper.lease("orders"):
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert len(server.asked("lease.release")) == 1
        assert not server.holders


@on_both
async def test_the_bodys_own_exception_wins_and_is_not_wrapped() -> None:
    async with fake_server() as server:
        with pytest.raises(ZeroDivisionError) as caught:
            async with connect(server.url) as keeper, keeper.lease("orders"):
                raise ZeroDivisionError
        assert caught.value.__cause__ is None


@on_both
async def test_the_bodys_own_exception_tells_of_the_loss() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        with pytest.raises(ZeroDivisionError) as caught:
            async with keeper.lease("orders"):
                server.lose("orders", "expired")
                try:
                    await anyio.sleep_forever()
                finally:
                    raise ZeroDivisionError
        assert isinstance(caught.value.__cause__, LeaseLost)


@on_both
async def test_a_release_of_nothing_is_a_loss() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        with pytest.raises(LeaseLost):
            async with keeper.lease("orders"):
                del server.holders["orders"]


@on_both
async def test_a_release_that_failed_is_tried_again() -> None:
    def refuse_once(peer: Peer, _: object) -> object:
        del server.hooks["lease.release"]
        raise Refused(-32020, {"outcome": "none", "retry_after_ms": 1})

    async with fake_server() as server, connect(server.url) as keeper:
        server.hooks["lease.release"] = refuse_once
        async with keeper.lease("orders"):
            pass
        await server.until(lambda: not server.holders)


@on_both
async def test_busy_says_who_has_it() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        server.occupy("orders")
        with pytest.raises(Busy) as caught:
            async with keeper.lease("orders", wait=0):
                pytest.fail("unreachable")
        assert caught.value.holders[0].fence == 1
        assert caught.value.retry_after == 0.07
        async with keeper.try_lease("orders") as lease:
            assert lease is None
        async with keeper.try_lease("other") as lease:
            assert lease is not None
            assert "other" in server.holders
        assert set(server.holders) == {"orders"}


@on_both
async def test_a_body_that_raises_busy_is_not_a_busy_lease() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        with pytest.raises(Busy, match="mine"):
            async with keeper.try_lease("orders"):
                raise Busy("mine")


@on_both
async def test_the_deadline_of_a_waiter_counts_from_its_grant() -> None:
    async with fake_server(grace_ms=60_000) as server, connect(server.url) as keeper:
        server.occupy("orders")
        async with anyio.create_task_group() as tasks:

            async def wait_for_it() -> None:
                async with keeper.lease("orders", ttl=10) as lease:
                    assert 9 < lease.remaining < 9.91

            tasks.start_soon(wait_for_it)
            await server.until(lambda: len(server.queues.get("orders", [])) == 1)
            server.free("orders")


@on_both
async def test_cancelling_a_waiter_gives_its_place_back() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        server.occupy("orders")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keeper.lease("orders").__aenter__)
            await server.until(lambda: bool(server.queues.get("orders")))
            tasks.cancel_scope.cancel()
        assert len(server.asked("rpc.cancel")) == 1
        assert server.queues["orders"] == []


@on_both
async def test_cancelling_a_waiter_that_was_just_granted_gives_the_grant_back() -> None:
    async with fake_server() as server, connect(server.url) as keeper:

        def grant_silently(peer: Peer, params: dict[str, object]) -> None:
            server.grant("orders", str(params["lease"]), peer, 30000, 0)

        server.hooks["lease.acquire"] = grant_silently
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keeper.lease("orders").__aenter__)
            await server.until(lambda: bool(server.holders))
            tasks.cancel_scope.cancel()
        assert not server.holders
        assert len(server.asked("lease.release")) == 1


@on_both
async def test_an_unavailable_store_is_asked_again_with_the_same_id() -> None:
    def refuse_twice(peer: Peer, _: object) -> object:
        if len(server.asked("lease.acquire")) < 3:
            raise Refused(-32020, {"outcome": "unknown", "retry_after_ms": 1})
        return NotImplemented

    async with fake_server() as server, connect(server.url) as keeper:
        server.hooks["lease.acquire"] = refuse_twice
        async with keeper.lease("orders", wait=5):
            pass
        asked = server.asked("lease.acquire")
        assert len({params["lease"] for params in asked}) == 1
        assert asked[0]["wait_ms"] > asked[2]["wait_ms"]


@on_both
async def test_an_outage_is_not_contention() -> None:
    def refuse(peer: Peer, _: object) -> object:
        raise Refused(-32020, {"outcome": "unknown"})

    async with fake_server() as server, connect(server.url) as keeper:
        server.hooks["lease.acquire"] = refuse
        with pytest.raises(Unavailable) as caught:
            async with keeper.try_lease("orders"):
                pytest.fail("unreachable")
        assert caught.value.outcome == "unknown"
        assert len(server.asked("lease.release")) == 1, "it may have been granted"


@on_both
async def test_an_overloaded_server_is_asked_again_even_by_a_try() -> None:
    def refuse_once(peer: Peer, _: object) -> object:
        del server.hooks["lease.acquire"]
        raise Refused(-32013, {"retry_after_ms": 1})

    async with fake_server() as server, connect(server.url, answer_timeout=1) as keeper:
        server.hooks["lease.acquire"] = refuse_once
        async with keeper.try_lease("orders") as lease:
            assert lease is not None

        def refuse(peer: Peer, _: object) -> object:
            raise Refused(-32013, {"retry_after_ms": 400})

        server.hooks["lease.acquire"] = refuse
        with pytest.raises(Overloaded):
            async with keeper.lease("orders", wait=0):
                pytest.fail("unreachable")


@on_both
async def test_refusals_are_typed_and_not_repeated() -> None:
    async with fake_server() as server, connect(server.url) as keeper:
        for code, kind in ((-32011, Forbidden), (-32012, LimitReached)):

            def refuse(peer: Peer, _: object, code: int = code) -> object:
                raise Refused(code, {"limit": "leases_per_session", "max": 2})

            server.hooks["lease.acquire"] = refuse
            with pytest.raises(kind):
                async with keeper.lease("orders"):
                    pytest.fail("unreachable")
        assert len(server.asked("lease.acquire")) == 2
        assert not server.asked("lease.release")


@on_both
async def test_a_server_that_does_not_answer_is_given_up() -> None:
    async with fake_server() as server, connect(server.url, answer_timeout=0.1) as keeper:
        server.peer.muted = True
        with pytest.raises(ConnectionFailed):
            async with keeper.lease("orders", wait=0):
                pytest.fail("unreachable")


@on_both
async def test_outstanding_requests_share_frames() -> None:
    async with fake_server() as server, connect(server.url) as keeper:

        async def one(name: str) -> None:
            async with keeper.lease(name):
                pass

        async with anyio.create_task_group() as tasks:
            for number in range(100):
                tasks.start_soon(one, f"n{number}")
        assert len(server.asked("lease.acquire")) == 100
        assert len(server.asked("lease.release")) == 100
        assert len(server.peer.frames) < 50


@on_both
async def test_lease_ids_and_tokens_are_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with fake_server() as server, connect(server.url, token="s3cret") as keeper:
        async with keeper.lease("orders") as lease:
            held = server.holders["orders"].lease
            assert held not in repr(lease)
    ours = [r for r in caplog.records if not r.name.startswith("websockets.server")]
    text = "".join(record.getMessage() for record in ours)
    assert held not in text
    assert "s3cret" not in text


def test_the_arguments_are_checked() -> None:
    from leasekeeper_client._plan import Plan

    for wrong in (
        {"names": ("a b",)},
        {"names": ("a",), "ttl": 0.01},
        {"names": ("a",), "wait": -1},
        {"names": ("a",), "limit": 3},
        {"names": ("a", "a"), "together": True},
        {"names": ("a",), "max_hold": 0},
    ):
        with pytest.raises(ValueError, match=r"must|take|is not|goes"):
            Plan(**wrong)
