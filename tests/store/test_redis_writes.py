"""Write-behind on a Redis that is restarted, flushed, or keeps nothing."""

from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import pytest
import trio
from attrs import evolve

from leasekeeper.core.writes import Settled, Taken
from leasekeeper.errors import Unavailable
from leasekeeper.messages import Json
from leasekeeper.resp.settings import parse_url
from leasekeeper.store.redis.store import Options, RedisStore
from tests.polling import eventually
from tests.redises import RunningRedis, running_redis
from tests.store.actors import Actor, acting
from tests.store.test_contract_writes import Q, ack, bury, cached, claim, fail, put

pytestmark = pytest.mark.system

OFTEN = Options(preflight_ms=100)


@pytest.fixture
def volatile() -> Iterator[RunningRedis]:
    """One that keeps nothing."""
    with running_redis() as running:
        yield running


@pytest.fixture
def durable() -> Iterator[RunningRedis]:
    """One that keeps whatever it has acknowledged."""
    with running_redis(options=("--appendonly", "yes", "--appendfsync", "always")) as running:
        yield running


def store_on(redis: RunningRedis, options: Options = OFTEN) -> RedisStore:
    """A server's store there."""
    return RedisStore(parse_url(redis.url), "one", options)


async def refuses(actor: Actor, refused: bool) -> bool:
    """Whether writes are refused now, or are not."""
    return (actor.store.writes.refusal is not None) is refused


async def answers(actor: Actor) -> bool:
    """Whether Redis is there again."""
    try:
        await cached(actor, "nothing")
    except Unavailable:
        return False
    return True


async def test_a_redis_without_aof_is_refused_until_it_has_one(volatile: RunningRedis) -> None:
    """And says what to do; what is queued can be claimed and settled all the time."""
    async with acting(store_on(volatile)) as actor:
        refusal = actor.store.writes.refusal
        assert refusal is not None
        assert "CONFIG SET appendonly yes" in refusal
        assert "--allow-volatile-writes" in refusal
        volatile.cli("CONFIG", "SET", "appendonly", "yes")
        await eventually(partial(refuses, actor, refused=False))
        await bury(actor, ["dead"])
        await put(actor, "k")
        volatile.cli("CONFIG", "SET", "appendonly", "no")
        await eventually(partial(refuses, actor, refused=True))
        taken = await claim(actor)
        assert [write.key for write in taken.writes] == ["k"]
        assert await ack(actor, taken) == [Settled.DONE]
        assert [each.key for each in (await actor.store.writes.dead(Q, 1, None)).writes] == ["dead"]
        assert await actor.store.writes.revive(Q, ["dead"]) == 1


async def test_a_redis_that_loads_its_data_is_not_taken_for_one_that_keeps_nothing() -> None:
    """While it reads its AOF it says that it has none. It answers after every 1,024 commands."""
    options = ("--appendonly", "yes", "--key-load-delay", "300")  # microseconds
    with running_redis(options=options) as redis:
        redis.pipeline(*(("SET", "large", number) for number in range(15_000)))
        async with acting(store_on(redis)) as actor:
            refusals: set[str | None] = set()
            async with trio.open_nursery() as nursery:

                async def restart() -> None:
                    await trio.to_thread.run_sync(redis.restart)
                    nursery.cancel_scope.cancel()

                nursery.start_soon(restart)
                while True:
                    with suppress(Unavailable):
                        refusals.add(actor.store.writes.refusal)
                    await trio.sleep(0.02)
            assert refusals <= {None}


async def test_what_may_be_lost_may_be_allowed(volatile: RunningRedis) -> None:
    """By whoever starts the server."""
    options = evolve(OFTEN, allow_volatile_writes=True)
    async with acting(store_on(volatile, options)) as actor:
        assert actor.store.writes.refusal is None


async def test_nothing_that_was_acknowledged_is_lost_with_redis(durable: RunningRedis) -> None:
    """Neither a value nor its write, nor a claim, nor a dead write; fences rise on (L2)."""
    async with acting(store_on(durable)) as actor:
        assert actor.store.writes.refusal is None
        await bury(actor, ["dead"])
        await put(actor, "claimed", b"1")
        before = await claim(actor)
        await put(actor, "claimed", b"2")
        await put(actor, "waiting", b"3")
        durable.restart()
        await eventually(partial(answers, actor))
        assert await cached(actor, "claimed") == b"2"
        assert await cached(actor, "waiting") == b"3"
        taken = await claim(actor)
        assert [(each.key, each.value) for each in taken.writes] == [("waiting", Json(b"3"))]
        assert await ack(actor, before) == [Settled.QUEUED]
        after = await claim(actor)
        assert after.writes[0].value == Json(b"2")
        assert after.writes[0].fence > before.writes[0].fence
        assert await fail(actor, after) == [Settled.QUEUED]
        [dead] = (await actor.store.writes.dead(Q, 10, None)).writes
        assert (dead.key, dead.value, dead.error) == ("dead", Json(b"dead"), "no luck")


async def test_a_value_is_dropped_that_was_put_before_redis_restarted(
    durable: RunningRedis,
) -> None:
    """L11: once it is written. An invalidation may have been lost meanwhile."""
    async with acting(store_on(durable)) as actor:
        await put(actor, "k", b"1", ttl_ms=60_000)
        durable.restart()
        await eventually(partial(answers, actor))
        await ack(actor, await claim(actor))
        assert await cached(actor, "k") is None


async def test_a_flush_takes_the_queue_with_the_values(volatile: RunningRedis) -> None:
    """No value is served for ever that nobody will write; and fences rise on (L2)."""
    async with acting(store_on(volatile)) as actor:
        await put(actor, "k", b"1")
        before = await claim(actor)
        volatile.cli("FLUSHALL")
        assert await cached(actor, "k") is None
        assert await claim(actor) == Taken()
        assert await ack(actor, before) == [Settled.NOT_HELD]
        await put(actor, "k", b"2")
        assert (await claim(actor)).writes[0].fence > before.writes[0].fence
