"""Loads in the background, and loads within loads."""

import logging
from typing import Any

import anyio
import pytest
from leasekeeper_client import (
    Deadlock,
    Fresh,
    connect,
    current_load,
)

from client_callers import failing, forever, loading, never
from client_fake_cache import cache_server
from client_fake_server import Peer, Refused
from client_helpers import on_both

# --- Refreshing -------------------------------------------------------------------------------


@on_both
@pytest.mark.parametrize("old", [{"stale": True}, {"due": True}])
async def test_a_refresh_runs_in_the_background(old: dict[str, bool]) -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.put("k", "old", etag="v1", **old)
        go_on = anyio.Event()

        async def load() -> Fresh[str]:
            assert current_load().etag == "v1"
            await go_on.wait()
            return Fresh("new", etag="v2")

        for _ in range(3):
            assert await keeper.cache.get_or_fill("k", load, ttl=60) == "old"
        go_on.set()
        await server.until(lambda: server.entries["k"].value == "new")
        assert await keeper.cache.get_or_fill("k", never, ttl=60) == "new"


@on_both
async def test_a_refresh_that_fails_is_told_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.put("k", "old", due=True)
        with caplog.at_level(logging.WARNING):
            assert await keeper.cache.get_or_fill("k", failing, ttl=60) == "old"
            await server.until(lambda: bool(server.asked("cache.fail")))
        assert server.asked("cache.fail")[0]["error"] == "ZeroDivisionError"
        assert "refreshing 'k' failed" in caplog.text
        server.put("k", "old", due=True)
        assert await keeper.cache.get_or_fill("k", loading({1}), ttl=60) == "old"
        await server.until(lambda: len(server.asked("cache.fail")) == 2)


@on_both
async def test_a_refresh_that_takes_too_long_is_stopped() -> None:
    async with cache_server(fill_ms=200) as server, connect(server.url) as keeper:
        server.put("k", "old", due=True)
        stopped = anyio.Event()

        async def load() -> str:
            try:
                await anyio.sleep_forever()
            finally:
                stopped.set()
            return ""

        assert await keeper.cache.get_or_fill("k", load, ttl=60) == "old"
        await stopped.wait()
        assert not server.asked("cache.fail")


@on_both
async def test_leaving_the_keeper_gives_refreshes_up() -> None:
    async with cache_server() as server:
        async with connect(server.url) as keeper:
            server.put("k", "old", due=True)
            assert await keeper.cache.get_or_fill("k", forever, ttl=60) == "old"
        (failed,) = server.asked("cache.fail")
        assert failed["promote"] is True
        assert server.peer.close_code == 1000


@on_both
async def test_the_number_of_refreshes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leasekeeper_client._lines.REFRESHES_MAX", 1)
    async with cache_server() as server, connect(server.url) as keeper:
        for key in ("a", "b"):
            server.put(key, "old", due=True)
            assert await keeper.cache.get_or_fill(key, forever, ttl=60) == "old"
        await server.until(lambda: bool(server.asked("cache.fail")))
        (failed,) = server.asked("cache.fail")
        assert (failed["key"], failed["promote"]) == ("b", True)


# --- Loads within loads -----------------------------------------------------------------------


@on_both
async def test_a_load_within_a_load_says_so() -> None:
    async with cache_server() as server, connect(server.url) as keeper:

        async def outer() -> int:
            inner: int = await keeper.cache.get_or_fill("b", loading(1), ttl=60)
            return inner + 1

        assert await keeper.cache.get_or_fill("a", outer, ttl=60) == 2
        assert await keeper.cache.get_or_fill("c", loading(1), ttl=60) == 1
    a, b, c = server.asked("cache.get")
    fill = server.asked("cache.fill")[1]["fill"]
    assert (b["within_key"], b["within_fill"]) == ("a", fill)
    assert a.keys() == c.keys() == {"key", "wait_ms", "stale_ok", "fill_ms"}


@on_both
async def test_a_load_that_asks_for_its_own_key_is_told_at_once() -> None:
    async with cache_server() as server, connect(server.url) as keeper:

        async def itself() -> int:
            return await keeper.cache.get_or_fill("a", never, ttl=60)

        async def around() -> int:
            return await keeper.cache.get_or_fill("b", itself, ttl=60)

        with pytest.raises(Deadlock) as caught:
            await keeper.cache.get_or_fill("a", itself, ttl=60)
        assert caught.value.cycle == ("a",)
        with pytest.raises(Deadlock) as caught:
            await keeper.cache.get_or_fill("a", around, ttl=60)
        assert caught.value.cycle == ("a", "b")
        assert len(server.asked("cache.get")) == 3


@on_both
async def test_a_cycle_that_the_server_sees() -> None:
    def refuse(_: Peer, params: Any) -> Any:
        if params["key"] == "b":
            raise Refused(-32006, {"cycle": ["a", "b"]})
        return NotImplemented

    async with cache_server() as server, connect(server.url) as keeper:
        server.hooks["cache.get"] = refuse

        async def outer() -> int:
            return await keeper.cache.get_or_fill("b", never, ttl=60)

        with pytest.raises(Deadlock) as caught:
            await keeper.cache.get_or_fill("a", outer, ttl=60)
        assert caught.value.cycle == ("a", "b")


@on_both
async def test_one_who_loads_is_never_kept_behind_others() -> None:
    """Or the server could not see that two loads wait for each other."""
    async with cache_server() as server, connect(server.url) as keeper:
        server.take_fill("b")

        async def outer() -> int:
            return await keeper.cache.get_or_fill("b", never, ttl=60)

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(get_quietly, keeper, "b")
                await server.until(lambda: len(server.getters.get("b", [])) == 1)
            tasks.start_soon(lambda: keeper.cache.get_or_fill("a", outer, ttl=60))
            await server.until(lambda: len(server.getters["b"]) == 2)
            server.put("b", 1)


async def get_quietly(keeper: Any, key: str) -> None:
    await keeper.cache.get_or_fill(key, never, ttl=60)
