"""The laws on a store that is slow, loses calls, loses answers, or is asked at a bad moment."""

from contextlib import AbstractAsyncContextManager

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.errors import Busy, Cancelled, Lost, Outcome, RpcError, Unavailable
from leasekeeper.messages import (
    HeartbeatSeen,
    LeaseAcquireAll,
    LeaseBreak,
    LeaseBroken,
    LeaseGrant,
    LeaseGrants,
    LeaseLost,
    LeaseRelease,
    LeaseReleased,
    LeaseRenew,
    LeaseResume,
    LeaseWatch,
    SessionHeartbeat,
)
from leasekeeper.service.limits import Limits
from tests.service.conftest import World, new_lease, open_world
from tests.service.flaky import Fault, FlakyStore

SLOW = Fault(before_s=1)
SLOW_ANSWER = Fault(after_s=1)
LONG_MS = 3_600_000


def open_flaky(store: FlakyStore) -> AbstractAsyncContextManager[World]:
    """A world on this store."""
    return open_world(Limits(), store)


async def is_free(world: World, name: str) -> bool:
    """Whether a newcomer gets it at once."""
    try:
        await world.client().acquire(name, ttl_ms=100, auto_renew=False)
    except Busy:
        return False
    return True


# --- The holder knows (L3) --------------------------------------------------------------------


async def test_l3_a_grant_that_was_broken_before_it_was_read_is_not_answered(
    world: World, clock: MockClock
) -> None:
    """L3: two breaks in one tick; the waiter granted by the first is put out by the second, and
    must not be told `lease.lost` first and the grant after it."""
    holder, waiter, operator = (world.client() for _ in range(3))
    await holder.acquire("n")
    pending = await world.wait_for(waiter, "n")
    for _ in range(2):
        await operator.ask(LeaseBreak("n"), LeaseBroken)
    await pending.done.wait()
    assert isinstance(pending.error, Lost)
    assert waiter.session.held == 0
    assert not world.keeper.leases.tenures.held("n")


async def test_l3_a_slow_grant_of_a_released_lease_goes_back(clock: MockClock) -> None:
    """L3, L6: the id is released while the store still grants it."""
    async with open_flaky(FlakyStore(script={"acquire": [SLOW]})) as world:
        client, lease = world.client(), new_lease()
        pending = await world.wait_for(client, "n", lease=lease, ttl_ms=LONG_MS)
        await client.ask(LeaseRelease("n", lease), LeaseReleased)
        await pending.done.wait()
        assert isinstance(pending.error, Cancelled)
        await trio.testing.wait_all_tasks_blocked()
        assert client.session.held == 0
        assert await is_free(world, "n")


async def test_l3_a_repeat_after_expiry_is_not_answered_with_the_old_grant(
    world: World, clock: MockClock
) -> None:
    """L1, L3: it expired, another has it, and the repeat is queued; it must not return at once."""
    holder, waiter = world.client(), world.client()
    grant = await holder.acquire("n", ttl_ms=105, auto_renew=False)
    waiting = await world.wait_for(waiter, "n")
    await trio.sleep(0.107)  # over, and the store's alarm comes a few ms later
    repeat = await world.wait_for(holder, "n", lease=grant.lease, wait_ms=1000)
    await waiting.done.wait()
    await repeat.done.wait()
    assert isinstance(repeat.error, RpcError)


async def test_l3_a_set_with_a_maximum_hold_says_what_is_left_of_it(
    world: World, clock: MockClock
) -> None:
    """L3: `max_hold_ms` ran on while another name of the set was waited for."""
    other, client = world.client(), world.client()
    held = await other.acquire("b")
    ask = LeaseAcquireAll(("a", "b"), ttl_ms=5000, max_hold_ms=5000, wait_ms=None)
    pending = await world.start(client, ask)
    await trio.sleep(4)
    await other.ask(LeaseRelease("b", held.lease), LeaseReleased)
    await pending.done.wait()
    assert isinstance(pending.result, LeaseGrants)
    assert [each.ttl_ms for each in pending.result.leases] == [1000, 5000]


async def test_l3_a_set_is_not_granted_if_one_is_broken_while_all_are_renewed(
    clock: MockClock,
) -> None:
    """L3: the store's answer to the renewal is older than the break."""
    async with open_flaky(FlakyStore(script={"renew": [SLOW_ANSWER]})) as world:
        client = world.client()
        pending = await world.start(client, LeaseAcquireAll(("a", "b")))
        await world.client().ask(LeaseBreak("b"), LeaseBroken)
        await pending.done.wait()
        assert isinstance(pending.error, Lost)
        await trio.testing.wait_all_tasks_blocked()
        assert await is_free(world, "a")


async def test_l3_a_renewal_is_not_confirmed_after_the_lease_was_broken(clock: MockClock) -> None:
    """L3: as above, for `lease.renew`."""
    async with open_flaky(FlakyStore(script={"renew": [SLOW_ANSWER]})) as world:
        client = world.client()
        grant = await client.acquire("n")
        pending = await world.start(client, LeaseRenew("n", grant.lease))
        await world.client().ask(LeaseBreak("n"), LeaseBroken)
        await pending.done.wait()
        assert isinstance(pending.error, Lost)


# --- Renewal (L8) -----------------------------------------------------------------------------


async def test_l8_a_pong_counts_though_another_lease_was_granted_since_the_ping(
    world: World, clock: MockClock
) -> None:
    """L8: a living client with a slow link keeps a short lease beside a long one."""
    client, other = world.client(), world.client()
    client.alive = False  # its pongs are sent by hand
    await client.acquire("short", ttl_ms=1000)
    held = await other.acquire("long")
    pending = await world.wait_for(client, "long", ttl_ms=LONG_MS)
    await trio.sleep(0.35)
    assert client.pings == 1
    await other.ask(LeaseRelease("long", held.lease), LeaseReleased)
    await pending.done.wait()
    world.keeper.alive(client.session)
    client.alive = True
    await trio.sleep(2)
    assert not client.heard(LeaseLost)


async def test_l8_a_short_lease_survives_a_renewal_that_failed_once(clock: MockClock) -> None:
    """L8: the retry comes in time for its TTL."""
    failing = Fault(fails=Outcome.NONE)
    async with open_flaky(FlakyStore(script={"renew": [failing]})) as world:
        client = world.client()
        await client.acquire("n", ttl_ms=200)
        await trio.sleep(1)
        assert not client.heard(LeaseLost)


async def test_l8_a_shorter_ttl_of_unknown_outcome_is_renewed_in_time(clock: MockClock) -> None:
    """L8: the store may have taken it."""
    lost_answer = Fault(fails=Outcome.UNKNOWN)
    async with open_flaky(FlakyStore(script={"renew": [lost_answer]})) as world:
        client = world.client()
        grant = await client.acquire("n")
        with pytest.raises(Unavailable):
            await client.ask(LeaseRenew("n", grant.lease, 500), LeaseGrant)
        await trio.sleep(5)
        assert not client.heard(LeaseLost)


async def test_l8_an_old_loss_does_not_end_a_new_grant(clock: MockClock) -> None:
    """L8: the news of an expiry comes after the same id was granted again."""
    store = FlakyStore(late_s=0.05)
    async with open_flaky(store) as world:
        client = world.client().with_heartbeats()
        grant = await client.acquire("n", ttl_ms=1000)
        await trio.sleep(1.011)
        again = await client.acquire("n", ttl_ms=LONG_MS, lease=grant.lease)
        assert again.fence > grant.fence
        await trio.sleep(0.2)
        assert not client.heard(LeaseLost)
        seen = await client.ask(SessionHeartbeat(), HeartbeatSeen)
        assert (seen.lost, seen.renewed) == ((), 1)


# --- What is not wanted goes back (L5, L6, L8) ------------------------------------------------


async def test_l8_a_release_cut_short_by_a_close_is_carried_out(clock: MockClock) -> None:
    """L8: "release, then close" is what most clients do."""
    async with open_flaky(FlakyStore(script={"release": [SLOW]})) as world:
        client = world.client()
        grant = await client.acquire("n", ttl_ms=LONG_MS)
        pending = await world.start(client, LeaseRelease("n", grant.lease))
        client.close()
        pending.scope.cancel()
        await trio.sleep(2)
        assert await is_free(world, "n")


async def test_l6_a_repeat_is_not_undone_by_the_giving_back_of_the_first(clock: MockClock) -> None:
    """L6, L1: the first had no answer and is being given back while the repeat is granted."""
    script = {"acquire": [Fault(fails=Outcome.UNKNOWN)], "release": [SLOW]}
    async with open_flaky(FlakyStore(script=script)) as world:
        client, lease = world.client(), new_lease()
        with pytest.raises(Unavailable):
            await client.acquire("n", lease=lease)
        await trio.testing.wait_all_tasks_blocked()
        await client.acquire("n", lease=lease)
        await trio.sleep(2)
        assert not await is_free(world, "n")


async def test_l6_an_old_connection_s_failure_does_not_release_what_moved_on(
    clock: MockClock,
) -> None:
    """L6, L8: a request fails on the half-open connection after the new one took it over."""
    script = {"acquire": [Fault(after_s=1, fails=Outcome.UNKNOWN)]}
    async with open_flaky(FlakyStore(script=script)) as world:
        old, new, lease = world.client(), world.client(), new_lease()
        pending = await world.wait_for(old, "n", lease=lease)
        await new.ask(LeaseResume("n", lease), LeaseGrant)
        await pending.done.wait()
        await trio.sleep(1)
        assert new.session.held == 1
        assert not await is_free(world, "n")


async def test_l6_a_set_taken_over_by_a_new_connection_stays_whole(
    world: World, clock: MockClock
) -> None:
    """L6, L8: `lease.acquire_all` is repeated on a new connection before the old one is seen to
    be gone."""
    other, old, new, lease = world.client(), world.client(), world.client(), new_lease()
    held = await other.acquire("b")
    ask = LeaseAcquireAll(("a", "b"), lease=lease, wait_ms=None)
    first = await world.start(old, ask)
    second = await world.start(new, ask)
    await trio.testing.wait_all_tasks_blocked()
    await other.ask(LeaseRelease("b", held.lease), LeaseReleased)
    await second.done.wait()
    assert isinstance(first.error, Cancelled)
    assert isinstance(second.result, LeaseGrants), second.error


async def test_l6_the_end_of_one_of_two_equal_sets_does_not_end_the_other(
    world: World, clock: MockClock
) -> None:
    """L6: the same set, asked for twice on one connection; one of the two is cancelled."""
    other, client, lease = world.client(), world.client(), new_lease()
    held = await other.acquire("b")
    ask = LeaseAcquireAll(("a", "b"), lease=lease, wait_ms=None)
    first, second = await world.start(client, ask), await world.start(client, ask)
    first.scope.cancel()
    await trio.testing.wait_all_tasks_blocked()
    await other.ask(LeaseRelease("b", held.lease), LeaseReleased)
    await second.done.wait()
    assert isinstance(second.result, LeaseGrants), second.error


async def test_l5_a_wait_without_requests_does_not_stay(clock: MockClock) -> None:
    """L5: one of two requests is busy, slowly, while the other is cancelled: nobody waits."""
    async with open_flaky(FlakyStore(script={"inspect": [SLOW]})) as world:
        holder, client, lease = world.client(), world.client(), new_lease()
        held = await holder.acquire("n")
        long = await world.wait_for(client, "n", lease=lease)
        await world.wait_for(client, "n", lease=lease, wait_ms=100)
        await trio.sleep(0.2)
        long.scope.cancel()
        await trio.sleep(2)
        await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
        assert await is_free(world, "n")


async def test_l5_a_resumed_wait_that_failed_does_not_stay(clock: MockClock) -> None:
    """L5, L14: the client was told `unavailable`; no ghost waits on for it."""
    async with open_flaky(FlakyStore(script={"resume": [Fault(fails=Outcome.NONE)]})) as world:
        holder, old, new, lease = *(world.client() for _ in range(3)), new_lease()
        held = await holder.acquire("n")
        await world.wait_for(old, "n", lease=lease)
        with pytest.raises(Unavailable):
            await new.ask(LeaseResume("n", lease), LeaseGrant)
        await trio.testing.wait_all_tasks_blocked()
        await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
        assert await is_free(world, "n")


async def test_l6_the_failure_of_one_of_two_requests_does_not_end_the_other(
    clock: MockClock,
) -> None:
    """L6: the first has no answer from the store; the repeat is granted, and stays so."""
    script = {"acquire": [Fault(after_s=1, fails=Outcome.UNKNOWN)]}
    async with open_flaky(FlakyStore(script=script)) as world:
        client, lease = world.client(), new_lease()
        first = await world.wait_for(client, "n", lease=lease)
        second = await world.wait_for(client, "n", lease=lease)
        await first.done.wait()
        await second.done.wait()
        await trio.sleep(1)
        assert isinstance(first.error, Unavailable)
        assert second.grant.fence
        assert not await is_free(world, "n")


async def test_l5_giving_back_goes_on_beside_a_call_that_hangs(clock: MockClock) -> None:
    """L5, L8: one release that the store is slow at does not keep the next session's."""
    async with open_flaky(FlakyStore(script={"release": [Fault(before_s=60)]})) as world:
        one, two = world.client(), world.client()
        await one.acquire("a")
        await two.acquire("b")
        one.close()
        await trio.testing.wait_all_tasks_blocked()
        two.close()
        await trio.sleep(1)
        assert await is_free(world, "b")


async def test_l12_watches_that_are_under_way_count(clock: MockClock) -> None:
    """L12: a slow store does not lift the bound."""
    store = FlakyStore(script={"watch": [SLOW, SLOW]})
    async with open_world(Limits(watches_per_session=1), store) as world:
        client = world.client()
        first = await world.start(client, LeaseWatch("a"))
        second = await world.start(client, LeaseWatch("b"))
        await first.done.wait()
        await second.done.wait()
        assert (first.error, type(second.error).__name__) == (None, "LimitReached")


async def test_l5_an_answer_that_is_older_than_another_s_ends_nothing(clock: MockClock) -> None:
    """L5, L6: a resume is slow to say that there is nothing; the id was granted since."""
    async with open_flaky(FlakyStore(script={"resume": [SLOW_ANSWER]})) as world:
        client, lease = world.client(), new_lease()
        resumed = await world.start(client, LeaseResume("n", lease))
        acquired = await world.wait_for(client, "n", lease=lease, ttl_ms=LONG_MS)
        await resumed.done.wait()
        await acquired.done.wait()
        assert isinstance(resumed.error, Lost)
        knows = acquired.error is None
        await trio.testing.wait_all_tasks_blocked()
        assert client.session.held == int(knows)
        assert await is_free(world, "n") is not knows


async def test_l5_a_wait_that_ends_while_it_is_queued_again_is_not_granted_to_nobody(
    clock: MockClock,
) -> None:
    """L5: the store had forgotten the waiter; its client leaves while it is queued again."""
    store = FlakyStore(script={"touch": [Fault(before_s=1)]})
    async with open_flaky(store) as world:
        holder, client, lease = world.client(), world.client(), new_lease()
        await holder.acquire("n")
        await world.wait_for(client, "n", lease=lease, ttl_ms=LONG_MS)
        await trio.sleep(5.5)
        await store.inner.release("n", lease)
        holder.close()
        store.script["acquire"] = [SLOW]
        await trio.sleep(1)
        client.close()
        await trio.sleep(2)
        assert await is_free(world, "n")


@pytest.mark.parametrize("fault", [Fault(fails=Outcome.UNKNOWN), SLOW_ANSWER])
async def test_l9_a_watch_that_failed_or_was_cancelled_is_not_left(
    fault: Fault, clock: MockClock
) -> None:
    """L9: the store does not go on telling us."""
    store = FlakyStore(script={"watch": [fault]})
    async with open_flaky(store) as world:
        client = world.client()
        pending = await world.start(client, LeaseWatch("n"))
        client.drop()
        pending.scope.cancel()
        await trio.sleep(2)
        assert not store.inner._watched
