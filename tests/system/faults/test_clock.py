"""The clock of Redis is set forwards and back: CLOCK-3.

A step forwards ends leases early, which holders learn at the next renewal. A step back lengthens
them, by the step at most; no holder believes longer for it, for only Redis looks at its clock.
"""

from collections.abc import Iterator

import pytest
import trio

from tests.redises import RunningRedis, running_redis
from tests.system.faults.stations import (
    LATE_S,
    LOST,
    WITHIN_S,
    Rival,
    attempt,
    now,
    station,
    take,
    works_again,
)

pytestmark = pytest.mark.system

STEP_MS = 60_000
SHORT_STEP_MS = 2_000
TTL_MS = 3000
NOTICED_S = 2.0
"""The end of a lease that nobody tells of."""
REQUEUED_S = 6.0
"""A waiter whose server's word ended early is missed at the next touch, and queues again."""


@pytest.fixture
def redis() -> Iterator[RunningRedis]:
    with running_redis(skewed=True) as running:
        yield running


async def test_a_step_forwards_ends_leases_and_is_told(redis: RunningRedis) -> None:
    async with station(redis.url) as one, station(redis.url) as two:
        client, other = await one.dial(), await two.dial()
        kept = await take(client, "kept", ttl_ms=TTL_MS, auto_renew=True)
        silent = await take(await one.dial(), "silent", ttl_ms=30_000)
        waited = await take(await one.dial(), "waited", ttl_ms=600_000)
        waiting = await other.ask("lease.acquire", name="waited", ttl_ms=600_000, wait_ms=None)
        await other.call("lease.inspect", name="waited")
        redis.step_clock(STEP_MS)
        stepped_at = now()
        lost = await client.notification("lease.lost")
        told_s = now() - stepped_at
        assert (lost["fence"], lost["reason"]) == (kept.fence, "expired")
        assert told_s < TTL_MS / 1000
        rival = Rival(await two.dial(), "silent")
        with trio.fail_after(WITHIN_S):
            await rival.run()
        assert rival.fence > silent.fence
        renewal = {"name": "silent", "lease": silent.lease}
        assert (await attempt(client, "lease.renew", **renewal)).code == LOST
        # The queue: its waiter is not forgotten.
        released = {"name": "waited", "lease": waited.lease}
        assert await client.call("lease.release", **released) == {"released": True}
        released_at = now()
        with trio.fail_after(REQUEUED_S):
            granted = await other.answer(waiting)
        assert granted["fence"] > waited.fence
        rival_s, waiter_s = rival.got.ended_at - stepped_at, now() - released_at
        print(
            f"FIGURE clock +60 s: holder told after {told_s:.2f} s, rival after {rival_s:.2f} s, "
            f"waiter {waiter_s:.2f} s after the release"
        )


async def test_a_step_back_lengthens_no_belief(redis: RunningRedis) -> None:
    async with station(redis.url) as one, station(redis.url) as two:
        client, other = await one.dial(), await two.dial()
        kept = await take(client, "kept", ttl_ms=TTL_MS, auto_renew=True)
        held = await take(client, "n", ttl_ms=TTL_MS)
        before = await take(other, "m", ttl_ms=TTL_MS)
        waiting = await other.ask("lease.acquire", name="n", ttl_ms=TTL_MS, wait_ms=None)
        await other.call("lease.inspect", name="n")
        redis.step_clock(-STEP_MS)
        which = {"name": "n", "lease": held.lease}
        for _ in range(3):
            assert (await client.call("lease.renew", **which))["ttl_ms"] <= TTL_MS
            again = await client.call("lease.acquire", **which, ttl_ms=TTL_MS, auto_renew=False)
            assert again["fence"] == held.fence
            assert again["ttl_ms"] <= TTL_MS
            await trio.sleep(0.1)
        await client.call("lease.release", **which)
        with trio.fail_after(2.0):
            granted = await other.answer(waiting)
        assert granted["fence"] > held.fence
        assert 0 <= granted["waited_ms"] <= TTL_MS
        await other.call("lease.release", name="m", lease=before.lease)
        after = await take(other, "m", ttl_ms=TTL_MS)
        assert after.fence > before.fence
        # And nothing else has stopped: renewals go on for longer than a TTL.
        await trio.sleep(TTL_MS / 1000 + 0.5)
        state = await other.call("lease.inspect", name="kept")
        assert [each["fence"] for each in state["holders"]] == [kept.fence]
        assert {each["method"] for each in client.notifications} <= {"lease.contended"}


async def test_a_step_back_keeps_a_name_for_no_longer_than_the_step(redis: RunningRedis) -> None:
    """Of a holder that says nothing any more; whoever waits has it then."""
    async with station(redis.url) as one, station(redis.url) as two:
        held = await take(await one.dial(), "n", ttl_ms=1000)
        waiter = await two.dial()
        waiting = await waiter.ask("lease.acquire", name="n", ttl_ms=TTL_MS, wait_ms=None)
        await waiter.call("lease.inspect", name="n")
        redis.step_clock(-SHORT_STEP_MS)
        with trio.fail_after(WITHIN_S):
            granted = await waiter.answer(waiting)
        late_s = now() - held.until
        print(f"FIGURE clock -2 s: the next waiter has it {late_s:.2f} s after the holder's end")
        assert granted["fence"] > held.fence
        assert late_s <= SHORT_STEP_MS / 1000 + NOTICED_S + 2 * LATE_S


@pytest.mark.parametrize("step_ms", [STEP_MS, -STEP_MS])
async def test_fences_rise_even_where_the_last_one_was_forgotten(
    redis: RunningRedis, step_ms: int
) -> None:
    """STEP-2: with the last fence known, whatever the clock; flushed, if it went forwards."""
    async with station(redis.url) as one:
        client = await one.dial()
        before = await take(client, "n", ttl_ms=500)
        await client.call("lease.release", name="n", lease=before.lease)
        redis.step_clock(step_ms)
        if step_ms > 0:
            redis.cli("FLUSHALL")
        await works_again(client, "other")
        after = await take(client, "n", ttl_ms=500)
        assert after.fence > before.fence
