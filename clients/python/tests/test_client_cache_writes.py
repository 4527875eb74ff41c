"""Write-through and write-behind: what the server is told, whatever becomes of the body."""

import logging
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from leasekeeper_client import (
    ConnectionFailed,
    Keeper,
    LimitReached,
    Unavailable,
    UnknownCodec,
    ValueTooLarge,
    Write,
    WriteExpired,
    connect,
)

from client_fake_cache import cache_server
from client_fake_server import Peer, Refused
from client_helpers import Clock, on_both

# --- Write-through ----------------------------------------------------------------------------


@on_both
async def test_a_write_through_begins_and_commits() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        async with keeper.cache.write_through("k", tags=["t"], ttl=5) as write:
            assert (write.key, write.tags, write.fence) == ("k", ("t",), server.fence)
            assert 4 < write.remaining < 5
            write.ensure(margin=4)
            with pytest.raises(WriteExpired):
                write.ensure(margin=5)
        assert not write.stored
        (begun,) = server.asked("cache.begin_write")
        (done,) = server.asked("cache.commit_write")
        assert begun["ttl_ms"] == 5000
        assert done == {"key": "k", "write": begun["write"], "tags": ["t"]}


@on_both
async def test_a_write_through_gives_the_value_that_is_true_now() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        async with keeper.cache.write_through("k", tags=["t"]) as write:
            write.set({"n": 2}, ttl=60, stale=5, etag="v2")
        assert write.stored
        assert await keeper.cache.get("k") == {"n": 2}
        (done,) = server.asked("cache.commit_write")
        assert (done["ttl_ms"], done["stale_ms"]) == (60_000, 5000)
        assert (done["tags"], done["etag"]) == (["t"], "v2")


@on_both
async def test_what_cannot_be_cached_is_said_before_the_transaction_is_over() -> None:
    async with cache_server(value_bytes=100) as server, connect(server.url) as keeper:
        with pytest.raises(ValueTooLarge) as caught:
            async with keeper.cache.write_through("k") as write:
                write.set("x" * 100, ttl=1)
        assert caught.value.max == 100
        assert len(server.asked("cache.abort_write")) == 1


@on_both
async def test_a_body_that_raises_aborts() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        with pytest.raises(ZeroDivisionError):
            async with keeper.cache.write_through("k", tags=["t"]):
                raise ZeroDivisionError
        (aborted,) = server.asked("cache.abort_write")
        assert (aborted["key"], aborted["tags"]) == ("k", ["t"])
        assert not server.asked("cache.commit_write")


@on_both
async def test_a_body_that_is_cancelled_aborts() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        with anyio.CancelScope() as scope:
            async with keeper.cache.write_through("k"):
                scope.cancel()
                await anyio.sleep_forever()
        assert len(server.asked("cache.abort_write")) == 1


@on_both
async def test_a_body_that_takes_too_long_is_cancelled() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        with pytest.raises(WriteExpired) as caught:
            async with keeper.cache.write_through("k", ttl=0.2):
                await anyio.sleep_forever()
        assert caught.value.key == "k"
        assert len(server.asked("cache.abort_write")) == 1


@on_both
@pytest.mark.parametrize("who", ["server", "clock"])
async def test_a_body_that_noticed_nothing_is_told_that_it_was_late(who: str) -> None:
    """It never awaited, and is done: the commit is sent, for it invalidates."""
    clock = Clock()
    async with cache_server() as server, connect(server.url, clock=clock) as keeper:
        server.in_time = False
        with pytest.raises(WriteExpired):
            async with keeper.cache.write_through("k", ttl=5):
                clock.ahead = 6 if who == "clock" else 0
        assert len(server.asked("cache.commit_write")) == 1


@on_both
async def test_a_commit_whose_first_answer_was_lost_is_no_late_one() -> None:
    async with cache_server() as server, connect(server.url) as keeper:

        def drop(peer: Peer, params: Any) -> Any:
            if len(server.asked("cache.commit_write")) > 1:
                return NotImplemented
            server.intents.clear()
            server.tasks.start_soon(peer.drop)
            return None

        server.hooks["cache.commit_write"] = drop
        async with keeper.cache.write_through("k"):
            pass
        assert len(server.asked("cache.commit_write")) == 2


@on_both
async def test_a_commit_that_cannot_be_told_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leasekeeper_client._intents.CLOSE_SECONDS", 0.1)
    async with cache_server() as server, connect(server.url) as keeper:
        with pytest.raises(Unavailable):
            async with keeper.cache.write_through("k"):
                server.peer.muted = True


@on_both
async def test_a_refused_beginning_is_not_aborted_and_an_unsure_one_is() -> None:
    async with cache_server() as server, connect(server.url, answer_timeout=0.2) as keeper:

        def refuse(_: Peer, __: Any) -> None:
            raise Refused(-32001)

        server.hooks["cache.begin_write"] = refuse
        with pytest.raises(Exception, match="-32001"):
            async with keeper.cache.write_through("k"):
                pytest.fail("unreachable")
        assert not server.asked("cache.abort_write")
        server.hooks["cache.begin_write"] = lambda _, __: None
        with pytest.raises(ConnectionFailed):
            async with keeper.cache.write_through("k"):
                pytest.fail("unreachable")
        await server.until(lambda: len(server.asked("cache.abort_write")) == 1)


@on_both
async def test_a_cancelled_beginning_is_aborted() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.hooks["cache.begin_write"] = lambda _, __: None
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def begin() -> None:
                    async with keeper.cache.write_through("k"):
                        pytest.fail("unreachable")

                tasks.start_soon(begin)
                await server.until(lambda: bool(server.asked("cache.begin_write")))
                scope.cancel()
        await server.until(lambda: len(server.asked("cache.abort_write")) == 1)


async def first_write(keeper: Keeper, claim: float = 30.0) -> Write:
    """The first write that comes; others are given back."""
    async with aclosing(keeper.writes("orders", claim=claim)) as writes:
        return await anext(writes)


# --- Write-behind -----------------------------------------------------------------------------


@on_both
async def test_a_put_is_cached_and_queued() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        queue = keeper.cache.write_behind("orders")
        assert queue.queue == "orders"
        assert await queue.put("k", [1], ttl=5) == await queue.put("l", 2) - 2
        assert await keeper.cache.get("k") == [1]
        first, second = server.asked("writes.put")
        assert first == {"queue": "orders", "key": "k", "value": [1], "ttl_ms": 5000}
        assert second == {"queue": "orders", "key": "l", "value": 2}


@on_both
async def test_a_put_whose_answer_is_lost_is_not_repeated() -> None:
    async with cache_server() as server, connect(server.url) as keeper:

        def drop(peer: Peer, _: Any) -> None:
            server.tasks.start_soon(peer.drop)

        server.hooks["writes.put"] = drop
        with pytest.raises(Unavailable) as caught:
            await keeper.cache.write_behind("orders").put("k", 1)
        assert caught.value.outcome == "unknown"


@on_both
async def test_writes_are_carried_out_and_acknowledged() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.queue("orders", "a", 1)
        server.queue("orders", "b", 2, attempt=3)
        seen: list[tuple[object, ...]] = []
        writes = keeper.writes("orders", max=1, claim=30)
        async for write in writes:
            async with write:
                assert 19 < write.remaining < 30
                assert write.fence > write.seq
                seen.append((write.key, write.value, write.attempt))
            if len(seen) == 2:
                break
        await writes.aclose()
        assert seen == [("a", 1, 1), ("b", 2, 3)]
        claim = server.asked("writes.claim")[0]
        assert claim == {"queue": "orders", "max": 1, "claim_ms": 30_000, "wait_ms": 10_000}
        assert [len(ack["ids"]) for ack in server.asked("writes.ack")] == [1, 1]
        assert not server.asked("writes.retry")


@on_both
async def test_a_write_that_fails_is_told_and_the_next_one_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.queue("orders", "a", 1)
        server.queue("orders", "b", 2)
        keys: list[str] = []
        writes = keeper.writes("orders")
        with caplog.at_level(logging.WARNING):
            async for write in writes:
                keys.append(write.key)
                async with write:
                    raise LookupError("no table")
                if len(keys) == 2:
                    break
        await writes.aclose()
        assert keys == ["a", "b"]
        assert [r["error"] for r in server.asked("writes.retry")] == ["LookupError: no table"] * 2
        assert "writing 'a' failed" in caplog.text
        assert not server.asked("writes.ack")


@on_both
async def test_a_write_is_cancelled_when_its_time_is_over() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.queue("orders", "a", 1)
        write = await first_write(keeper, claim=0.3)
        async with write:
            await anyio.sleep_forever()
        assert write.remaining == 0
        assert not server.asked("writes.ack")
        assert not server.asked("writes.retry")


@on_both
async def test_a_write_is_cancelled_with_its_connection() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.queue("orders", "a", 1)
        write = await first_write(keeper)
        async with write:
            await server.peer.drop()
            await anyio.sleep_forever()
        assert write.remaining == 0
        assert not server.asked("writes.ack")


@on_both
async def test_a_cancelled_writer_gives_its_write_back() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.queue("orders", "a", 1)
        write = await first_write(keeper)
        with anyio.CancelScope() as scope:
            async with write:
                scope.cancel()
                await anyio.sleep_forever()
        (retried,) = server.asked("writes.retry")
        assert retried["after_ms"] == 0


@on_both
async def test_a_write_can_be_settled_by_hand() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        for key in "abc":
            server.queue("orders", key, 1)
        writes = keeper.writes("orders")
        first, second, third = [await anext(writes) for _ in range(3)]
        async with first:
            assert await first.retry("later", after=5)
        assert await second.ack()
        server.settled = 0
        assert not await third.ack()
        assert not await third.retry()
        await writes.aclose()
        retried = server.asked("writes.retry")[0]
        assert (retried["error"], retried["after_ms"]) == ("later", 5000)
        assert len(server.asked("writes.ack")) == 2


@on_both
async def test_an_acknowledgement_that_comes_too_late_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with cache_server(settled=0) as server, connect(server.url) as keeper:
        server.queue("orders", "a", 1)
        write = await first_write(keeper)
        with caplog.at_level(logging.WARNING):
            async with write:
                pass
        assert "it had been claimed again" in caplog.text
        server.queue("orders", "a", 1)
        write = await first_write(keeper)

        def refuse(_: Peer, __: Any) -> None:
            raise Refused(-32011)

        server.hooks["writes.ack"] = refuse
        with caplog.at_level(logging.WARNING):
            async with write:
                pass
        assert "was not told" in caplog.text


@on_both
async def test_writes_wait_for_work_over_refusals_and_broken_connections() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        refused = anyio.Event()

        def refuse(_: Peer, __: Any) -> Any:
            if len(server.asked("writes.claim")) > 1:
                return NotImplemented
            refused.set()
            raise Refused(-32020, {"outcome": "none", "retry_after_ms": 1})

        server.hooks["writes.claim"] = refuse
        got: list[Write] = []
        async with anyio.create_task_group() as tasks:

            async def take() -> None:
                got.append(await first_write(keeper))

            tasks.start_soon(take)
            await refused.wait()
            await server.until(lambda: len(server.claimants) == 1)
            await server.peer.drop()
            server.claimants.clear()
            await server.until(lambda: len(server.claimants) == 1)
            server.queue("orders", "a", 1)
        assert got[0].key == "a"


@on_both
async def test_who_leaves_gives_back_what_he_has_not_taken() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        for key in "abc":
            server.queue("orders", key, 1)
        writes = keeper.writes("orders")
        await anext(writes)
        await writes.aclose()
        await server.until(lambda: bool(server.asked("writes.retry")))
        (given_back,) = server.asked("writes.retry")
        assert (len(given_back["ids"]), given_back["after_ms"]) == (2, 0)


@on_both
async def test_who_leaves_while_waiting_cancels_his_claim() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        async with anyio.create_task_group() as tasks:

            async def take() -> None:
                await first_write(keeper)

            tasks.start_soon(take)
            await server.until(lambda: len(server.claimants) == 1)
            tasks.cancel_scope.cancel()
        await server.until(lambda: not server.claimants)


@on_both
async def test_what_is_refused_for_good_ends_the_iteration() -> None:
    async with cache_server() as server, connect(server.url) as keeper:

        def refuse(_: Peer, __: Any) -> None:
            raise Refused(-32012, {"limit": "claims_per_session", "max": 1})

        server.hooks["writes.claim"] = refuse
        with pytest.raises(LimitReached):
            await first_write(keeper)
        for options in ({"max": 0}, {"max": 1001}, {"claim": 0.01}):
            with pytest.raises(ValueError, match="must be"):
                keeper.writes("orders", **options)


@on_both
async def test_a_value_that_cannot_be_read_fails_in_the_body() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        server.queue("orders", "a", {"$lk": "pickle", "b": ""})
        write = await first_write(keeper)
        async with write:
            assert write.value
        assert server.asked("writes.retry")[0]["error"].startswith("UnknownCodec")
        with pytest.raises(UnknownCodec):
            _ = write.value


@on_both
async def test_dead_letters_are_listed_and_revived() -> None:
    async with cache_server() as server, connect(server.url) as keeper:
        dead = [letter async for letter in keeper.writes_dead("orders")]
        assert [(letter.key, letter.value) for letter in dead] == [("k0", 0), ("k1", 1), ("k2", 2)]
        assert (dead[2].seq, dead[2].attempts, dead[2].error) == (2, 10, "no luck")
        assert await keeper.writes_revive("orders", *(f"k{n}" for n in range(250))) == 250
        assert len(server.asked("writes.revive")) == 2
