"""Coalesced fills, on a virtual clock: one load, everybody served or told (L10, L11, L8, L12)."""

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.errors import Busy, Deadlock, FillFailed, LimitReached
from leasekeeper.messages import (
    CacheFail,
    CacheInvalidate,
    CacheNegative,
    CacheSet,
    CacheState,
    CacheToFill,
    Done,
    FillOutcome,
    Json,
    Mark,
)
from leasekeeper.service.limits import Limits
from tests.service.caching import KEY, Reader, fill_of, value_of
from tests.service.conftest import World, open_world


async def test_a_thousand_callers_are_one_load(world: World, clock: MockClock) -> None:
    """L10: the loader runs once, and its value is pushed to all at once."""
    readers = [Reader(world) for _ in range(10)]
    first = await readers[0].load()
    waiting = [await each.begin() for _ in range(100) for each in readers]
    before = trio.current_time()
    assert await readers[0].fill(first.fill) is FillOutcome.STORED
    for each in waiting:
        await each.done.wait()
    assert {value_of(each) for each in waiting} == {b"1"}
    assert trio.current_time() == before
    assert not len(world.keeper.caches)


@pytest.mark.parametrize("clean", [True, False])
async def test_a_filler_that_is_gone_hands_over_to_exactly_one(
    clean: bool, world: World, clock: MockClock
) -> None:
    """L8, L10: at once, without a grace, to the one that has waited longest."""
    filler, readers = Reader(world), [Reader(world) for _ in range(5)]
    await filler.load()
    waiting = [await each.begin() for each in readers]
    began = trio.current_time()
    (filler.client.close if clean else filler.client.drop)()
    await waiting[0].done.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert trio.current_time() == began
    assert [each.done.is_set() for each in waiting] == [True, False, False, False, False]
    await readers[0].fill(fill_of(waiting[0]), b"2")
    for each in waiting[1:]:
        await each.done.wait()
        assert value_of(each) == b"2"


async def test_a_filler_that_takes_too_long_hands_over_to_exactly_one(
    world: World, clock: MockClock
) -> None:
    """L10: a hung loader holds nobody up for longer than the fill was given."""
    filler, readers = Reader(world), [Reader(world) for _ in range(3)]
    slow = await filler.load(fill_ms=2_000)
    began = trio.current_time()
    waiting = [await each.begin() for each in readers]
    await waiting[0].done.wait()
    assert 2.0 <= trio.current_time() - began <= 2.1
    second = fill_of(waiting[0])
    assert not waiting[1].done.is_set()
    assert await filler.fill(slow.fill, b"late") is FillOutcome.STORED
    for each in waiting[1:]:
        await each.done.wait()
        assert value_of(each) == b"late"
    assert await readers[0].fill(second, b"newer") is FillOutcome.STORED
    assert (await readers[1].hit()).value == Json(b"newer")


async def test_a_failed_load_is_one_error_for_all(world: World, clock: MockClock) -> None:
    """L10: nobody tries one by one; after the back-off exactly one does."""
    filler, readers = Reader(world), [Reader(world) for _ in range(20)]
    granted = await filler.load()
    waiting = [await each.begin() for each in readers]
    fail = CacheFail(KEY, granted.fill, "no database", retry_after_ms=5_000)
    await filler.client.ask(fail, Done)
    for each in waiting:
        await each.done.wait()
        assert isinstance(each.error, FillFailed)
        assert each.error.data == {"error": "no database", "retry_after_ms": 5_000}
    with pytest.raises(FillFailed):
        await readers[0].get()
    await trio.sleep(5)
    pending = [await each.begin() for each in readers]
    assert sum(isinstance(each.result, CacheToFill) for each in pending) == 1


async def test_a_failed_refresh_leaves_the_value(world: World, clock: MockClock) -> None:
    """Stale within its bound, and not one load after the other."""
    reader, other = Reader(world), Reader(world)
    await reader.fill((await reader.load()).fill, ttl_ms=1_000, stale_ms=10_000)
    await trio.sleep(1.5)
    stale = await reader.hit()
    assert stale.state is CacheState.STALE
    assert stale.refresh is not None
    await reader.client.ask(CacheFail(KEY, stale.refresh.fill, "x", retry_after_ms=3_000), Done)
    for _ in range(5):
        again = await other.hit()
        assert (again.state, again.refresh) == (CacheState.STALE, None)
    with pytest.raises(FillFailed):
        await other.get(stale_ok=False)
    await trio.sleep(3)
    assert (await other.hit()).refresh is not None


async def test_only_one_refreshes_what_is_stale_and_nobody_waits(
    world: World, clock: MockClock
) -> None:
    """L10."""
    reader = Reader(world)
    await reader.fill((await reader.load()).fill, ttl_ms=1_000, stale_ms=10_000)
    await trio.sleep(2)
    began = trio.current_time()
    hits = [await reader.hit() for _ in range(50)]
    assert sum(each.refresh is not None for each in hits) == 1
    assert {each.state for each in hits} == {CacheState.STALE}
    assert trio.current_time() == began


async def test_whoever_wants_nothing_stale_waits_for_the_refresh(
    world: World, clock: MockClock
) -> None:
    reader, strict = Reader(world), Reader(world)
    await reader.fill((await reader.load()).fill, b"1", ttl_ms=1_000, stale_ms=10_000)
    await trio.sleep(2)
    refresh = (await reader.hit()).refresh
    assert refresh is not None
    waiting = await strict.begin(stale_ok=False)
    assert not waiting.done.is_set()
    await reader.fill(refresh.fill, b"2")
    await waiting.done.wait()
    assert value_of(waiting) == b"2"


async def test_a_voided_fill_is_not_shared(world: World, clock: MockClock) -> None:
    """L11: who waits after an invalidation does not get what was loaded before it."""
    filler, reader, writer = Reader(world), Reader(world), Reader(world)
    granted = await filler.load()
    waiting = await reader.begin()
    await writer.client.ask(CacheInvalidate((KEY,)), Done)
    await waiting.done.wait()
    second = fill_of(waiting)
    assert await filler.fill(granted.fill, b"old") is FillOutcome.VOIDED
    late = await filler.begin()
    assert not late.done.is_set()
    await reader.fill(second, b"new")
    await late.done.wait()
    assert value_of(late) == b"new"


async def test_a_fill_whose_tag_was_invalidated_is_void(world: World, clock: MockClock) -> None:
    """L11: also where the tag becomes known only with the value."""
    filler, reader = Reader(world), Reader(world)
    granted = await filler.load()
    waiting = await reader.begin()
    await reader.client.ask(CacheInvalidate(tags=("t",)), Done)
    assert await filler.fill(granted.fill, b"old", tags=("t",)) is FillOutcome.VOIDED
    await waiting.done.wait()
    assert await reader.fill(fill_of(waiting), b"new", tags=("t",)) is FillOutcome.STORED
    await reader.client.ask(CacheInvalidate(tags=("t",), mode=Mark.SOFT), Done)
    assert isinstance(await reader.get(), CacheToFill)  # it had no time beyond its TTL


async def test_a_value_that_is_set_is_given_to_those_who_wait(
    world: World, clock: MockClock
) -> None:
    filler, reader = Reader(world), Reader(world)
    granted = await filler.load()
    waiting = await reader.begin()
    await filler.client.ask(CacheSet(KEY, Json(b"7"), 1_000), Done)
    await waiting.done.wait()
    assert value_of(waiting) == b"7"
    assert await filler.fill(granted.fill, b"old") is FillOutcome.VOIDED


async def test_a_key_that_does_not_exist_is_known_not_to(world: World, clock: MockClock) -> None:
    filler, reader = Reader(world), Reader(world)
    granted = await filler.load()
    waiting = await reader.begin()
    fail = CacheFail(KEY, granted.fill, "", not_found=True, ttl_ms=2_000)
    await filler.client.ask(fail, Done)
    await waiting.done.wait()
    assert isinstance(waiting.result, CacheNegative)
    answer = await reader.get()
    assert isinstance(answer, CacheNegative)
    assert answer.retry_after_ms == 2_000
    await trio.sleep(2)
    await reader.load()


async def test_a_private_value_makes_everybody_load_for_himself(
    world: World, clock: MockClock
) -> None:
    filler, readers = Reader(world), [Reader(world) for _ in range(3)]
    granted = await filler.load()
    waiting = [await each.begin() for each in readers]
    await filler.client.ask(CacheFail(KEY, granted.fill, "", private_ms=10_000), Done)
    for each in waiting:
        await each.done.wait()
        assert isinstance(each.result, CacheToFill)
        assert not each.result.shared
    assert len({fill_of(each) for each in waiting}) == 3
    outcome = await readers[0].fill(fill_of(waiting[0]))
    assert outcome is FillOutcome.TOO_LATE
    await trio.sleep(10)
    assert (await readers[0].load()).shared


async def test_a_value_that_is_too_large_is_its_loaders_alone(
    clock: MockClock,
) -> None:
    """L12."""
    async with open_world(Limits(value_bytes=10)) as world:
        filler, reader = Reader(world), Reader(world)
        granted = await filler.load()
        waiting = await reader.begin()
        assert await filler.fill(granted.fill, b'"' + b"x" * 8 + b'"') is FillOutcome.STORED
        await waiting.done.wait()
        await reader.client.ask(CacheInvalidate((KEY,)), Done)
        granted = await filler.load()
        waiting = await reader.begin()
        assert await filler.fill(granted.fill, b'"' + b"x" * 9 + b'"') is FillOutcome.TOO_LARGE
        await waiting.done.wait()
        assert isinstance(waiting.result, CacheToFill)
        assert not waiting.result.shared
        with pytest.raises(LimitReached):
            await reader.client.ask(CacheSet(KEY, Json(b"x" * 11), 1), Done)


async def test_a_filler_that_gives_up_is_replaced(world: World, clock: MockClock) -> None:
    filler, reader = Reader(world), Reader(world)
    granted = await filler.load()
    waiting = await reader.begin()
    await filler.client.ask(CacheFail(KEY, granted.fill, "", promote=True), Done)
    await waiting.done.wait()
    assert fill_of(waiting) != granted.fill


async def test_a_cancelled_get_gives_its_fill_up(world: World, clock: MockClock) -> None:
    """L6: cancel means "and give it up"; the baton goes on."""
    first, second = Reader(world), Reader(world)
    async with trio.open_nursery() as nursery:
        # Cancelled when the answer is there, and before it was read.
        nursery.start_soon(first.get)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    granted = await first.load(wait_ms=0) if not first.client.session.fills else None
    if granted is None:
        key_fill = next(iter(first.client.session.fills))
        await first.client.ask(CacheFail(KEY, key_fill[1], "", promote=True), Done)
        granted = await first.load()
    waiting = await second.begin()
    third = await Reader(world).begin()
    waiting.scope.cancel()
    await waiting.done.wait()
    first.client.drop()
    await third.done.wait()
    assert isinstance(third.result, CacheToFill)


async def test_a_wait_ends_in_time_and_says_so(world: World, clock: MockClock) -> None:
    """L14: somebody else loads it: that is `busy`, and nothing else."""
    filler, reader = Reader(world), Reader(world)
    await filler.load(fill_ms=60_000)
    with pytest.raises(Busy) as busy:
        await reader.get(wait_ms=0)
    assert 0 < busy.value.data["retry_after_ms"] <= 60_000  # type: ignore[operator]
    began = trio.current_time()
    with pytest.raises(Busy):
        await reader.get(wait_ms=3_000)
    assert 3.0 <= trio.current_time() - began < 3.1
    with pytest.raises(Busy):
        await reader.get("absent", wait_ms=0, can_fill=False)
    assert not reader.client.session.fills


async def test_who_cannot_load_waits_for_one_who_can(world: World, clock: MockClock) -> None:
    reader, filler = Reader(world), Reader(world)
    waiting = await reader.begin(can_fill=False)
    granted = await filler.load()
    await filler.fill(granted.fill)
    await waiting.done.wait()
    assert value_of(waiting) == b"1"


async def test_fillers_that_keep_dying_are_not_replaced_for_ever(
    world: World, clock: MockClock
) -> None:
    """L12: a value that kills whoever loads it does not take the whole fleet down."""
    readers = [Reader(world) for _ in range(20)]
    await readers[0].load()
    waiting = [await each.begin() for each in readers[1:]]
    for reader in readers[:5]:
        reader.client.drop()
        await trio.testing.wait_all_tasks_blocked()
    assert sum(isinstance(each.result, CacheToFill) for each in waiting) == 4
    assert sum(isinstance(each.error, FillFailed) for each in waiting) == 15


async def test_nested_loads_that_wait_for_each_other_are_refused(
    world: World, clock: MockClock
) -> None:
    """The one that would close the cycle is told at once; the other goes on when it has failed."""
    one, two = Reader(world), Reader(world)
    a, b = await one.load("a"), await two.load("b")
    inner = await one.begin("b", within_key="a", within_fill=a.fill)
    assert not inner.done.is_set()
    with pytest.raises(Deadlock) as deadlock:
        await two.get("a", within_key="b", within_fill=b.fill)
    assert deadlock.value.data == {"cycle": ["b", "a"]}
    await two.fill(b.fill, b"2", key="b")
    await inner.done.wait()
    assert value_of(inner) == b"2"
    # The first does not wait any more, so there is no cycle now.
    c = await two.load("c")
    later = await two.begin("a", within_key="c", within_fill=c.fill)
    assert not later.done.is_set()
    await one.fill(a.fill, b"1", key="a")
    await later.done.wait()
    assert value_of(later) == b"1"


async def test_a_cycle_through_a_load_within_a_load_is_refused(
    world: World, clock: MockClock
) -> None:
    """One loads `a`, and for it `b`; another loads `c`, which waits for `a`."""
    one, two = Reader(world), Reader(world)
    a = await one.load("a")
    b = await one.load("b", within_key="a", within_fill=a.fill)
    c = await two.load("c")
    waiting = await two.begin("a", within_key="c", within_fill=c.fill)
    assert not waiting.done.is_set()
    with pytest.raises(Deadlock) as deadlock:
        await one.get("c", within_key="b", within_fill=b.fill)
    assert deadlock.value.data == {"cycle": ["b", "c", "a"]}
    await one.fill(b.fill, key="b")
    # Now `a` does not need `b` any more, and may wait for `c` only if that does not wait for it.
    with pytest.raises(Deadlock):
        await one.get("c", within_key="a", within_fill=a.fill)
    await one.fill(a.fill, key="a")
    await waiting.done.wait()


async def test_a_cancelled_wait_leaves_no_mark(world: World, clock: MockClock) -> None:
    """Or a wait that would end is refused."""
    one, two = Reader(world), Reader(world)
    a, b = await one.load("a"), await two.load("b")
    waiting = await one.begin("b", within_key="a", within_fill=a.fill)
    waiting.scope.cancel()
    await waiting.done.wait()
    await trio.testing.wait_all_tasks_blocked()
    other = await two.begin("a", within_key="b", within_fill=b.fill)
    assert not other.done.is_set()


async def test_a_load_that_asks_for_itself_is_refused(world: World, clock: MockClock) -> None:
    reader = Reader(world)
    granted = await reader.load()
    with pytest.raises(Deadlock):
        await reader.get(within_key=KEY, within_fill=granted.fill)


async def test_callers_and_fills_are_bounded(clock: MockClock) -> None:
    """L12: past a bound comes a typed error at once."""
    async with open_world(Limits(waiters_per_key=3, fills_per_session=2)) as world:
        filler, reader = Reader(world), Reader(world)
        await filler.load("a")
        await filler.load("b", fill_ms=1_000)
        with pytest.raises(LimitReached) as reached:
            await filler.get("c")
        assert reached.value.data == {"limit": "fills_per_session", "max": 2}
        for _ in range(3):
            await reader.begin("a")
        with pytest.raises(LimitReached):
            await reader.get("a")
        await trio.sleep(1)
        await filler.load("c")
        # A fill that is free is for those who may have one more.
        other, busy = Reader(world), Reader(world)
        await other.load("d")
        one_too_many = await busy.begin("d")
        await busy.load("e")
        await busy.load("f")
        other.client.drop()
        await trio.testing.wait_all_tasks_blocked()
        assert not one_too_many.done.is_set()
        assert isinstance((await Reader(world).begin("d")).result, CacheToFill)


async def test_the_refresh_of_a_hot_key_comes_early_and_once(
    world: World, clock: MockClock
) -> None:
    """XFetch: a thousand reads a second, a load of 1 s: one refresh an expiry, nobody waits."""
    reader = Reader(world)
    granted = (await reader.load()).fill
    for _ in range(2):
        await trio.sleep(1)  # so long does it take to load
        await reader.fill(granted, ttl_ms=60_000)
        await trio.sleep(45)  # that a refresh comes before is less likely than 1 in 3,000
        refreshes = []
        while True:
            hit = await reader.hit(wait_ms=0)
            assert hit.state is CacheState.HIT
            if hit.refresh is not None:
                refreshes.append((hit.refresh.fill, hit.ttl_ms))
            if refreshes and hit.ttl_ms < refreshes[0][1] - 900:
                break
            await trio.sleep(0.001)
        [(granted, early_ms)] = refreshes
        # At r reads/s the first of them starts about ln(r) + 0.58 load times early.
        assert 3_000 < early_ms < 15_000
