"""What the service counts and times: each thing once, and nothing by name."""

from collections.abc import Mapping

import pytest
import trio
import trio.testing
from attrs import frozen
from trio.testing import MockClock

from leasekeeper.errors import Outcome
from leasekeeper.messages import (
    HeartbeatSeen,
    LeaseAcquire,
    LeaseBreak,
    LeaseBroken,
    LeaseGrant,
    LeaseRelease,
    LeaseReleased,
    LeaseResume,
    Mode,
    SessionHeartbeat,
)
from leasekeeper.service.limits import Limits
from leasekeeper.service.metrics import Metrics
from tests.service.conftest import World, new_lease, open_world
from tests.service.flaky import Fault, FlakyStore
from tests.service.routing import two_servers

TTL_MS = 3_000
STEADY = Limits(renewal_jitter=0)


@frozen
class Meter:
    """Reads metrics as they are scraped."""

    metrics: Metrics

    def __getitem__(self, sample: str) -> float:
        """A sample without labels; `_total`, `_count` and `_sum` are part of its name."""
        return self.of(sample, {})

    def of(self, sample: str, labels: Mapping[str, str]) -> float:
        value = self.metrics.registry.get_sample_value(sample, dict(labels))
        assert value is not None, sample
        return value

    def granted(self, mode: Mode = Mode.EXCLUSIVE) -> float:
        return self.of("lease_grants_total", {"mode": mode})

    def lost(self) -> dict[str, float]:
        """By reason, without those that never were."""
        reasons = ("expired", "broken", "max_hold", "store_lost")
        by_reason = {each: self.of("leases_lost_total", {"reason": each}) for each in reasons}
        return {reason: count for reason, count in by_reason.items() if count}

    def series(self) -> int:
        return sum(len(family.samples) for family in self.metrics.registry.collect())


def meter_of(world: World) -> Meter:
    return Meter(world.keeper.metrics)


async def release(world: World, grant: LeaseGrant) -> None:
    """Somebody who knows the lease id gives it back."""
    released = await world.client().ask(LeaseRelease(grant.name, grant.lease), LeaseReleased)
    assert released.released


# --- What they cost -------------------------------------------------------------------------------


async def test_a_thousand_names_make_no_new_time_series(world: World, clock: MockClock) -> None:
    meter, client = meter_of(world), world.client()
    before = meter.series()
    for at in range(1000):
        client.session.client = f"client-{at}"
        await client.acquire(f"name-{at}", label=f"label-{at}")
    assert meter["leases_held"] == meter.granted() == 1000
    assert meter.series() == before


def test_two_servers_in_a_process_do_not_mix() -> None:
    one, other = Metrics(), Metrics()
    one.cache_misses.inc()
    one.observe_redis("acquire", 0.1)
    assert Meter(one)["cache_misses_total"] == 1
    assert Meter(other)["cache_misses_total"] == 0


@pytest.mark.parametrize(
    ("sample", "label", "values"),
    [
        ("cache_hits_total", "kind", "fresh stale negative"),
        ("cache_fill_grants_total", "kind", "miss refresh promotion unshared"),
        ("cache_fills_total", "outcome", "stored voided superseded too_late too_large"),
        ("cache_invalidations_total", "what", "keys tags"),
        ("lease_grants_total", "mode", "exclusive shared"),
        ("leases_lost_total", "reason", "expired broken max_hold store_lost"),
    ],
)
def test_every_value_of_a_label_is_there_from_the_start(
    sample: str, label: str, values: str
) -> None:
    """A counter that appears with its first event has no increase that an alert could see."""
    meter = Meter(Metrics())
    assert [meter.of(sample, {label: each}) for each in values.split()] == [0] * len(values.split())


def test_an_operation_of_redis_is_counted_under_its_name() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.002):
        metrics.observe_redis("renew", seconds)
    meter, labels = Meter(metrics), {"operation": "renew"}
    assert meter.of("redis_operation_duration_seconds_count", labels) == 2
    assert meter.of("redis_operation_duration_seconds_sum", labels) == pytest.approx(0.003)


# --- Grants ---------------------------------------------------------------------------------------


async def test_grants_are_counted_by_mode(world: World, clock: MockClock) -> None:
    meter, client = meter_of(world), world.client()
    await client.acquire("alone")
    for _ in range(3):
        await client.acquire("many", mode=Mode.SHARED)
    assert (meter.granted(), meter.granted(Mode.SHARED)) == (1, 3)
    assert meter["lease_acquire_wait_seconds_count"] == 4
    assert meter["lease_acquire_wait_seconds_sum"] == 0


async def test_a_repeated_request_is_no_second_grant(world: World, clock: MockClock) -> None:
    meter, client, lease = meter_of(world), world.client(), new_lease()
    for _ in range(3):
        await client.acquire("n", lease=lease)
    assert meter.granted() == meter["leases_held"] == 1


async def test_a_lease_that_is_resumed_is_not_granted_again(world: World, clock: MockClock) -> None:
    meter, before = meter_of(world), world.client()
    grant = await before.acquire("n")
    for dropped in (False, True):
        if dropped:
            before.drop()
        after = world.client()
        await after.ask(LeaseResume("n", grant.lease), LeaseGrant)
        before = after
    assert meter.granted() == meter["leases_held"] == 1
    assert meter["lease_acquire_wait_seconds_count"] == 1


async def test_a_lease_that_moves_to_another_server_is_neither_lost_nor_granted_again(
    clock: MockClock,
) -> None:
    async with two_servers() as (a, b):
        here, there = meter_of(a.world), meter_of(b.world)
        grant = await a.world.client().acquire("n")
        await b.world.client().ask(LeaseResume("n", grant.lease), LeaseGrant)
        assert (here.granted(), there.granted()) == (1, 0)
        assert (here["leases_held"], there["leases_held"]) == (0, 1)
        assert here.lost() == there.lost() == {}


async def test_gauges_tell_what_is_held_and_what_is_waited_for(
    world: World, clock: MockClock
) -> None:
    meter = meter_of(world)
    grant = await world.client().acquire("n")
    waiters = [world.client() for _ in range(3)]
    for waiter in waiters:
        await world.wait_for(waiter, "n")
    assert (meter["leases_held"], meter["leases_waiting"]) == (1, 3)
    waiters[0].close()
    assert (meter["leases_held"], meter["leases_waiting"]) == (1, 2)
    await trio.testing.wait_all_tasks_blocked()
    await release(world, grant)
    assert (meter["leases_held"], meter["leases_waiting"]) == (1, 1)
    for waiter in waiters[1:]:
        waiter.close()
    await trio.testing.wait_all_tasks_blocked()
    assert (meter["leases_held"], meter["leases_waiting"]) == (0, 0)


# --- How long it took -----------------------------------------------------------------------------


async def test_the_wait_for_a_grant_is_observed(world: World, clock: MockClock) -> None:
    meter = meter_of(world)
    grant = await world.client().acquire("n")
    pending = await world.wait_for(world.client(), "n")
    await trio.sleep(7)
    await release(world, grant)
    await pending.done.wait()
    assert meter.granted() == meter["lease_acquire_wait_seconds_count"] == 2
    assert meter["lease_acquire_wait_seconds_sum"] == pytest.approx(7, abs=0.01)


async def test_who_gives_up_waited_for_no_grant(world: World, clock: MockClock) -> None:
    meter = meter_of(world)
    await world.client().acquire("n")
    pending = await world.wait_for(world.client(), "n", wait_ms=500)
    await pending.done.wait()
    assert meter["lease_acquire_wait_seconds_count"] == 1
    assert meter["leases_waiting"] == 0


@pytest.mark.parametrize("before_s", [0, 0.2])
async def test_a_hand_off_is_from_the_release_to_the_waiter(
    before_s: float, clock: MockClock
) -> None:
    """The store may take its time over the release, but not over what follows."""
    store = FlakyStore(script={"release": [Fault(before_s=before_s, after_s=1)]})
    async with open_world(Limits(), store) as world:
        meter = meter_of(world)
        grant = await world.client().acquire("n")
        pending = await world.wait_for(world.client(), "n")
        await release(world, grant)
        assert isinstance(pending.result, LeaseGrant)
        assert meter["lease_hand_off_seconds_count"] == 1
        assert meter["lease_hand_off_seconds_sum"] == pytest.approx(before_s)


async def test_every_reader_that_one_release_lets_in_is_a_hand_off(
    world: World, clock: MockClock
) -> None:
    meter = meter_of(world)
    grant = await world.client().acquire("n")
    for _ in range(3):
        await world.wait_for(world.client(), "n", mode=Mode.SHARED)
    await release(world, grant)
    await trio.testing.wait_all_tasks_blocked()
    assert meter["lease_hand_off_seconds_count"] == 3


async def test_a_release_on_another_server_is_no_hand_off_of_this_one(clock: MockClock) -> None:
    async with two_servers() as (a, b):
        grant = await a.world.client().acquire("n")
        pending = await b.world.wait_for(b.world.client(), "n")
        await release(a.world, grant)
        await pending.done.wait()
        assert meter_of(b.world).granted() == 1
        for side in (a, b):
            assert meter_of(side.world)["lease_hand_off_seconds_count"] == 0


async def test_a_grant_after_an_expiry_is_no_hand_off(world: World, clock: MockClock) -> None:
    meter = meter_of(world)
    await world.client().acquire("n", auto_renew=False, ttl_ms=1000)
    pending = await world.wait_for(world.client(), "n")
    await pending.done.wait()
    assert isinstance(pending.result, LeaseGrant)
    assert meter["lease_hand_off_seconds_count"] == 0


async def test_a_renewal_in_time_has_no_lag(clock: MockClock) -> None:
    async with open_world(STEADY) as world:
        meter = meter_of(world)
        await world.client().acquire("n", ttl_ms=TTL_MS)
        await trio.sleep(TTL_MS / 1000 * 2)
        assert meter["lease_renewal_lag_seconds_count"] >= 5
        assert meter["lease_renewal_lag_seconds_sum"] == pytest.approx(0, abs=0.01)


async def test_a_renewal_that_failed_at_first_lags_by_all_that_it_took(clock: MockClock) -> None:
    failing = [Fault(before_s=0.1, fails=Outcome.NONE)] * 3
    store = FlakyStore(script={"renew": failing})
    async with open_world(STEADY, store) as world:
        meter = meter_of(world)
        await world.client().acquire("n", ttl_ms=TTL_MS)
        await trio.sleep(TTL_MS / 1000 - 0.5)
        assert meter["lease_renewal_lag_seconds_count"] == 1
        took_s = 3 * (0.1 + STEADY.store_retry_ms / 1000)
        assert meter["lease_renewal_lag_seconds_sum"] == pytest.approx(took_s, abs=0.01)
        assert not meter.lost()


async def test_a_renewal_by_heartbeat_lags_from_the_heartbeat_on(clock: MockClock) -> None:
    store = FlakyStore(script={"renew": [Fault(after_s=0.4)]})
    async with open_world(STEADY, store) as world:
        meter, client = meter_of(world), world.client().with_heartbeats()
        await client.acquire("n", ttl_ms=TTL_MS)
        await trio.sleep(TTL_MS / 1000 / 2)  # later than a pong would have to come
        await client.ask(SessionHeartbeat(), HeartbeatSeen)
        assert meter["lease_renewal_lag_seconds_count"] == 1
        assert meter["lease_renewal_lag_seconds_sum"] == pytest.approx(0.4, abs=0.01)


# --- What was lost --------------------------------------------------------------------------------


async def test_what_is_given_back_is_not_lost(world: World, clock: MockClock) -> None:
    meter = meter_of(world)
    await release(world, await world.client().acquire("n"))
    for leave in ("close", "drop"):
        client = world.client()
        await client.acquire("n")
        getattr(client, leave)()
        await trio.sleep(world.keeper.limits.grace_ms / 1000 + 1)
    assert meter.lost() == {}
    assert meter["leases_held"] == 0


async def test_the_lost_are_counted_by_reason(world: World, clock: MockClock) -> None:
    meter, client = meter_of(world), world.client()
    await client.acquire("frozen", auto_renew=False, ttl_ms=1000)
    await client.acquire("long", max_hold_ms=2000)
    await client.acquire("broken")
    await client.ask(LeaseBreak("broken"), LeaseBroken)
    await trio.sleep(3)
    assert meter.lost() == {"expired": 1, "max_hold": 1, "broken": 1}
    await client.acquire("in_this_process")
    world.keeper.leases.lose_all()
    assert meter.lost()["store_lost"] == 1
    assert meter["leases_held"] == 0


async def test_a_lease_that_the_store_does_not_renew_is_lost_with_it(clock: MockClock) -> None:
    store = FlakyStore()
    async with open_world(STEADY, store) as world:
        meter, client = meter_of(world), world.client()
        await client.ask(LeaseAcquire("n", ttl_ms=TTL_MS), LeaseGrant)
        store.unreachable.add("n")
        await trio.sleep(TTL_MS / 1000)
        assert meter.lost() == {"store_lost": 1}
