"""The cache on a store that fails: typed errors, no fill that nobody has, no wait for ever."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.errors import Outcome, Unavailable
from leasekeeper.messages import CacheToFill, FillOutcome, Mark
from leasekeeper.service.limits import Limits
from tests.service.caching import Reader, value_of
from tests.service.conftest import World, open_world
from tests.service.flaky import Fault, FlakyStore


@pytest.fixture
def store() -> FlakyStore:
    return FlakyStore()


@pytest.fixture
async def world(store: FlakyStore, clock: MockClock) -> AsyncIterator[World]:
    async with open_world(Limits(), store) as opened:
        yield opened


@pytest.mark.parametrize("outcome", list(Outcome))
async def test_an_outage_is_not_a_miss(
    outcome: Outcome, store: FlakyStore, world: World, clock: MockClock
) -> None:
    """L14: nobody is told to load because the store cannot be asked."""
    store.script["look"] = [Fault(fails=outcome)]
    reader = Reader(world)
    with pytest.raises(Unavailable) as unavailable:
        await reader.get()
    assert unavailable.value.outcome is outcome
    # What may have been granted was given up: the next caller does not wait for its end.
    assert (await reader.load(wait_ms=1_000)).shared


async def test_what_was_granted_unheard_is_given_up_until_that_is_confirmed(
    store: FlakyStore, world: World, clock: MockClock
) -> None:
    """L10: nobody waits for a filler that does not know that it is one."""
    store.script["look"] = [Fault(fails=Outcome.UNKNOWN)]
    store.script["give_up"] = [Fault(fails=Outcome.NONE), Fault(fails=Outcome.UNKNOWN)]
    reader = Reader(world)
    with pytest.raises(Unavailable):
        await reader.get()
    waiting = await reader.begin()
    began = trio.current_time()
    await waiting.done.wait()
    assert isinstance(waiting.result, CacheToFill)
    assert trio.current_time() - began < 1.0


async def test_all_who_wait_are_told_of_an_outage(
    store: FlakyStore, world: World, clock: MockClock
) -> None:
    filler, readers = Reader(world), [Reader(world) for _ in range(5)]
    await filler.load()
    waiting = [await each.begin() for each in readers]
    store.script["look"] = [Fault(fails=Outcome.NONE)]
    for each in waiting:
        await each.done.wait()
        assert isinstance(each.error, Unavailable)


async def test_news_that_are_lost_cost_a_moment_only(
    store: FlakyStore, world: World, clock: MockClock
) -> None:
    """L5: whoever waits looks again by himself."""
    filler, reader = Reader(world), Reader(world)
    granted = await filler.load(fill_ms=60_000)
    waiting = await reader.begin()
    store.kept = []
    began = trio.current_time()
    await filler.fill(granted.fill)
    await waiting.done.wait()
    assert value_of(waiting) == b"1"
    assert trio.current_time() - began < 2.0


async def test_a_fill_may_be_repeated(store: FlakyStore, world: World, clock: MockClock) -> None:
    """L6: the answer was lost, and the repeat has the same."""
    filler = Reader(world)
    granted = await filler.load()
    store.script["fill"] = [Fault(fails=Outcome.UNKNOWN)]
    with pytest.raises(Unavailable):
        await filler.fill(granted.fill)
    assert await filler.fill(granted.fill) is FillOutcome.STORED


async def test_a_look_that_was_cancelled_leaves_the_others_theirs(
    store: FlakyStore, world: World, clock: MockClock
) -> None:
    """L10: whoever looked for all of them is gone while the store was asked."""
    store.script["look"] = [Fault(after_s=1)]
    first, others = Reader(world), [Reader(world) for _ in range(3)]
    leading = await first.begin()
    waiting = [await each.begin() for each in others]
    leading.scope.cancel()
    await leading.done.wait()
    await trio.testing.wait_all_tasks_blocked()
    loading = [each for each in waiting if isinstance(each.result, CacheToFill)]
    await trio.sleep(1)
    loading = [each for each in waiting if isinstance(each.result, CacheToFill)]
    assert len(loading) == 1


async def test_callers_that_come_while_somebody_looks_wait_for_the_next_look(
    store: FlakyStore, world: World, clock: MockClock
) -> None:
    """L11: a value that was seen before a read began is no answer to it."""
    reader, other = Reader(world), Reader(world)
    await reader.fill((await reader.load()).fill, b"1")
    store.script["look"] = [Fault(after_s=1)]
    early = await reader.begin()
    await reader.client.keeper.store.cache.invalidate(["user:42"], (), Mark.HARD)
    late = await other.begin()
    await early.done.wait()
    assert value_of(early) == b"1"
    await late.done.wait()
    assert isinstance(late.result, CacheToFill)


async def test_callers_that_do_not_wait_are_answered_by_the_next_look_all_the_same(
    store: FlakyStore, world: World, clock: MockClock
) -> None:
    """One of those who came meanwhile looks for all of them, and none is told before it has."""
    readers = [Reader(world) for _ in range(3)]
    await readers[0].fill((await readers[0].load()).fill)
    store.script["look"] = [Fault(after_s=1), Fault(after_s=1)]
    pending = [await each.begin(wait_ms=0) for each in readers]
    for each in pending:
        await each.done.wait()
        assert value_of(each) == b"1"
