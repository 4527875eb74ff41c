"""Sessions: signs of life, drops, closes and resuming, on a virtual clock (L8)."""

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.errors import Busy, Cancelled, Lost
from leasekeeper.messages import (
    HeartbeatSeen,
    LeaseGrant,
    LeaseLost,
    LeaseRelease,
    LeaseReleased,
    LeaseRenew,
    LeaseRenewed,
    LeaseResume,
    LostReason,
    OnDrop,
    SessionHeartbeat,
)
from tests.service.conftest import World, new_lease

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
    assert again.grant.waited_ms == 0
    await trio.sleep(10)
    assert not new.heard(LeaseLost)
