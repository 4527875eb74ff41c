"""Two servers over one store: what a client finds where it resumes, and what the old server leaves
alone."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.errors import Busy, Cancelled, InvalidParams, Lost, Outcome, Unavailable
from leasekeeper.messages import (
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
    LeaseResume,
    LeaseState,
    LeaseWatch,
    LostReason,
    Mode,
    OnDrop,
    SessionHeartbeat,
)
from tests.service.conftest import World, new_lease
from tests.service.flaky import Fault
from tests.service.routing import Side, two_servers

TTL_MS = 30_000
Pair = tuple[Side, Side]


@pytest.fixture
async def pair(clock: MockClock) -> AsyncIterator[Pair]:
    """Two running servers on a clock that jumps ahead when nothing else is to do."""
    async with two_servers() as opened:
        yield opened


async def holds(world: World, name: str, fence: int) -> bool:
    """Whether this grant still stands."""
    state = await world.client().ask(LeaseInspect(name), LeaseState)
    return [holder.fence for holder in state.holders] == [fence]


# --- Resuming elsewhere (L6, L7, L8) ----------------------------------------------------------


async def test_l8_a_lease_is_resumed_on_another_server_with_its_fence(
    pair: Pair, clock: MockClock
) -> None:
    """L8: and that server renews it, on the word of the new connection."""
    a, b = pair
    old, new = a.world.client(), b.world.client()
    grant = await old.acquire("n", ttl_ms=TTL_MS)
    old.drop()
    await trio.sleep(4)
    again = await new.ask(LeaseResume("n", grant.lease), LeaseGrant)
    assert (again.fence, again.ttl_ms, again.waited_ms) == (grant.fence, TTL_MS, 0)
    assert not len(a.world.keeper.leases.tenures)
    await trio.sleep(600)
    assert await holds(a.world, "n", grant.fence)
    assert not new.heard(LeaseLost)
    new.alive = False
    await trio.sleep(31)
    assert [lost.reason for lost in new.heard(LeaseLost)] == [LostReason.EXPIRED]
    assert not old.told


@pytest.mark.parametrize("drops", [True, False])
async def test_l8_the_old_connection_s_end_takes_nothing_away(
    drops: bool, pair: Pair, clock: MockClock
) -> None:
    """L8: the end of its grace, or a clean close that comes late, though `Moved` never came."""
    a, b = pair
    old, new = a.world.client(), b.world.client()
    grant = await old.acquire("n", ttl_ms=TTL_MS)
    a.store.kept = []  # it is deaf from now on
    await new.ask(LeaseResume("n", grant.lease), LeaseGrant)
    old.drop() if drops else old.close()
    await trio.sleep(60)
    assert not len(a.world.keeper.leases.tenures)
    assert await holds(b.world, "n", grant.fence)
    assert not new.told


async def test_l8_a_moved_lease_is_not_told_as_lost(pair: Pair, clock: MockClock) -> None:
    """L8: the old connection, half-open, hears of nothing; its heartbeat has nothing to renew."""
    a, b = pair
    old, new = a.world.client().with_heartbeats(), b.world.client().with_heartbeats()
    grant = await old.acquire("n")
    await new.ask(LeaseResume("n", grant.lease), LeaseGrant)
    await new.ask(LeaseBreak("n"), LeaseBroken)
    assert [lost.fence for lost in new.heard(LeaseLost)] == [grant.fence]
    seen = await old.ask(SessionHeartbeat(), HeartbeatSeen)
    assert (seen.renewed, seen.lost, old.told) == (0, (), [])


async def test_l8_auto_renew_is_known_where_it_is_resumed(pair: Pair, clock: MockClock) -> None:
    """L8: a lease that is not renewed by itself is not renewed there either."""
    a, b = pair
    old, new = a.world.client(), b.world.client()
    grant = await old.acquire("n", ttl_ms=1000, auto_renew=False)
    await new.ask(LeaseResume("n", grant.lease), LeaseGrant)
    await trio.sleep(1.02)
    assert [lost.fence for lost in new.heard(LeaseLost)] == [grant.fence]
    assert new.pings == 0


async def test_l8_on_drop_is_known_where_it_is_resumed(pair: Pair, clock: MockClock) -> None:
    """L8: "release" ends it with the new connection, too."""
    a, b = pair
    old, new, waiter = a.world.client(), b.world.client(), a.world.client()
    grant = await old.acquire("n", on_drop=OnDrop.RELEASE)
    await new.ask(LeaseResume("n", grant.lease), LeaseGrant)
    pending = await a.world.wait_for(waiter, "n")
    dropped_at = trio.current_time()
    new.drop()
    await pending.done.wait()
    assert trio.current_time() == dropped_at


async def test_l8_a_new_ttl_is_known_where_it_is_resumed(pair: Pair, clock: MockClock) -> None:
    """L8: the answer and the renewals are of the TTL that it has by now."""
    a, b = pair
    old, new = a.world.client(), b.world.client()
    grant = await old.acquire("n", ttl_ms=TTL_MS)
    await a.store.inner.renew([])
    await old.acquire("n", ttl_ms=TTL_MS, lease=grant.lease)
    a.store.inner._step("n", lambda lock, now: lock.renew(grant.lease, 600, now=now))
    again = await new.ask(LeaseResume("n", grant.lease), LeaseGrant)
    assert again.ttl_ms == 600
    await trio.sleep(60)
    assert not new.heard(LeaseLost)


async def test_l8_a_wait_is_resumed_elsewhere_with_its_place_and_deadline(
    pair: Pair, clock: MockClock
) -> None:
    """L4, L8: the first request's `wait_ms` runs on, whichever server counts it."""
    a, b = pair
    holder, old, behind, new = (
        a.world.client(),
        a.world.client(),
        a.world.client(),
        b.world.client(),
    )
    await holder.acquire("n")
    lease = new_lease()
    first = await a.world.wait_for(old, "n", lease=lease, wait_ms=3000)
    await a.world.wait_for(behind, "n")
    old.drop()
    first.scope.cancel()
    await trio.sleep(1)
    again = await b.world.start(new, LeaseResume("n", lease))
    state = await holder.ask(LeaseInspect("n"), LeaseState)
    assert state.waiting_total == 2
    await again.done.wait()
    assert isinstance(again.error, Busy)
    assert 3 <= trio.current_time() <= 3.01


async def test_l4_a_wait_that_was_resumed_elsewhere_is_granted_there_in_turn(
    pair: Pair, clock: MockClock
) -> None:
    """L4, L5: by the release of a holder on the old server; the one behind it waits on."""
    a, b = pair
    holder, old, behind, new = (
        a.world.client(),
        a.world.client(),
        a.world.client(),
        b.world.client(),
    )
    held = await holder.acquire("n")
    lease = new_lease()
    first = await a.world.wait_for(old, "n", lease=lease)
    second = await a.world.wait_for(behind, "n")
    again = await b.world.start(new, LeaseResume("n", lease))
    await first.done.wait()
    assert isinstance(first.error, Cancelled)
    await trio.sleep(60)
    await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
    await again.done.wait()
    assert again.grant.fence > held.fence
    assert not second.done.is_set()
    await trio.sleep(60)
    assert not new.told


async def test_l6_a_repeated_acquire_moves_a_wait_to_another_server(
    pair: Pair, clock: MockClock
) -> None:
    """L6: as a resume does; and with `wait_ms` 0 the place is given up for both."""
    a, b = pair
    holder, old, new = a.world.client(), a.world.client(), b.world.client()
    await holder.acquire("n")
    lease = new_lease()
    first = await a.world.wait_for(old, "n", lease=lease)
    second = await b.world.wait_for(new, "n", lease=lease)
    await first.done.wait()
    assert isinstance(first.error, Cancelled)
    with pytest.raises(Busy):
        await old.acquire("n", lease=lease)
    await second.done.wait()
    assert isinstance(second.error, Cancelled)
    state = await holder.ask(LeaseInspect("n"), LeaseState)
    assert state.waiting_total == 0


async def test_l6_a_repeat_with_another_mode_elsewhere_moves_nothing(
    pair: Pair, clock: MockClock
) -> None:
    """L6: it is refused, and the first server goes on with the lease."""
    a, b = pair
    old, new = a.world.client(), b.world.client()
    grant = await old.acquire("n", ttl_ms=1000)
    with pytest.raises(InvalidParams):
        await new.acquire("n", lease=grant.lease, mode=Mode.SHARED)
    assert not len(b.world.keeper.leases.tenures)
    new.close()
    await trio.sleep(60)
    assert await holds(b.world, "n", grant.fence)
    assert not old.told


async def test_l6_a_set_is_resumed_elsewhere_name_by_name(pair: Pair, clock: MockClock) -> None:
    """L6: `lease.acquire_all`, repeated where the client is now, is the same set."""
    a, b = pair
    old, new = a.world.client(), b.world.client()
    first = await old.ask(LeaseAcquireAll(("x", "y")), LeaseGrants)
    lease = first.leases[0].lease
    old.drop()
    again = await new.ask(LeaseAcquireAll(("x", "y"), lease=lease), LeaseGrants)
    assert [g.fence for g in again.leases] == [g.fence for g in first.leases]
    await trio.sleep(60)
    assert not new.told
    assert new.session.held == 2


async def test_l8_a_session_may_come_back_to_the_server_it_left(
    pair: Pair, clock: MockClock
) -> None:
    """L8: from a to b and back to a, each time on a new connection."""
    a, b = pair
    grant = await a.world.client().acquire("n", ttl_ms=1000)
    clients = [side.world.client() for side in (b, a, b, a)]
    for client in clients:
        again = await client.ask(LeaseResume("n", grant.lease), LeaseGrant)
        assert again.fence == grant.fence
        await trio.sleep(3)
    assert len(a.world.keeper.leases.tenures) == 1
    assert not len(b.world.keeper.leases.tenures)
    await trio.sleep(60)
    assert not any(client.told for client in clients)


async def test_l14_a_resume_that_the_store_did_not_answer_leaves_the_lease_where_it_was(
    pair: Pair, clock: MockClock
) -> None:
    """L14, L8: `unavailable`, and the old connection still has it."""
    a, b = pair
    b.store.script["resume"] = [Fault(fails=Outcome.NONE)]
    old, new = a.world.client(), b.world.client()
    grant = await old.acquire("n", ttl_ms=1000)
    with pytest.raises(Unavailable):
        await new.ask(LeaseResume("n", grant.lease), LeaseGrant)
    await trio.sleep(60)
    assert await holds(b.world, "n", grant.fence)
    assert not old.told


# --- Each hears of its own --------------------------------------------------------------------


async def test_l3_what_happens_is_told_on_the_holder_s_server(pair: Pair, clock: MockClock) -> None:
    """L3: losses and contention, whoever causes them where; and changes to all that watch."""
    a, b = pair
    holder, waiter, watcher = a.world.client(), b.world.client(), b.world.client()
    await watcher.ask(LeaseWatch("n"), LeaseState)
    grant = await holder.acquire("n")
    pending = await b.world.wait_for(waiter, "n")
    assert [each.waiting for each in holder.heard(LeaseContended)] == [1]
    await watcher.ask(LeaseBreak("n", "stuck"), LeaseBroken)
    assert [(lost.fence, lost.detail) for lost in holder.heard(LeaseLost)] == [
        (grant.fence, "stuck")
    ]
    await pending.done.wait()
    seen = [[h.fence for h in each.holders] for each in watcher.heard(LeaseChanged)]
    assert seen == [[grant.fence], [pending.grant.fence]]
    assert not waiter.told


async def test_l4_fifo_across_servers(pair: Pair, clock: MockClock) -> None:
    """L4."""
    sides = pair
    holder = pair[0].world.client()
    held = await holder.acquire("n")
    waiting = []
    for index in range(40):
        world = sides[index % 2].world
        client = world.client()
        waiting.append((client, await world.wait_for(client, "n")))
    await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
    fences = [held.fence]
    for index, (client, pending) in enumerate(waiting):
        await pending.done.wait()
        assert not any(later.done.is_set() for _, later in waiting[index + 1 :])
        fences.append(pending.grant.fence)
        await client.ask(LeaseRelease("n", pending.grant.lease), LeaseReleased)
        await trio.testing.wait_all_tasks_blocked()
    assert fences == sorted(set(fences))


# --- A server that died -----------------------------------------------------------------------


async def test_l5_a_dead_server_s_waiter_stalls_nobody_for_long(
    pair: Pair, clock: MockClock
) -> None:
    """L5: its turn comes, nobody renews it, and it passes by within `waiter_alive_ms`."""
    a, b = pair
    holder, dead, behind = b.world.client(), a.world.client(), b.world.client()
    held = await holder.acquire("n")
    await a.world.wait_for(dead, "n", ttl_ms=3_600_000)
    pending = await b.world.wait_for(behind, "n")
    await trio.sleep(7)
    a.die()
    died_at = trio.current_time()
    await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
    await pending.done.wait()
    assert trio.current_time() - died_at <= 15.02


async def test_l8_what_a_dead_server_had_is_resumed_on_another(
    pair: Pair, clock: MockClock
) -> None:
    """L8: its leases and its places, as long as their TTL and its word last."""
    a, b = pair
    holder, waiter, new = a.world.client(), a.world.client(), b.world.client()
    held = await holder.acquire("n", ttl_ms=TTL_MS)
    lease = new_lease()
    await a.world.wait_for(waiter, "n", lease=lease)
    a.die()
    await trio.sleep(4)
    again = await new.ask(LeaseResume("n", held.lease), LeaseGrant)
    assert again.fence == held.fence
    pending = await b.world.start(new, LeaseResume("n", lease))
    await new.ask(LeaseRelease("n", held.lease), LeaseReleased)
    await pending.done.wait()
    assert pending.grant.ttl_ms == TTL_MS


async def test_l8_a_waiter_that_another_server_s_call_granted_is_renewed_by_its_own(
    pair: Pair, clock: MockClock
) -> None:
    """L8: what it was granted is short at first, and its own server makes it last before it tells
    the client."""
    a, b = pair
    holder, waiter = b.world.client(), a.world.client()
    held = await holder.acquire("n")
    pending = await a.world.wait_for(waiter, "n", ttl_ms=60_000)
    await trio.sleep(4.9)
    await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
    await pending.done.wait()
    assert pending.grant.ttl_ms == 60_000
    await trio.sleep(120)
    assert not waiter.told
    assert await holds(b.world, "n", pending.grant.fence)


async def test_l7_a_release_through_another_server_ends_it_everywhere(
    pair: Pair, clock: MockClock
) -> None:
    """L6, L7: the id is all it takes. What was released is not told as lost."""
    a, b = pair
    holder, other = a.world.client().with_heartbeats(), b.world.client()
    grant = await holder.acquire("n")
    answer = await other.ask(LeaseRelease("n", grant.lease), LeaseReleased)
    assert answer.released
    await trio.sleep(1)
    seen = await holder.ask(SessionHeartbeat(), HeartbeatSeen)
    assert (seen.renewed, seen.lost, holder.told) == (0, (), [])


async def test_l6_a_wait_released_through_another_server_is_over(
    pair: Pair, clock: MockClock
) -> None:
    """L6: after it the id has nothing, and the request that waited answers `cancelled`."""
    a, b = pair
    holder, waiter, other = a.world.client(), a.world.client(), b.world.client()
    await holder.acquire("n")
    lease = new_lease()
    pending = await a.world.wait_for(waiter, "n", lease=lease, wait_ms=60_000)
    answer = await other.ask(LeaseRelease("n", lease), LeaseReleased)
    assert not answer.released
    await pending.done.wait()
    assert isinstance(pending.error, Cancelled)
    state = await holder.ask(LeaseInspect("n"), LeaseState)
    assert state.waiting_total == 0


async def test_l1_after_it_was_lost_there_is_nothing_to_resume_anywhere(
    pair: Pair, clock: MockClock
) -> None:
    """L1: `lost`, on the server that had it and on the other."""
    a, b = pair
    grant = await a.world.client().acquire("n", ttl_ms=1000, auto_renew=False)
    await trio.sleep(1.1)
    for side in pair:
        with pytest.raises(Lost):
            await side.world.client().ask(LeaseResume("n", grant.lease), LeaseGrant)
    assert a is not b
