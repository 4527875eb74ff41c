"""What the service promises, law by law, on a virtual clock."""

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.errors import Busy, Cancelled, InvalidParams, LimitReached, Lost
from leasekeeper.messages import (
    Done,
    LeaseAcquireAll,
    LeaseBreak,
    LeaseBroken,
    LeaseChanged,
    LeaseContended,
    LeaseGrants,
    LeaseInspect,
    LeaseLost,
    LeaseRelease,
    LeaseReleased,
    LeaseRenew,
    LeaseRenewed,
    LeaseState,
    LeaseUnwatch,
    LeaseWatch,
    LostReason,
    Mode,
)
from leasekeeper.service.limits import Limits
from tests.service.conftest import World, new_lease, open_world

TTL_MS = 30_000


async def test_a_wait_that_is_over_leaves_the_queue(world: World, clock: MockClock) -> None:
    """Busy after `wait_ms`, and not later granted to nobody."""
    holder, waiter, third = (world.client() for _ in range(3))
    grant = await holder.acquire("n", label="nightly")
    pending = await world.wait_for(waiter, "n", wait_ms=2000)
    await pending.done.wait()
    assert isinstance(pending.error, Busy)
    assert trio.current_time() == pytest.approx(2)
    assert pending.error.data["waiting"] == 0
    await holder.ask(LeaseRelease("n", grant.lease), LeaseReleased)
    assert (await third.acquire("n")).fence > grant.fence


async def test_waited_ms_is_the_time_in_the_queue(world: World, clock: MockClock) -> None:
    """L3: send time + waited_ms + ttl_ms is what a holder may rely on."""
    holder, waiter = world.client(), world.client()
    grant = await holder.acquire("n")
    pending = await world.wait_for(waiter, "n")
    await trio.sleep(7)
    await holder.ask(LeaseRelease("n", grant.lease), LeaseReleased)
    await pending.done.wait()
    assert pending.grant.waited_ms == 7000


async def test_a_cancelled_wait_leaves_nothing_behind(world: World, clock: MockClock) -> None:
    """L6: cancel means "and release it, if it was already granted"."""
    holder, waiter, third = (world.client() for _ in range(3))
    grant = await holder.acquire("n")
    pending = await world.wait_for(waiter, "n")
    pending.scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    await holder.ask(LeaseRelease("n", grant.lease), LeaseReleased)
    assert (await third.acquire("n")).fence > grant.fence


async def test_a_repeated_wait_is_granted_once_and_answers_both(
    world: World, clock: MockClock
) -> None:
    """L6: and the end of one of the two does not end the other."""
    holder, waiter = world.client(), world.client()
    grant = await holder.acquire("n")
    lease = new_lease()
    impatient = await world.wait_for(waiter, "n", lease=lease, wait_ms=1000)
    first = await world.wait_for(waiter, "n", lease=lease)
    second = await world.wait_for(waiter, "n", lease=lease)
    await impatient.done.wait()
    assert isinstance(impatient.error, Busy)
    await holder.ask(LeaseRelease("n", grant.lease), LeaseReleased)
    await first.done.wait()
    await second.done.wait()
    assert first.grant.fence == second.grant.fence
    state = await holder.ask(LeaseInspect("n"), LeaseState)
    assert (len(state.holders), state.waiting_total) == (1, 0)


async def test_a_lease_id_is_not_two_kinds_of_lease(world: World, clock: MockClock) -> None:
    """A repeat with another mode is a mistake, and takes nothing away."""
    holder = world.client()
    grant = await holder.acquire("n")
    with pytest.raises(InvalidParams):
        await holder.acquire("n", lease=grant.lease, mode=Mode.SHARED)
    assert (await holder.acquire("n", lease=grant.lease)).fence == grant.fence


async def test_releasing_a_waiting_lease_ends_the_wait(world: World, clock: MockClock) -> None:
    """The waiting request answers `cancelled`."""
    holder, waiter = world.client(), world.client()
    await holder.acquire("n")
    lease = new_lease()
    pending = await world.wait_for(waiter, "n", lease=lease)
    released = await waiter.ask(LeaseRelease("n", lease), LeaseReleased)
    await pending.done.wait()
    assert not released.released
    assert isinstance(pending.error, Cancelled)


async def test_release_is_idempotent(world: World, clock: MockClock) -> None:
    """L6."""
    holder = world.client()
    grant = await holder.acquire("n")
    release = LeaseRelease("n", grant.lease)
    assert (await holder.ask(release, LeaseReleased)).released
    assert not (await holder.ask(release, LeaseReleased)).released


async def test_fifo_over_two_hundred_waiters(world: World, clock: MockClock) -> None:
    """L4."""
    holder = world.client()
    grant = await holder.acquire("n")
    waiting = [await world.wait_for(world.client(), "n") for _ in range(200)]
    await holder.ask(LeaseRelease("n", grant.lease), LeaseReleased)
    fences = [grant.fence]
    for index, pending in enumerate(waiting):
        await pending.done.wait()
        assert not any(later.done.is_set() for later in waiting[index + 1 :])
        fences.append(pending.grant.fence)
        await holder.ask(LeaseRelease("n", pending.grant.lease), LeaseReleased)
        await trio.testing.wait_all_tasks_blocked()
    assert fences == sorted(set(fences))


async def test_readers_do_not_starve_a_writer(world: World, clock: MockClock) -> None:
    """L4: a reader that comes after a waiting writer waits behind it."""
    reader, writer, late = (world.client() for _ in range(3))
    grant = await reader.acquire("n", mode=Mode.SHARED)
    writing = await world.wait_for(writer, "n")
    with pytest.raises(Busy):
        await late.acquire("n", mode=Mode.SHARED)
    reading = await world.wait_for(late, "n", mode=Mode.SHARED)
    await reader.ask(LeaseRelease("n", grant.lease), LeaseReleased)
    await writing.done.wait()
    assert not reading.done.is_set()
    await writer.ask(LeaseRelease("n", writing.grant.lease), LeaseReleased)
    await reading.done.wait()


async def test_a_limit_of_three_never_shows_four_holders(world: World, clock: MockClock) -> None:
    """L1."""
    clients = [world.client() for _ in range(12)]
    pending = [await world.wait_for(each, "n", mode=Mode.SHARED, limit=3) for each in clients]
    for index, each in enumerate(pending):
        await each.done.wait()
        state = await clients[0].ask(LeaseInspect("n"), LeaseState)
        assert len(state.holders) <= 3
        await clients[index].ask(LeaseRelease("n", each.grant.lease), LeaseReleased)
        await trio.testing.wait_all_tasks_blocked()


async def test_holders_hear_of_contention_at_most_once_a_second(
    world: World, clock: MockClock
) -> None:
    """`lease.contended`."""
    holder, crowd = world.client(), world.client()
    await holder.acquire("n")
    for _ in range(5):
        await world.wait_for(crowd, "n")
    assert [each.waiting for each in holder.heard(LeaseContended)] == [1]
    await trio.sleep(1)
    await world.wait_for(crowd, "n")
    assert [each.waiting for each in holder.heard(LeaseContended)] == [1, 6]


async def test_break_puts_the_holder_out_and_says_why(world: World, clock: MockClock) -> None:
    """The next waiter gets it; the broken holder cannot renew."""
    holder, waiter, operator = (world.client() for _ in range(3))
    grant = await holder.acquire("n")
    pending = await world.wait_for(waiter, "n")
    broken = await operator.ask(LeaseBreak("n", "stuck since noon"), LeaseBroken)
    await pending.done.wait()
    assert broken.broken == 1
    (lost,) = holder.heard(LeaseLost)
    assert (lost.reason, lost.detail, lost.fence) == (
        LostReason.BROKEN,
        "stuck since noon",
        grant.fence,
    )
    with pytest.raises(Lost):
        await holder.ask(LeaseRenew("n", grant.lease), LeaseRenewed)


async def test_watchers_see_every_change_of_holders(world: World, clock: MockClock) -> None:
    """`lease.changed`, until `lease.unwatch`, and nothing of other names."""
    holder, watcher = world.client(), world.client()
    state = await watcher.ask(LeaseWatch("n"), LeaseState)
    assert state.holders == ()
    grant = await holder.acquire("n")
    await holder.acquire("other")
    await world.wait_for(world.client(), "n")
    await holder.ask(LeaseRelease("n", grant.lease), LeaseReleased)
    seen = [[h.fence for h in each.holders] for each in watcher.heard(LeaseChanged)]
    assert seen[0] == [grant.fence]
    assert seen[1][0] > grant.fence
    assert len(seen) == 2
    await watcher.ask(LeaseUnwatch("n"), Done)
    await world.client().ask(LeaseBreak("n"), LeaseBroken)
    assert len(watcher.heard(LeaseChanged)) == 2


async def test_nobody_sees_a_lease_id_of_others(world: World, clock: MockClock) -> None:
    """L7: not in inspect, in busy, or in what watchers are told."""
    holder, watcher = world.client(), world.client()
    await watcher.ask(LeaseWatch("n"), LeaseState)
    lease = new_lease()
    await holder.acquire("n", lease=lease)
    with pytest.raises(Busy) as busy:
        await watcher.acquire("n")
    state = await watcher.ask(LeaseInspect("n"), LeaseState)
    assert lease not in repr((busy.value, busy.value.data, state, watcher.told))


async def test_acquire_all_takes_all_or_nothing(world: World, clock: MockClock) -> None:
    """One lease id for all; a busy one gives the others back."""
    holder, other = world.client(), world.client()
    await other.acquire("b")
    with pytest.raises(Busy):
        await holder.ask(LeaseAcquireAll(("c", "b", "a")), LeaseGrants)
    await trio.testing.wait_all_tasks_blocked()
    await other.acquire("a")
    await other.acquire("c")
    other.close()
    await trio.testing.wait_all_tasks_blocked()
    grants = await holder.ask(LeaseAcquireAll(("c", "b", "a")), LeaseGrants)
    assert [each.name for each in grants.leases] == ["a", "b", "c"]
    assert len({each.lease for each in grants.leases}) == 1


async def test_two_sets_in_opposite_order_do_not_deadlock(world: World, clock: MockClock) -> None:
    """Names are taken in sorted order."""
    one, two = world.client(), world.client()
    first = await one.ask(LeaseAcquireAll(("a", "b")), LeaseGrants)
    pending = await world.start(two, LeaseAcquireAll(("b", "a"), wait_ms=None))
    assert not pending.done.is_set()
    for grant in first.leases:
        await one.ask(LeaseRelease(grant.name, grant.lease), LeaseReleased)
    await pending.done.wait()
    assert isinstance(pending.result, LeaseGrants)


async def test_a_set_that_waited_is_held_in_full_when_it_is_granted(
    world: World, clock: MockClock
) -> None:
    """L3: every lease of it lasts its TTL from the grant of the last."""
    one, two = world.client(), world.client()
    held = await one.acquire("b")
    ask = LeaseAcquireAll(("a", "b"), ttl_ms=2000, wait_ms=None, auto_renew=False)
    pending = await world.start(two, ask)
    await trio.sleep(1.5)
    await one.ask(LeaseRelease("b", held.lease), LeaseReleased)
    await pending.done.wait()
    assert isinstance(pending.result, LeaseGrants)
    assert [each.waited_ms for each in pending.result.leases] == [1500, 1500]
    await trio.sleep(1.98)
    assert not two.heard(LeaseLost)


async def test_a_cancelled_set_gives_back_what_it_had(world: World, clock: MockClock) -> None:
    """L6."""
    one, two, three = (world.client() for _ in range(3))
    await one.acquire("b")
    pending = await world.start(two, LeaseAcquireAll(("a", "b"), wait_ms=None))
    pending.scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    await three.acquire("a")
    one.close()
    await trio.testing.wait_all_tasks_blocked()
    await three.acquire("b")


async def test_waiters_outlive_many_touches(world: World, clock: MockClock) -> None:
    """Servers vouch for their waiters; nobody is dropped from a long queue."""
    holder, waiter = world.client(), world.client()
    grant = await holder.acquire("n", ttl_ms=TTL_MS)
    pending = await world.wait_for(waiter, "n")
    await trio.sleep(3600)
    await holder.ask(LeaseRelease("n", grant.lease), LeaseReleased)
    await pending.done.wait()
    assert pending.grant.waited_ms == 3_600_000


async def test_bounds_answer_with_their_name(clock: MockClock) -> None:
    """L12: typed errors at once."""
    limits = Limits(
        leases_per_session=2, waiters_per_session=2, waiters_per_name=3, watches_per_session=1
    )
    async with open_world(limits) as world:
        one, two, three = (world.client() for _ in range(3))
        await one.acquire("n")
        await one.acquire("m")
        with pytest.raises(LimitReached) as reached:
            await one.acquire("o")
        assert reached.value.data == {"limit": "leases_per_session", "max": 2}
        for _ in range(2):
            await world.wait_for(two, "n")
        with pytest.raises(LimitReached) as reached:
            await two.acquire("n", wait_ms=None)
        assert reached.value.data == {"limit": "waiters_per_session", "max": 2}
        await world.wait_for(three, "n")
        with pytest.raises(LimitReached) as reached:
            await three.acquire("n", wait_ms=None)
        assert reached.value.data == {"limit": "waiters_per_name", "max": 3}
        await three.ask(LeaseWatch("n"), LeaseState)
        with pytest.raises(LimitReached) as reached:
            await three.ask(LeaseWatch("m"), LeaseState)
        assert reached.value.data == {"limit": "watches_per_session", "max": 1}


async def test_dropped_sessions_are_bounded_in_number(clock: MockClock) -> None:
    """L12: the oldest grace ends early."""
    async with open_world(Limits(sessions_detached=2)) as world:
        clients = [world.client() for _ in range(3)]
        for index, client in enumerate(clients):
            await client.acquire(f"n{index}")
            client.drop()
        await trio.testing.wait_all_tasks_blocked()
        other = world.client()
        await other.acquire("n0")
        with pytest.raises(Busy):
            await other.acquire("n1")


async def test_nothing_is_left_when_everybody_has_gone(world: World, clock: MockClock) -> None:
    """L9, L12: sessions, tenures, watches and timers all go."""
    clients = [world.client() for _ in range(20)]
    for index, client in enumerate(clients):
        await client.acquire(f"n{index % 7}", wait_ms=None) if index < 7 else await world.wait_for(
            client, f"n{index % 7}"
        )
        await client.ask(LeaseWatch(f"n{index % 5}"), LeaseState)
    for index, client in enumerate(clients):
        client.close() if index % 2 else client.drop()
    await trio.sleep(40)
    keeper = world.keeper
    assert len(keeper.leases.tenures) == 0
    assert not keeper.sessions
    store = keeper.store
    page = await store.list_leases("", 100, None)
    assert page.leases == ()
