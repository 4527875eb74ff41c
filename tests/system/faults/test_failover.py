"""A master goes in the middle of load: typed errors for a moment, and then service, by itself.

Sentinels and a cluster; killed and paused; servers that are processes of their own (L1, L2, L14).
"""

from collections.abc import Iterator

import pytest
import trio

from tests.redis_groups import RedisCluster, ReplicatedRedis, running_cluster
from tests.system.faults.doomed import sentinels
from tests.system.faults.load import Load, at_work, serving
from tests.system.faults.stations import eventually, now

pytestmark = pytest.mark.system

CLIENTS = 20
NAMES = [f"n{number}" for number in range(6)]
UNDISTURBED_S = 1.5
"""Less than a call waits for a node that is not there."""
OUTAGE_S = 10.0
"""Bound for a busy machine; what it takes is said by the figures."""


@pytest.fixture
def group() -> Iterator[ReplicatedRedis]:
    with sentinels() as running:
        yield running


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    # By default, the others of a cluster stop serving while one is missing.
    options = ("--cluster-require-full-coverage", "no")
    with running_cluster(replicas_each=1, options=options) as running:
        yield running


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_service_goes_on_after_a_failover(group: ReplicatedRedis, how: str) -> None:
    """No restart of any server, no second holder, and fences rise from one master to the next."""
    load = Load(CLIENTS)
    async with (
        serving(group.url, 2) as servers,
        at_work((load, NAMES), urls=[each.url for each in servers]),
    ):
        await eventually(lambda: load.has_visits_since(0, NAMES))
        old = group.master()
        failed_at = now()
        if how == "killed":
            old.kill()
        else:
            old.pause()
        await trio.to_thread.run_sync(group.wait_until_promoted, old)
        promoted_at = now()
        await eventually(lambda: load.has_visits_since(promoted_at, NAMES))
        if how == "paused":
            old.resume()
        await trio.sleep(0.5)
        assert all(each.process.poll() is None for each in servers)
        gap_s = load.gap_s(failed_at, NAMES)
        print(
            f"FIGURE sentinel, {how}: promoted after {promoted_at - failed_at:.2f} s, "
            f"no grants for {gap_s:.2f} s, errors until {load.errors_s(failed_at):.2f} s, "
            f"{len(load.visits)} visits"
        )
        assert gap_s < OUTAGE_S
    load.check()


async def test_the_loss_of_a_shard_disturbs_no_other(cluster: RedisCluster) -> None:
    """HOLD-2: the pause, too, is for that shard only."""
    doomed = cluster.masters()[0]
    names = [f"n{number}" for number in range(60)]
    of_doomed = [each for each in names if cluster.node_of(f"lk:{{{each}}}:lock") is doomed][:5]
    of_others = [each for each in names if cluster.node_of(f"lk:{{{each}}}:lock") is not doomed][:5]
    hit, spared = Load(CLIENTS // 2), Load(CLIENTS // 2)
    async with (
        serving(cluster.url, 2) as servers,
        at_work((hit, of_doomed), (spared, of_others), urls=[each.url for each in servers]),
    ):
        await eventually(lambda: hit.has_visits_since(0, of_doomed))
        await eventually(lambda: spared.has_visits_since(0, of_others))
        cluster.kill_node(doomed)
        failed_at = now()
        await eventually(lambda: hit.has_visits_since(failed_at + 0.5, of_doomed))
        back_at = now()
        await trio.sleep(0.3)
        print(
            f"FIGURE cluster: shard without grants for {hit.gap_s(failed_at, of_doomed):.2f} s, "
            f"others for {spared.gap_s(failed_at, of_others):.2f} s at most; "
            f"errors {hit.errors_s(failed_at):.2f} s and {spared.errors_s(failed_at):.2f} s"
        )
        assert back_at - failed_at < OUTAGE_S
        assert spared.gap_s(failed_at, of_others) < UNDISTURBED_S
        assert spared.errors_s(failed_at) == 0
        assert all(each.process.poll() is None for each in servers)
    hit.check()
    spared.check()
