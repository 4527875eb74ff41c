"""After a loss of data: what servers know of is put back, holders and waiters (HOLD-5, L4, L5)."""

from collections.abc import Sequence

import pytest
import trio

from tests.redises import RunningRedis
from tests.system.faults.stations import (
    POLL_S,
    UNAVAILABLE,
    WITHIN_S,
    Held,
    attempt,
    holders,
    now,
    station,
    take,
)

pytestmark = pytest.mark.system

WAITERS = 5
BACK_S = 3.0
"""A server finds back to a Redis that restarted, and puts back what it knows."""


async def lose_as(how: str, redis: RunningRedis) -> None:
    """Without waiting for anybody to notice."""
    if how == "flushed":
        redis.cli("FLUSHALL")
    else:
        await trio.to_thread.run_sync(redis.restart)


@pytest.mark.parametrize("how", ["flushed", "restarted"])
async def test_holders_who_renew_notice_nothing(own_redis: RunningRedis, how: str) -> None:
    """HOLD-5: many of them, who renew, repeat and resume while it happens, keep their fences."""
    async with station(own_redis.url) as one, station(own_redis.url) as two:
        holder, looker = await one.dial(), await two.dial()
        held = [await take(holder, f"n{i}", ttl_ms=5000) for i in range(30)]
        answers: list[tuple[str, int | None]] = []

        async def go_on(mine: Sequence[Held]) -> None:
            client, other = await one.dial(), await two.dial()
            while True:
                for lease in mine:
                    which = {"name": lease.name, "lease": lease.lease}
                    renewed = await attempt(client, "lease.renew", **which)
                    again = await attempt(client, "lease.acquire", **which, auto_renew=False)
                    resumed = await attempt(client, "lease.resume", **which)
                    elsewhere = await attempt(other, "lease.renew", **which)
                    for each in (renewed, again, resumed, elsewhere):
                        answers.append((lease.name, each.code))
                        assert each.answer.get("fence", lease.fence) == lease.fence

        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(go_on, held[number::3])
            await trio.sleep(0.2)
            for _ in range(3):
                await lose_as(how, own_redis)
                await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
        assert {code for _, code in answers} <= {None, UNAVAILABLE}
        refused = sum(code is not None for _, code in answers)
        print(f"FIGURE {how}: {refused} of {len(answers)} renewals were unavailable")
        with trio.fail_after(BACK_S):
            for lease in held:
                while True:
                    if await holders(looker, lease.name) == [lease.fence]:
                        break
                    await trio.sleep(POLL_S)
        assert not holder.notifications


@pytest.mark.parametrize("how", ["flushed", "restarted"])
async def test_those_who_waited_before_are_granted_after(own_redis: RunningRedis, how: str) -> None:
    """L4, L5: on both servers; soon after the pause, and those of one server in their order."""
    async with station(own_redis.url) as one, station(own_redis.url) as two:
        client = await one.dial()
        old = await take(client, "n", ttl_ms=1000)
        peers = [await each.dial() for each in (one, two) for _ in range(WAITERS)]
        asked = []
        for peer in peers:
            asked.append(await peer.ask("lease.acquire", name="n", ttl_ms=5000, wait_ms=None))
            await peer.call("lease.inspect", name="n")
        await lose_as(how, own_redis)
        lost_at = now()
        fences: list[int] = []
        order: list[int] = []
        left = dict(enumerate(zip(peers, asked, strict=True)))
        with trio.fail_after(WITHIN_S):
            while left:
                await trio.sleep(0.005)
                for number, (peer, request) in list(left.items()):
                    if peer.answered(request):
                        grant = await peer.answer(request)
                        assert now() >= old.until
                        fences.append(grant["fence"])
                        order.append(number)
                        del left[number]
                        if len(order) == 1:
                            print(
                                f"FIGURE {how}: first waiter granted after {now() - lost_at:.2f} s"
                            )
                        await peer.call("lease.release", name="n", lease=grant["lease"])
        assert fences == sorted(fences)
        assert fences[0] > old.fence
        for server in (range(WAITERS), range(WAITERS, 2 * WAITERS)):
            assert [number for number in order if number in server] == [*server]
