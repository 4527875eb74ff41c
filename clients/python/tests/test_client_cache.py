"""Getting and loading values: what a caller sees of each answer, and what the server is told."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from leasekeeper_client import (
    FillFailed,
    Fresh,
    NotFound,
    NotModified,
    Private,
    Unavailable,
    ValueNotFound,
    connect,
    current_load,
)

from client_callers import failing, loading, never
from client_fake_cache import cache_server
from client_fake_server import Peer, Refused
from client_helpers import on_both

WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


@on_both
async def test_a_value_is_loaded_and_handed_over() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        load = loading({"n": 1})
        got = await keeper.cache.get_or_fill("k", load, ttl=60, stale=5.5, tags=["t"], fill=7)
        assert got == {"n": 1}
        assert await keeper.cache.get_or_fill("k", never, ttl=60) == {"n": 1}
    (first, _) = server.asked("cache.get")
    assert 29_000 < first.pop("wait_ms") <= 30_000
    assert first == {"key": "k", "stale_ok": True, "fill_ms": 7000}
    (filled,) = server.asked("cache.fill")
    assert filled.pop("fill")
    assert filled == {
        "key": "k",
        "value": {"n": 1},
        "ttl_ms": 60_000,
        "stale_ms": 5500,
        "tags": ["t"],
    }


@on_both
async def test_what_the_load_says_goes_before_what_the_call_says() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        loaded = Fresh(None, ttl=1, stale=2, tags=("u",), etag="v1")
        assert await keeper.cache.get_or_fill("k", loading(loaded), ttl=60, tags=["t"]) is None
    (filled,) = server.asked("cache.fill")
    assert filled["value"] is None
    assert (filled["ttl_ms"], filled["stale_ms"]) == (1000, 2000)
    assert (filled["tags"], filled["etag"]) == (["u"], "v1")


@on_both
async def test_a_load_knows_itself_and_its_callers_context() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.put("k", "old", stale=True, etag="v1")

        async def load() -> str:
            mine = current_load()
            assert (mine.key, mine.etag, mine.shared, mine.lost) == ("k", "v1", True, False)
            assert mine.fence == server.fence
            assert 6 < mine.remaining < 7
            return WHO.get()

        WHO.set("me")
        got = await keeper.cache.get_or_fill("k", load, ttl=60, fill=7, stale_ok=False)
        assert got == "me"
    with pytest.raises(LookupError):
        current_load()


@on_both
async def test_a_load_that_raises_is_told_and_raises_here() -> None:
    async with cache_server() as server, connect(server.url) as keeper:

        async def load() -> int:
            raise LookupError("no\nrow" + "x" * 2000)

        with pytest.raises(LookupError):
            await keeper.cache.get_or_fill("k", load, ttl=60)
    (failed,) = server.asked("cache.fail")
    assert failed["error"].startswith("LookupError: no\nrowxxx")
    assert len(failed["error"]) == 500
    assert failed.keys() == {"key", "fill", "error"}


@on_both
async def test_a_load_elsewhere_that_failed_is_told_as_such() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.take_fill("k")
        async with anyio.create_task_group() as tasks:

            async def get() -> None:
                with pytest.raises(FillFailed) as caught:
                    await keeper.cache.get_or_fill("k", never, ttl=60)
                assert (caught.value.error, caught.value.retry_after) == ("Oops: no", 0.25)

            tasks.start_soon(get)
            await server.until(lambda: bool(server.getters.get("k")))
            server.refuse_getters("k", -32005, {"error": "Oops: no", "retry_after_ms": 250})


@on_both
async def test_a_failure_within_hands_its_back_off_on() -> None:
    async with cache_server() as server, connect(server.url) as keeper:

        async def load() -> int:
            raise FillFailed("inner", error="inner is down", retry_after=2)

        with pytest.raises(FillFailed):
            await keeper.cache.get_or_fill("k", load, ttl=60)
    (failed,) = server.asked("cache.fail")
    assert (failed["error"], failed["retry_after_ms"]) == ("inner is down", 2000)


@on_both
async def test_nothing_is_remembered_and_told() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        nothing = loading(NotFound(ttl=5))
        with pytest.raises(ValueNotFound) as caught:
            await keeper.cache.get_or_fill("k", nothing, ttl=60, tags=["t"])
        assert (caught.value.key, caught.value.retry_after) == ("k", 5)
        with pytest.raises(ValueNotFound) as caught:
            await keeper.cache.get_or_fill("k", never, ttl=60)
        assert caught.value.retry_after == 1.5
        assert await keeper.cache.get_or_fill("k", never, ttl=60, default=None) is None
    (failed,) = server.asked("cache.fail")
    assert (failed["not_found"], failed["ttl_ms"], failed["tags"]) == (True, 5000, ["t"])


@on_both
async def test_a_private_value_is_its_loaders_alone() -> None:
    """Those who came with him, and waited for the value, load for themselves: all at once."""
    async with cache_server() as server, connect(server.url) as keeper:
        loads: list[str] = []
        together = anyio.Event()

        async def get(who: str, got: list[str]) -> None:
            async def load() -> Private[str]:
                loads.append(who)
                if len(loads) == 3:
                    together.set()
                if len(loads) > 1:
                    await together.wait()
                return Private(who, for_=9)

            got.append(await keeper.cache.get_or_fill("k", load, ttl=60, wait=0))
            assert got == [who]

        async with anyio.create_task_group() as tasks:
            for who in "abc":
                tasks.start_soon(get, who, [])
        assert sorted(loads) == ["a", "b", "c"]
    (failed,) = server.asked("cache.fail")
    assert failed["private_ms"] == 9000
    assert not server.asked("cache.fill")


@on_both
async def test_what_cannot_be_shared_is_not_handed_over() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.unshared.add("k")
        assert await keeper.cache.get_or_fill("k", loading(7), ttl=60) == 7
        assert await keeper.cache.get_or_fill("k", loading(Fresh(8)), ttl=60) == 8
        with pytest.raises(ValueNotFound):
            await keeper.cache.get_or_fill("k", loading(NotFound()), ttl=60)
        with pytest.raises(ZeroDivisionError):
            await keeper.cache.get_or_fill("k", failing, ttl=60)
    assert {request["method"] for request in server.requests} == {"session.open", "cache.get"}


@on_both
async def test_not_modified_makes_the_old_value_new() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.put("k", "old", stale=True, etag="v1")
        load = loading(NotModified(ttl=9))
        assert await keeper.cache.get_or_fill("k", load, ttl=60, stale_ok=False, wait=0) == "old"
    (filled,) = server.asked("cache.fill")
    assert filled.pop("fill")
    assert filled == {"key": "k", "not_modified": True, "ttl_ms": 9000, "etag": "v1"}


@on_both
async def test_not_modified_without_an_old_value_is_an_error() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        with pytest.raises(ValueError, match="NotModified"):
            await keeper.cache.get_or_fill("k", loading(NotModified()), ttl=60)
        assert server.asked("cache.fail")[0]["error"].startswith("ValueError")


@on_both
async def test_what_cannot_be_encoded_is_an_error_of_the_load() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        for value in ({1, 2}, float("inf"), 2**64, "\ud800"):
            with pytest.raises((TypeError, ValueError)):
                await keeper.cache.get_or_fill("k", loading(value), ttl=60)
        with pytest.raises(ValueError, match="tags"):
            await keeper.cache.get_or_fill("k", loading(Fresh(1, tags=("t",) * 17)), ttl=60)
        assert len(server.asked("cache.fail")) == 5
        assert not server.fills


@on_both
async def test_a_value_that_is_too_large_is_returned_and_not_sent() -> None:
    async with cache_server(value_bytes=1000) as server, connect(server.url) as keeper:
        assert keeper.cache.value_bytes == 1000
        big = "x" * 999
        assert await keeper.cache.get_or_fill("k", loading(big), ttl=90) == big
    assert not server.asked("cache.fill")
    (failed,) = server.asked("cache.fail")
    assert (failed["error"], failed["private_ms"]) == ("too large", 60_000)


@on_both
@pytest.mark.parametrize("outcome", ["voided", "superseded", "too_late", "too_large"])
async def test_whatever_the_outcome_the_caller_has_its_value(outcome: str) -> None:
    async with cache_server(outcome=outcome) as server, connect(server.url) as keeper:
        assert await keeper.cache.get_or_fill("k", loading(1), ttl=60) == 1
        assert not server.entries


@on_both
async def test_a_value_is_returned_although_the_store_refuses_it() -> None:
    def refuse(_: Peer, __: Any) -> None:
        raise Refused(-32020, {"outcome": "unknown"})

    async with cache_server() as server, connect(server.url) as keeper:
        server.hooks["cache.fill"] = refuse
        assert await keeper.cache.get_or_fill("k", loading(1), ttl=60) == 1


# --- The rest of the cache --------------------------------------------------------------------


@on_both
async def test_a_peek_never_loads_and_never_waits() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        assert await keeper.cache.get("k") is None
        assert await keeper.cache.get("k", 7) == 7
        server.put("k", 1, stale=True)
        assert await keeper.cache.get("k") == 1
        assert await keeper.cache.get("k", stale_ok=False) is None
        server.put("n", None, negative=True)
        assert await keeper.cache.get("n", 7) == 7
        server.hooks["cache.get"] = refusing(-32005, {"error": "no"})
        assert await keeper.cache.get("k", 7) == 7
        server.hooks["cache.get"] = refusing(-32011, {})
        with pytest.raises(Exception, match="-32011"):
            await keeper.cache.get("k", 7)
    asked = server.asked("cache.get")[0]
    assert asked == {"key": "k", "wait_ms": 0, "can_fill": False, "stale_ok": True}


def refusing(code: int, data: dict[str, Any]) -> Callable[[Peer, Any], None]:
    def refuse(_: Peer, __: Any) -> None:
        raise Refused(code, data)

    return refuse


@on_both
async def test_setting_and_invalidating() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        await keeper.cache.set("k", [1], ttl=5, stale=1, tags=["t"], etag="e")
        assert await keeper.cache.get("k") == [1]
        await keeper.cache.invalidate("k", tags=["t"], soft=True)
        assert await keeper.cache.get("k") is None
        await keeper.cache.invalidate(*(f"k{n}" for n in range(450)))
        await keeper.cache.invalidate()
    (put,) = server.asked("cache.set")
    assert put == {
        **{"key": "k", "value": [1], "ttl_ms": 5000, "stale_ms": 1000},
        **{"tags": ["t"], "etag": "e"},
    }
    first, second, *rest = server.asked("cache.invalidate")
    assert (first, second) == ({"keys": ["k"], "mode": "soft"}, {"tags": ["t"], "mode": "soft"})
    assert [len(each["keys"]) for each in rest] == [200, 200, 50]


@on_both
async def test_a_set_whose_answer_is_lost_is_not_repeated() -> None:
    async with cache_server() as server, connect(server.url) as keeper:

        def drop(peer: Peer, _: Any) -> None:
            server.tasks.start_soon(peer.drop)

        server.hooks["cache.set"] = drop
        with pytest.raises(Unavailable) as caught:
            await keeper.cache.set("k", 1, ttl=5)
        assert caught.value.outcome == "unknown"
        server.hooks["cache.invalidate"] = lambda peer, _: (
            drop(peer, _) if len(server.asked("cache.invalidate")) == 1 else NotImplemented
        )
        await keeper.cache.invalidate("k")
        assert len(server.asked("cache.invalidate")) == 2


@on_both
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ttl": 0}, "ttl must be"),
        ({"ttl": -1}, "ttl must be"),
        ({"ttl": 1, "stale": -1}, "stale must be"),
        ({"ttl": 1, "fill": 0.01}, "fill must be"),
        ({"ttl": 1, "wait": -1}, "wait must be"),
        ({"ttl": 1, "tags": ["t"] * 17}, "at most 16 tags"),
        ({"ttl": 1, "tags": ["no tag"]}, "characters of"),
        ({"ttl": 1, "tags": "tag"}, "several strings"),
        ({"ttl": 1, "on_error": "ignore"}, "on_error must be"),
    ],
)
async def test_what_is_out_of_range_is_not_asked(options: dict[str, Any], problem: str) -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        with pytest.raises(ValueError, match=problem):
            await keeper.cache.get_or_fill("k", never, **options)
        with pytest.raises(ValueError, match="characters of"):
            await keeper.cache.get_or_fill("no key", never, ttl=1)
        assert not server.asked("cache.get")


@on_both
async def test_a_long_value_has_a_frame_of_its_own() -> None:
    """The server takes more than what requests are joined to."""
    async with cache_server(value_bytes=40_000) as server, connect(server.url) as keeper:
        value = "é" * 19_000
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: keeper.cache.set("a", value, ttl=1))
            tasks.start_soon(lambda: keeper.cache.set("b", value, ttl=1))
        assert server.entries["a"].value == server.entries["b"].value == value
        with pytest.raises(Exception, match="40002 bytes"):
            await keeper.cache.set("a", "é" * 20_000, ttl=1)
        assert not any(isinstance(frame, list) for frame in server.peer.frames)
