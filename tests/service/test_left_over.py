"""What a request has asked the store for is not forgotten when a later one, of the same lease id,
has taken its place and fails. All of these were found by the storm, or by looking for its like."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.errors import Outcome, RpcError, Unavailable
from leasekeeper.messages import (
    LeaseAcquire,
    LeaseInspect,
    LeaseLost,
    LeaseRelease,
    LeaseReleased,
    LeaseResume,
    LeaseState,
)
from leasekeeper.service.limits import Limits
from tests.service.conftest import World, new_lease, open_world
from tests.service.flaky import Fault, FlakyStore
from tests.service.routing import two_servers


@pytest.fixture
def store() -> FlakyStore:
    """The keeper's."""
    return FlakyStore()


@pytest.fixture
async def world(store: FlakyStore, clock: MockClock) -> AsyncIterator[World]:
    """A running keeper on that store."""
    async with open_world(Limits(), store) as opened:
        yield opened


async def waiting(world: World) -> int:
    """How many wait for "n"."""
    return (await world.client().ask(LeaseInspect("n"), LeaseState)).waiting_total


async def test_l9_an_acquire_of_unknown_outcome_is_given_back_though_a_resume_failed_before_it(
    world: World, store: FlakyStore, clock: MockClock
) -> None:
    """L6, L9: both requests are of one session, and the resume is answered first."""
    store.script["resume"] = [Fault(before_s=1, fails=Outcome.NONE)]
    client, lease = world.client(), new_lease()
    await world.client().acquire("n", ttl_ms=60_000)
    store.script["acquire"] = [Fault(fails=Outcome.UNKNOWN)]
    resume = await world.start(client, LeaseResume("n", lease))
    acquire = await world.wait_for(client, "n", lease=lease)
    await resume.done.wait()
    await acquire.done.wait()
    assert isinstance(acquire.error, Unavailable)
    await trio.sleep(1)
    assert await waiting(world) == 0


async def test_l9_an_acquire_of_unknown_outcome_is_given_back_though_a_resume_fails_after_it(
    world: World, store: FlakyStore, clock: MockClock
) -> None:
    """L6, L9: the other way round."""
    client, lease = world.client(), new_lease()
    await world.client().acquire("n", ttl_ms=60_000)
    store.script["acquire"] = [Fault(after_s=1, fails=Outcome.UNKNOWN)]
    store.script["resume"] = [Fault(fails=Outcome.NONE)]
    acquire = await world.wait_for(client, "n", lease=lease)
    resume = await world.start(client, LeaseResume("n", lease))
    await acquire.done.wait()
    await resume.done.wait()
    await trio.sleep(1)
    assert await waiting(world) == 0


@pytest.mark.parametrize("fault", [Fault(), Fault(after_s=1)], ids=["answered", "cut short"])
async def test_l9_what_a_dropped_connection_had_asked_for_is_given_back_if_the_resume_fails(
    fault: Fault, world: World, store: FlakyStore, clock: MockClock
) -> None:
    """L8, L9: nobody was told of it, so nobody believes in it."""
    old, new, lease = world.client(), world.client(), new_lease()
    await world.client().acquire("n", ttl_ms=60_000)
    store.script["acquire"] = [fault]
    asked = await world.wait_for(old, "n", lease=lease)
    store.script["resume"] = [Fault(before_s=0.1, fails=Outcome.NONE)]
    resume = await world.start(new, LeaseResume("n", lease))
    old.drop()
    asked.scope.cancel()
    await resume.done.wait()
    assert isinstance(resume.error, Unavailable)
    await trio.sleep(1)
    assert await waiting(world) == 0


async def test_l9_a_wait_that_is_queued_again_is_not_left_there_by_who_asked_meanwhile(
    world: World, store: FlakyStore, clock: MockClock
) -> None:
    """L9: it was dropped from the queue, released while it was queued again, and asked for anew by
    one who did not wait: his answer is older than that queueing, and comes after it."""
    client, lease = world.client(), new_lease()
    await world.client().acquire("n", ttl_ms=60_000)
    first = await world.wait_for(client, "n", lease=lease)
    await store.inner.release("n", lease)  # as if it had been dropped
    store.script["acquire"] = [Fault(before_s=1), Fault(after_s=2)]
    await trio.sleep(4.5)  # its server vouches for it, and queues it again
    await client.ask(LeaseRelease("n", lease), LeaseReleased)
    await first.done.wait()
    second = await world.start(client, LeaseAcquire("n", lease=lease, wait_ms=0))
    await second.done.wait()
    await trio.sleep(1)
    assert await waiting(world) == 0


async def test_l3_a_call_that_is_late_takes_nothing_from_who_asked_after_it(
    world: World, store: FlakyStore, clock: MockClock
) -> None:
    """L3: what was asked for by a request that was released meanwhile would be given back, with
    what a later request of the same lease id was granted and believes in."""
    client, lease = world.client(), new_lease()
    store.script["acquire"] = [Fault(before_s=1)]
    late = await world.start(client, LeaseAcquire("n", lease=lease))
    await client.ask(LeaseRelease("n", lease), LeaseReleased)
    again = await world.start(client, LeaseAcquire("n", lease=lease))
    await late.done.wait()
    await again.done.wait()
    assert isinstance(late.error, RpcError)
    await trio.sleep(3)
    state = await world.client().ask(LeaseInspect("n"), LeaseState)
    assert [holder.fence for holder in state.holders] == [again.grant.fence]
    assert not client.heard(LeaseLost)


async def test_l8_a_resume_that_fails_takes_nothing_from_who_may_believe_in_it(
    clock: MockClock,
) -> None:
    """L8: although a resume of an earlier connection was cut short there, too."""
    async with two_servers() as (a, b):
        grant = await a.world.client().acquire("n")
        old, new = b.world.client(), b.world.client()
        b.store.script["resume"] = [Fault(before_s=1), Fault(fails=Outcome.NONE)]
        cut = await b.world.start(old, LeaseResume("n", grant.lease))
        old.drop()
        cut.scope.cancel()
        again = await b.world.start(new, LeaseResume("n", grant.lease))
        await again.done.wait()
        assert isinstance(again.error, Unavailable)
        await trio.sleep(10)
        state = await a.world.client().ask(LeaseInspect("n"), LeaseState)
        assert [each.fence for each in state.holders] == [grant.fence]
