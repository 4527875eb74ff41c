"""What the service promises, law by law, on a virtual clock."""

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.errors import Busy, Cancelled, InvalidParams, LimitReached, Lost
from leasekeeper.messages import (
    Done,
    HeartbeatSeen,
    LeaseAcquireAll,
    LeaseBreak,
    LeaseBroken,
    LeaseChanged,
    LeaseContended,
    LeaseGrant,
    LeaseGrants,
    LeaseInspect,
    LeaseLost,
    LeaseRelease,
    LeaseReleased,
    LeaseRenew,
    LeaseRenewed,
    LeaseResume,
    LeaseState,
    LeaseUnwatch,
    LeaseWatch,
    LostReason,
    Mode,
    OnDrop,
    SessionHeartbeat,
)
from leasekeeper.service.limits import Limits
from tests.service.conftest import World, new_lease, open_world

TTL_MS = 30_000


async def test_a_pong_renews_for_as_long_as_it_comes(world: World, clock: MockClock) -> None:
    """L8: a living client keeps its lease; a ping per third of the TTL is all it costs."""
    holder, other = world.client(), world.client()
    await holder.acquire("n", ttl_ms=TTL_MS)
    await trio.sleep(3600)
    with pytest.raises(Busy):
        await other.acquire("n")
    assert not holder.heard(LeaseLost)
    assert 3600 / 10 <= holder.pings <= 3600 / 8 + 1


async def test_a_frozen_client_keeps_its_lease_at_most_its_ttl(
    world: World, clock: MockClock
) -> None:
    """L8, L5: the next waiter is granted within the TTL and a moment."""
    holder, waiter = world.client(), world.client()
    await holder.acquire("n", ttl_ms=TTL_MS)
    await trio.sleep(100)
    pending = await world.wait_for(waiter, "n")
    holder.alive = False
    frozen_at = trio.current_time()
    await pending.done.wait()
    assert pending.grant.fence
    assert trio.current_time() - frozen_at <= TTL_MS / 1000 + 0.02
    (lost,) = holder.heard(LeaseLost)
    assert lost.reason is LostReason.EXPIRED


async def test_many_leases_of_a_session_fall_into_step(world: World, clock: MockClock) -> None:
    """A ping serves all leases of a session, whenever they were granted."""
    holder = world.client()
    for index in range(50):
        await holder.acquire(f"n{index}", ttl_ms=TTL_MS)
        await trio.sleep(0.19)
    before = holder.pings
    await trio.sleep(1000)
    assert holder.pings - before <= 1000 / 4
    assert not holder.heard(LeaseLost)


async def test_without_auto_renew_a_lease_ends_with_its_ttl(world: World, clock: MockClock) -> None:
    """`auto_renew: false`: only `lease.renew` extends it."""
    holder = world.client()
    grant = await holder.acquire("n", ttl_ms=1000, auto_renew=False)
    await trio.sleep(0.9)
    answer = await holder.ask(LeaseRenew("n", grant.lease), LeaseRenewed)
    assert answer.ttl_ms == 1000
    await trio.sleep(0.9)
    assert not holder.heard(LeaseLost)
    await trio.sleep(0.2)
    assert [lost.fence for lost in holder.heard(LeaseLost)] == [grant.fence]
    with pytest.raises(Lost):
        await holder.ask(LeaseRenew("n", grant.lease), LeaseRenewed)


async def test_a_new_ttl_holds_from_then_on(world: World, clock: MockClock) -> None:
    """`lease.renew` with `ttl_ms` changes what later renewals extend to."""
    holder = world.client()
    grant = await holder.acquire("n", ttl_ms=TTL_MS)
    await holder.ask(LeaseRenew("n", grant.lease, ttl_ms=600), LeaseRenewed)
    await trio.sleep(60)
    assert not holder.heard(LeaseLost)
    holder.alive = False
    await trio.sleep(0.62)
    assert len(holder.heard(LeaseLost)) == 1


async def test_a_pong_is_no_sign_of_life_where_heartbeats_were_promised(
    world: World, clock: MockClock
) -> None:
    """L8: a frozen program's TCP stack still answers pings."""
    holder = world.client().with_heartbeats()
    grant = await holder.acquire("n", ttl_ms=1000)
    for _ in range(20):
        await trio.sleep(0.3)
        seen = await holder.ask(SessionHeartbeat(), HeartbeatSeen)
        assert (seen.renewed, seen.lost) == (1, ())
    assert holder.pings == 0
    await trio.sleep(1.02)
    assert len(holder.heard(LeaseLost)) == 1
    seen = await holder.ask(SessionHeartbeat(), HeartbeatSeen)
    assert (seen.renewed, seen.lost) == (0, (grant.lease,))
    seen = await holder.ask(SessionHeartbeat(), HeartbeatSeen)
    assert seen.lost == ()


async def test_a_maximum_hold_ends_a_lease_however_alive_its_holder(
    world: World, clock: MockClock
) -> None:
    """`max_hold_ms`: the holder is told why."""
    holder = world.client()
    await holder.acquire("n", ttl_ms=1000, max_hold_ms=5000)
    await trio.sleep(4.99)
    assert not holder.heard(LeaseLost)
    await trio.sleep(0.03)
    assert [lost.reason for lost in holder.heard(LeaseLost)] == [LostReason.MAX_HOLD]


async def test_a_clean_close_releases_at_once(world: World, clock: MockClock) -> None:
    """L8."""
    holder, waiter = world.client(), world.client()
    first = await holder.acquire("n")
    pending = await world.wait_for(waiter, "n")
    closed_at = trio.current_time()
    holder.close()
    await pending.done.wait()
    assert trio.current_time() == closed_at
    assert pending.grant.fence > first.fence


async def test_a_drop_keeps_the_lease_for_the_grace(world: World, clock: MockClock) -> None:
    """L8: and not longer, though its TTL has not passed."""
    holder, waiter = world.client(), world.client()
    await holder.acquire("n", ttl_ms=TTL_MS)
    pending = await world.wait_for(waiter, "n")
    dropped_at = trio.current_time()
    holder.drop()
    await pending.done.wait()
    assert 5 <= trio.current_time() - dropped_at <= 5.02


async def test_a_drop_keeps_the_lease_no_longer_than_its_ttl(
    world: World, clock: MockClock
) -> None:
    """L8: min(grace, what is left of the TTL)."""
    holder, waiter = world.client(), world.client()
    await holder.acquire("n", ttl_ms=1000)
    pending = await world.wait_for(waiter, "n")
    dropped_at = trio.current_time()
    holder.drop()
    await pending.done.wait()
    assert 0.6 <= trio.current_time() - dropped_at <= 1.02


async def test_on_drop_release_gives_the_lease_up_with_the_connection(
    world: World, clock: MockClock
) -> None:
    """`on_drop: "release"`."""
    holder, waiter = world.client(), world.client()
    await holder.acquire("n", on_drop=OnDrop.RELEASE)
    pending = await world.wait_for(waiter, "n")
    dropped_at = trio.current_time()
    holder.drop()
    await pending.done.wait()
    assert trio.current_time() == dropped_at


async def test_a_resumed_lease_has_the_same_fence(world: World, clock: MockClock) -> None:
    """L8: and it is the new session's, renewed by its signs of life."""
    holder, other = world.client(), world.client()
    grant = await holder.acquire("n", ttl_ms=TTL_MS)
    holder.drop()
    await trio.sleep(4)
    again = await other.ask(LeaseResume("n", grant.lease), LeaseGrant)
    assert (again.fence, again.ttl_ms, again.waited_ms) == (grant.fence, TTL_MS, 0)
    await trio.sleep(600)
    assert not other.heard(LeaseLost)
    other.alive = False
    await trio.sleep(31)
    assert len(other.heard(LeaseLost)) == 1


async def test_after_the_grace_there_is_nothing_to_resume(world: World, clock: MockClock) -> None:
    """L8: `lost`."""
    holder, other = world.client(), world.client()
    grant = await holder.acquire("n", ttl_ms=TTL_MS)
    holder.drop()
    await trio.sleep(5.1)
    with pytest.raises(Lost):
        await other.ask(LeaseResume("n", grant.lease), LeaseGrant)


async def test_a_resumed_waiter_keeps_its_place(world: World, clock: MockClock) -> None:
    """L4, L8."""
    holder, dropped, behind, resumed = (world.client() for _ in range(4))
    grant = await holder.acquire("n")
    lease = new_lease()
    first = await world.wait_for(dropped, "n", lease=lease)
    second = await world.wait_for(behind, "n")
    dropped.drop()
    first.scope.cancel()
    await trio.sleep(1)
    again = await world.start(resumed, LeaseResume("n", lease))
    await holder.ask(LeaseRelease("n", grant.lease), LeaseReleased)
    await again.done.wait()
    assert again.grant.fence > grant.fence
    assert not second.done.is_set()


async def test_a_resumed_wait_goes_on_to_its_own_deadline(world: World, clock: MockClock) -> None:
    """`lease.resume` without `wait_ms`."""
    holder, dropped, resumed = (world.client() for _ in range(3))
    await holder.acquire("n")
    lease = new_lease()
    first = await world.wait_for(dropped, "n", lease=lease, wait_ms=3000)
    dropped.drop()
    first.scope.cancel()
    await trio.sleep(1)
    again = await world.start(resumed, LeaseResume("n", lease))
    await again.done.wait()
    assert isinstance(again.error, Busy)
    assert 3 <= trio.current_time() <= 3.1


async def test_an_old_connection_loses_its_wait_to_the_one_that_resumes(
    world: World, clock: MockClock
) -> None:
    """A half-open connection does not hold a place that has moved on."""
    holder, old, new = (world.client() for _ in range(3))
    await holder.acquire("n")
    lease = new_lease()
    first = await world.wait_for(old, "n", lease=lease)
    again = await world.start(new, LeaseResume("n", lease))
    await first.done.wait()
    assert isinstance(first.error, Cancelled)
    assert not again.done.is_set()
    old.drop()
    holder.close()
    await again.done.wait()
    assert again.grant.waited_ms == 0 or again.grant.waited_ms > 0
    await trio.sleep(10)
    assert not new.heard(LeaseLost)


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
