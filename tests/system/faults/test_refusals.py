"""A Redis that answers, but will not: busy, full, out of disk, forgetful of scripts (L14)."""

from typing import Final

import pytest
import trio

from tests.redises import RunningRedis
from tests.system.faults.load import Load, at_work
from tests.system.faults.stations import (
    UNAVAILABLE,
    WITHIN_S,
    attempt,
    check_refusals,
    eventually,
    holders,
    nobody_but,
    now,
    station,
    take,
    works_again,
)

pytestmark = pytest.mark.system

CLIENTS = 10
NAMES = [f"n{number}" for number in range(4)]


# --- In the middle of load ------------------------------------------------------------------------


async def flush_scripts(redis: RunningRedis) -> None:
    redis.cli("SCRIPT", "FLUSH")


async def kill_clients(redis: RunningRedis) -> None:
    redis.cli("CLIENT", "KILL", "TYPE", "normal")


async def kill_everybody(redis: RunningRedis) -> None:
    redis.pipeline(("CLIENT", "KILL", "TYPE", "normal"), ("CLIENT", "KILL", "TYPE", "pubsub"))


NUISANCES: Final = {each.__name__: each for each in (flush_scripts, kill_clients, kill_everybody)}


@pytest.mark.parametrize("what", NUISANCES)
async def test_load_goes_on_through_it(redis: RunningRedis, what: str) -> None:
    """L1, L2; requests under way may have an unknown outcome, and no other kind of error."""
    load = Load(CLIENTS)
    async with station(redis.url) as one, station(redis.url) as two:
        async with at_work((load, NAMES), urls=[one.url, two.url]):
            await eventually(lambda: load.has_visits_since(0, NAMES))
            began_at = now()
            for number in range(40):
                await NUISANCES[what](redis)
                await trio.sleep(0.02 if number % 10 else 0.3)
            gap_s = load.gap_s(began_at, NAMES)
            ended_at = now()
            await eventually(lambda: load.has_visits_since(ended_at, NAMES))
        load.check()
        refused = sum(each.code == UNAVAILABLE for each in load.attempts)
        print(
            f"FIGURE {what}: {refused} of {len(load.attempts)} requests unavailable, "
            f"no grants for {gap_s:.2f} s"
        )
        if what == "flush_scripts":
            assert not refused
        assert gap_s < 2.0


# --- Refusing -------------------------------------------------------------------------------------


async def test_a_busy_redis_is_unavailable_and_nothing_else(redis: RunningRedis) -> None:
    """Somebody's script runs for ever; when it is killed, all is well at once."""
    redis.cli("CONFIG", "SET", "busy-reply-threshold", 100)
    async with station(redis.url) as one, trio.open_nursery() as nursery:
        client = await one.dial()
        kept = await take(client, "kept", ttl_ms=20_000)
        nursery.start_soon(trio.to_thread.run_sync, run_for_ever, redis)
        await trio.sleep(0.3)
        for method, params in (
            ("lease.acquire", {"name": "n"}),
            ("lease.renew", {"name": "kept", "lease": kept.lease}),
            ("lease.inspect", {"name": "kept"}),
            ("lease.list", {}),
        ):
            asked = await attempt(client, method, **params)
            assert asked.code == UNAVAILABLE, (method, asked)
            check_refusals([asked])
        redis.cli("SCRIPT", "KILL")
        killed_s = await works_again(client, "n")
        print(f"FIGURE busy: works {killed_s:.2f} s after the end of the script")
        assert killed_s < 3.0
        assert await holders(client, "kept") == [kept.fence]


def run_for_ever(redis: RunningRedis) -> None:
    with pytest.raises(Exception, match="killed by user"):
        redis.cli("EVAL", "while true do end", 0)


async def test_a_full_redis_refuses_leases_and_takes_them_back(redis: RunningRedis) -> None:
    """OOM: nothing is granted; renewals, releases and hand-overs need no memory."""
    async with station(redis.url) as one, station(redis.url) as two:
        client, other = await one.dial(), await two.dial()
        held = await take(client, "held", ttl_ms=20_000)
        kept = await take(client, "kept", ttl_ms=20_000)
        waiting = await other.ask("lease.acquire", name="held", wait_ms=None, ttl_ms=20_000)
        await other.call("lease.inspect", name="held")
        redis.cli("CONFIG", "SET", "maxmemory", 1)
        full_at = now()
        refused = await attempt(client, "lease.acquire", name="n")
        assert refused.code == UNAVAILABLE
        assert refused.answer["outcome"] == "none"
        assert (await attempt(client, "lease.renew", name="kept", lease=kept.lease)).code is None
        assert await holders(client, "kept") == [kept.fence]
        released = await client.call("lease.release", name="held", lease=held.lease)
        assert released == {"released": True}
        with trio.fail_after(WITHIN_S):
            granted = await other.answer(waiting)
        assert granted["fence"] > held.fence
        again = await client.call("lease.release", name="kept", lease=kept.lease)
        assert again == {"released": True}
        assert await holders(client, "kept") == []
        print(f"FIGURE full: all of this in {now() - full_at:.2f} s")
        redis.cli("CONFIG", "SET", "maxmemory", 0)
        print(f"FIGURE full: works {await works_again(client, 'n'):.2f} s after there is room")


async def test_a_redis_that_cannot_save_is_unavailable(own_redis: RunningRedis) -> None:
    """MISCONF: it takes no writes at all until its snapshots succeed again."""
    async with station(own_redis.url) as one:
        client = await one.dial()
        held = await take(client, "held", ttl_ms=20_000)
        own_redis.cli("CONFIG", "SET", "save", "3600 1000000")
        (own_redis.directory / "dump.rdb").mkdir()
        own_redis.cli("BGSAVE")
        await eventually(lambda: own_redis.info("persistence")["rdb_last_bgsave_status"] == "err")
        for method, params in (
            ("lease.acquire", {"name": "n"}),
            ("lease.release", {"name": "held", "lease": held.lease}),
        ):
            asked = await attempt(client, method, **params)
            assert asked.code == UNAVAILABLE, (method, asked)
            assert asked.answer["outcome"] == "none"
        own_redis.cli("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")
        well_s = await works_again(client, "n")
        # What could not be released was not forgotten.
        await nobody_but(client, set())
        print(f"FIGURE cannot save: works {well_s:.2f} s after it may write again")
