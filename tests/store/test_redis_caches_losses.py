"""The cache fails closed: what Redis may have lost the invalidation of is not believed (L11)."""

from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio

from leasekeeper.core.fills import Ask, Closed, Content, FillGrant
from leasekeeper.errors import Unavailable
from leasekeeper.messages import FillOutcome, Mark
from tests.polling import eventually
from tests.redis_groups import Redises
from tests.redises import RunningRedis, running_redis
from tests.store.caching import TTL_MS, CacheServer, caching
from tests.system.faults.doomed import LOSSES

pytestmark = pytest.mark.system

WITHIN_S = 30.0
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


async def granted(server: CacheServer, key: str) -> tuple[str, FillGrant]:
    """A fill, as soon as Redis is there again."""
    with trio.fail_after(WITHIN_S):
        while True:
            ask = server.ask()
            with suppress(Unavailable):
                grant = (await server.cache.look(key, ask)).grant
                assert grant is not None
                assert ask.fill is not None
                return ask.fill, grant
            await trio.sleep(0.05)


@pytest.mark.parametrize("loss", LOSSES)
async def test_what_was_invalidated_before_a_loss_stays_so(loss: str) -> None:
    """The values are there, and what voids them is lost; or the other way round."""
    async with LOSSES[loss]() as doomed, caching(doomed.url) as one:
        for key in ("by-key", "by-tag", "set", "written"):
            await one.load(key, b"old", ["t"] if key == "by-tag" else [])
        fill, before = await one.grant("late")
        doomed.part()
        await one.cache.invalidate(["by-key"], ["t"], Mark.HARD)
        await one.cache.set("set", Content(b"new", TTL_MS))
        await one.cache.begin_write("written", "1" * 32, (), 10_000)
        await one.cache.close_write("written", "1" * 32, Content(b"new", TTL_MS), ())
        await doomed.lose()
        for key in ("by-key", "by-tag", "set", "written"):
            _, grant = await granted(one, key)
            assert grant.fence > before.fence
        late = await one.cache.fill("late", fill, Content(b"old", TTL_MS))
        assert late in {FillOutcome.VOIDED, FillOutcome.TOO_LATE}


@pytest.fixture
def durable() -> Iterator[RunningRedis]:
    """It loses nothing; but who is to know?"""
    with running_redis(options=DURABLE) as redis:
        yield redis


async def test_values_of_before_a_restart_are_not_believed(durable: RunningRedis) -> None:
    """With an AOF, too, of which the last second may be missing. What comes later is."""
    async with caching(durable.url, "one") as one, caching(durable.url, "two") as two:
        await one.load("k", b"old", ["t"])
        durable.restart()
        assert durable.cli("EXISTS", "lk:{c0}:e:k") == 1
        fill, _ = await granted(one, "k")
        assert await one.cache.fill("k", fill, Content(b"new", TTL_MS)) is FillOutcome.STORED
        # The other server finds that it was seen to.
        for each in (one, two):
            await granted(each, f"k-{each.store.server}")
            assert await each.value("k") == b"new"


async def test_a_server_that_comes_later_believes_what_is_there(redises: Redises) -> None:
    """Only another Redis process is a reason for distrust."""
    redis = redises.single()
    async with caching(redis.url, "one") as one:
        await one.load("k", b"1")
    async with caching(redis.url, "two") as two:
        assert await two.value("k") == b"1"


@pytest.mark.parametrize("part", ["hard", "soft", "ends", "writes"])
async def test_what_is_known_of_tags_is_missed(redises: Redises, part: str) -> None:
    """Evicted, or deleted by somebody: what has tags, and all else, is loaded anew."""
    redis = redises.single()
    async with caching(redis.url) as one:
        await one.load("k", b"1", ["t"])
        await one.cache.invalidate([], ["other"], Mark.HARD)
        await one.cache.invalidate([], ["other"], Mark.SOFT)
        await one.cache.begin_write("w", "1" * 32, ("another",), 10_000)
        assert await one.value("k") == b"1"
        assert redis.cli("DEL", f"lk:{{c0}}:{part}") == 1
        assert await one.value("k") is None
        await one.load("k", b"2", ["t"])
        assert await one.value("k") == b"2"


async def test_a_clock_that_is_gone_voids_what_is_there(redises: Redises) -> None:
    redis = redises.single()
    async with caching(redis.url) as one:
        await one.load("k", b"1")
        fill, before = await one.grant("late")
        redis.cli("DEL", "lk:{c0}:clock")
        assert await one.value("k") is None
        assert await one.cache.fill("late", fill, Content(b"1", TTL_MS)) is FillOutcome.VOIDED
        _, after = await one.grant("k")
        assert after.fence > before.fence


async def test_a_write_through_that_is_forgotten_invalidates_all_the_same(
    redises: Redises,
) -> None:
    redis = redises.single()
    async with caching(redis.url) as one:
        await one.cache.begin_write("k", "1" * 32, ("t",), 10_000)
        redis.cli("FLUSHALL")
        await one.load("k", b"old", ["t"])
        await one.load("l", b"old", ["t"])
        closed = await one.cache.close_write("k", "1" * 32, Content(b"new", TTL_MS), ("t",))
        assert closed == Closed(stored=False, in_time=False)
        assert await one.value("k") is None
        assert await one.value("l") is None


async def test_a_restart_in_the_middle_of_calls_is_no_danger(durable: RunningRedis) -> None:
    """Calls that were packed before it may reach the new process."""
    async with caching(durable.url) as one:
        await one.load("k", b"old")
        believed: list[bytes | None] = []
        failed = 0

        async def ask() -> None:
            nonlocal failed
            while not is_over:
                try:
                    found = (await one.cache.look("k", Ask())).found
                    believed.append(found.value if found else None)
                except Unavailable:
                    failed += 1
                    await trio.sleep(0.01)

        is_over = False
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
            await trio.sleep(0.05)
            await trio.to_thread.run_sync(durable.kill)
            before = len(believed)
            await trio.sleep(0.05)  # what was answered is told
            await trio.to_thread.run_sync(durable.start)

            async def has_answered() -> bool:
                return len(believed) > before + 100

            await eventually(has_answered, WITHIN_S)
            is_over = True
        assert b"old" in believed[:before]
        assert None in believed
        first = believed.index(None)
        assert set(believed[first:]) == {None}
