"""What every store owes about holding: the laws of `store/api.py`, over all of them."""

import pytest
import trio
from attrs import evolve

from leasekeeper.core.lock import (
    Busy,
    Contended,
    Elsewhere,
    Granted,
    HolderLost,
    Left,
    Mismatch,
    Missing,
    Moved,
    Queued,
    Renewed,
)
from leasekeeper.messages import LostReason, Mode
from leasekeeper.store.api import Renewal
from tests.store.actors import LONG_MS, WAKE_S, Actor

SHORT_MS = 300
UNKNOWN = "0" * 32

# --- Who may hold ---------------------------------------------------------------------------------


async def test_a_free_name_is_granted_at_once(one: Actor) -> None:
    """ACQ-1, ACQ-2, ACQ-3."""
    grant = await one.ask("n", one.claim(ttl_ms=1234))
    assert isinstance(grant, Granted)
    assert (grant.ttl_ms, grant.waited_ms) == (1234, 0)
    assert 0 < grant.fence < 2**53
    assert one.told == []


@pytest.mark.parametrize("mode", Mode)
async def test_an_exclusive_lease_stands_beside_none(one: Actor, mode: Mode) -> None:
    """L1, SHR-1."""
    await one.take("n")
    assert await one.ask("n", one.claim(mode)) == Busy()


async def test_none_exclusive_stands_beside_a_shared_lease(one: Actor) -> None:
    """L1, SHR-1."""
    await one.take("n", one.claim(Mode.SHARED))
    assert await one.ask("n", one.claim()) == Busy()


async def test_shared_leases_stand_beside_each_other(one: Actor) -> None:
    """SHR-1; each has a fence of its own (L2)."""
    held = [await one.take("n", one.claim(Mode.SHARED)) for _ in range(5)]
    fences = [each.fence for each in held]
    assert fences == sorted(set(fences))
    assert await one.fences("n") == fences


@pytest.mark.parametrize(
    ("holders", "limit", "fits"),
    [
        ([], 1, True),
        ([None], None, True),
        ([None], 1, False),
        ([None], 2, True),
        ([None, None], 2, False),
        ([1], None, False),
        ([2], None, True),
        ([2, None], None, False),
        ([3, 2], 3, False),
        ([3, 3], 9, True),
    ],
)
async def test_the_least_limit_counts(
    one: Actor, holders: list[int | None], limit: int | None, fits: bool
) -> None:
    """SHR-2: among the holders and who asks."""
    for each in holders:
        await one.take("n", one.claim(Mode.SHARED, limit=each))
    answer = await one.ask("n", one.claim(Mode.SHARED, limit=limit))
    assert isinstance(answer, Granted if fits else Busy)


async def test_a_limit_leaves_with_its_holder(one: Actor) -> None:
    """SHR-2."""
    low = await one.take("n", one.claim(Mode.SHARED, limit=2))
    await one.take("n", one.claim(Mode.SHARED, limit=5))
    assert await one.ask("n", one.claim(Mode.SHARED)) == Busy()
    await one.release("n", low.lease)
    for _ in range(4):
        await one.take("n", one.claim(Mode.SHARED))
    assert await one.ask("n", one.claim(Mode.SHARED)) == Busy()


async def test_names_have_nothing_to_do_with_each_other(one: Actor) -> None:
    claim = one.claim()
    held = [await one.take(name, claim) for name in ("n", "N", "n.", "n/m", "-@+:_")]
    assert len({each.fence for each in held}) == 5
    assert await one.release("n", claim.lease) is Left.HELD
    assert not await one.is_free("n/m")


async def test_who_is_busy_leaves_no_trace(one: Actor) -> None:
    """ACQ-5."""
    await one.take("n")
    claim = one.claim()
    assert await one.ask("n", claim) == Busy()
    assert (await one.look("n")).waiting_total == 0
    assert await one.release("n", claim.lease) is Left.NOTHING
    assert one.told_of(Contended) == []


async def test_fences_rise_however_a_name_becomes_free(one: Actor) -> None:
    """L2: after a release, a break, an end of the longest hold and an expiry."""
    fences: list[int] = []
    for _ in range(20):
        held = await one.take("n")
        fences.append(held.fence)
        await one.release("n", held.lease)
    fences.append((await one.take("n")).fence)
    await one.store.break_("n", None)
    for claim in (one.claim(max_hold_ms=SHORT_MS), one.claim(ttl_ms=SHORT_MS)):
        fences.append((await one.take("n", claim)).fence)
        await one.lost(claim.lease)
    fences.append((await one.take("n")).fence)
    assert fences == sorted(set(fences))


# --- Asking again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("wait", [False, True])
async def test_asking_again_gives_the_same_grant(one: Actor, mode: Mode, wait: bool) -> None:
    """L6, ACQ-10: the same fence, and the full TTL."""
    held = await one.take("n", one.claim(mode))
    await trio.sleep(0.05)
    again = await one.ask("n", held.claim, wait=wait)
    assert again == Granted(held.fence, LONG_MS, waited_ms=0)
    assert await one.fences("n") == [held.fence]
    assert one.told == []


async def test_asking_again_elsewhere_moves_the_lease(one: Actor) -> None:
    """ACQ-13: whoever had it before is told."""
    held = await one.take("n")
    moved = one.again(held.claim)
    again = await one.ask("n", moved)
    assert isinstance(again, Granted)
    assert again.fence == held.fence
    assert await one.next_told(Moved) == Moved(held.lease, held.claim.owner)
    await one.store.break_("n", None)
    assert (await one.lost(held.lease)).owner == moved.owner


@pytest.mark.parametrize("wait", [False, True])
async def test_a_lease_id_keeps_its_mode_and_limit(one: Actor, wait: bool) -> None:
    """ACQ-12: for holders and waiters; another changes nothing."""
    held = await one.take("n", one.claim(Mode.SHARED, limit=2))
    queued = await one.queue("n")
    for known in (held.claim, queued):
        for mode, limit in ((Mode.EXCLUSIVE, None), (Mode.SHARED, 2), (Mode.SHARED, None)):
            if (known.mode, known.limit) != (mode, limit):
                other = evolve(one.again(known), mode=mode, limit=limit)
                assert await one.ask("n", other, wait=wait) == Mismatch()
    assert await one.fences("n") == [held.fence]
    assert (await one.look("n")).waiting_total == 1
    assert one.told_of(Moved) == []


async def test_what_is_elsewhere_may_be_left_there(one: Actor) -> None:
    """`take_over` false: for holders and waiters; what one has, or what is new, is as ever."""
    held = await one.take("n")
    queued = await one.queue("n")
    for known in (held.claim, queued):
        other = evolve(known, owner="two.1")
        for wait in (False, True):
            assert await one.ask("n", other, wait=wait, take_over=False) == Elsewhere()
    assert one.told_of(Moved) == []
    again = await one.ask("n", held.claim, wait=True, take_over=False)
    assert isinstance(again, Granted)
    assert again.fence == held.fence
    assert await one.ask("n", queued, wait=True, take_over=False) == Queued(1, held.fence)
    new = await one.ask("n", one.claim(), wait=True, take_over=False)
    assert new == Queued(2, held.fence)


async def test_a_lease_id_that_lost_its_lease_begins_anew(one: Actor) -> None:
    """ACQ-15: with a new fence."""
    held = await one.take("n")
    await one.release("n", held.lease)
    assert (await one.take("n", held.claim)).fence > held.fence


# --- Giving back ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
async def test_a_release_gives_back_once(one: Actor, mode: Mode) -> None:
    """L6: a repeat finds nothing; nor does a stranger."""
    held = await one.take("n", one.claim(mode))
    assert await one.release("n", UNKNOWN) is Left.NOTHING
    assert await one.release("m", held.lease) is Left.NOTHING
    assert await one.release("n", held.lease) is Left.HELD
    assert await one.release("n", held.lease) is Left.NOTHING
    assert await one.is_free("n")
    assert one.told == []


async def test_one_of_several_shared_leases_leaves_alone(one: Actor) -> None:
    first, second = [await one.take("n", one.claim(Mode.SHARED)) for _ in range(2)]
    assert await one.release("n", first.lease) is Left.HELD
    assert await one.fences("n") == [second.fence]
    assert not await one.is_free("n")
    assert await one.release("n", second.lease) is Left.HELD
    assert await one.is_free("n")


async def test_a_server_gives_back_only_what_is_its_own(one: Actor) -> None:
    """L6: `only_of`; the lease may have been resumed on another server meanwhile."""
    held = await one.take("n")
    queued = await one.queue("n")
    for lease in (held.lease, queued.lease):
        assert await one.store.release("n", lease, only_of="two") is Left.NOTHING
    assert await one.store.release("n", queued.lease, only_of="one") is Left.WAITING
    assert await one.store.release("n", held.lease, only_of="one") is Left.HELD


@pytest.mark.parametrize("detail", [None, "maintenance", "of the whole site, until 5 o'clock: é"])
async def test_break_puts_all_holders_out(one: Actor, detail: str | None) -> None:
    """Each is told why; a repeat finds nobody."""
    held = [await one.take("n", one.claim(Mode.SHARED)) for _ in range(3)]
    assert await one.store.break_("n", detail) == 3
    for each in held:
        lost = await one.lost(each.lease)
        assert lost == HolderLost(
            each.lease, each.fence, LostReason.BROKEN, detail, each.claim.owner
        )
        assert await one.renew("n", each.lease) == Missing()
    assert await one.store.break_("n", detail) == 0
    assert await one.is_free("n")


async def test_break_puts_an_exclusive_holder_out(one: Actor) -> None:
    held = await one.take("n")
    assert await one.store.break_("n", None) == 1
    assert (await one.lost(held.lease)).reason is LostReason.BROKEN
    assert await one.release("n", held.lease) is Left.NOTHING


async def test_break_puts_very_many_out(one: Actor) -> None:
    """L13: also more than one step can do; who waits has it when the last is out."""
    for _ in range(1500):
        await one.take("n", one.claim(Mode.SHARED))
    queued = await one.queue("n")
    assert await one.store.break_("n", None) == 1500
    grant = await one.granted(queued)
    assert await one.fences("n") == [grant.fence]


# --- Time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", Mode)
async def test_a_lease_that_is_not_renewed_ends(one: Actor, mode: Mode) -> None:
    """L3: and its server is told, though nobody else wants it."""
    held = await one.take("n", one.claim(mode, ttl_ms=SHORT_MS))
    assert not await one.is_free("n")
    began = trio.current_time()
    lost = await one.lost(held.lease, within_s=SHORT_MS / 1000 + WAKE_S)
    assert trio.current_time() - began > SHORT_MS / 1000 - 0.2
    assert lost == HolderLost(held.lease, held.fence, LostReason.EXPIRED, None, held.claim.owner)
    assert await one.is_free("n")


@pytest.mark.parametrize("mode", Mode)
async def test_a_renewed_lease_does_not_end(one: Actor, mode: Mode) -> None:
    """Each renewal gives the full TTL."""
    held = await one.take("n", one.claim(mode, ttl_ms=600))
    for _ in range(12):
        await trio.sleep(0.1)
        assert await one.renew("n", held.lease) == Renewed(600)
    assert await one.fences("n") == [held.fence]
    assert one.told == []


async def test_a_renewal_may_change_the_ttl(one: Actor) -> None:
    """From then on."""
    held = await one.take("n")
    assert await one.renew("n", held.lease, 2 * LONG_MS) == Renewed(2 * LONG_MS)
    assert await one.renew("n", held.lease) == Renewed(2 * LONG_MS)
    assert await one.renew("n", held.lease, SHORT_MS) == Renewed(SHORT_MS)
    await one.lost(held.lease, within_s=SHORT_MS / 1000 + WAKE_S)


async def test_a_renewal_never_resurrects(one: Actor) -> None:
    """L3: neither what ran out, nor what was released, waits, or never was."""
    ended = await one.take("n", one.claim(ttl_ms=SHORT_MS))
    await one.lost(ended.lease)
    assert await one.renew("n", ended.lease) == Missing()
    held = await one.take("n")
    queued = await one.queue("n")
    for lease in (ended.lease, queued.lease, UNKNOWN):
        assert await one.renew("n", lease, LONG_MS) == Missing()
    await one.release("n", held.lease)
    assert await one.renew("n", held.lease) == Missing()
    assert await one.fences("n") == [(await one.granted(queued)).fence]


async def test_many_are_renewed_in_order(one: Actor) -> None:
    """One answer each, whatever node they are on."""
    held = [await one.take(f"n{number}", one.claim(ttl_ms=1000 + number)) for number in range(50)]
    for each in range(0, 50, 7):
        await one.release(f"n{each}", held[each].lease)
    answers = await one.store.renew(
        [Renewal(f"n{number}", each.lease) for number, each in enumerate(held)]
    )
    assert list(answers) == [
        Missing() if number % 7 == 0 else Renewed(1000 + number) for number in range(50)
    ]
    assert list(await one.store.renew([])) == []


@pytest.mark.parametrize("mode", Mode)
async def test_no_renewal_goes_past_the_longest_hold(one: Actor, mode: Mode) -> None:
    """ACQ-2, ACQ-8: and its end is told as such."""
    held = await one.take("n", one.claim(mode, max_hold_ms=600))
    assert held.grant.ttl_ms == 600
    await trio.sleep(0.1)
    renewed = await one.renew("n", held.lease)
    assert isinstance(renewed, Renewed)
    assert 0 < renewed.ttl_ms <= 510
    again = await one.ask("n", held.claim)
    assert isinstance(again, Granted)
    assert 0 < again.ttl_ms <= renewed.ttl_ms
    lost = await one.lost(held.lease, within_s=0.6 + WAKE_S)
    assert lost.reason is LostReason.MAX_HOLD


async def test_a_lease_that_ends_before_its_longest_hold_expired(one: Actor) -> None:
    held = await one.take("n", one.claim(ttl_ms=SHORT_MS, max_hold_ms=LONG_MS))
    assert held.grant.ttl_ms == SHORT_MS
    assert (await one.lost(held.lease)).reason is LostReason.EXPIRED


async def test_a_shared_lease_ends_alone(one: Actor) -> None:
    ended = await one.take("n", one.claim(Mode.SHARED, ttl_ms=SHORT_MS))
    kept = await one.take("n", one.claim(Mode.SHARED))
    await one.lost(ended.lease, within_s=SHORT_MS / 1000 + WAKE_S)
    assert await one.fences("n") == [kept.fence]
    assert isinstance(await one.ask("n", one.claim(), wait=True), Queued)
