"""How a store is, as it says without being asked, and what its metrics have."""

from collections.abc import Callable, Iterator

import pytest

from leasekeeper.resp.settings import parse_url
from leasekeeper.service.metrics import Metrics
from leasekeeper.store.api import Health
from leasekeeper.store.memory import MemoryStore
from leasekeeper.store.redis.recovery import PAUSED_BY_LOSS
from leasekeeper.store.redis.store import Options, RedisStore
from tests.polling import eventually
from tests.redis_groups import Redises
from tests.redises import RunningRedis, running_redis
from tests.store.actors import acting

pytestmark = pytest.mark.system

SOON_S = 10.0


@pytest.fixture
def redis() -> Iterator[RunningRedis]:
    """One that the test may spoil."""
    with running_redis() as running:
        yield running


async def becomes(so: Callable[[], bool]) -> None:
    """Waits until it is so."""

    async def is_so() -> bool:
        return so()

    await eventually(is_so, SOON_S)


async def test_the_metrics_of_a_server_have_what_its_redis_takes(redises: Redises) -> None:
    metrics = Metrics()
    store = RedisStore(parse_url(redises.single().url), "one", Options(), metrics.observe_redis)

    def value(sample: str) -> float:
        name = f"redis_operation_duration_seconds_{sample}"
        return metrics.registry.get_sample_value(name, {"operation": "break"}) or 0

    async with acting(store) as actor:
        counted, summed = value("count"), value("sum")
        await actor.store.break_("n", None)
        assert value("count") >= counted + 1  # or more: the preflight rehearses the scripts
        assert value("sum") > summed


def test_a_store_of_this_process_is_always_well() -> None:
    assert MemoryStore().health == Health("memory")


async def test_a_redis_at_work_is_well(redises: Redises) -> None:
    async with acting(RedisStore(parse_url(redises.single().url), "one")) as actor:
        assert actor.store.health == Health("redis")


def test_a_store_that_does_not_run_yet_is_out_of_reach() -> None:
    assert not RedisStore(parse_url("redis://127.0.0.1:1"), "one").health.reachable


async def test_a_redis_that_is_gone_is_out_of_reach_and_then_has_lost_leases(
    redis: RunningRedis,
) -> None:
    """It comes back empty, so nothing is granted until the lease of before is over."""
    async with acting(RedisStore(parse_url(redis.url), "one")) as actor:
        held = await actor.take("n")
        redis.kill()
        await becomes(lambda: not actor.store.health.reachable)
        redis.start()
        await becomes(lambda: actor.store.health.paused_ms > 0)
        health = actor.store.health
        assert health.reachable
        assert health.paused_ms <= held.claim.ttl_ms
        assert health.reason == PAUSED_BY_LOSS


async def test_a_redis_that_may_evict_pauses_until_it_may_not(redis: RunningRedis) -> None:
    options = Options(preflight_ms=100)
    async with acting(RedisStore(parse_url(redis.url), "one", options)) as actor:
        redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        await becomes(lambda: actor.store.health.paused_ms > 0)
        assert "maxmemory-policy" in (actor.store.health.reason or "")
        redis.cli("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await becomes(lambda: actor.store.health == Health("redis"))
