"""Pub/sub carries nothing: waiters and watchers are served all the same, a little later (L5)."""

from contextlib import suppress

import attrs
import pytest
import trio
from redis.exceptions import ResponseError

from tests.proxy import CHUNK, Proxy, Way
from tests.redises import RunningRedis
from tests.system.faults.stations import WITHIN_S, now, station, take

pytestmark = pytest.mark.system

EXPIRED_S = 2.0
"""Law L5: within this after an expiry, the next waiter has it."""
RELEASED_S = 5.0
"""A server vouches for its waiters so often, which tells it what became of them."""
LATE_S = 1.0


@attrs.define(eq=False)
class DeafProxy(Proxy):
    """Swallows what Redis says on connections that have subscribed; all others are well."""

    _deaf: bool = attrs.field(default=False, init=False)

    def deafen(self) -> None:
        """From now on."""
        self._deaf = True

    async def _pump(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        way: Way,
        connection: trio.CancelScope,
    ) -> None:
        subscribed = False
        with suppress(trio.BrokenResourceError):
            while chunk := await source.receive_some(CHUNK):
                # Messages look like no answer to a command that a server sends.
                subscribed = subscribed or b"subscribe" in chunk
                if not (self._deaf and subscribed):
                    await sink.send_all(chunk)
        connection.cancel()


async def kill_subscribers(redis: RunningRedis) -> None:
    """Again and again."""
    while True:
        with suppress(ResponseError, OSError):
            redis.cli("CLIENT", "KILL", "TYPE", "pubsub")
        await trio.sleep(0.01)


@pytest.mark.parametrize("how", ["killed", "deaf"])
async def test_waiters_and_watchers_need_no_messages(redis: RunningRedis, how: str) -> None:
    """After an expiry, a release, and a change of holders."""
    proxy = DeafProxy(redis.port)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        async with station(redis.url) as one, station(proxy.url) as two:
            client, waiter, second, watcher = (
                await one.dial(),
                await two.dial(),
                await two.dial(),
                await two.dial(),
            )
            await watcher.call("lease.watch", name="seen")
            if how == "killed":
                nursery.start_soon(kill_subscribers, redis)
            else:
                proxy.deafen()
            await take(client, "seen", ttl_ms=60_000)
            seen_at = now()
            expiring = await take(client, "expiring", ttl_ms=1000)
            released = await take(client, "released", ttl_ms=60_000)
            first = await waiter.ask("lease.acquire", name="expiring", wait_ms=None)
            other = await second.ask("lease.acquire", name="released", wait_ms=None)
            await second.call("lease.inspect", name="released")
            await client.call("lease.release", name="released", lease=released.lease)
            released_at = now()
            with trio.fail_after(WITHIN_S):
                assert (await waiter.answer(first))["fence"] > expiring.fence
                expired_s = now() - expiring.until
                assert (await second.answer(other))["fence"] > released.fence
                released_s = now() - released_at
                changed = await watcher.notification("lease.changed")
                changed_s = now() - seen_at
            assert changed["name"] == "seen"
            print(
                f"FIGURE messages {how}: next waiter {expired_s:.2f} s after expiry, "
                f"{released_s:.2f} s after release; watcher told after {changed_s:.2f} s"
            )
            assert expired_s < EXPIRED_S
            assert released_s < RELEASED_S + LATE_S
            assert changed_s < RELEASED_S + LATE_S
        nursery.cancel_scope.cancel()
