"""What every store owes to those who look: inspect, list and watch, over all of them."""

import random

import pytest
import trio

from leasekeeper.errors import InvalidParams
from leasekeeper.messages import LeaseState, ListedLease, Mode
from leasekeeper.store.api import Changed
from tests.store.actors import LONG_MS, WAKE_S, Actor

SHORT_MS = 300

# --- Inspect --------------------------------------------------------------------------------------


async def test_a_free_name_has_nothing_to_show(one: Actor) -> None:
    assert await one.look("n") == LeaseState("n", (), (), 0)


async def test_holders_and_waiters_are_shown(one: Actor) -> None:
    """L7: with all that others may see, and no lease ids."""
    held = await one.take("n", one.claim(label="the first: é", client="c1"))
    first = await one.queue("n", one.claim(Mode.SHARED, label="", client="c 2"))
    second = await one.queue("n")
    await trio.sleep(0.1)
    state = await one.look("n")
    (holder,) = state.holders
    assert (holder.fence, holder.mode) == (held.fence, Mode.EXCLUSIVE)
    assert (holder.label, holder.client, holder.foreign) == ("the first: é", "c1", False)
    assert 90 <= holder.held_ms < 5000
    assert LONG_MS - 5000 < holder.ttl_ms <= LONG_MS - 90
    assert [(each.position, each.mode) for each in state.waiting] == [
        (1, Mode.SHARED),
        (2, Mode.EXCLUSIVE),
    ]
    assert [(each.label, each.client) for each in state.waiting] == [("", "c 2"), (None, None)]
    assert all(90 <= each.waiting_ms < 5000 for each in state.waiting)
    assert state.waiting_total == 2
    shown = repr(state)
    assert not any(each.lease in shown for each in (held.claim, first, second))


async def test_a_renewal_does_not_change_since_when_it_is_held(one: Actor) -> None:
    """Nor does a move."""
    held = await one.take("n")
    await trio.sleep(0.1)
    await one.renew("n", held.lease)
    await one.ask("n", one.again(held.claim))
    (holder,) = (await one.look("n")).holders
    assert holder.held_ms >= 90
    assert holder.ttl_ms > LONG_MS - 90


async def test_only_the_first_are_shown(one: Actor) -> None:
    """L13: and how many wait in all."""
    held = [await one.take("n", one.claim(Mode.SHARED)) for _ in range(20)]
    for _ in range(15):
        await one.queue("n")
    state = await one.store.inspect("n", holders_max=7, waiting_max=4)
    assert [each.fence for each in state.holders] == [each.fence for each in held[:7]]
    assert [each.position for each in state.waiting] == [1, 2, 3, 4]
    assert state.waiting_total == 15
    none = await one.store.inspect("n", holders_max=0, waiting_max=0)
    assert none == LeaseState("n", (), (), 15)


async def test_what_is_over_is_not_shown(one: Actor) -> None:
    held = await one.take("n", one.claim(Mode.SHARED, ttl_ms=SHORT_MS))
    kept = await one.take("n", one.claim(Mode.SHARED))
    await trio.sleep(SHORT_MS / 1000 + 0.05)
    assert await one.fences("n") == [kept.fence]
    assert (await one.lost(held.lease)).fence == held.fence


# --- List -----------------------------------------------------------------------------------------


async def pages(one: Actor, prefix: str, limit: int) -> list[list[ListedLease]]:
    """All of them."""
    found: list[list[ListedLease]] = []
    cursor: str | None = None
    while True:
        page = await one.store.list_leases(prefix, limit, cursor)
        found.append(list(page.leases))
        cursor = page.cursor
        if cursor is None:
            return found


async def test_nothing_is_listed_where_nothing_is_held(one: Actor) -> None:
    await one.release("n", (await one.take("n")).lease)
    assert await pages(one, "", 10) == [[]]


async def test_all_that_is_held_is_listed_in_order(one: Actor) -> None:
    """By name and fence; the names of a cluster are on all of its nodes."""
    names = [f"n{number}" for number in range(40)]
    random.Random(1).shuffle(names)
    for name in names:
        await one.take(name, one.claim(label=f"of {name}", client="c"))
    await one.queue("n7")
    for _ in range(3):
        await one.take("shared", one.claim(Mode.SHARED))
    [listed] = await pages(one, "", 100)
    assert [each.name for each in listed] == [*sorted(names), "shared", "shared", "shared"]
    assert [each.fence for each in listed[-3:]] == sorted(each.fence for each in listed[-3:])
    assert all(
        (each.label, each.client, each.foreign) == (f"of {each.name}", "c", False)
        for each in listed[:-3]
    )
    assert {each.name: each.waiting for each in listed if each.waiting} == {"n7": 1}
    assert all(0 < each.ttl_ms <= LONG_MS and 0 <= each.held_ms < 10_000 for each in listed)
    assert [each.mode for each in listed[-4:]] == [Mode.EXCLUSIVE, *[Mode.SHARED] * 3]


@pytest.mark.parametrize("limit", [1, 3, 7, 10, 100])
async def test_pages_follow_each_other(one: Actor, limit: int) -> None:
    """Without gap or repeat, also within one name that many share; the last has no cursor."""
    for number in range(8):
        await one.take(f"n{number}")
    for _ in range(8):
        await one.take("n3/shared", one.claim(Mode.SHARED))
    found = await pages(one, "", limit)
    listed = [(each.name, each.fence) for page in found for each in page]
    assert listed == sorted(set(listed))
    assert len(listed) == 16
    assert all(len(page) == limit for page in found[:-1])
    assert len(found[-1]) <= limit


async def test_a_list_keeps_to_its_prefix(one: Actor) -> None:
    """As it is, whatever it means to others."""
    names = ["a", "a.b", "a/1", "a/10", "a/2", "a:1", "aa/1", "b/a/1", "A/1", "a-+@_"]
    for name in names:
        await one.take(name)
    for prefix in ("", "a", "a/", "a/1", "a.", "b", "A", "a-+@", "c", "a/1/"):
        [listed] = await pages(one, prefix, 100)
        assert [each.name for each in listed] == sorted(
            each for each in names if each.startswith(prefix)
        )


async def test_pages_go_on_where_leases_came_and_went(one: Actor) -> None:
    """What was there all the time is listed once."""
    leases = {f"n{number}": (await one.take(f"n{number}")).lease for number in range(6)}
    first = await one.store.list_leases("", 3, None)
    assert [each.name for each in first.leases] == ["n0", "n1", "n2"]
    for name in ("n0", "n2", "n3"):
        await one.release(name, leases[name])
    await one.take("n1/new")
    second = await one.store.list_leases("", 3, first.cursor)
    assert [each.name for each in second.leases] == ["n4", "n5"]
    assert second.cursor is None


@pytest.mark.parametrize("cursor", ["x", "n", "n -1", "n 1.5", " ", "n x", "n 1 "])
async def test_a_cursor_is_one_of_ours(one: Actor, cursor: str) -> None:
    await one.take("n")
    with pytest.raises(InvalidParams):
        await one.store.list_leases("", 3, cursor)


# --- Watch ----------------------------------------------------------------------------------------


async def test_a_watcher_sees_every_change_of_holders(one: Actor) -> None:
    """A grant, a release, a hand-over, a break, an expiry."""
    await one.store.watch("n")
    held = await one.take("n")
    state = (await one.next_told(Changed)).state
    assert [each.fence for each in state.holders] == [held.fence]
    queued = await one.queue("n", one.claim(ttl_ms=SHORT_MS))
    await one.release("n", held.lease)
    grant = await one.granted(queued)
    await one.next_told(
        Changed, lambda told: [each.fence for each in told.state.holders] == [grant.fence]
    )
    await one.next_told(
        Changed, lambda told: not told.state.holders, within_s=SHORT_MS / 1000 + WAKE_S
    )
    held = await one.take("n")
    await one.next_told(Changed, lambda told: bool(told.state.holders))
    await one.store.break_("n", None)
    await one.next_told(Changed, lambda told: not told.state.holders)


async def test_a_watcher_sees_sharers_come_and_go(one: Actor) -> None:
    held = [await one.take("n", one.claim(Mode.SHARED)) for _ in range(2)]
    await one.store.watch("n")
    held.append(await one.take("n", one.claim(Mode.SHARED)))
    for count in (3, 2, 1, 0):
        state = (await one.next_told(Changed)).state
        assert [each.fence for each in state.holders] == [each.fence for each in held]
        assert len(held) == count
        if held:
            await one.release("n", held.pop(0).lease)


async def test_a_second_watch_adds_nothing(one: Actor) -> None:
    await one.store.watch("n")
    await one.store.watch("n")
    await one.take("n")
    await one.next_told(Changed)
    await trio.sleep(0.2)
    assert one.told_of(Changed) == []


async def test_renewals_and_waiters_are_no_changes(one: Actor) -> None:
    """Only holders count."""
    held = await one.take("n")
    await one.store.watch("n")
    await one.renew("n", held.lease)
    queued = await one.queue("n")
    await one.release("n", queued.lease)
    await trio.sleep(0.2)
    assert one.told_of(Changed) == []


async def test_other_names_are_not_watched(one: Actor) -> None:
    await one.store.watch("n")
    await one.take("m")
    await one.take("n")
    await one.next_told(Changed)
    assert {each.name for each in one.told} == set()


async def test_an_unwatched_name_is_quiet(one: Actor) -> None:
    await one.store.watch("n")
    one.store.unwatch("n")
    one.store.unwatch("n")
    one.store.unwatch("never")
    await trio.sleep(0.2)
    await one.take("n")
    await trio.sleep(0.2)
    assert one.told_of(Changed) == []
    await one.store.watch("n")
    await one.store.break_("n", None)
    assert (await one.next_told(Changed)).state.holders == ()
