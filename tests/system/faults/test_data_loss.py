"""Redis forgets: fences rise all the same, and nobody is granted what somebody still believes in.

Laws L1 and L2, and HOLD-1 to HOLD-6 of the layout.
"""

from collections.abc import AsyncIterator
from secrets import token_hex

import pytest
import trio

from leasekeeper.store.redis.store import Options
from tests.redises import RunningRedis
from tests.system.faults.doomed import LOSSES, Doomed
from tests.system.faults.stations import (
    BUSY,
    UNAVAILABLE,
    WITHIN_S,
    Rival,
    Station,
    attempt,
    check_refusals,
    eventually,
    holders,
    now,
    station,
    take,
)

pytestmark = pytest.mark.system

TTL_MS = 3000
"""What was lost has to be lost before it is over, on a busy machine, too."""
SLOW_TTL_MS = 5000
"""For sentinels, which take their time: the pause has to outlast them."""
NO_HOLD = Options(restart_hold_ms=0)
WAITERS = 5


@pytest.fixture(params=LOSSES)
async def doomed(request: pytest.FixtureRequest) -> AsyncIterator[Doomed]:
    """Each way to lose data."""
    async with LOSSES[request.param]() as loss:
        yield loss


# --- The pause ------------------------------------------------------------------------------------


async def test_nobody_is_granted_what_is_still_believed_in(doomed: Doomed) -> None:
    """L1, L2, HOLD-3, HOLD-5: neither by a server that was there, nor by one that is new."""
    ttl_ms = SLOW_TTL_MS if "sentinel" in doomed.url else TTL_MS
    async with station(doomed.url) as one, station(doomed.url) as two:
        client = await one.dial()
        first = await take(client, "lone", ttl_ms=ttl_ms)
        await client.call("lease.release", name="lone", lease=first.lease)
        doomed.part()
        rivals = [await rival_of(two, name) for name in ("lone", "read", "some", "kept")]
        kept = await take(client, "kept", ttl_ms=ttl_ms, auto_renew=True)
        old = {
            "lone": await take(client, "lone", ttl_ms=ttl_ms),
            "read": await take(client, "read", ttl_ms=ttl_ms, mode="shared"),
            "some": await take(client, "some", ttl_ms=ttl_ms, mode="shared", limit=1),
        }
        async with trio.open_nursery() as nursery:
            for rival in rivals:
                nursery.start_soon(rival.run)
                await rival.begun()
            await doomed.lose()
            lost_at = now()
            if doomed.is_replaced:
                # What a server that starts before any other has noticed cannot know.
                await eventually(lambda: UNAVAILABLE in rivals[0].codes())
            async with station(doomed.url) as three:
                late = [await rival_of(three, name) for name in (*old, "kept")]
                for rival in late:
                    nursery.start_soon(rival.run)
                for rival in (*rivals, *late):
                    if rival.name in old:
                        await rival.done()
                assert await holders(client, "kept") == [kept.fence]
                nursery.cancel_scope.cancel()
        for rival in (*rivals, *late):
            check_refusals(rival.attempts)
            if rival.name == "kept":
                assert not rival.is_done
                continue
            assert rival.got.ended_at >= old[rival.name].until
            assert rival.fence > old[rival.name].fence
        assert UNAVAILABLE in rivals[0].codes()
        recovered_s = min(rival.got.ended_at for rival in rivals if rival.name in old) - lost_at
        print(f"FIGURE {doomed.url[:12]} grants again after {recovered_s:.2f} s (TTL {ttl_ms} ms)")


async def rival_of(place: Station, name: str) -> Rival:
    """For a shared name with a limit: one that would fit if the limit had been forgotten."""
    mode = {"some": {"mode": "shared", "limit": 1}}.get(name, {})
    return Rival(await place.dial(), name, params=mode)


async def test_without_the_pause_the_fence_rises_at_once(doomed: Doomed) -> None:
    """L2, with `--restart-hold-ms 0`; this is also what shows that the test above can fail."""
    async with station(doomed.url, NO_HOLD) as one, station(doomed.url, NO_HOLD) as two:
        client = await one.dial()
        first = await take(client, "n", ttl_ms=TTL_MS)
        await client.call("lease.release", name="n", lease=first.lease)
        doomed.part()
        old = await take(client, "n", ttl_ms=60_000)
        rival = Rival(await two.dial(), "n")
        await doomed.lose()
        with trio.fail_after(WITHIN_S):
            await rival.run()
        assert rival.got.ended_at < old.until
        assert rival.fence > old.fence > first.fence
        check_refusals(rival.attempts)


# --- What is no loss ------------------------------------------------------------------------------


async def test_the_flush_of_another_database_pauses_next_to_nothing(
    own_redis: RunningRedis,
) -> None:
    """HOLD-6, with two servers, each of which has given something out."""
    async with station(own_redis.url) as one, station(own_redis.url) as two:
        peers = [await one.dial(), await two.dial()]
        held = [await take(peer, f"n{i}", ttl_ms=20_000) for i, peer in enumerate(peers)]
        for _ in range(3):
            own_redis.pipeline(("SELECT", 1), ("SET", "k", "v"), ("FLUSHDB",))
            flushed_at = now()
            for peer in peers:
                rival = Rival(peer, token_hex(4))
                await rival.run()
                check_refusals(rival.attempts)
            print(f"FIGURE another database flushed: paused for {now() - flushed_at:.3f} s")
            assert now() - flushed_at < 1.0
            # And the pause does not come back by way of what servers tell each other.
            await trio.sleep(0.2)
            for peer in peers:
                assert (await attempt(peer, "lease.acquire", name=token_hex(4))).code is None
        assert own_redis.cli("EXISTS", "lk:hold") == 0
        for i, peer in enumerate(peers):
            assert await holders(peer, f"n{i}") == [held[i].fence]
            assert (await attempt(peer, "lease.acquire", name=f"n{i}")).code == BUSY


async def test_a_flush_right_after_that_of_another_database_is_noticed(
    own_redis: RunningRedis,
) -> None:
    """HOLD-3: the doubt about one flush does not excuse the next."""
    async with station(own_redis.url) as one, station(own_redis.url) as two:
        client, other = await one.dial(), await two.dial()
        old = await take(client, "n", ttl_ms=TTL_MS)
        await take(other, "m", ttl_ms=TTL_MS)
        own_redis.pipeline(("SELECT", 1), ("FLUSHDB",), ("SELECT", 0), ("FLUSHDB",))
        rival = Rival(other, "n")
        with trio.fail_after(WITHIN_S):
            await rival.run()
        assert rival.got.ended_at >= old.until
        assert rival.fence > old.fence


async def test_a_connection_that_is_lost_pauses_nothing(own_redis: RunningRedis) -> None:
    """HOLD-2: only another run id or replication id does."""
    async with station(own_redis.url) as one:
        client = await one.dial()
        await take(client, "n", ttl_ms=20_000)
        own_redis.cli("CLIENT", "KILL", "TYPE", "normal")
        rival = Rival(client, "m")
        with trio.fail_after(2.0):
            await rival.run()


async def test_a_server_told_of_more_pauses_for_longer(own_redis: RunningRedis) -> None:
    """HOLD-3: a server that knew of no lease, for it was deaf, learns from one that did."""
    async with station(own_redis.url) as one:
        old = await take(await one.dial(), "n", ttl_ms=3000)
        async with station(own_redis.url) as two:
            two.store._recovery.hold._latest_ms = 0
            # A name that nobody holds: nothing but the pause keeps it.
            rival = Rival(await two.dial(), "m")
            await trio.to_thread.run_sync(own_redis.restart)
            with trio.fail_after(WITHIN_S):
                await rival.run()
            assert rival.got.ended_at >= old.until


async def test_a_server_that_was_not_told_of_a_lease_learns_of_it_after_a_flush(
    own_redis: RunningRedis,
) -> None:
    """HOLD-3: the word of a lease is sent beside its grant, and may come after the flush."""
    async with station(own_redis.url) as one, station(own_redis.url) as two:
        rival = Rival(await two.dial(), "n")
        client = await one.dial()
        old = await take(client, "n", ttl_ms=TTL_MS)
        await attempt(rival.peer, "lease.inspect", name="n")
        two.store._recovery.hold._latest_ms = 0  # as if the word were still on its way
        own_redis.cli("FLUSHALL")
        with trio.fail_after(WITHIN_S):
            await rival.run()
        assert rival.got.ended_at >= old.until
        assert rival.fence > old.fence
