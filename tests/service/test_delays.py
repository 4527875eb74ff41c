"""Events that come late, or after younger ones: what they say is taken for when it was so."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.core.lock import Granted, WaiterGranted
from leasekeeper.errors import Busy, Cancelled, Outcome
from leasekeeper.messages import (
    LeaseAcquireAll,
    LeaseBreak,
    LeaseBroken,
    LeaseGrant,
    LeaseGrants,
    LeaseInspect,
    LeaseLost,
    LeaseRelease,
    LeaseReleased,
    LeaseResume,
    LeaseState,
)
from leasekeeper.service.limits import Limits
from leasekeeper.store.api import Event, StoreEvent
from tests.service.conftest import World, new_lease, open_world
from tests.service.flaky import Fault, FlakyStore
from tests.service.routing import Side, two_servers

SLOW = Fault(before_s=1)
SLOW_ANSWER = Fault(after_s=1)
LONG_MS = 3_600_000


@pytest.fixture
async def pair(clock: MockClock) -> AsyncIterator[tuple[Side, Side]]:
    """Two running servers on a clock that jumps ahead when nothing else is to do."""
    async with two_servers() as opened:
        yield opened


async def holders(world: World, name: str) -> list[int]:
    """The fences of those who hold it by the store's word."""
    state = await world.client().ask(LeaseInspect(name), LeaseState)
    return [holder.fence for holder in state.holders]


# --- All or nothing -----------------------------------------------------------------------------


async def test_what_was_taken_of_a_set_is_given_back_before_the_answer(
    clock: MockClock,
) -> None:
    """ALL-3, with a store that takes its time over a release, and with one that does not answer."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        other, client = world.client(), world.client()
        await other.acquire("c")
        for fault, free in ((SLOW, True), (Fault(fails=Outcome.NONE), False)):
            # The first is of the wait for "c"; what fails is tried again at once, by 16 tasks.
            store.script["release"] = [Fault(), *40 * [fault]]
            began = trio.current_time()
            with pytest.raises(Busy):
                await client.ask(LeaseAcquireAll(("a", "b", "c"), wait_ms=100), LeaseGrants)
            assert trio.current_time() - began < 1.2  # both at once
            assert (await holders(world, "a") == []) is free
            await trio.sleep(2)
            store.script.clear()
            assert await holders(world, "b") == []


async def test_a_set_that_is_cancelled_while_it_is_given_back_is_given_back_whole(
    clock: MockClock,
) -> None:
    """L6: of what another answer told of, too, for who cancels gives it up."""
    store, lease = FlakyStore(), new_lease()
    async with open_world(Limits(), store) as world:
        other, client = world.client(), world.client()
        await other.acquire("c")
        await client.acquire("a", lease=lease)
        store.script["release"] = [Fault(), SLOW]
        ask = LeaseAcquireAll(("a", "b", "c"), lease=lease, wait_ms=100)
        pending = await world.start(client, ask)
        await trio.sleep(0.5)
        assert not pending.done.is_set()
        assert await holders(world, "b") != []
        pending.scope.cancel()
        await pending.done.wait()
        assert pending.error is None
        await trio.sleep(2)
        assert (await holders(world, "a"), await holders(world, "b")) == ([], [])


async def test_what_was_asked_for_again_is_not_given_back_in_a_hurry(
    world: World, clock: MockClock
) -> None:
    client = world.client()
    grant = await client.acquire("n")
    unwanted = world.keeper.leases.unwanted
    unwanted.add(("n", grant.lease), world.keeper.server)
    await unwanted.hurry(("n", grant.lease))
    assert await holders(world, "n") == [grant.fence]


# --- A clock that steps -------------------------------------------------------------------------


async def test_a_wait_is_no_longer_than_this_servers_own_clock_says(
    world: World, clock: MockClock
) -> None:
    """L3: the store's clock stepped forward by an hour while somebody waited. What a holder adds to
    the time of its request is how long it waited, or it would believe for an hour too long."""
    holder, client, lease = world.client(), world.client(), new_lease()
    held = await holder.acquire("n")
    pending = await world.wait_for(client, "n", lease=lease, ttl_ms=1_000)
    await trio.sleep(2)
    tenure = world.keeper.leases.tenures.find(("n", lease))
    assert tenure is not None
    grant = Granted(held.fence + 1, ttl_ms=1_000, waited_ms=3_600_000)
    world.keeper.leases.granted("n", WaiterGranted(lease, grant, tenure.claim.owner))
    await pending.done.wait()
    assert pending.grant.waited_ms == 2_000


# --- A grant that is told late ----------------------------------------------------------------


@pytest.mark.parametrize("asks", ["before", "while", "after"])
async def test_l3_a_grant_of_an_earlier_wait_is_not_one_of_this(
    asks: str, clock: MockClock
) -> None:
    """L3, L6: granted, released, and waited for again; then the news of the first grant comes,
    before the store was asked, while it is, or when it has answered."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        holder, client, lease = world.client(), world.client(), new_lease()
        held = await holder.acquire("n")
        await world.wait_for(client, "n", lease=lease)
        store.kept = []
        await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
        assert (await client.ask(LeaseRelease("n", lease), LeaseReleased)).released
        again = await holder.acquire("n", lease=held.lease)
        if asks == "before":
            store.deliver()
        elif asks == "while":
            store.script["acquire"] = [SLOW]
        pending = await world.wait_for(client, "n", lease=lease, ttl_ms=LONG_MS)
        store.deliver()
        await trio.sleep(2)
        assert not pending.done.is_set()
        assert await holders(world, "n") == [again.fence]
        await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
        await pending.done.wait()
        assert await holders(world, "n") == [pending.grant.fence]
        await trio.sleep(60)
        assert not client.told


async def test_l6_a_grant_that_its_own_answer_told_first_is_granted_once(clock: MockClock) -> None:
    """L6: a repeat finds it granted; then the event comes."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        holder, client, lease = world.client(), world.client(), new_lease()
        held = await holder.acquire("n")
        pending = await world.wait_for(client, "n", lease=lease)
        store.kept = []
        await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
        again = await client.acquire("n", lease=lease)
        await pending.done.wait()
        store.deliver()
        assert pending.grant.fence == again.fence
        assert client.session.held == 1
        assert await holders(world, "n") == [again.fence]


async def test_l5_a_grant_that_nobody_wants_any_more_goes_back(clock: MockClock) -> None:
    """L5: the news comes when its client is gone; the release was lost on the way."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        holder, client, lease = world.client(), world.client(), new_lease()
        held = await holder.acquire("n")
        await world.wait_for(client, "n", lease=lease, ttl_ms=LONG_MS)
        store.kept = []
        await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
        client.close()
        await trio.testing.wait_all_tasks_blocked()
        store.deliver()
        await trio.testing.wait_all_tasks_blocked()
        assert await holders(world, "n") == []


async def test_l6_a_grant_that_is_told_late_does_not_go_back_from_its_new_server(
    pair: tuple[Side, Side], clock: MockClock
) -> None:
    """L6, L8: granted while it waited on a; resumed on b; then a hears of the grant."""
    a, b = pair
    holder, old, new, lease = b.world.client(), a.world.client(), b.world.client(), new_lease()
    held = await holder.acquire("n")
    pending = await a.world.wait_for(old, "n", lease=lease)
    a.store.kept = []
    await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
    old.drop()
    pending.scope.cancel()
    grant = await new.ask(LeaseResume("n", lease), LeaseGrant)
    await trio.sleep(6)
    a.store.deliver()
    await trio.sleep(60)
    assert await holders(b.world, "n") == [grant.fence]
    assert not new.told


async def test_l8_a_grant_may_come_before_the_answer_to_the_resume(
    pair: tuple[Side, Side], clock: MockClock
) -> None:
    """L8: the place is taken over, its turn comes, and only then does the store's answer come."""
    a, b = pair
    holder, old, new, lease = a.world.client(), a.world.client(), b.world.client(), new_lease()
    held = await holder.acquire("n")
    await a.world.wait_for(old, "n", lease=lease)
    b.store.script["resume"] = [SLOW_ANSWER]
    pending = await b.world.start(new, LeaseResume("n", lease))
    await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
    await pending.done.wait()
    assert pending.error is None
    await trio.sleep(60)
    assert not new.told
    assert await holders(b.world, "n") == [pending.grant.fence]


# --- A loss that is told late -----------------------------------------------------------------


@pytest.mark.parametrize("asks", ["while", "after"])
async def test_l3_a_loss_of_an_older_grant_does_not_end_a_wait(asks: str, clock: MockClock) -> None:
    """L3: it was broken, and waits again, before the news of the break comes. The lease that was
    broken is told as lost, once; the wait goes on."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        client, other, lease = world.client(), world.client(), new_lease()
        first = await client.acquire("n", lease=lease)
        store.kept = []
        await other.ask(LeaseBreak("n"), LeaseBroken)
        held = await other.acquire("n")
        if asks == "while":
            store.script["acquire"] = [SLOW]
        pending = await world.wait_for(client, "n", lease=lease)
        store.deliver()
        await trio.sleep(2)
        assert [lost.fence for lost in client.heard(LeaseLost)] == [first.fence]
        if pending.error:  # it was known to be held when it was asked for again
            return
        await other.ask(LeaseRelease("n", held.lease), LeaseReleased)
        await pending.done.wait()
        assert pending.grant.fence > held.fence


async def test_l3_a_loss_of_what_was_released_does_not_end_the_next(clock: MockClock) -> None:
    """L3: broken, released, asked for again; the news of the break comes while the store is
    asked."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        client, other, lease = world.client(), world.client(), new_lease()
        await client.acquire("n", lease=lease)
        store.kept = []
        await other.ask(LeaseBreak("n"), LeaseBroken)
        await client.ask(LeaseRelease("n", lease), LeaseReleased)
        store.script["acquire"] = [SLOW]
        pending = await world.wait_for(client, "n", lease=lease, ttl_ms=LONG_MS)
        store.deliver()
        await pending.done.wait()
        assert pending.error is None
        await trio.sleep(10)
        assert await holders(world, "n") == [pending.grant.fence]
        assert not client.told


# --- Moved, told late -------------------------------------------------------------------------


@pytest.mark.parametrize("same_session", [False, True])
async def test_l8_an_old_move_does_not_end_what_has_come_back(
    same_session: bool, pair: tuple[Side, Side], clock: MockClock
) -> None:
    """L8: from a to b and back; then a hears that it went to b."""
    a, b = pair
    old, new = a.world.client(), b.world.client()
    grant = await old.acquire("n", ttl_ms=1000)
    a.store.kept = []
    await new.ask(LeaseResume("n", grant.lease), LeaseGrant)
    back = old if same_session else a.world.client()
    await back.ask(LeaseResume("n", grant.lease), LeaseGrant)
    a.store.deliver()
    assert back.session.held == 1
    assert new.session.held == 0
    await trio.sleep(60)
    assert not back.told
    assert await holders(a.world, "n") == [grant.fence]


async def test_l8_an_old_move_does_not_end_a_wait_that_has_come_back(
    pair: tuple[Side, Side], clock: MockClock
) -> None:
    """L8: as above, for a place in the queue."""
    a, b = pair
    holder, old, new, back = (a.world.client(), a.world.client(), b.world.client(), None)
    held = await holder.acquire("n")
    lease = new_lease()
    first = await a.world.wait_for(old, "n", lease=lease)
    a.store.kept = []
    second = await b.world.start(new, LeaseResume("n", lease))
    back = a.world.client()
    third = await a.world.start(back, LeaseResume("n", lease))
    a.store.deliver()
    for gone in (first, second):
        await gone.done.wait()
        assert isinstance(gone.error, Cancelled)
    await trio.sleep(60)
    await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
    await third.done.wait()
    assert third.grant.fence > held.fence


async def test_l8_a_move_that_is_told_before_the_answer_counts(
    pair: tuple[Side, Side], clock: MockClock
) -> None:
    """L1, L8: a's request took effect, b's resume took it over, and a hears of that before it has
    its answer: it must not fetch the lease back when it vouches for it."""
    a, b = pair
    holder, old, new, lease = b.world.client(), a.world.client(), b.world.client(), new_lease()
    held = await holder.acquire("n")
    a.store.script["acquire"] = [SLOW_ANSWER]
    first = await a.world.wait_for(old, "n", lease=lease)
    second = await b.world.start(new, LeaseResume("n", lease))
    await first.done.wait() if first.error else await trio.sleep(2)
    await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
    await second.done.wait()
    assert second.grant.fence > held.fence
    await trio.sleep(30)
    assert isinstance(first.error, Cancelled)
    assert new.session.held == 1
    assert old.session.held == 0


async def test_l8_a_server_that_missed_a_move_does_not_fetch_the_lease_back(
    pair: tuple[Side, Side], clock: MockClock
) -> None:
    """L1, L8: `Moved` was lost and the old connection is half-open; b's client holds it by now.
    What a finds when it vouches for its waiter is not its own any more."""
    a, b = pair
    holder, old, new, lease = b.world.client(), a.world.client(), b.world.client(), new_lease()
    held = await holder.acquire("n")
    await a.world.wait_for(old, "n", lease=lease)
    a.store.kept = []
    again = await b.world.start(new, LeaseResume("n", lease))
    await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
    await again.done.wait()
    await trio.sleep(6)
    old.drop()
    await trio.sleep(6)
    assert new.session.held == 1
    assert await holders(b.world, "n") == [again.grant.fence]


async def test_l8_a_move_of_another_grant_says_nothing(
    pair: tuple[Side, Side], clock: MockClock
) -> None:
    """L8: it is released after the move, and asked for afresh on the old server."""
    a, b = pair
    old, new, lease = a.world.client(), b.world.client(), new_lease()
    await old.acquire("n", lease=lease, ttl_ms=1000)
    a.store.kept = []
    await new.ask(LeaseResume("n", lease), LeaseGrant)
    await new.ask(LeaseRelease("n", lease), LeaseReleased)
    client = a.world.client()
    again = await client.acquire("n", lease=lease, ttl_ms=1000)
    a.store.deliver()
    await trio.sleep(10)
    assert await holders(b.world, "n") == [again.fence]
    assert not client.told


async def test_events_are_kept_in_the_order_of_their_coming(clock: MockClock) -> None:
    """Of the tests' own store: what `deliver` hands over is what happened."""
    store, seen = FlakyStore(kept=[]), list[Event]()
    async with open_world(Limits(), store) as world:
        client = world.client()
        held = await client.acquire("n")
        await world.wait_for(client, "n")
        await client.ask(LeaseRelease("n", held.lease), LeaseReleased)
        seen += store.kept or []
    what = [each.what for each in seen if isinstance(each, StoreEvent)]
    assert [type(each).__name__ for each in what] == ["Contended", WaiterGranted.__name__]
