"""Loads and waits whose time is over, whose connection breaks, or whose server is out."""

from typing import Any

import anyio
import pytest
from leasekeeper_client import Busy, ConnectionFailed, Unavailable, connect

from client_callers import Caller, Loads, never
from client_fake_cache import cache_server, settle
from client_fake_server import Peer, Refused
from client_helpers import on_both

# --- Time and connections ---------------------------------------------------------------------


@on_both
async def test_a_load_that_takes_too_long_is_cancelled_and_the_key_asked_again() -> None:
    async with cache_server(fill_ms=300) as server, connect(server.url) as keeper:
        loads = Loads()
        caller = Caller(keeper, loads)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(caller)
            await server.until(lambda: len(server.asked("cache.get")) == 2)
            assert loads.cancelled == 1
            assert not server.asked("cache.fail"), "the server's clock has told it"
            server.put("k", "theirs")
        assert caller.got == "theirs"


@on_both
async def test_a_load_that_takes_too_long_when_the_wait_is_over_is_busy() -> None:
    async with cache_server(fill_ms=200) as server, connect(server.url) as keeper:
        caller = Caller(keeper, Loads(), wait=0)
        await caller()
        assert isinstance(caller.error, Busy)
        assert len(server.asked("cache.get")) == 1


@on_both
async def test_a_load_is_cancelled_with_its_connection_and_the_key_asked_again() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        loads = Loads()
        caller = Caller(keeper, loads, fill=600)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(caller)
            await loads.begun.wait()
            loads.begun = anyio.Event()
            await server.peer.drop()
            await loads.begun.wait()
            assert loads.cancelled == 1
            loads.go_on.set()
        assert caller.got == 2
        (first, second) = server.asked("cache.get")
        assert second["wait_ms"] < first["wait_ms"]
        assert len(server.peers) == 2


@on_both
async def test_a_load_is_cancelled_when_the_line_falls_silent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server may have given it to somebody else long ago."""
    monkeypatch.setattr("leasekeeper_client._holdings.PATIENCE_MAX", 0.3)
    async with cache_server(heartbeat_ms=100) as server, connect(server.url) as keeper:
        loads = Loads()
        caller = Caller(keeper, loads, fill=600)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(caller)
            await loads.begun.wait()
            loads.begun = anyio.Event()
            server.silent = True
            await server.until(lambda: server.peers[0].gone.is_set())
            server.silent = False
            await loads.begun.wait()
            assert loads.cancelled == 1
            loads.go_on.set()
        assert caller.got == 2


@on_both
async def test_a_wait_goes_on_over_a_broken_connection() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.take_fill("k")
        caller = Caller(keeper, never)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(caller)
            await server.until(lambda: bool(server.getters.get("k")))
            await server.peer.drop()
            await server.until(lambda: len(server.asked("cache.get")) == 2)
            server.put("k", 7)
        assert caller.got == 7


@on_both
async def test_a_value_that_was_loaded_is_handed_over_on_the_next_connection() -> None:
    async with cache_server() as server, connect(server.url) as keeper:

        def drop(peer: Peer, _: Any) -> Any:
            if len(server.asked("cache.fill")) > 1:
                return NotImplemented
            server.tasks.start_soon(peer.drop)
            return None

        server.hooks["cache.fill"] = drop
        caller = Caller(keeper, Loads())
        caller.load.go_on.set()  # type: ignore[attr-defined]
        await caller()
        assert caller.got == 1
        assert len(server.asked("cache.fill")) == 2


@on_both
async def test_a_wait_that_is_over_is_busy() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.take_fill("k")
        at_once = Caller(keeper, never, wait=0)
        await at_once()
        assert isinstance(at_once.error, Busy)
        assert at_once.error.retry_after == 0.01


@on_both
async def test_each_waits_as_long_as_he_wants() -> None:
    """A short wait ends, whatever the longer ones do that share its request."""
    async with cache_server() as server, connect(server.url) as keeper:
        server.take_fill("k")
        short, long, patient = (Caller(keeper, never, wait=wait) for wait in (0.6, 20, None))
        async with anyio.create_task_group() as tasks:
            for caller in (short, long, patient):
                tasks.start_soon(caller)
            await short.over.wait()
            assert isinstance(short.error, Busy)
            late = Caller(keeper, never, wait=0.6)
            await late()
            assert isinstance(late.error, Busy)
            server.put("k", 7)
        assert long.got == patient.got == 7
        (asked,) = server.asked("cache.get")
        assert asked["wait_ms"] is None


@on_both
async def test_one_who_does_not_wait_is_not_kept_behind_those_who_do() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.take_fill("k")
        async with anyio.create_task_group() as tasks:
            waiting = Caller(keeper, never)
            tasks.start_soon(waiting)
            await server.until(lambda: bool(server.getters.get("k")))
            at_once = [Caller(keeper, never, wait=0) for _ in range(5)]
            async with anyio.create_task_group() as more:
                for caller in at_once:
                    more.start_soon(caller)
            assert all(isinstance(caller.error, Busy) for caller in at_once)
            server.put("k", 7)
        assert len(server.asked("cache.get")) == 2


# --- Outages ----------------------------------------------------------------------------------


def unavailable(_: Peer, __: Any) -> None:
    raise Refused(-32020, {"outcome": "none", "retry_after_ms": 100})


@on_both
async def test_an_outage_raises_and_nothing_is_loaded() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.hooks["cache.get"] = unavailable
        callers = [Caller(keeper, never) for _ in range(2)]
        async with anyio.create_task_group() as tasks:
            for caller in callers:
                tasks.start_soon(caller)
        first, second = (caller.error for caller in callers)
        assert isinstance(first, Unavailable)
        assert isinstance(second, Unavailable)
        assert first is not second, "tasks do not share an exception, which they change"


@on_both
async def test_loading_past_a_cache_that_is_out_one_at_a_time() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.hooks["cache.get"] = unavailable
        loads = Loads()
        callers = [Caller(keeper, loads, on_error="load") for _ in range(5)]
        async with anyio.create_task_group() as tasks:
            for caller in callers:
                tasks.start_soon(caller)
            await loads.begun.wait()
            late = Caller(keeper, loads, on_error="load")
            tasks.start_soon(late)
            await server.until(lambda: len(server.asked("cache.get")) == 2)
            await settle()
            assert loads.count == 1
            loads.go_on.set()
        assert {caller.got for caller in callers} == {1}
        assert late.got == 2, "it came after the first load had begun"
        assert not server.asked("cache.fill")


@on_both
async def test_an_outage_within_a_load_is_a_failed_load() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        count = 0

        async def load() -> int:
            nonlocal count
            count += 1
            raise Unavailable("the other store", outcome="none")

        caller = Caller(keeper, load, on_error="load")
        await caller()
        assert isinstance(caller.error, Unavailable)
        assert count == 1
        assert server.asked("cache.fail")


@on_both
async def test_without_a_connection_the_wait_is_bounded() -> None:
    async with cache_server() as server, connect(server.url, answer_timeout=0.3) as keeper:
        server.refusing = True
        await server.peer.drop()
        raising = Caller(keeper, never, wait=0.1)
        loads = Loads()
        loads.go_on.set()
        loading = Caller(keeper, loads, wait=0.1, on_error="load")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(raising)
            tasks.start_soon(loading)
        assert isinstance(raising.error, ConnectionFailed)
        assert loading.got == 1


@on_both
async def test_a_silent_server_is_a_failed_connection_not_a_busy_key() -> None:
    async with cache_server() as server, connect(server.url, answer_timeout=0.2) as keeper:
        server.hooks["cache.get"] = lambda _, __: None
        caller = Caller(keeper, never, wait=0)
        await caller()
        assert isinstance(caller.error, ConnectionFailed)


@on_both
async def test_a_server_that_is_leaving_or_overloaded_is_asked_again() -> None:
    refusals = [Refused(-32013, {"retry_after_ms": 1}), Refused(-32021, {"reconnect_after_ms": 1})]

    def refuse(_: Peer, __: Any) -> Any:
        if refusals:
            raise refusals.pop()
        return NotImplemented

    async with cache_server() as server, connect(server.url) as keeper:
        server.hooks["cache.get"] = refuse
        server.put("k", 7)
        caller = Caller(keeper, never, wait=0)
        await caller()
        assert caller.got == 7


@on_both
async def test_leaving_the_keeper_ends_every_wait_and_every_load() -> None:
    async with cache_server() as server:
        loads = Loads()
        loading, waiting = Caller(None, loads), Caller(None, never)
        async with anyio.create_task_group() as tasks:
            async with connect(server.url) as keeper:
                loading.keeper = waiting.keeper = keeper
                tasks.start_soon(loading)
                await loads.begun.wait()
                tasks.start_soon(waiting)
                await server.until(lambda: bool(server.getters.get("k")))
            for caller in (loading, waiting):
                await caller.over.wait()
                assert isinstance(caller.error, ConnectionFailed)
            assert loads.cancelled == 1
            assert server.asked("cache.fail")[0]["promote"] is True
            late = Caller(keeper, never)
            await late()
            assert isinstance(late.error, ConnectionFailed)


@on_both
async def test_a_malformed_answer_is_a_protocol_error() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        for answer in ({}, {"state": "hit"}, {"state": "fill"}, {"state": "hit", "refresh": 1}):
            server.hooks["cache.get"] = lambda _, __, answer=answer: answer  # type: ignore[misc]
            with pytest.raises(Exception, match="malformed"):
                await keeper.cache.get_or_fill("k", never, ttl=60)


@on_both
async def test_no_line_is_left_behind() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        for wait in (0, 1, None):
            for key in range(20):
                server.put(str(key), key)
                assert await keeper.cache.get_or_fill(str(key), never, ttl=1, wait=wait) == key
        assert not keeper._engine.lines._lines
