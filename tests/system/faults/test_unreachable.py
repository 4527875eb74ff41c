"""Redis cannot be reached, in each of the ways a network has for that (L3, L5, L8, L14).

One server loses its Redis, another does not; so what the first has to give up can be seen to go to
somebody else, and not before its holder was warned.
"""

from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import Any, Final

import leasekeeper_client
import pytest
import trio
from attrs import define, field

from tests.harness import Peer
from tests.proxy import Proxy, Way, open_proxy
from tests.redises import RunningRedis
from tests.system.faults.stations import (
    LOST,
    UNAVAILABLE,
    Attempt,
    Held,
    Rival,
    Station,
    attempt,
    check_refusals,
    eventually,
    nobody_but,
    now,
    station,
    take,
    works_again,
)

pytestmark = pytest.mark.system

TTL_S = 2.0
TTL_MS = int(TTL_S * 1000)
STALL_S = 0.5
"""All of it is in one process, which has to wait for a processor now and then."""
HEALED_S = 6.0
"""After that long, at most, everything has found back by itself."""

Fault = Callable[[Proxy], None]


def go_silent(proxy: Proxy) -> None:
    proxy.half_open()


def lose_replies(proxy: Proxy) -> None:
    proxy.one_way(Way.TO_REDIS)


def lose_requests(proxy: Proxy) -> None:
    proxy.one_way(Way.TO_CLIENT)


def go_away(proxy: Proxy) -> None:
    proxy.refuse()
    proxy.cut()


def flap(proxy: Proxy) -> None:
    """Connections come about, and end."""
    proxy.cut()
    proxy.drop_replies()


FAULTS: Final[dict[str, Fault]] = {
    each.__name__: each for each in (go_silent, lose_replies, lose_requests, go_away, flap)
}


TWICE: Final = {"go_silent", "go_away"}


@define(eq=False)
class Believer:
    """Our own client with a lease: until when its body ran, and how it ended."""

    held: trio.Event = field(factory=trio.Event)
    fence: int = 0
    ended_at: float = 0.0
    reason: str = ""

    async def run(self, url: str, name: str) -> None:
        async with leasekeeper_client.connect(url) as keeper:
            try:
                async with keeper.lease(name, ttl=TTL_S) as lease:
                    self.fence = lease.fence
                    self.held.set()
                    try:
                        await trio.sleep_forever()
                    finally:
                        self.ended_at = now()
            except leasekeeper_client.LeaseLost as lost:
                self.reason = lost.reason


async def requests(place: Station, held: str, lease: str, beating: Peer) -> dict[str, Attempt]:
    """One of each kind, all at once, each by a client of its own."""
    answers: dict[str, Attempt] = {}

    async def ask(what: str, by: Peer, method: str, params: dict[str, object]) -> None:
        answers[what] = await attempt(by, method, **params)

    async with trio.open_nursery() as nursery:
        which: dict[str, object] = {"name": held, "lease": lease}
        kinds: list[tuple[str, str, dict[str, object]]] = [
            ("acquire", "lease.acquire", {"name": token_hex(4)}),
            ("wait", "lease.acquire", {"name": token_hex(4), "wait_ms": 100}),
            ("all", "lease.acquire_all", {"names": [token_hex(4), token_hex(4)]}),
            ("resume", "lease.resume", {"name": held, "lease": token_hex(16)}),
            ("renew", "lease.renew", which),
            ("inspect", "lease.inspect", {"name": held}),
            ("list", "lease.list", {}),
            ("watch", "lease.watch", {"name": token_hex(4)}),
            ("break", "lease.break", {"name": token_hex(4)}),
            ("heartbeat", "session.heartbeat", {}),
            ("release", "lease.release", which),
        ]
        for what, method, params in kinds:
            by = beating if what == "heartbeat" else await place.dial()
            nursery.start_soon(ask, what, by, method, params)
    return answers


@define(eq=False)
class Scene:
    """What two servers have when the first of them loses its Redis."""

    one: Station
    two: Station
    client: Peer
    watcher: Peer
    beating: Peer
    other: Peer
    """The only one that is at the second server."""
    lone: Held
    kept: Held
    queue: Held
    """The other has this; the watcher waits for it."""
    waiting: int
    believer: Believer
    rivals: list[Rival]
    """For what is kept alive through the first server: `kept` and `believed`."""
    warnings: list[tuple[float, dict[str, Any]]] = field(factory=list)

    async def move_on(self) -> None:
        """What the first server's clients are to hear of."""
        await take(self.other, "seen", ttl_ms=60_000)
        await self.other.call("lease.release", name="queue", lease=self.queue.lease)

    async def hear(self) -> None:
        """Writes down the one loss that is to come, and when it came."""
        lost = await self.client.notification("lease.lost")
        self.warnings.append((now(), lost))

    async def ask_everything(self) -> list[tuple[str, Attempt]]:
        """One request of each kind, to the first server."""
        answers = await requests(self.one, "lone", self.lone.lease, self.beating)
        return [*answers.items()]


async def set_scene(one: Station, two: Station, nursery: trio.Nursery) -> Scene:
    """Everybody in their places."""
    client, watcher, beating = await one.dial(), await one.dial(), await one.dial()
    other, believer = await two.dial(), Believer()
    await beating.call("session.open", liveness="heartbeat")
    await take(beating, "beaten", ttl_ms=60_000, auto_renew=True)
    nursery.start_soon(believer.run, one.url, "believed")
    await believer.held.wait()
    queue = await take(other, "queue", ttl_ms=60_000)
    scene = Scene(
        one=one,
        two=two,
        client=client,
        watcher=watcher,
        beating=beating,
        other=other,
        lone=await take(client, "lone", ttl_ms=60_000),
        kept=await take(client, "kept", ttl_ms=TTL_MS, auto_renew=True),
        queue=queue,
        waiting=await watcher.ask("lease.acquire", name="queue", ttl_ms=TTL_MS, wait_ms=None),
        believer=believer,
        rivals=[Rival(await two.dial(), name) for name in ("kept", "believed")],
    )
    await watcher.call("lease.watch", name="seen")
    nursery.start_soon(scene.hear)
    for rival in scene.rivals:
        nursery.start_soon(rival.run)
    await trio.sleep(0.3)
    return scene


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_server_without_its_redis(redis: RunningRedis, fault: str) -> None:
    """Typed errors in time, holders warned in time, and rivals served, but not too early."""
    async with (
        open_proxy(redis.port) as proxy,
        station(proxy.url) as one,
        station(redis.url) as two,
        trio.open_nursery() as nursery,
    ):
        scene = await set_scene(one, two, nursery)
        FAULTS[fault](proxy)
        failed_at = now()
        await scene.move_on()
        answers = await scene.ask_everything()
        for rival in scene.rivals:
            await rival.done()
        if fault in TWICE:  # and again, when there may be no connections left
            answers += await scene.ask_everything()
        proxy.heal()
        if fault == "flap":
            proxy.cut()
        granted = await all_is_well_again(scene, fault)
        check_outage(scene, fault, answers, failed_at)
        ends = (scene.warnings[0][0], scene.believer.ended_at)
        for rival, ended_at in zip(scene.rivals, ends, strict=True):
            check_refusals(rival.attempts)
            assert rival.got.ended_at > ended_at
        assert scene.rivals[1].fence > scene.believer.fence
        await nothing_stays(scene, granted)
        nursery.cancel_scope.cancel()


async def test_all_servers_without_their_redis(redis: RunningRedis) -> None:
    """It is stopped, as a machine that swaps is, and goes on as if nothing had been."""
    async with (
        station(redis.url) as one,
        station(redis.url) as two,
        trio.open_nursery() as nursery,
    ):
        scene = await set_scene(one, two, nursery)
        redis.pause()
        failed_at = now()
        answers = await scene.ask_everything()
        await eventually(lambda: bool(scene.believer.reason))
        redis.resume()
        await works_again(scene.other, "back")
        await scene.move_on()
        granted = await all_is_well_again(scene, "stopped")
        check_outage(scene, "stopped", answers, failed_at)
        await nothing_stays(scene, granted)
        nursery.cancel_scope.cancel()


async def all_is_well_again(scene: Scene, fault: str) -> dict[str, Any]:
    """New leases, the watcher, the waiter; returns the waiter's grant."""
    healed_at = now()
    with trio.fail_after(HEALED_S):
        back_s = await works_again(scene.client, "fresh")
        await scene.watcher.notification("lease.changed")
        granted = await scene.watcher.answer(scene.waiting)
    assert granted["fence"] > scene.queue.fence
    print(
        f"FIGURE {fault}: healed: works after {back_s:.2f} s, "
        f"watcher and waiter after {now() - healed_at:.2f} s"
    )
    return granted


def check_outage(
    scene: Scene, fault: str, answers: Sequence[tuple[str, Attempt]], failed_at: float
) -> None:
    """Every request was refused in time, and every holder knew in time."""
    for what, each in answers:
        may_be = {UNAVAILABLE, LOST} if what == "resume" else {UNAVAILABLE}
        assert each.code in may_be, (what, each)
        check_refusals([each])
    [(warned_at, warned)] = scene.warnings
    believer = scene.believer
    slowest_s = max(each.took_s for _, each in answers)
    print(
        f"FIGURE {fault}: slowest answer {slowest_s:.2f} s, holder warned after "
        f"{warned_at - failed_at:.2f} s, client lost ({believer.reason}) after "
        f"{believer.ended_at - failed_at:.2f} s (TTL {TTL_S} s)"
    )
    assert (warned["fence"], warned["reason"]) == (scene.kept.fence, "store_lost")
    assert warned_at - failed_at < TTL_S + STALL_S
    assert believer.ended_at - failed_at < TTL_S + STALL_S


async def nothing_stays(scene: Scene, granted: dict[str, Any]) -> None:
    """What was asked for in vain is held by nobody, and what was released in vain is free."""
    await scene.watcher.call("lease.release", name="queue", lease=granted["lease"])
    await scene.beating.call("session.heartbeat")
    with trio.fail_after(HEALED_S):
        await nobody_but(scene.other, {"seen", "beaten"})
