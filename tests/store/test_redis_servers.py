"""Several servers on one Redis: who is told what, who may stall whom, and for how long."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import trio
from attrs import evolve

from leasekeeper.core.lock import (
    Contended,
    Granted,
    HolderLost,
    Left,
    Missing,
    Moved,
    Queued,
    Renewed,
    Resumed,
    WaiterGranted,
)
from leasekeeper.messages import ORIGINAL_WAIT, LostReason, Mode
from leasekeeper.store.api import Changed
from leasekeeper.store.redis.store import Options, RedisStore
from tests.store.actors import LONG_MS, WAKE_S, Actor, Place

pytestmark = pytest.mark.system

SHORT_MS = 300


@pytest.fixture
async def servers(shared: Place) -> AsyncIterator[list[Actor]]:
    """Three of them."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(shared.acting(name)) for name in ("one", "two", "three")
        ]


# --- Whom events reach ----------------------------------------------------------------------------


async def test_a_grant_goes_to_the_server_of_the_waiter(servers: list[Actor]) -> None:
    """L5: and to nobody else."""
    one, two, three = servers
    held = await one.take("n")
    claim = await two.queue("n")
    await one.release("n", held.lease)
    grant = await two.granted(claim, within_s=WAKE_S)
    assert grant.fence > held.fence
    assert grant.ttl_ms == LONG_MS
    assert await two.renew("n", claim.lease) == Renewed(LONG_MS)
    assert one.told_of(WaiterGranted) == three.told_of(WaiterGranted) == []


async def test_losses_and_contention_go_to_the_servers_of_the_holders(
    servers: list[Actor],
) -> None:
    one, two, three = servers
    held = [await each.take("n", each.claim(Mode.SHARED)) for each in (one, two)]
    await three.queue("n")
    for each in (one, two):
        assert (await each.next_told(Contended)).waiting == 1
    assert await three.store.break_("n", "because") == 2
    for each, lost in zip((one, two), held, strict=True):
        assert await each.lost(lost.lease) == HolderLost(
            lost.lease, lost.fence, LostReason.BROKEN, "because", lost.claim.owner
        )
    assert three.told_of(HolderLost) == []


async def test_a_queue_is_one_whatever_the_server(servers: list[Actor]) -> None:
    """L4, QUE-1: in the order in which Redis queued them."""
    holder = servers[0]
    lease = (await holder.take("n")).lease
    queue = [(each, await each.queue("n")) for _ in range(10) for each in servers]
    fences = []
    for server, claim in queue:
        await holder.release("n", lease)
        fences.append((await server.granted(claim)).fence)
        holder, lease = server, claim.lease
    assert fences == sorted(set(fences))
    assert all(each.told_of(WaiterGranted) == [] for each in servers)


async def test_what_moves_is_told_to_the_server_that_had_it(servers: list[Actor]) -> None:
    """L8: resumed, or asked for again, on another server."""
    one, two, three = servers
    held = await one.take("n")
    claim = await one.queue("n")
    owner = two.owner()
    resumed = await two.store.resume("n", held.lease, owner, wait_ms=ORIGINAL_WAIT)
    assert isinstance(resumed, Resumed)
    assert isinstance(resumed.answer, Granted)
    assert resumed.answer.fence == held.fence
    assert await one.next_told(Moved) == Moved(held.lease, held.claim.owner)
    assert isinstance(await three.ask("n", three.again(claim), wait=True), Queued)
    assert await one.next_told(Moved) == Moved(claim.lease, claim.owner)
    assert await one.store.release("n", held.lease, only_of="one") is Left.NOTHING
    assert await two.store.release("n", held.lease, only_of="two") is Left.HELD
    await three.next_told(WaiterGranted)
    assert one.told_of(WaiterGranted) == two.told_of(WaiterGranted) == []


async def test_watchers_of_all_servers_hear_of_changes(servers: list[Actor]) -> None:
    one, two, three = servers
    for each in (two, three):
        await each.store.watch("n")
    held = await one.take("n")
    for each in (two, three):
        state = (await each.next_told(Changed)).state
        assert [holder.fence for holder in state.holders] == [held.fence]
    three.store.unwatch("n")
    await one.release("n", held.lease)
    assert (await two.next_told(Changed)).state.holders == ()
    assert one.told_of(Changed) == []


# --- Servers that die -----------------------------------------------------------------------------


async def test_a_dead_servers_lease_ends(shared: Place) -> None:
    """L5: within 2 s after its expiry the next waiter, of another server, has it."""
    async with shared.acting("one") as one:
        async with shared.acting("two") as two:
            held = await two.take("n", two.claim(ttl_ms=1000))
        claim = await one.queue("n")
        grant = await one.granted(claim, within_s=1 + WAKE_S)
        assert grant.fence > held.fence


async def test_a_dead_servers_waiter_has_its_turn_for_no_longer_than_its_word(
    shared: Place,
) -> None:
    """QUE-6: whatever its TTL."""
    async with shared.acting("one") as one:
        held = await one.take("n")
        async with shared.acting("two") as two:
            dead = await two.queue("n", two.claim(ttl_ms=3_600_000, alive_ms=1000))
        claim = await one.queue("n")
        asked_at = trio.current_time()
        await one.release("n", held.lease)
        assert len(await one.fences("n")) == 1
        await one.granted(claim, within_s=1 + WAKE_S)
        assert trio.current_time() - asked_at < 1 + WAKE_S
        assert await one.renew("n", dead.lease) == Missing()


async def test_many_waiters_of_a_dead_server_stall_no_longer_than_one(shared: Place) -> None:
    """QUE-6: their words end at the same time."""
    async with shared.acting("one") as one:
        held = await one.take("n")
        async with shared.acting("two") as two:
            for _ in range(250):
                await two.queue("n", two.claim(ttl_ms=3_600_000, alive_ms=2000))
        claim = await one.queue("n")
        await one.release("n", held.lease)
        await one.granted(claim, within_s=2 + WAKE_S)


async def test_a_short_lease_behind_a_long_one_is_followed_in_time(
    shared: Place,
) -> None:
    """L5: what a server knew of the holder's end when it queued is old by now."""
    async with shared.acting("one") as one, shared.acting("three") as three:
        held = await one.take("n", one.claim(ttl_ms=3_600_000))
        async with shared.acting("two") as two:
            short = await two.queue("n", two.claim(ttl_ms=SHORT_MS))
            claim = await three.queue("n")
            await one.release("n", held.lease)
            await two.granted(short)
        await three.granted(claim, within_s=SHORT_MS / 1000 + WAKE_S)


async def test_a_live_server_confirms_a_grant_that_another_made(servers: list[Actor]) -> None:
    """ADR 8: it is told with its full TTL, though its server's word was short."""
    one, two, _ = servers
    held = await one.take("n")
    claim = await two.queue("n", two.claim(ttl_ms=20_000, alive_ms=800))
    await one.release("n", held.lease)
    assert (await two.granted(claim)).ttl_ms == 20_000
    await trio.sleep(0.9)
    assert len(await one.fences("n")) == 1


# --- Messages that are lost -----------------------------------------------------------------------


async def test_an_expiry_needs_no_message(shared: Place) -> None:
    """L5: a server that hears nothing finds its waiter's grant by itself, within 2 s."""
    async with shared.acting("one") as one, shared.acting("deaf", deaf=True) as deaf:
        held = await one.take("n", one.claim(ttl_ms=SHORT_MS))
        claim = await deaf.queue("n")
        grant = await deaf.granted(claim, within_s=SHORT_MS / 1000 + WAKE_S)
        assert grant.fence > held.fence


async def test_a_grant_whose_message_was_lost_is_found(shared: Place) -> None:
    """L5: nobody waits for a message that does not come."""
    async with shared.acting("one") as one, shared.acting("deaf", deaf=True) as deaf:
        held = await one.take("n")
        claim = await deaf.queue("n")
        await one.release("n", held.lease)
        grant = await deaf.granted(claim, within_s=WAKE_S)
        assert grant.fence > held.fence
        assert await deaf.touch("n", claim.lease) is True
        assert deaf.told_of(WaiterGranted) == []


async def test_a_touch_finds_a_grant_whose_message_was_lost(shared: Place) -> None:
    """What is vouched for need not be in the queue any more."""
    async with shared.acting("one") as one, shared.acting("deaf", deaf=True) as deaf:
        held = await one.take("n")
        claim = await deaf.queue("n")
        await one.release("n", held.lease)
        assert await deaf.touch("n", claim.lease) is True
        assert (await deaf.granted(claim, within_s=WAKE_S)).fence > held.fence


async def test_a_grant_that_was_given_back_is_not_believed_later(servers: list[Actor]) -> None:
    """HOLD-4: what answers the same question a moment after the pause is old."""
    holder, waiter, _ = servers
    await holder.take("n")
    claim = await waiter.queue("n")
    store = waiter.store
    assert isinstance(store, RedisStore)
    store._recovery.hold.join(100)
    old = WaiterGranted(claim.lease, Granted(fence=1, ttl_ms=LONG_MS, waited_ms=0))
    store._tell_granted("n", old)
    with trio.fail_after(WAKE_S):
        while store._recovery.left_ms("n"):  # noqa: ASYNC110 # it is its own clock
            await trio.sleep(0.01)
    store._tell_granted("n", old)
    assert not waiter.told_of(WaiterGranted)
    store._tell_granted("n", evolve(old, grant=evolve(old.grant, fence=2)))
    assert waiter.told_of(WaiterGranted)


async def test_a_loss_whose_message_was_lost_is_found(shared: Place) -> None:
    """L3: at the latest when the lease would have ended by its server's own clock."""
    async with shared.acting("one") as one, shared.acting("deaf", deaf=True) as deaf:
        held = await deaf.take("n", deaf.claim(ttl_ms=1000))
        await one.store.break_("n", None)
        lost = await deaf.lost(held.lease, within_s=1 + WAKE_S)
        assert lost.fence == held.fence


async def test_a_change_whose_message_was_lost_is_found(shared: Place) -> None:
    """A watcher sees it a little later."""
    async with shared.acting("one") as one, shared.acting("deaf", deaf=True) as deaf:
        await deaf.store.watch("n")
        held = await one.take("n")
        state = (await deaf.next_told(Changed)).state
        assert [holder.fence for holder in state.holders] == [held.fence]


async def test_a_new_subscription_makes_up_for_a_broken_one(shared: Place) -> None:
    """L5: what was published meanwhile is found at once."""
    async with shared.acting("one") as one, shared.acting("two") as two:
        held = await one.take("n")
        claim = await two.queue("n", two.claim(ttl_ms=LONG_MS))
        for each in shared.nodes:
            each.cli("CLIENT", "KILL", "TYPE", "pubsub")
        await one.release("n", held.lease)
        assert (await two.granted(claim, within_s=WAKE_S)).fence > held.fence


async def test_different_prefixes_share_nothing(shared: Place) -> None:
    async with (
        shared.acting("one", Options(prefix="a")) as one,
        shared.acting("two", Options(prefix="b")) as two,
    ):
        await one.take("n")
        await two.take("n")
        await two.store.break_("n", None)
        assert len(await one.fences("n")) == 1
        assert one.told == []
