"""Many tasks, one request: who shares what, and what happens when some of them leave."""

from typing import Any

import anyio
import pytest
from leasekeeper_client import FillFailed, connect

from client_callers import Caller, Loads, never
from client_fake_cache import cache_server, settle
from client_fake_server import Peer
from client_helpers import on_both


@on_both
async def test_a_thousand_tasks_at_once_are_one_load_and_at_most_two_requests() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        loads = Loads()
        callers = [Caller(keeper, loads) for _ in range(1000)]
        async with anyio.create_task_group() as tasks:
            for caller in callers:
                tasks.start_soon(caller)
            await loads.begun.wait()
            loads.go_on.set()
        assert {caller.got for caller in callers} == {1}
        assert loads.count == 1
        assert len(server.asked("cache.get")) <= 2
        assert len(server.asked("cache.fill")) == 1


@on_both
async def test_tasks_that_come_over_the_time_of_a_load_wait_for_it_at_the_server() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        loads = Loads()
        callers = [Caller(keeper, loads) for _ in range(100)]
        async with anyio.create_task_group() as tasks:
            for caller in callers:
                await tasks.start(caller)
                await settle()
            await server.until(lambda: bool(server.getters.get("k")))
            loads.go_on.set()
        assert {caller.got for caller in callers} == {1}
        assert loads.count == 1
        assert len(server.asked("cache.get")) <= 3


@on_both
async def test_who_asks_after_an_invalidation_never_gets_what_was_loaded_before_it() -> None:
    """L11, within one program: the load that is under way is not joined."""
    async with cache_server() as server, connect(server.url) as keeper:
        before, after = Loads(), Loads()
        after.count = 10
        old, new = Caller(keeper, before), Caller(keeper, after)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(old)
            await before.begun.wait()
            await keeper.cache.invalidate("k")
            tasks.start_soon(new)
            await after.begun.wait()
            before.go_on.set()
            await old.over.wait()
            assert old.got == 1
            assert not new.over.is_set()
            after.go_on.set()
        assert new.got == 11
        assert server.entries["k"].value == 11


@on_both
async def test_who_asks_after_a_request_was_sent_does_not_share_its_answer() -> None:
    """L11: the answer may be under way, and older than an invalidation that he knows of."""
    async with cache_server() as server, connect(server.url) as keeper:
        sent = anyio.Event()
        kept: list[tuple[Peer, Any]] = []

        def keep(peer: Peer, _: Any) -> Any:
            kept.append((peer, server.requests[-1]["id"]))
            sent.set()
            return None if len(kept) == 1 else NotImplemented

        server.hooks["cache.get"] = keep
        server.put("k", "new")
        first, second = Caller(keeper, never), Caller(keeper, never)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await sent.wait()
            tasks.start_soon(second)
            await settle()
            peer, request_id = kept[0]
            peer.answer(request_id, {"state": "hit", "value": "old", "age_ms": 0, "ttl_ms": 9})
        assert (first.got, second.got) == ("old", "new")
        assert len(kept) == 2


@on_both
async def test_readers_that_differ_do_not_share() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.put("k", "old", stale=True)
        loads = Loads()
        fresh = Caller(keeper, loads, stale_ok=False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fresh)
            await loads.begun.wait()
            stale = Caller(keeper, never)
            await stale()
            assert stale.got == "old"
            loads.go_on.set()
        assert fresh.got == 1


# --- Leaving ----------------------------------------------------------------------------------


@on_both
async def test_a_load_goes_on_while_one_caller_is_left() -> None:
    """Not even the one whose function it is can take it away from the others."""
    async with cache_server() as server, connect(server.url) as keeper:
        loads = Loads()
        callers = [Caller(keeper, loads) for _ in range(3)]
        async with anyio.create_task_group() as tasks:
            for caller in callers:
                tasks.start_soon(caller)
            await loads.begun.wait()
            for caller in callers[:2]:
                caller.scope.cancel()
                await caller.over.wait()
            assert loads.cancelled == 0
            loads.go_on.set()
        assert callers[2].got == 1
        assert not server.asked("cache.fail")


@on_both
async def test_the_last_who_leaves_cancels_the_load_and_gives_it_up() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        loads = Loads()
        callers = [Caller(keeper, loads) for _ in range(2)]
        async with anyio.create_task_group() as tasks:
            for caller in callers:
                tasks.start_soon(caller)
            await loads.begun.wait()
            for caller in callers:
                caller.scope.cancel()
            for caller in callers:
                await caller.over.wait()
            assert loads.cancelled == 1, "the load is over when the callers are"
            (failed,) = server.asked("cache.fail")
            assert failed["promote"] is True
            assert not server.fills


@on_both
async def test_leaving_takes_two_seconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leasekeeper_client._flights.TELL_SECONDS", 0.1)
    async with cache_server() as server, connect(server.url) as keeper:
        loads = Loads()
        caller = Caller(keeper, loads)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(caller)
            await loads.begun.wait()
            server.peer.muted = True
            caller.scope.cancel()
            with anyio.fail_after(1):
                await caller.over.wait()
            assert server.asked("cache.fail")


@on_both
async def test_a_wait_that_is_cancelled_is_cancelled_at_the_server() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.take_fill("k")
        caller = Caller(keeper, never)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(caller)
            await server.until(lambda: bool(server.getters.get("k")))
            caller.scope.cancel()
            await caller.over.wait()
            await server.until(lambda: not server.getters["k"])
        assert len(server.asked("rpc.cancel")) == 1


@on_both
async def test_a_fill_granted_to_one_who_has_left_is_given_up() -> None:
    """The answer passes the cancellation on its way."""
    async with cache_server() as server, connect(server.url) as keeper:
        server.take_fill("k")

        def too_late(_: Peer, __: Any) -> dict[str, bool]:
            server.free_fill("k")
            return {"cancelled": False}

        server.hooks["rpc.cancel"] = too_late
        caller = Caller(keeper, never)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(caller)
            await server.until(lambda: bool(server.getters.get("k")))
            caller.scope.cancel()
            await server.until(lambda: bool(server.asked("cache.fail")))
        (failed,) = server.asked("cache.fail")
        assert failed["promote"] is True
        assert not server.fills


@on_both
async def test_who_leaves_before_anything_is_sent_leaves_no_trace() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await keeper.cache.get_or_fill("k", never, ttl=60)
        await settle()
        assert await keeper.cache.get("k") is None
        assert len(server.asked("cache.get")) == 1
        assert not keeper._engine.lines._lines


@on_both
async def test_who_leaves_while_another_request_is_under_way() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.take_fill("k")
        first, second = Caller(keeper, never), Caller(keeper, never)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await server.until(lambda: bool(server.getters.get("k")))
            tasks.start_soon(second)
            await settle()
            second.scope.cancel()
            await second.over.wait()
            server.put("k", 7)
        assert first.got == 7
        assert len(server.asked("cache.get")) == 1


@on_both
async def test_a_failed_load_is_the_exception_of_one_and_the_news_of_others() -> None:
    async with cache_server() as server, connect(server.url) as keeper:

        async def load() -> int:
            raise LookupError("no such row")

        callers = [Caller(keeper, load) for _ in range(3)]
        async with anyio.create_task_group() as tasks:
            for caller in callers:
                tasks.start_soon(caller)
        kinds = sorted(type(caller.error).__name__ for caller in callers)
        assert kinds == ["FillFailed", "FillFailed", "LookupError"]
        for caller in callers:
            if isinstance(caller.error, FillFailed):
                assert caller.error.error == "LookupError: no such row"
                assert isinstance(caller.error.__cause__, LookupError)
        assert len(server.asked("cache.fail")) == 1
