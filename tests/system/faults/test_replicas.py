"""`--replicas 1`: a grant that only the master has is told to nobody, and goes back (L14)."""

from collections.abc import Iterator

import pytest
import trio

from leasekeeper.store.redis.store import Options
from tests.redis_groups import ReplicatedRedis, in_step, running_replicas
from tests.system.faults.stations import (
    UNAVAILABLE,
    WITHIN_S,
    attempt,
    eventually,
    holders,
    now,
    station,
    take,
    works_again,
)

pytestmark = pytest.mark.system

REPLICAS_MS = 300
CAREFUL = Options(replicas=1, replicas_ms=REPLICAS_MS)


@pytest.fixture
def group() -> Iterator[ReplicatedRedis]:
    with running_replicas() as running:
        yield running


def lose(group: ReplicatedRedis, how: str) -> None:
    [replica] = group.replicas()
    match how:
        case "killed":
            replica.kill()
        case "paused":
            replica.pause()


@pytest.mark.parametrize("how", ["killed", "paused"])
async def test_without_its_replica_nothing_is_granted(group: ReplicatedRedis, how: str) -> None:
    """And what the master did grant goes back, whether it was asked for or waited for."""
    async with station(group.url, CAREFUL) as one, station(group.url, CAREFUL) as two:
        client, other, looker = await one.dial(), await two.dial(), await two.dial()
        held = await take(client, "n", ttl_ms=60_000)
        waiting = await other.ask("lease.acquire", name="n", ttl_ms=60_000, wait_ms=None)
        handed = await take(client, "m", ttl_ms=60_000)
        queued = await looker.ask("lease.acquire", name="m", ttl_ms=60_000, wait_ms=None)
        await attempt(looker, "lease.inspect", name="m")
        await client.call("lease.release", name="m", lease=handed.lease)
        assert (await looker.answer(queued))["fence"] > handed.fence

        [replica] = group.replicas()
        lose(group, how)
        refused = await attempt(client, "lease.acquire", name="free", ttl_ms=60_000)
        assert refused.code == UNAVAILABLE, refused
        assert refused.answer["outcome"] == "none"
        assert refused.took_s < REPLICAS_MS / 1000 + 1
        assert await holders(looker, "free") == []

        # Renewals go on, for what they extend was granted with a replica.
        assert (await attempt(client, "lease.renew", name="n", lease=held.lease)).code is None
        await client.call("lease.release", name="n", lease=held.lease)
        await trio.sleep(1.0)
        assert not other.answered(waiting)

        match how:
            case "killed":
                await trio.to_thread.run_sync(replica.start)
            case "paused":
                replica.resume()
        await eventually(lambda: in_step(replica))
        back_at = now()
        with trio.fail_after(WITHIN_S):
            granted = await other.answer(waiting)
        granted_s = now() - back_at
        again_s = await works_again(client, "free")
        print(
            f"FIGURE replica {how}: refused after {refused.took_s:.2f} s; back: the waiter has it "
            f"after {granted_s:.2f} s, others after {granted_s + again_s:.2f} s"
        )
        assert granted["fence"] > held.fence
        assert await holders(looker, "n") == [granted["fence"]]
