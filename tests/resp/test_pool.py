"""How many connections there are to one address, and which of them a command gets."""

from contextlib import suppress

import trio
import trio.testing
from attrs import evolve

from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.pool import BUSY
from leasekeeper.resp.scripts import Script
from tests.resp.fake import SETTINGS, Connected, FakeRedis, Network, Words, running_client

SCRIPT = Script("echo", "return ARGV[1]")
SOME = evolve(SETTINGS, pool_min=2, pool_max=4)


def answer_waits(words: Words) -> bytes | None:
    """Answers nothing but WAIT and its script."""
    return b":1\r\n" if words[0] == b"WAIT" or words[-1] == b"answer" else None


async def call(connected: Connected) -> None:
    """Runs a script, whatever comes of it."""
    with suppress(Unanswered):
        await connected.client.eval(SCRIPT, ["k"], ["v"])


async def test_some_connections_are_kept(network: Network, autojump_clock: trio.abc.Clock) -> None:
    redis = network.add(FakeRedis())
    async with running_client(SOME) as connected:
        await trio.sleep(100)
        assert len(redis.ends) == 2
        assert len(connected.identities) == 2
    await trio.testing.wait_all_tasks_blocked()
    assert not redis.ends


async def test_few_commands_share_one_connection(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = network.add(FakeRedis(answer=answer_waits))
    async with running_client(SOME) as connected, trio.open_nursery() as nursery:
        await trio.sleep(1)
        for _ in range(BUSY):
            nursery.start_soon(call, connected)
        await trio.testing.wait_all_tasks_blocked()
        await trio.aclose_forcefully(redis.ends[0])
        await trio.testing.wait_all_tasks_blocked()
        assert not nursery.child_tasks


async def test_many_commands_open_further_connections_up_to_the_limit(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = network.add(FakeRedis(answer=answer_waits))
    async with running_client(SOME) as connected, trio.open_nursery() as nursery:
        for _ in range(10 * BUSY):
            nursery.start_soon(call, connected)
            await trio.testing.wait_all_tasks_blocked()
        assert len(redis.ends) == 4
        nursery.cancel_scope.cancel()


async def test_surplus_connections_are_closed_when_idle(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = network.add(FakeRedis())
    async with running_client(SOME) as connected:
        redis.delay_s = 0.01
        async with trio.open_nursery() as nursery:
            for _ in range(4 * BUSY):
                nursery.start_soon(call, connected)
                await trio.testing.wait_all_tasks_blocked()
        assert len(redis.ends) == 4
        dials = redis.dials
        await trio.sleep(59)
        assert len(redis.ends) == 4
        await trio.sleep(20)
        assert len(redis.ends) == 2
        await trio.sleep(100)
        assert redis.dials == dials


async def test_a_wait_for_replicas_does_not_hold_up_other_commands(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    """Redis answers nothing behind a WAIT, so it goes where nobody else is."""
    redis = network.add(FakeRedis(answer=lambda words: None if words[0] == b"WAIT" else b":1\r\n"))
    async with running_client(SOME) as connected, trio.open_nursery() as nursery:
        await trio.sleep(2)

        async def wait() -> None:
            with suppress(Unanswered):
                await connected.client.eval_and_wait(SCRIPT, ["k"], [], replicas=1, timeout_ms=1000)

        for _ in range(3):
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
        assert len(redis.ends) == 4
        first = redis.ends[0]
        assert await connected.client.eval(SCRIPT, ["k"], []) == 1
        await trio.aclose_forcefully(first)
        assert await connected.client.eval(SCRIPT, ["k"], []) == 1
        assert len(nursery.child_tasks) == 3
        nursery.cancel_scope.cancel()


async def test_a_silent_connection_takes_its_idle_neighbours_along(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    """Or each of them would cost another command its answer."""
    redis = network.add(FakeRedis(answer=answer_waits))
    async with running_client(SOME) as connected:
        await trio.sleep(1)
        old = list(redis.ends)
        await call(connected)
        await trio.testing.wait_all_tasks_blocked()
        assert not set(old) & set(redis.ends)


async def test_a_redis_that_ends_every_connection_is_not_stormed(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = network.add(FakeRedis())
    async with running_client(SOME):
        before = redis.dials
        for _ in range(1000):
            await redis.cut()
            await trio.sleep(0.01)
        assert redis.dials - before < 150
