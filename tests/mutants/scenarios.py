"""Small stories of the service that end well, unless somebody has made a mistake."""

import trio
import trio.testing

from leasekeeper.errors import Outcome
from leasekeeper.messages import (
    LeaseAcquire,
    LeaseBreak,
    LeaseBroken,
    LeaseGrant,
    LeaseInspect,
    LeaseLost,
    LeaseRelease,
    LeaseReleased,
    LeaseResume,
    LeaseState,
)
from tests.service.conftest import World, new_lease
from tests.service.flaky import Fault, FlakyStore
from tests.simulation.laws import Violation


async def state_of(world: World, name: str) -> LeaseState:
    """What others see."""
    return await world.client().ask(LeaseInspect(name), LeaseState)


async def a_broken_lease_is_told_to_its_holder(world: World, _: FlakyStore) -> None:
    holder = world.client()
    await holder.acquire("n")
    await world.client().ask(LeaseBreak("n"), LeaseBroken)
    await trio.testing.wait_all_tasks_blocked()
    if not holder.heard(LeaseLost):
        raise Violation("L3", "a lease was broken, and its holder not told")


async def a_silent_holder_loses_its_lease_after_a_ttl(world: World, _: FlakyStore) -> None:
    holder = world.client()
    await holder.acquire("n", ttl_ms=3_000)
    waiter = await world.wait_for(world.client(), "n")
    holder.alive = False
    await trio.sleep(4)
    if not waiter.done.is_set():
        raise Violation("L8", "a frozen client keeps its lease")


async def a_resumed_lease_outlives_the_grace(world: World, _: FlakyStore) -> None:
    old, new = world.client(), world.client()
    grant = await old.acquire("n", ttl_ms=60_000)
    old.drop()
    await trio.sleep(1)
    again = await new.ask(LeaseResume("n", grant.lease), LeaseGrant)
    if again.fence != grant.fence:
        raise Violation("L6", "it was resumed with another fence")
    await trio.sleep(10)
    if not (await state_of(world, "n")).holders:
        raise Violation("L8", "the grace of the old connection has ended what the new one has")


async def a_dropped_connection_keeps_its_lease_for_the_grace_only(
    world: World, _: FlakyStore
) -> None:
    holder = world.client()
    await holder.acquire("n", ttl_ms=60_000)
    holder.drop()
    await trio.sleep(4)
    if not (await state_of(world, "n")).holders:
        raise Violation("L8", "a dropped connection has no grace")
    await trio.sleep(2)
    if (await state_of(world, "n")).holders:
        raise Violation("L8", "a dropped connection keeps its lease after its grace")


async def a_cancelled_wait_is_over(world: World, store: FlakyStore) -> None:
    await world.client().acquire("n", ttl_ms=60_000)
    waiter = await world.wait_for(world.client(), "n")
    store.script["release"] = [Fault(fails=Outcome.NONE)]
    waiter.scope.cancel()
    await trio.sleep(2)
    if (await state_of(world, "n")).waiting_total:
        raise Violation("L6", "a wait was cancelled, and is still in the queue")


async def a_late_asking_undoes_nothing(world: World, store: FlakyStore) -> None:
    client, lease = world.client(), new_lease()
    store.script["acquire"] = [Fault(before_s=1)]
    late = await world.start(client, LeaseAcquire("n", lease=lease))
    await client.ask(LeaseRelease("n", lease), LeaseReleased)
    again = await world.start(client, LeaseAcquire("n", lease=lease))
    await late.done.wait()
    await again.done.wait()
    await trio.sleep(3)
    if not (await state_of(world, "n")).holders and not client.heard(LeaseLost):
        raise Violation("L3", "a lease is gone, and its holder not told")


async def a_failed_resume_forgets_nothing(world: World, store: FlakyStore) -> None:
    client, lease = world.client(), new_lease()
    await world.client().acquire("n", ttl_ms=60_000)
    store.script["resume"] = [Fault(before_s=1, fails=Outcome.NONE)]
    store.script["acquire"] = [Fault(fails=Outcome.UNKNOWN)]
    resume = await world.start(client, LeaseResume("n", lease))
    acquire = await world.wait_for(client, "n", lease=lease)
    await resume.done.wait()
    await acquire.done.wait()
    await trio.sleep(1)
    if (await state_of(world, "n")).waiting_total:
        raise Violation("L9", "somebody is in the queue whom nobody waits for")


async def a_late_renewal_gives_nothing_away_early(world: World, store: FlakyStore) -> None:
    holder, begun = world.client(), trio.current_time()
    await holder.acquire("n", ttl_ms=3_000)
    waiter = await world.wait_for(world.client(), "n")
    store.script["renew"] = [Fault(fails=Outcome.NONE)] * 100
    await trio.sleep_until(begun + 2)
    holder.drop()
    await trio.sleep_until(begun + 2.99)
    if waiter.done.is_set():
        raise Violation("L3", "two have it, and the first was told nothing")


async def a_dead_server_s_waiters_are_passed_by(world: World, store: FlakyStore) -> None:
    holder = world.client()
    grant = await holder.acquire("n", ttl_ms=60_000)
    await world.wait_for(world.client(), "n")
    store.script["touch"] = [Fault(before_s=100)]
    await trio.sleep(30)
    await holder.ask(LeaseRelease("n", grant.lease), LeaseReleased)
    if (await state_of(world, "n")).holders:
        raise Violation("L8", "granted to a waiter that nobody has vouched for")
