"""A lease that the store does not renew in time: its holder is told early, the others are not."""

from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from leasekeeper.errors import Outcome
from leasekeeper.messages import (
    LeaseAcquireAll,
    LeaseLost,
    LeaseRelease,
    LeaseReleased,
    LeaseRenew,
    LeaseRenewed,
    LostReason,
)
from leasekeeper.service.limits import Limits
from tests.service.conftest import World, open_world
from tests.service.flaky import Fault, FlakyStore

FAILS = Fault(fails=Outcome.NONE)
RENEWED_BUT = Fault(fails=Outcome.UNKNOWN)


@pytest.fixture
def store() -> FlakyStore:
    """The keeper's."""
    return FlakyStore()


@pytest.fixture
async def world(store: FlakyStore, clock: MockClock) -> AsyncIterator[World]:
    """A running keeper on that store."""
    async with open_world(Limits(), store) as opened:
        yield opened


@pytest.mark.parametrize("fault", [FAILS, RENEWED_BUT], ids=["not renewed", "maybe renewed"])
@pytest.mark.parametrize("drops", [True, False])
async def test_l3_what_is_given_up_early_is_not_granted_to_another_early(
    drops: bool, fault: Fault, world: World, store: FlakyStore, clock: MockClock
) -> None:
    """L3, L5: who does not hear that it was given up believes in it until it runs out. Whether it
    was renewed or not, after that it is the next one's."""
    holder = world.client()
    begun = trio.current_time()
    await holder.acquire("n", ttl_ms=3_000)
    waiter = await world.wait_for(world.client(), "n")
    store.script["renew"] = [fault] * 100
    await trio.sleep_until(begun + 2)
    if drops:
        holder.drop()
    await trio.sleep_until(begun + 2.99)
    assert not waiter.done.is_set()
    if not drops:
        assert [lost.reason for lost in holder.heard(LeaseLost)] == [LostReason.STORE_LOST]
    await waiter.done.wait()
    assert trio.current_time() - begun == pytest.approx(3, abs=0.02)


async def test_l3_an_older_answer_takes_nothing_from_a_newer(
    world: World, store: FlakyStore, clock: MockClock
) -> None:
    """L1, L3: renewals overtake each other, and the last of the time that they proved counts."""
    holder = world.client()
    begun = trio.current_time()
    grant = await holder.acquire("n", ttl_ms=3_000)
    waiter = await world.wait_for(world.client(), "n")
    await trio.sleep_until(begun + 1.1)  # it was renewed once, and will not be before 1.6
    store.script["renew"] = [Fault(after_s=1), Fault(), *[FAILS] * 100]
    slow = await world.start(holder, LeaseRenew("n", grant.lease))
    await trio.sleep_until(begun + 1.5)
    await holder.ask(LeaseRenew("n", grant.lease), LeaseRenewed)
    await slow.done.wait()
    await waiter.done.wait()
    assert trio.current_time() - begun == pytest.approx(4.5, abs=0.02)


async def test_l3_a_lease_of_several_lasts_as_long_as_their_answer_says(
    world: World, store: FlakyStore, clock: MockClock
) -> None:
    """L1, L3: the first of them was renewed when the last was there."""
    holder, other = world.client(), world.client()
    blocking = await other.acquire("b", ttl_ms=60_000)
    begun = trio.current_time()
    both = LeaseAcquireAll(("a", "b"), ttl_ms=3_000, wait_ms=None)
    pending = await world.start(holder, both)
    await trio.sleep_until(begun + 2)
    store.script["renew"] = [Fault(), *[FAILS] * 100]
    await other.ask(LeaseRelease("b", blocking.lease), LeaseReleased)
    await pending.done.wait()
    waiter = await world.wait_for(world.client(), "a")
    await waiter.done.wait()
    assert trio.current_time() - begun == pytest.approx(5, abs=0.02)
