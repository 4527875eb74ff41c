"""What every store owes about waiting: the laws of `store/api.py`, over all of them."""

from collections.abc import Awaitable, Callable
from typing import Final

import pytest
import trio
from attrs import evolve

from leasekeeper.core.lock import (
    Busy,
    Claim,
    Contended,
    Granted,
    Left,
    Missing,
    Moved,
    Queued,
    QueueFull,
    Resumed,
    WaiterGranted,
)
from leasekeeper.messages import ORIGINAL_WAIT, Mode, OnDrop
from leasekeeper.store.redis.store import Options
from tests.store.actors import LONG_MS, WAKE_S, Actor, Held, Place

SHORT_MS = 300
UNKNOWN = "0" * 32
SHARED: Final = Mode.SHARED

# --- The order ------------------------------------------------------------------------------------


async def test_waiters_know_their_place(one: Actor) -> None:
    """Position 1 is next; what they will be granted has a fence above the last one (L2)."""
    held = await one.take("n")
    claims = [one.claim() for _ in range(3)]
    answers = [await one.ask("n", claim, wait=True) for claim in claims]
    assert answers == [Queued(position, held.fence) for position in (1, 2, 3)]
    await one.release("n", claims[1].lease)
    assert await one.ask("n", claims[2], wait=True) == Queued(2, held.fence)


async def test_grants_follow_the_queue_whatever_the_mode(one: Actor) -> None:
    """L4, QUE-1, QUE-3: one queue; sharers next to each other get it together."""
    held = [(await one.take("n")).claim]
    pattern = "xxsssxsxxssssx"
    queue = [await one.queue("n", one.claim(SHARED if each == "s" else Mode.EXCLUSIVE))
             for each in pattern]  # fmt: skip
    fences: list[int] = []
    while queue:
        for each in held:
            await one.release("n", each.lease)
        together = 1
        while queue[0].mode is SHARED and together < len(queue) and queue[together].mode is SHARED:
            together += 1
        held, queue = queue[:together], queue[together:]
        fences += [(await one.granted(each)).fence for each in held]
        assert await one.fences("n") == fences[-together:]
        assert one.told_of(WaiterGranted) == []
    assert fences == sorted(set(fences))


async def test_readers_do_not_starve_a_writer(one: Actor) -> None:
    """L4, QUE-2: who would fit beside the holders still waits behind, or is busy."""
    reader = await one.take("n", one.claim(SHARED))
    writer = await one.queue("n")
    late = await one.queue("n", one.claim(SHARED))
    assert await one.ask("n", one.claim(SHARED)) == Busy()
    await one.release("n", reader.lease)
    first = await one.granted(writer)
    await one.release("n", writer.lease)
    assert (await one.granted(late)).fence > first.fence


async def test_limits_hold_in_the_queue(one: Actor) -> None:
    """SHR-2, QUE-3: until one does not fit."""
    held = await one.take("n")
    queue = [await one.queue("n", one.claim(SHARED, limit=2)) for _ in range(5)]
    await one.release("n", held.lease)
    for number, claim in enumerate(queue):
        await one.granted(claim)
        assert len(await one.fences("n")) == (1 if number == 0 else 2) or number == 0
        if number >= 1:
            assert (await one.look("n")).waiting_total == 4 - number
            await one.release("n", queue[number - 1].lease)


async def test_who_leaves_lets_those_behind_pass(one: Actor) -> None:
    """QUE-4: and at once, if that makes them fit."""
    await one.take("n", one.claim(SHARED))
    writer = await one.queue("n")
    readers = [await one.queue("n", one.claim(SHARED)) for _ in range(2)]
    assert await one.release("n", writer.lease) is Left.WAITING
    for each in readers:
        await one.granted(each)
    assert len(await one.fences("n")) == 3


async def test_a_hundred_are_granted_in_order(one: Actor) -> None:
    """L4."""
    held = await one.take("n")
    queue = [await one.queue("n") for _ in range(100)]
    lease, fence = held.lease, held.fence
    for claim in queue:
        await one.release("n", lease)
        grant = await one.granted(claim)
        assert grant.fence > fence
        lease, fence = claim.lease, grant.fence
    assert one.told_of(WaiterGranted) == []


async def test_very_many_sharers_are_granted_together(one: Actor) -> None:
    """QUE-3, L13: also more than one step can grant."""
    held = await one.take("n")
    queue = [await one.queue("n", one.claim(SHARED)) for _ in range(350)]
    await one.release("n", held.lease)
    fences = [(await one.granted(claim)).fence for claim in queue]
    assert fences == sorted(set(fences))


# --- How a turn comes -----------------------------------------------------------------------------


async def released(one: Actor, held: Held) -> None:
    await one.release("n", held.lease)


async def broken(one: Actor, held: Held) -> None:
    await one.store.break_("n", None)
    await one.lost(held.lease)


async def shortened(one: Actor, held: Held) -> None:
    await one.renew("n", held.lease, SHORT_MS)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("end", [released, broken, shortened])
async def test_the_next_has_it_whatever_ends_the_last(
    one: Actor, mode: Mode, end: Callable[[Actor, Held], Awaitable[None]]
) -> None:
    """L5, QUE-3, QUE-5: with its full TTL, and how long it waited."""
    held = await one.take("n", one.claim(mode))
    claim = await one.queue("n", one.claim(ttl_ms=12_345))
    began = trio.current_time()
    await trio.sleep(0.1)
    await end(one, held)
    grant = await one.granted(claim, within_s=SHORT_MS / 1000 + WAKE_S)
    waited_ms = (trio.current_time() - began) * 1000
    assert grant.fence > held.fence
    assert grant.ttl_ms == 12_345
    assert 90 <= grant.waited_ms <= waited_ms + 50


@pytest.mark.parametrize(
    "ending", [{"ttl_ms": SHORT_MS}, {"max_hold_ms": SHORT_MS}], ids=["expiry", "max_hold"]
)
@pytest.mark.parametrize("mode", Mode)
async def test_time_alone_gives_the_next_its_turn(
    one: Actor, mode: Mode, ending: dict[str, int]
) -> None:
    """L5: within 2 s, and nobody has to call."""
    held = await one.take("n", one.claim(mode, **ending))  # type: ignore[arg-type]
    queue = [await one.queue("n", one.claim(ttl_ms=SHORT_MS)) for _ in range(3)]
    fence = held.fence
    for claim in queue:
        grant = await one.granted(claim, within_s=SHORT_MS / 1000 + WAKE_S)
        assert grant.fence > fence
        fence = grant.fence
    await one.lost(queue[-1].lease)


async def test_holders_hear_that_others_wait(one: Actor) -> None:
    """How many; not of those who are busy, nor of those who get it."""
    held = await one.take("n")
    await one.ask("n", one.claim())
    assert one.told_of(Contended) == []
    first = await one.queue("n")
    await one.queue("n")
    assert [(await one.next_told(Contended)).waiting for _ in range(2)] == [1, 2]
    await one.ask("n", first, wait=True)
    await one.release("n", held.lease)
    await one.granted(first)
    assert one.told_of(Contended) == []


# --- Asking again, and leaving --------------------------------------------------------------------


async def test_asking_again_keeps_the_place(one: Actor) -> None:
    """ACQ-11, L6: and the wait counts from the last time (ACQ-3)."""
    held = await one.take("n")
    first, second = await one.queue("n"), await one.queue("n")
    await trio.sleep(0.3)
    again = one.again(first)
    assert await one.ask("n", again, wait=True) == Queued(1, held.fence)
    assert await one.next_told(Moved) == Moved(first.lease, first.owner)
    await one.release("n", held.lease)
    assert (await one.granted(again)).waited_ms < 250
    await one.release("n", first.lease)
    assert (await one.granted(second)).waited_ms >= 290


async def test_who_asks_without_waiting_leaves_the_queue(one: Actor) -> None:
    """ACQ-11."""
    held = await one.take("n")
    claim = await one.queue("n")
    assert await one.ask("n", claim) == Busy()
    assert await one.release("n", claim.lease) is Left.NOTHING
    await one.release("n", held.lease)
    assert await one.is_free("n")
    assert one.told_of(WaiterGranted) == []


async def test_a_waiter_that_left_is_not_granted(one: Actor) -> None:
    """L6: release serves as cancel."""
    held = await one.take("n")
    claim = await one.queue("n")
    assert await one.release("n", claim.lease) is Left.WAITING
    assert await one.release("n", claim.lease) is Left.NOTHING
    assert (await one.look("n")).waiting_total == 0
    await one.release("n", held.lease)
    assert await one.is_free("n")
    assert one.told_of(WaiterGranted) == []


async def test_a_queue_is_bounded(place: Place) -> None:
    """L12: who is in it, or need not wait, does not mind."""
    async with place.acting(options=Options(waiting_max=2)) as one:
        held = await one.take("n")
        first, second = await one.queue("n"), await one.queue("n")
        refused = one.claim()
        assert await one.ask("n", refused, wait=True) == QueueFull(2)
        assert await one.ask("n", refused) == Busy()
        assert await one.release("n", refused.lease) is Left.NOTHING
        assert await one.ask("n", second, wait=True) == Queued(2, held.fence)
        assert isinstance(await one.ask("n", held.claim, wait=True), Granted)
        await one.take("m")
        await one.release("n", first.lease)
        await one.queue("n")


# --- Resuming -------------------------------------------------------------------------------------


def told_claim(claim: Claim, owner: str) -> Claim:
    """What a server hears of a claim that it takes over."""
    return evolve(claim, owner=owner)


@pytest.mark.parametrize("mode", Mode)
async def test_a_lease_is_resumed_with_all_that_was_asked(one: Actor, mode: Mode) -> None:
    """L8, RES: the same fence, the full TTL; whoever had it is told."""
    claim = evolve(
        one.claim(mode, label='a label, "so" to say: é', client="c 1", max_hold_ms=LONG_MS * 9),
        auto_renew=False,
        on_drop=OnDrop.RELEASE,
    )
    held = await one.take("n", claim)
    owner = one.owner()
    resumed = await one.store.resume("n", held.lease, owner, wait_ms=ORIGINAL_WAIT)
    assert resumed == Resumed(told_claim(claim, owner), Granted(held.fence, LONG_MS, 0))
    assert await one.next_told(Moved) == Moved(held.lease, claim.owner)
    await one.store.break_("n", None)
    assert (await one.lost(held.lease)).owner == owner


async def test_what_is_not_there_cannot_be_resumed(one: Actor) -> None:
    """RES: nothing, on another name, and what is over."""
    held = await one.take("n", one.claim(ttl_ms=SHORT_MS))
    for name, lease in (("n", UNKNOWN), ("m", held.lease)):
        assert await one.store.resume(name, lease, one.owner(), wait_ms=None) == Missing()
    await one.lost(held.lease)
    assert await one.store.resume("n", held.lease, one.owner(), wait_ms=None) == Missing()
    assert one.told_of(Moved) == []


async def test_a_wait_is_resumed_in_its_place(one: Actor) -> None:
    """L8: with what is left of it."""
    held = await one.take("n")
    claim = await one.queue("n", one.claim(wait_ms=60_000))
    await one.queue("n")
    await trio.sleep(0.3)
    owner = one.owner()
    resumed = await one.store.resume("n", claim.lease, owner, wait_ms=ORIGINAL_WAIT)
    assert isinstance(resumed, Resumed)
    assert resumed.answer == Queued(1, held.fence)
    assert resumed.claim.wait_ms is not None
    assert 50_000 < resumed.claim.wait_ms <= 59_700
    assert told_claim(claim, owner) == evolve(resumed.claim, wait_ms=60_000)
    assert await one.next_told(Moved) == Moved(claim.lease, claim.owner)
    await one.release("n", held.lease)
    grant = await one.granted(resumed.claim)
    assert grant.waited_ms < 250


@pytest.mark.parametrize("wait_ms", [None, 5_000])
async def test_a_wait_is_resumed_with_another_end(one: Actor, wait_ms: int | None) -> None:
    """RES: null waits for ever."""
    await one.take("n")
    claim = await one.queue("n", one.claim(wait_ms=60_000))
    resumed = await one.store.resume("n", claim.lease, one.owner(), wait_ms=wait_ms)
    assert isinstance(resumed, Resumed)
    assert resumed.claim.wait_ms == wait_ms


async def test_a_wait_for_ever_stays_one(one: Actor) -> None:
    await one.take("n")
    claim = await one.queue("n")
    resumed = await one.store.resume("n", claim.lease, one.owner(), wait_ms=ORIGINAL_WAIT)
    assert isinstance(resumed, Resumed)
    assert resumed.claim.wait_ms is None


async def test_a_wait_is_resumed_to_give_it_up(one: Actor) -> None:
    """RES: `wait_ms` 0; those behind move up."""
    held = await one.take("n")
    claim = await one.queue("n")
    behind = await one.queue("n")
    assert await one.store.resume("n", claim.lease, one.owner(), wait_ms=0) == Busy()
    assert await one.release("n", claim.lease) is Left.NOTHING
    assert await one.next_told(Moved) == Moved(claim.lease, claim.owner)
    await one.release("n", held.lease)
    await one.granted(behind)


# --- Waiters nobody vouches for -------------------------------------------------------------------


async def test_a_touch_says_who_waits(one: Actor) -> None:
    """One answer each, in order: holders do not wait, nor do strangers."""
    held = await one.take("n")
    queue = [await one.queue("n") for _ in range(3)]
    await one.take("m")
    other = await one.queue("m")
    await one.release("n", queue[1].lease)
    keys = [("n", held.lease), *(("n", each.lease) for each in queue), ("m", UNKNOWN)]
    keys += [("m", other.lease), ("o", other.lease)]
    answers = await one.store.touch(keys, LONG_MS)
    assert list(answers)[1:] == [True, False, True, False, True, False]
    assert list(await one.store.touch([], LONG_MS)) == []


async def test_very_many_are_touched_at_once(one: Actor) -> None:
    """L13: those of one name, too."""
    await one.take("n")
    queue = [await one.queue("n") for _ in range(450)]
    await one.release("n", queue[7].lease)
    answers = await one.store.touch([("n", each.lease) for each in queue], LONG_MS)
    assert [number for number, answer in enumerate(answers) if answer is not True] == [7]


async def test_the_dead_are_skipped(one: Actor) -> None:
    """L4: who was not vouched for in time has no turn; who was, has."""
    held = await one.take("n")
    dead = await one.queue("n", one.claim(alive_ms=SHORT_MS))
    touched = await one.queue("n", one.claim(alive_ms=SHORT_MS))
    behind = await one.queue("n")
    assert await one.touch("n", touched.lease, LONG_MS) is True
    await trio.sleep(SHORT_MS / 1000 + 0.1)
    await one.release("n", held.lease)
    await one.granted(touched)
    await one.release("n", touched.lease)
    await one.granted(behind)
    assert await one.touch("n", dead.lease) is False
    assert one.told_of(WaiterGranted) == []


async def test_asking_again_is_a_sign_of_life(one: Actor) -> None:
    held = await one.take("n")
    claim = await one.queue("n", one.claim(alive_ms=600))
    for _ in range(4):
        await trio.sleep(0.25)
        assert isinstance(await one.ask("n", claim, wait=True), Queued)
    await one.release("n", held.lease)
    await one.granted(claim)


async def test_the_dead_lose_their_place(one: Actor) -> None:
    """Who comes back after that stands behind."""
    held = await one.take("n", one.claim(SHARED))
    late = await one.queue("n", one.claim(alive_ms=SHORT_MS))
    steady = await one.queue("n")
    await trio.sleep(SHORT_MS / 1000 + 0.1)
    assert await one.ask("n", late, wait=True) == Queued(2, held.fence)
    await one.release("n", held.lease)
    await one.granted(steady)
    await one.release("n", steady.lease)
    await one.granted(late)


async def test_the_dead_do_not_keep_those_behind_them(one: Actor) -> None:
    """L4, L5: readers behind a dead writer join the readers before it, and nobody has to call."""
    await one.take("n", one.claim(SHARED))
    await one.queue("n", one.claim(alive_ms=SHORT_MS))
    reader = await one.queue("n", one.claim(SHARED))
    await one.granted(reader, within_s=SHORT_MS / 1000 + WAKE_S)
    assert len(await one.fences("n")) == 2
