"""One master of a cluster is silent, or forgets, and nobody takes over: the others go on."""

from collections.abc import Iterator
from typing import Final

import pytest
import trio
from redis.crc import key_slot

from tests.harness import Peer
from tests.redis_groups import SLOTS, RedisCluster, running_cluster
from tests.system.faults.stations import (
    POLL_S,
    Rival,
    attempt,
    check_refusals,
    holders,
    now,
    station,
    take,
    works_again,
)

pytestmark = pytest.mark.system

SHARDS, SILENT, OTHER = 3, 0, 1
TTL_MS = 1500
SILENT_S = 4.0
"""Longer than a call waits for its answer."""
NEXT_S = 2.0
"""Law L5: within this after an expiry, the next waiter has it."""


PARTIAL: Final = ("--cluster-require-full-coverage", "no")
"""By default, the others of a cluster stop serving while one is missing."""


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    with running_cluster(options=PARTIAL) as running:
        yield running


@pytest.fixture
def slow_cluster() -> Iterator[RedisCluster]:
    """Nothing but silence tells of a node that is silent."""
    with running_cluster(node_timeout_ms=60_000, options=PARTIAL) as running:
        yield running


def name_on(shard: int, start: str) -> str:
    """A name that begins like this, in a slot of that master."""
    names = (f"{start}{number}" for number in range(1000))
    return next(each for each in names if key_slot(each.encode()) * SHARDS // SLOTS == shard)


@pytest.mark.parametrize("liveness", ["pong", "heartbeat"])
async def test_a_silent_shard_costs_no_lease_of_another(
    slow_cluster: RedisCluster, liveness: str
) -> None:
    """L5, L8, L14: renewals, waiters, watchers and rivals of the others, all by one server."""
    silent = slow_cluster.nodes[SILENT]
    bad, good = name_on(SILENT, "bad"), name_on(OTHER, "good")
    queue, seen = name_on(OTHER, "queue"), name_on(OTHER, "seen")
    async with station(slow_cluster.url) as one, trio.open_nursery() as nursery:
        client, rival, watcher = await one.dial(), await one.dial(), await one.dial()
        await client.call("session.open", liveness=liveness)
        await take(client, bad, ttl_ms=TTL_MS, auto_renew=True)
        kept = await take(client, good, ttl_ms=TTL_MS, auto_renew=True)
        if liveness == "heartbeat":
            nursery.start_soon(beat, client)
        await watcher.call("lease.watch", name=seen)
        for number in range(20):  # which the server looks at, again and again
            await watcher.call("lease.watch", name=name_on(SILENT, f"w{number}-"))
        await trio.sleep(0.5)
        first = await take(rival, queue, ttl_ms=3000)
        waiting = await watcher.ask("lease.acquire", name=queue, ttl_ms=5000, wait_ms=None)
        bad_one = await rival.ask("lease.acquire", name=bad, wait_ms=None, ttl_ms=TTL_MS)
        while not (await rival.call("lease.inspect", name=bad))["waiting_total"]:  # noqa: ASYNC110
            await trio.sleep(POLL_S)  # or it has not been asked for yet, and is refused
        silent.pause()
        paused_at = now()
        free = Rival(await one.dial(), name_on(OTHER, "free"))
        nursery.start_soon(hammer, free, paused_at + SILENT_S)
        await trio.sleep(1.0)
        held = await take(rival, seen, ttl_ms=5000)
        taken_at = now()
        while (await watcher.notification("lease.changed"))["name"] != seen:
            pass
        watch_s = now() - taken_at
        with trio.fail_after(first.until + NEXT_S - now()):
            await watcher.answer(waiting)
        next_s = now() - first.until
        await trio.sleep(max(0.0, paused_at + SILENT_S - now()))
        assert await holders(rival, good) == [kept.fence]
        lost = [
            each["params"]["name"]
            for each in client.notifications
            if each["method"] == "lease.lost"
        ]
        assert good not in lost
        assert free.attempts
        longest_s = max(each.took_s for each in free.attempts)
        print(
            f"FIGURE silent shard, {liveness}: others answered within {longest_s:.3f} s, watcher "
            f"told after {watch_s:.3f} s, next waiter {next_s:.2f} s after expiry, lost: {lost}"
        )
        assert longest_s < 1.0
        assert {each.code for each in free.attempts} == {None}
        assert watch_s < 1.0
        assert held.fence
        silent.resume()
        back_s = await works_again(rival, name_on(SILENT, "again"))
        print(f"FIGURE silent shard back after {back_s:.2f} s")
        with trio.fail_after(10):
            await rival.answer(bad_one)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["flushed", "restarted"])
async def test_a_shard_that_forgets_pauses_no_other(cluster: RedisCluster, how: str) -> None:
    """L1, HOLD-2: its own names are not granted before their leases are over, others at once."""
    victim = cluster.nodes[SILENT]
    bad, good = name_on(SILENT, "bad"), name_on(OTHER, "good")
    async with station(cluster.url) as one, station(cluster.url) as two:
        old = await take(await one.dial(), bad, ttl_ms=TTL_MS)
        rival, free = Rival(await two.dial(), bad), Rival(await two.dial(), good)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rival.run)
            await rival.begun()
            nursery.start_soon(hammer, free, old.until)
            if how == "flushed":
                victim.cli("FLUSHALL")
            else:
                await trio.to_thread.run_sync(victim.restart)
            await rival.done()
        check_refusals(rival.attempts)
        assert rival.got.ended_at >= old.until
        assert rival.fence > old.fence
        longest_s = max(each.took_s for each in free.attempts)
        print(f"FIGURE shard {how}: others answered within {longest_s:.3f} s")
        assert {each.code for each in free.attempts} == {None}
        assert longest_s < 1.0


async def beat(peer: Peer) -> None:
    """Heartbeats, as a client sends them, which does not wait for an answer to send the next."""
    while True:
        await peer.ask("session.heartbeat")
        await trio.sleep(TTL_MS / 3000)


async def hammer(rival: Rival, until: float) -> None:
    """Takes and gives back."""
    while now() < until:
        asked = await attempt(rival.peer, "lease.acquire", name=rival.name, ttl_ms=TTL_MS)
        rival.attempts.append(asked)
        if asked.code is None:
            await rival.peer.call("lease.release", name=rival.name, lease=asked.answer["lease"])
        await trio.sleep(0.02)
