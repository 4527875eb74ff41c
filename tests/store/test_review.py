"""What a review found: calls, pauses and watches that cross each other."""

import re
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
from attrs import evolve

from leasekeeper.core.lock import Granted, Left, Resumed
from leasekeeper.errors import Unavailable
from leasekeeper.messages import ORIGINAL_WAIT
from leasekeeper.store.api import Changed
from leasekeeper.store.redis.store import Options
from tests.polling import eventually
from tests.redis_groups import Redises
from tests.store.actors import LONG_MS, Actor, Place

pytestmark = pytest.mark.system

PAUSE_MS = 300
SHORT_MS = 500


@pytest.fixture
def redis(redises: Redises) -> Place:
    """One Redis, empty."""
    single = redises.single()
    return Place(single.url, (single,))


@pytest.fixture
async def one(redis: Place) -> AsyncIterator[Actor]:
    """A server at work on it."""
    async with redis.acting() as actor:
        yield actor


@pytest.fixture
async def two(redis: Place) -> AsyncIterator[Actor]:
    """A second one."""
    async with redis.acting("two") as actor:
        yield actor


async def pause_grants(redis: Place, *servers: Actor, ms: int = 5000) -> None:
    """As if another server had said that data was lost."""
    redis.on("n", "PUBLISH", "lk:servers", f"lost {ms} master")
    for each in servers:
        await eventually(partial(_is_paused, each), within_s=2)


async def _is_paused(server: Actor) -> bool:
    try:
        await server.store.release("paused", (await server.take("paused")).lease)
    except Unavailable:
        return True
    return False


def scripts_run(redis: Place) -> int:
    """How many, since this Redis began."""
    found = re.search(r"cmdstat_evalsha:calls=(\d+)", str(redis.on("n", "INFO", "commandstats")))
    assert found is not None
    return int(found[1])


async def test_l5_a_release_whose_caller_has_gone_wakes_the_next_at_once(
    redis: Place, one: Actor
) -> None:
    """L5: a client releases and closes; what its release did is seen without it."""
    held = await one.take("n")
    claim = await one.queue("n")
    redis.on("n", "CLIENT", "PAUSE", PAUSE_MS)
    with trio.move_on_after(PAUSE_MS / 2000):
        await one.release("n", held.lease)
    await one.granted(claim, within_s=PAUSE_MS / 1000 + 0.5)


async def test_l6_a_repeat_on_another_server_keeps_the_lease_while_grants_are_paused(
    redis: Place, one: Actor, two: Actor
) -> None:
    """L6: it is an old grant, and nothing that a pause is against."""
    held = await one.take("n")
    await pause_grants(redis, one, two)
    again = await two.ask("n", two.again(held.claim))
    assert isinstance(again, Granted)
    assert again.fence == held.fence
    assert await two.release("n", held.lease) is Left.HELD


async def test_l6_what_was_released_in_a_pause_is_not_put_back(redis: Place, one: Actor) -> None:
    """L6: though putting it back had to be tried again and again."""
    held = await one.take("n")
    redis.on("n", "EVAL", "redis.call('FLUSHALL') redis.call('SET', KEYS[1], 'foreign')", 1,
             "lk:{n}:lock")  # fmt: skip
    await pause_grants(redis, one)
    await trio.sleep(0.5)
    await one.release("n", held.lease)
    redis.on("n", "DEL", "lk:{n}:lock")
    await trio.sleep(0.5)
    assert redis.on("n", "GET", "lk:{n}:lock") is None


async def test_l8_a_lease_is_resumed_where_replicas_are_missing(redis: Place, one: Actor) -> None:
    """L8: they were there when it was granted; nothing new is."""
    held = await one.take("n")
    async with redis.acting("two", Options(replicas=1, replicas_ms=50)) as two:
        resumed = await two.store.resume("n", held.lease, two.owner(), wait_ms=ORIGINAL_WAIT)
        assert isinstance(resumed, Resumed)
        assert isinstance(resumed.answer, Granted)
        assert resumed.answer.fence == held.fence


async def test_a_second_watch_takes_no_change_from_the_first(redis: Place, two: Actor) -> None:
    """WAT-1: the message that told of it was lost, or is still under way."""
    async with redis.acting(deaf=True) as one:
        await one.store.watch("n")
        held = await two.take("n")
        await one.store.watch("n")
        state = (await one.next_told(Changed, within_s=1)).state
        assert [holder.fence for holder in state.holders] == [held.fence]


async def test_a_lease_id_that_was_granted_anew_elsewhere_is_looked_at_once(
    redis: Place, two: Actor
) -> None:
    """L12: and not over and over for as long as the new lease lasts."""
    async with redis.acting(deaf=True) as one:
        held = await one.take("n", one.claim(ttl_ms=SHORT_MS))
        assert await two.store.break_("n", None) == 1
        anew = await two.ask("n", evolve(two.again(held.claim), ttl_ms=LONG_MS))
        assert isinstance(anew, Granted)
        lost = await one.lost(held.lease, within_s=SHORT_MS / 1000 + 1)
        assert lost.fence == held.fence
        before = scripts_run(redis)
        await trio.sleep(0.3)
        assert scripts_run(redis) - before < 10
        assert await two.fences("n") == [anew.fence]


async def test_a_watch_may_end_after_its_store(redis: Place) -> None:
    """At the end of a server its connections go last."""
    async with redis.acting() as one:
        await one.store.watch("n")
    one.store.unwatch("n")
