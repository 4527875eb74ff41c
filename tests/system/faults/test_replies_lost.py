"""Redis did it, and its answer was lost: nothing is done twice, nothing stays behind (L1, L6)."""

import random
from contextlib import suppress
from secrets import token_hex

import pytest
import trio

from leasekeeper.core.lock import Claim, Granted, Queued
from leasekeeper.errors import Outcome, Unavailable
from tests.harness import Refused
from tests.proxy import Way, open_proxy
from tests.redises import RunningRedis
from tests.system.faults.stations import (
    POLL_S,
    UNAVAILABLE,
    WITHIN_S,
    Attempt,
    Station,
    attempt,
    eventually,
    holders,
    nobody_but,
    station,
    take,
    works_again,
)

pytestmark = pytest.mark.system

STORM = 150
GIVEN_UP = 10
HASTY = "?read_ms=300&patience_ms=300"


async def test_a_repeat_has_the_same_fence(redis: RunningRedis) -> None:
    """L6, ACQ-10: Redis was asked twice, and granted once."""
    async with (
        open_proxy(redis.port) as proxy,
        station(proxy.url + HASTY) as one,
        station(redis.url) as two,
    ):
        other, claim = await two.dial(), claim_of(one)
        proxy.drop_replies()
        with pytest.raises(Unavailable) as lost:
            await one.store.acquire("n", claim, wait=False)
        assert lost.value.outcome is Outcome.UNKNOWN
        [fence] = await holders(other, "n")
        proxy.heal()
        proxy.cut()
        again = await ask_until_answered(one, claim, wait=False)
        assert isinstance(again, Granted)
        assert again.fence == fence
        assert await holders(other, "n") == [fence]


async def test_a_repeat_has_the_same_place(redis: RunningRedis) -> None:
    """L4, ACQ-10: nobody who came between the two is ahead."""
    async with (
        open_proxy(redis.port) as proxy,
        station(proxy.url + HASTY) as one,
        station(redis.url) as two,
    ):
        other, claim = await two.dial(), claim_of(one)
        await take(other, "n", ttl_ms=60_000)
        proxy.drop_replies()
        with pytest.raises(Unavailable) as lost:
            await one.store.acquire("n", claim, wait=True)
        assert lost.value.outcome is Outcome.UNKNOWN
        await other.ask("lease.acquire", name="n", wait_ms=None)
        state = await other.call("lease.inspect", name="n")
        assert state["waiting_total"] == 2
        proxy.heal()
        proxy.cut()
        again = await ask_until_answered(one, claim, wait=True)
        assert isinstance(again, Queued)
        assert again.position == 1


def claim_of(place: Station) -> Claim:
    """One whose owner is nobody of the station's own clients."""
    return Claim(token_hex(16), 60_000, owner=f"{place.store.server}.x", alive_ms=15_000)


async def ask_until_answered(place: Station, claim: Claim, *, wait: bool) -> object:
    """As a client does that is told that the outcome is unknown."""
    with trio.fail_after(WITHIN_S):
        while True:
            try:
                return await place.store.acquire("n", claim, wait=wait)
            except Unavailable:
                await trio.sleep(POLL_S)


async def test_clients_who_repeat_get_one_lease(redis: RunningRedis) -> None:
    """ERR-4: through a line that loses answers now and then, by one server or another."""
    async with (
        open_proxy(redis.port) as proxy,
        station(proxy.url + HASTY) as one,
        station(redis.url) as two,
    ):
        peers, looker = [await one.dial(), await two.dial()], await two.dial()
        fences: list[int] = []
        unavailable = 0
        for _ in range(6):
            lease = token_hex(16)
            proxy.drop_replies()
            asked: list[Attempt] = []
            while not asked or asked[-1].code == UNAVAILABLE:
                peer = peers[len(asked) % 2]
                asked.append(await attempt(peer, "lease.acquire", name="n", lease=lease))
            unavailable += len(asked) - 1
            fences.append(asked[-1].answer["fence"])
            assert await holders(looker, "n") == fences[-1:]
            proxy.heal()
            proxy.cut()
            released = await peers[1].call("lease.release", name="n", lease=lease)
            assert released == {"released": True}
        assert unavailable
        assert fences == sorted(set(fences))
        await nobody_but(looker, set())


async def test_what_was_given_up_is_not_done_later(redis: RunningRedis) -> None:
    """L6: requests that arrive when their server has given them up, and given back their leases."""
    async with (
        open_proxy(redis.port) as proxy,
        station(proxy.url + HASTY) as one,
        station(redis.url) as two,
    ):
        looker, peers = await two.dial(), [await one.dial() for _ in range(GIVEN_UP)]
        proxy.one_way(Way.TO_CLIENT)
        asked = [
            await peer.ask("lease.acquire", name=f"n{number}", ttl_ms=60_000)
            for number, peer in enumerate(peers)
        ]
        for peer, request in zip(peers, asked, strict=True):
            with pytest.raises(Refused) as refused:
                await peer.answer(request)
            assert refused.value.code == UNAVAILABLE
        proxy.heal()
        await works_again(peers[0], "other")
        await eventually(lambda: not one.server.keeper.leases.unwanted)
        await trio.sleep(0.5)
        with trio.fail_after(5.0):
            await nobody_but(looker, set())
        assert not leftovers(redis)


async def test_a_storm_of_cancels_leaves_nothing(redis: RunningRedis) -> None:
    """CAN-2, CAN-3, L4: grants, waits and releases are cut short at every point of their way."""
    async with (
        open_proxy(redis.port) as proxy,
        station(proxy.url) as one,
        station(redis.url) as two,
    ):
        async with trio.open_nursery() as nursery:
            proxy.delay(5)
            for number in range(STORM):
                nursery.start_soon(change_your_mind, one if number % 2 else two, number)
        await nobody_but(await two.dial(), set())
        await eventually(lambda: not leftovers(redis))


def leftovers(redis: RunningRedis) -> list[str]:
    """Keys that a name which nobody holds or waits for has no business to have."""
    keys = redis.cli("KEYS", "lk:{*")
    assert isinstance(keys, list)
    return [str(each) for each in keys if not str(each).endswith(":fence")]


async def change_your_mind(place: Station, number: int) -> None:
    """Asks for one of three names, and cancels, or leaves, or releases after all."""
    rng = random.Random(number)
    peer = await place.dial()
    name, lease = f"n{number % 3}", token_hex(16)
    request = await peer.ask(
        "lease.acquire", name=name, lease=lease, wait_ms=None, ttl_ms=60_000, on_drop="release"
    )
    await trio.sleep(rng.random() * 0.1)
    match rng.randrange(3):
        case 0:
            await peer.drop()
            return
        case 1:
            await peer.close()
            return
    await peer.call("rpc.cancel", id=request)
    with suppress(Refused):
        grant = await peer.answer(request)
        assert (grant["name"], grant["lease"]) == (name, lease)
        await peer.call("lease.release", name=name, lease=lease)
