"""A store that is silent, for some names, for a call, or altogether; and what holders are told."""

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.errors import InvalidParams, LimitReached, Lost, Outcome, Unavailable
from leasekeeper.messages import (
    HeartbeatSeen,
    LeaseAcquire,
    LeaseAcquireAll,
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
    LostReason,
    Mode,
    Notification,
    SessionHeartbeat,
)
from leasekeeper.service.limits import Limits
from tests.service.conftest import Client, World, new_lease, open_world
from tests.service.flaky import Fault, FlakyStore

HANGS = Fault(before_s=3600)
SILENT = "the store does not answer"


async def fences(world: World, name: str) -> list[int]:
    """The grants that stand, by the store's word."""
    state = await world.client().ask(LeaseInspect(name), LeaseState)
    return [holder.fence for holder in state.holders]


# --- A heartbeat that could renew only some (L8, L14) -----------------------------------------


async def test_l8_a_heartbeat_says_what_it_renewed_where_it_could_not_renew_all(
    clock: MockClock,
) -> None:
    """L8, L14: -32020 with the lease ids that were renewed; the next one renews all."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        client = world.client().with_heartbeats()
        one, two = (
            await client.acquire("one", ttl_ms=3000),
            await client.acquire("two", ttl_ms=3000),
        )
        store.unreachable = {"two"}
        await trio.sleep(1)
        with pytest.raises(Unavailable) as failed:
            await client.ask(SessionHeartbeat(), HeartbeatSeen)
        assert failed.value.data == {
            "outcome": "none",
            "retry_after_ms": 100,
            "renewed": [one.lease],
        }
        store.unreachable = set()
        await trio.sleep(1)
        seen = await client.ask(SessionHeartbeat(), HeartbeatSeen)
        assert (seen.renewed, seen.lost) == (2, ())
        await trio.sleep(2)
        assert await fences(world, "two") == [two.fence]
        assert not client.told


async def test_l8_a_heartbeat_names_no_set_of_which_one_was_not_renewed(clock: MockClock) -> None:
    """L3: a set has one lease id; its holder would believe in all of its names."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        client = world.client().with_heartbeats()
        await client.ask(LeaseAcquireAll(("x", "y")), LeaseGrants)
        alone = await client.acquire("z")
        store.unreachable = {"y"}
        with pytest.raises(Unavailable) as failed:
            await client.ask(SessionHeartbeat(), HeartbeatSeen)
        assert failed.value.data["renewed"] == [alone.lease]


async def test_l14_a_heartbeat_that_the_store_did_not_answer_renewed_nothing(
    clock: MockClock,
) -> None:
    """L14: `renewed` is there, and empty; what was lost is told by the next one."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        client = world.client().with_heartbeats()
        grant = await client.acquire("n", ttl_ms=1000)
        await client.acquire("m")
        await trio.sleep(1.1)
        store.script["renew"] = [Fault(fails=Outcome.UNKNOWN)]
        with pytest.raises(Unavailable) as failed:
            await client.ask(SessionHeartbeat(), HeartbeatSeen)
        assert failed.value.data["renewed"] == []
        seen = await client.ask(SessionHeartbeat(), HeartbeatSeen)
        assert (seen.renewed, seen.lost) == (1, (grant.lease,))


async def test_l14_one_name_that_is_unreachable_keeps_no_other(clock: MockClock) -> None:
    """L8, L14: renewals and touches go on for the names that can be reached; others are told."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        client, holder, waiter = (world.client() for _ in range(3))
        good, bad = (
            await client.acquire("good", ttl_ms=1000),
            await client.acquire("bad", ttl_ms=1000),
        )
        held = await holder.acquire("queued", ttl_ms=1000)
        pending = await world.wait_for(waiter, "queued")
        stuck = await world.wait_for(waiter, "bad")
        store.unreachable = {"bad"}
        await trio.sleep(60)
        assert await fences(world, "good") == [good.fence]
        (lost,) = client.heard(LeaseLost)
        assert (lost.fence, lost.reason, lost.detail) == (bad.fence, LostReason.STORE_LOST, SILENT)
        await holder.ask(LeaseRelease("queued", held.lease), LeaseReleased)
        await pending.done.wait()
        assert pending.error is None
        stuck.scope.cancel()


async def test_l14_a_renewal_of_a_name_that_is_unreachable_is_unavailable(
    clock: MockClock,
) -> None:
    """L14: neither `lost` nor renewed; for a set, all of it goes back."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        client = world.client()
        grant = await client.acquire("n")
        store.unreachable = {"n"}
        with pytest.raises(Unavailable):
            await client.ask(LeaseRenew("n", grant.lease), LeaseRenewed)
        store.unreachable = set()
        assert await fences(world, "n") == [grant.fence]
        store.script["renew"] = [Fault(before_s=1)]
        pending = await world.start(client, LeaseAcquireAll(("x", "y")))
        store.unreachable = {"y"}
        await pending.done.wait()
        assert isinstance(pending.error, Unavailable)
        store.unreachable = set()
        await trio.sleep(1)
        assert await fences(world, "x") == await fences(world, "y") == []


# --- A call that hangs (L8) -------------------------------------------------------------------


async def test_l8_a_batch_that_hangs_keeps_no_other_from_being_renewed(clock: MockClock) -> None:
    """L8: the calls that follow it are answered."""
    store = FlakyStore()
    async with open_world(Limits(renewal_jitter=0), store) as world:
        one, two = world.client(), world.client()
        await one.acquire("one", ttl_ms=30_000)
        await trio.sleep(0.5)
        grant = await two.acquire("two", ttl_ms=3000)
        await trio.sleep(9.4)  # the next renewal is that of "one" alone
        store.script["renew"] = [HANGS]
        await trio.sleep(60)
        assert [lost.reason for lost in one.heard(LeaseLost)] == [LostReason.STORE_LOST]
        assert await fences(world, "two") == [grant.fence]
        assert not two.told


async def test_l8_a_heartbeat_that_hangs_does_not_hold_up_the_next(clock: MockClock) -> None:
    """L8: a client that sends them more often than one is lost keeps its lease."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        client = world.client().with_heartbeats()
        grant = await client.acquire("n", ttl_ms=3000)
        await trio.sleep(1)
        store.script["renew"] = [Fault(before_s=10)]
        stuck = await world.start(client, SessionHeartbeat())
        for _ in range(20):
            await trio.sleep(1)
            await client.ask(SessionHeartbeat(), HeartbeatSeen)
        assert await fences(world, "n") == [grant.fence]
        assert not client.told
        assert stuck.error is None


# --- Told before it runs out (L3) -------------------------------------------------------------


async def told_at(client: Client) -> float:
    """When it is told that a lease is lost."""
    told = trio.Event()

    def hear(note: Notification) -> None:
        client.told.append(note)
        told.set()

    client.session.notify = hear
    await told.wait()
    return trio.current_time()


@pytest.mark.parametrize(
    ("ttl_ms", "fault"),
    [
        (100, "hangs"),
        (1000, "hangs"),
        (30_000, "hangs"),
        (3_600_000, "hangs"),
        (100, "fails"),
        (1000, "fails"),
        (30_000, "fails"),
    ],
)
async def test_l3_a_lease_that_is_not_renewed_is_told_as_lost_before_it_runs_out(
    ttl_ms: int, fault: str, clock: MockClock
) -> None:
    """L3: a second before, or a tenth of its TTL; never after, and not much sooner."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        client = world.client()
        grant = await client.acquire("n", ttl_ms=ttl_ms)
        if fault == "hangs":
            store.script["renew"] = [HANGS, HANGS]
        else:
            store.unreachable = {"n"}
        at = await told_at(client)
        margin_s = min(1, ttl_ms / 10_000)
        assert ttl_ms / 1000 - margin_s - 0.005 <= at < ttl_ms / 1000
        (lost,) = client.heard(LeaseLost)
        assert (lost.fence, lost.reason, lost.detail) == (
            grant.fence,
            LostReason.STORE_LOST,
            SILENT,
        )
        assert client.session.lost == [grant.lease]


async def test_l3_what_was_told_as_lost_goes_back_when_the_store_answers_again(
    clock: MockClock,
) -> None:
    """L5, L8: when it would have run out, and not after another TTL."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        client, waiter = world.client(), world.client()
        await client.acquire("n", ttl_ms=3_600_000)
        store.script["renew"] = [HANGS]
        await told_at(client)
        pending = await world.wait_for(waiter, "n")
        before = trio.current_time()
        await pending.done.wait()
        assert trio.current_time() - before < 1.1


async def test_l3_a_lease_that_is_lost_for_the_store_s_silence_is_resumed_by_nobody(
    clock: MockClock,
) -> None:
    """L1: it was given back when it had run out, whatever its last renewal has done."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        client = world.client()
        grant = await client.acquire("n", ttl_ms=60_000)
        store.script["renew"] = [HANGS]
        await told_at(client)
        await trio.sleep(1.1)
        with pytest.raises(Lost):
            await world.client().ask(LeaseResume("n", grant.lease), LeaseGrant)


async def test_l3_a_renewal_that_succeeds_late_is_in_time(clock: MockClock) -> None:
    """L8: nothing is told while the store answers before the last moment."""
    store = FlakyStore()
    async with open_world(Limits(renewal_jitter=0), store) as world:
        client = world.client()
        grant = await client.acquire("n", ttl_ms=30_000)
        store.script["renew"] = [Fault(before_s=18)]
        await trio.sleep(120)
        assert not client.told
        assert await fences(world, "n") == [grant.fence]


async def test_l3_without_auto_renew_a_silent_store_is_no_loss(clock: MockClock) -> None:
    """LIVE-5: nothing tries to renew it, so it simply ends."""
    store = FlakyStore(unreachable={"other"})
    async with open_world(Limits(), store) as world:
        client = world.client()
        await client.acquire("n", ttl_ms=1000, auto_renew=False)
        await trio.sleep(1.1)
        assert [lost.reason for lost in client.heard(LeaseLost)] == [LostReason.EXPIRED]


async def test_l3_a_wait_that_was_found_granted_lasts_from_then(clock: MockClock) -> None:
    """L3, L8: the event was lost, and the grant is found when the waiter is vouched for, long
    after it was asked for: a slow renewal is no loss."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        holder, client = world.client(), world.client()
        held = await holder.acquire("n")
        pending = await world.wait_for(client, "n", ttl_ms=30_000)
        await trio.sleep(600)
        store.kept = []
        await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
        await pending.done.wait()
        store.script["renew"] = [Fault(before_s=1)]
        await trio.sleep(60)
        assert not client.told


async def test_l3_a_lease_that_moved_between_sessions_lasts_as_long_as_before(
    clock: MockClock,
) -> None:
    """L3: the new session's first renewal may be slow; and the resume that was not answered makes
    it no longer, and no shorter."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        old, new = world.client(), world.client()
        grant = await old.acquire("n", ttl_ms=30_000)
        await trio.sleep(100)
        store.script["resume"] = [Fault(fails=Outcome.NONE)]
        with pytest.raises(Unavailable):
            await new.ask(LeaseResume("n", grant.lease), LeaseGrant)
        store.script["renew"] = [Fault(before_s=1), Fault(before_s=1)]
        await trio.sleep(60)
        assert not new.told
        assert await fences(world, "n") == [grant.fence]


async def test_l3_a_late_heartbeat_is_carried_out_while_the_store_answers(
    clock: MockClock,
) -> None:
    """L3, L8: it came in the last tenth of the TTL, and the store takes a moment, as it does."""
    store = FlakyStore()
    async with open_world(Limits(), store) as world:
        client = world.client().with_heartbeats()
        await client.acquire("n", ttl_ms=30_000)
        await trio.sleep(29.5)
        store.script["renew"] = [Fault(before_s=0.005)]
        seen = await client.ask(SessionHeartbeat(), HeartbeatSeen)
        assert (seen.renewed, client.told) == (1, [])


@pytest.mark.parametrize("how", ["acquire", "renew", "wait", "heartbeat"])
async def test_l3_the_time_an_answer_took_is_not_added_to_a_lease(
    how: str, clock: MockClock
) -> None:
    """L3: it runs out by the store's clock, so `store_lost` is told a tenth of the TTL, or a
    second, before that, however late this server heard of the grant or the renewal."""
    store = FlakyStore()
    slow = Fault(after_s=4)
    limits = Limits(waiter_alive_ms=15_000)  # no vouching while this is looked at
    async with open_world(limits, store) as world:
        client = world.client().with_heartbeats()
        if how == "acquire":
            store.script["acquire"] = [slow]
            await client.acquire("n", ttl_ms=10_000)
        elif how == "wait":
            holder = world.client()
            held = await holder.acquire("n")
            pending = await world.wait_for(client, "n", ttl_ms=10_000)
            store.kept = []
            await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
            await trio.sleep(4)
            store.deliver()
            await pending.done.wait()
        else:
            grant = await client.acquire("n", ttl_ms=10_000)
            store.script["renew"] = [slow]
            if how == "renew":
                await client.ask(LeaseRenew("n", grant.lease), LeaseRenewed)
            else:
                await client.ask(SessionHeartbeat(), HeartbeatSeen)
        assert trio.current_time() == pytest.approx(4)
        store.script["renew"] = [HANGS]
        await world.start(client, SessionHeartbeat())
        assert await told_at(client) < 10


# --- Bounds of grants (L12) -------------------------------------------------------------------


async def test_l12_a_waiter_s_turn_does_not_take_a_session_over_its_bound(
    clock: MockClock,
) -> None:
    """L12: it is refused with the bound's name, and the turn passes to the next."""
    async with open_world(Limits(leases_per_session=2)) as world:
        holder, client, behind = (world.client() for _ in range(3))
        held = await holder.acquire("n")
        pending = await world.wait_for(client, "n")
        next_one = await world.wait_for(behind, "n")
        for name in ("x", "y"):
            await client.acquire(name)
        await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
        await pending.done.wait()
        await next_one.done.wait()
        assert isinstance(pending.error, LimitReached)
        assert pending.error.data == {"limit": "leases_per_session", "max": 2}
        assert client.session.held == 2
        assert await fences(world, "n") == [next_one.grant.fence]


async def test_l12_a_take_over_does_not_take_a_session_over_its_bound(clock: MockClock) -> None:
    """L12: it is refused, and the lease stays where it was."""
    async with open_world(Limits(leases_per_session=1)) as world:
        old, new = world.client(), world.client()
        grant = await old.acquire("n", ttl_ms=1000)
        await new.acquire("m")
        for ask in (LeaseResume("n", grant.lease), LeaseAcquire("n", lease=grant.lease)):
            with pytest.raises(LimitReached):
                await new.ask(ask, LeaseGrant)
        assert (old.session.held, new.session.held) == (1, 1)
        await trio.sleep(10)
        assert await fences(world, "n") == [grant.fence]
        again = await new.acquire("m", lease=next(iter(new.session.tenures))[1])
        assert again.name == "m"


# --- One lease id, one kind of lease (L6) -----------------------------------------------------


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    "other", [{"mode": Mode.SHARED}, {"mode": Mode.SHARED, "limit": 3}], ids=["mode", "limit"]
)
async def test_l6_another_mode_from_another_session_takes_nothing_over(
    other: dict[str, object], waits: bool, world: World, clock: MockClock
) -> None:
    """L6: it is refused before anything moves: the first session keeps what it has."""
    holder, old, new, lease = world.client(), world.client(), world.client(), new_lease()
    held = await holder.acquire("n" if waits else "other")
    pending = await world.wait_for(old, "n", lease=lease)
    with pytest.raises(InvalidParams) as refused:
        await new.acquire("n", lease=lease, wait_ms=None, **other)
    assert refused.value.data == {"path": "$.lease"}
    new.close()
    await trio.sleep(60)
    assert pending.done.is_set() is not waits
    if waits:
        await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
    await pending.done.wait()
    assert await fences(world, "n") == [pending.grant.fence]
    assert old.session.held == 1
    assert not old.heard(LeaseLost)
