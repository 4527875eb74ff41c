"""Who waits for a cached value: no task waits along, and a value that many get is no flood."""

import gc
import weakref
from contextlib import suppress
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked

from leasekeeper.core.fills import Ask, Seen
from leasekeeper.messages import RequestId, Result
from leasekeeper.server import connection
from leasekeeper.server.config import ServerConfig, WireLimits
from leasekeeper.service.desks import Caller
from leasekeeper.store.memory_cache import MemoryCache
from leasekeeper.wire import codec
from tests.harness import GONE, Peer, Refused, Served, serving

MEGABYTE = 1_000_000


def gets(peer: Peer, count: int, **params: object) -> list[dict[str, Any]]:
    """Requests for the same key that wait for ever."""
    return [
        peer.request("cache.get", **{"key": "k", "wait_ms": None} | params) for _ in range(count)
    ]


async def wait_with(peer: Peer, requests: list[dict[str, Any]]) -> None:
    """Sends them, and returns once they have reached the server."""
    for request in requests:
        await peer.send(request)
    await peer.call("session.heartbeat")


def kept_bytes() -> int:
    """What all lists of messages hold."""
    gc.collect()
    return sum(
        len(message)
        for found in gc.get_objects()
        if type(found) is list and found and type(found[0]) is bytes
        for message in found
        if type(message) is bytes
    )


def tasks() -> int:
    """How many there are."""
    return trio.lowlevel.current_statistics().tasks_living


async def test_no_task_waits_with_a_caller(autojump_clock: MockClock) -> None:
    async with serving() as served:
        loader, peer = await served.connect(), await served.connect()
        fill = await loader.call("cache.get", key="k")
        await wait_with(peer, gets(peer, 1))
        await wait_all_tasks_blocked()
        before = tasks()
        asks = gets(peer, 100)
        await wait_with(peer, asks)
        await wait_all_tasks_blocked()
        assert tasks() == before
        await loader.call("cache.fill", key="k", fill=fill["fill"], value="v", ttl_ms=1000)
        for ask in asks:
            assert (await peer.answer(ask["id"]))["value"] == "v"


async def test_each_is_told_when_its_own_wait_is_over(autojump_clock: MockClock) -> None:
    async with serving() as served:
        loader, peer = await served.connect(), await served.connect()
        await loader.call("cache.get", key="k", fill_ms=60_000)
        waits_ms = (3000, 1000, 0, 2000)
        asks = [gets(peer, 1, wait_ms=wait_ms)[0] for wait_ms in waits_ms]
        began = trio.current_time()
        await wait_with(peer, asks)
        for wait_ms, ask in sorted(zip(waits_ms, asks, strict=True), key=lambda each: each[0]):
            with pytest.raises(Refused) as refused:
                await peer.answer(ask["id"])
            assert refused.value.code == -32001
            assert trio.current_time() - began == pytest.approx(wait_ms / 1000, abs=0.01)


async def test_one_that_is_cancelled_is_answered_at_once_and_the_others_later(
    autojump_clock: MockClock,
) -> None:
    async with serving() as served:
        loader, peer = await served.connect(), await served.connect()
        fill = await loader.call("cache.get", key="k")
        asks = gets(peer, 3)
        await wait_with(peer, asks)
        cancelled = asks[1]["id"]
        assert (await peer.call("rpc.cancel", id=cancelled))["cancelled"]
        with pytest.raises(Refused) as refused:
            await peer.answer(cancelled)
        assert refused.value.code == -32004
        assert not (await peer.call("rpc.cancel", id=cancelled))["cancelled"]
        await loader.call("cache.fill", key="k", fill=fill["fill"], value="v", ttl_ms=1000)
        for ask in (asks[0], asks[2]):
            assert (await peer.answer(ask["id"]))["value"] == "v"


async def test_those_of_a_connection_that_is_gone_are_not_handed_the_load(
    autojump_clock: MockClock,
) -> None:
    async with serving() as served:
        loader, gone, peer = [await served.connect() for _ in range(3)]
        await loader.call("cache.get", key="k", fill_ms=60_000)
        await wait_with(gone, gets(gone, 50))
        asks = gets(peer, 2)
        await wait_with(peer, asks)
        await gone.drop()
        await served.idle(2)
        assert len(served.keeper.caches) == 1
        await loader.drop()
        fill = await peer.answer(asks[0]["id"])
        assert fill["state"] == "fill"
        await peer.call("cache.fill", key="k", fill=fill["fill"], value="v", ttl_ms=1000)
        assert (await peer.answer(asks[1]["id"]))["value"] == "v"
        assert len(served.keeper.caches) == 0


async def test_what_waited_leaves_no_cycles_behind(autojump_clock: MockClock) -> None:
    """The server collects garbage seldom."""
    async with serving() as served:
        loader, peer = await served.connect(), await served.connect()
        fill = await loader.call("cache.get", key="k")
        asks = gets(peer, 3)
        await wait_with(peer, asks)
        await peer.call("rpc.cancel", id=asks[0]["id"])
        gc.collect()
        waiting = [
            found
            for found in gc.get_objects()
            if type(found) is Caller and found.session in served.keeper.sessions
        ]
        seen = [weakref.ref(each) for each in waiting]
        assert len(seen) == 2
        del waiting
        gc.disable()
        try:
            await loader.call("cache.fill", key="k", fill=fill["fill"], value="v", ttl_ms=1000)
            for ask in asks[1:]:
                await peer.answer(ask["id"])
            await wait_all_tasks_blocked()
            assert [each() for each in seen] == [None, None]
        finally:
            gc.enable()


async def test_an_id_is_in_use_until_its_wait_is_over(autojump_clock: MockClock) -> None:
    config = ServerConfig(wire=WireLimits(requests_outstanding=3))
    async with serving(config) as served:
        loader, peer = await served.connect(), await served.connect()
        fill = await loader.call("cache.get", key="k")
        asks = gets(peer, 3)
        for ask in asks:
            await peer.send(ask)
        await wait_all_tasks_blocked()
        with pytest.raises(Refused) as refused:
            await peer.call("cache.get", key="other")
        assert refused.value.data["limit"] == "requests_outstanding"
        await loader.call("cache.fill", key="k", fill=fill["fill"], value="v", ttl_ms=1000)
        for ask in asks:
            await peer.answer(ask["id"])
        for ask in asks:  # the same ids again
            await peer.send(ask)
            assert (await peer.receive())["result"]["value"] == "v"


# --- Large values -------------------------------------------------------------------------------


async def load(served: Served, value: str, *, key: str = "k") -> None:
    """Has somebody load a value for those who wait."""
    loader = await served.connect()
    await loader.call("cache.set", key=key, value=value, ttl_ms=60_000)


@pytest.mark.parametrize("batch", [False, True])
async def test_who_waits_often_for_a_large_value_and_reads_is_no_slow_consumer(
    batch: bool,
) -> None:
    """Law L13: 100 callers of one connection, and a value of which the outbox holds four."""
    async with serving() as served:
        loader = await served.connect()
        await loader.call("cache.get", key="k", fill_ms=60_000)
        peer = await served.connect("tcp", batch=batch)
        asks = gets(peer, 100)
        await wait_with(peer, asks)
        await load(served, "v" * MEGABYTE)
        for ask in asks:
            assert len((await peer.answer(ask["id"]))["value"]) == MEGABYTE


async def test_who_asks_for_many_large_values_at_once_and_reads_is_no_slow_consumer() -> None:
    async with serving() as served:
        for number in range(20):
            await load(served, f"{number:05}" * 200_000, key=f"k{number}")
        peer = await served.connect("tcp")
        asks = [peer.request("cache.get", key=f"k{number}") for number in range(20)]
        await wait_with(peer, asks)
        for number, ask in enumerate(asks):
            answer = await peer.answer(ask["id"])
            assert answer["value"].startswith(f"{number:05}")


async def test_values_that_nobody_reads_are_bounded(autojump_clock: MockClock) -> None:
    """Law L12: those of different keys; the callers of one key cost one value."""
    wire = WireLimits(outbox_bytes=100_000, outbox_values_bytes=1_300_000, write_ms=600_000)
    async with serving(ServerConfig(wire=wire)) as served:
        for number in range(20):
            await load(served, f"{number:05}" * 20_000, key=f"k{number}")
        peer = await served.connect("lockstep")
        peer.pause()
        before = kept_bytes()
        for key in ["k0"] * 100 + [f"k{number}" for number in range(1, 9)]:
            await peer.ask("cache.get", key=key)
        await wait_all_tasks_blocked()
        assert len(served.keeper.sessions) == 21
        encoded = kept_bytes() - before
        assert encoded < 500_000
        with suppress(*GONE):
            for number in range(9, 20):
                await peer.ask("cache.get", key=f"k{number}")
        await wait_all_tasks_blocked()
        peer.resume()
        await peer.closed()  # in the middle of a frame, so that no code can be told
        assert len(served.keeper.sessions) == 20


async def test_what_waits_for_room_is_overtaken_by_news(autojump_clock: MockClock) -> None:
    """A lease that is lost is told at once, however many values there are to read."""
    wire = WireLimits(outbox_bytes=100_000, write_ms=600_000)
    async with serving(ServerConfig(wire=wire)) as served:
        await load(served, "v" * 90_000)
        peer, breaker = await served.connect("lockstep"), await served.connect()
        await peer.call("lease.acquire", name="n")
        peer.pause()
        asks = gets(peer, 50)
        for ask in asks:
            await peer.send(ask)
        await wait_all_tasks_blocked()
        await breaker.call("lease.break", name="n")
        peer.resume()
        await peer.notification("lease.lost")
        assert not peer.answered(asks[-1]["id"])
        for ask in asks:
            assert len((await peer.answer(ask["id"]))["value"]) == 90_000


# --- What goes wrong for one goes wrong for no other ----------------------------------------------


async def test_an_answer_that_cannot_be_encoded_harms_nobody_else(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, failures: list[str]
) -> None:
    encode = codec.encode_result
    async with serving() as served:
        loader, peer, other = [await served.connect() for _ in range(3)]
        fill = await loader.call("cache.get", key="k")
        ask, good = gets(peer, 1)[0], gets(other, 1)[0]
        await wait_with(peer, [ask | {"id": "bad"}])
        await wait_with(other, [good])

        def encode_but_one(request_id: RequestId, result: Result) -> bytes:
            if request_id == "bad":
                raise TypeError("this one cannot be encoded")
            return encode(request_id, result)

        monkeypatch.setattr(connection, "encode_result", encode_but_one)
        await loader.call("cache.fill", key="k", fill=fill["fill"], value="v", ttl_ms=1000)
        assert (await other.answer(good["id"]))["value"] == "v"
        assert (await peer.receive())["error"]["code"] == -32603
    assert len(failures) == 1
    failures.clear()


async def test_a_look_that_fails_is_told_to_all_who_wait_and_ends_nothing_else(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, failures: list[str]
) -> None:
    async def look(*_: object) -> Seen:
        await trio.sleep(0.02)
        raise ValueError("nobody foresaw this")

    async with serving() as served:
        a, b, bystander = [await served.connect() for _ in range(3)]
        await bystander.call("lease.acquire", name="n")
        with monkeypatch.context() as patched:
            patched.setattr(MemoryCache, "look", look)
            first = await a.ask("cache.get", key="k")
            await trio.sleep(0.005)
            second = await b.ask("cache.get", key="k")
            for peer, ask in ((a, first), (b, second)):
                with pytest.raises(Refused) as refused:
                    await peer.answer(ask)
                assert refused.value.code == -32603
        await wait_all_tasks_blocked()
        assert len(served.keeper.caches) == 0
        assert (await a.call("cache.get", key="k"))["state"] == "fill"
        assert (await bystander.call("session.heartbeat"))["renewed"] == 1
    assert len(failures) == 2
    failures.clear()


async def test_who_cancels_its_looks_over_and_over_keeps_nobody_waiting(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law L13: the look is cut short each time just before it is over."""
    look_at = MemoryCache.look

    async def look(cache: MemoryCache, key: str, ask: Ask) -> Seen:
        await trio.sleep(0.002)
        return await look_at(cache, key, ask)

    monkeypatch.setattr(MemoryCache, "look", look)
    async with serving() as served, trio.open_nursery() as attacks:
        attacker, peer = await served.connect(batch=True), await served.connect()
        await attacker.call("cache.set", key="k", value=1, ttl_ms=600_000)

        async def attack() -> None:
            for ask in iter(lambda: attacker.request("cache.get", key="k"), None):
                await attacker.send(ask)
                await trio.sleep(0.0019)
                cancel = {"jsonrpc": "2.0", "method": "rpc.cancel", "params": {"id": ask["id"]}}
                await attacker.send(cancel)

        attacks.start_soon(attack)
        await trio.sleep(0.1005)
        for _ in range(20):
            began = trio.current_time()
            assert (await peer.call("cache.get", key="k"))["value"] == 1
            assert trio.current_time() - began < 0.01
            await trio.sleep(0.0137)
        attacks.cancel_scope.cancel()
