"""Write-behind on a virtual clock: puts, claims that wait, and claims of those who are gone."""

from collections.abc import AsyncIterator, Callable, Sequence

import pytest
import trio
import trio.testing
from attrs import define, field
from trio.testing import MockClock

from leasekeeper.core.writes import Settled, Take, Taken
from leasekeeper.errors import (
    Busy,
    Forbidden,
    InvalidParams,
    LimitReached,
    Outcome,
    Overloaded,
    Unavailable,
)
from leasekeeper.messages import (
    CacheAbortWrite,
    CacheBeginWrite,
    CacheGet,
    CacheHit,
    CacheSet,
    CacheWriting,
    CacheWritten,
    Json,
)
from leasekeeper.service.limits import Limits
from leasekeeper.service.writes import CLAIM_MS
from leasekeeper.store.memory import MemoryStore
from leasekeeper.store.memory_writes import MemoryWrites
from leasekeeper.store.writes import QueueNews
from tests.service.conftest import World, open_world
from tests.service.writing import Writer, claimed, writes_of


@define(eq=False)
class DeafWrites(MemoryWrites):
    """Queues whose messages are lost; and the answers of claims, and calls, as told."""

    lost: Outcome | None = None
    slow_s: float = 0
    deaf_until: float = 0
    on_claimed: Callable[[], None] = lambda: None

    async def run(self, on_event: Callable[[QueueNews], None]) -> None:
        await super().run(lambda _: None)

    async def claim(self, queue: str, take: Take) -> Taken:
        if self.lost is Outcome.NONE:
            raise Unavailable(Outcome.NONE, 200)
        taken = await super().claim(queue, take)
        if taken.writes:
            self.on_claimed()
        if self.slow_s:
            await trio.sleep(self.slow_s)
        if self.lost:
            raise Unavailable(self.lost, 200)
        return taken

    async def give_back(self, queue: str, ids: Sequence[str], *, unseen: bool) -> Sequence[Settled]:
        if trio.current_time() < self.deaf_until:
            raise Unavailable(Outcome.NONE, 200)
        return await super().give_back(queue, ids, unseen=unseen)


@define(eq=False)
class Deaf(MemoryStore):
    """The embedded store with these."""

    writes: DeafWrites = field(init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.writes = DeafWrites(self.cache, allow_volatile=True)


@pytest.fixture
async def world(clock: MockClock) -> AsyncIterator[World]:
    """A server that queues writes although it keeps them in memory."""
    async with open_world(Limits(), MemoryStore(allow_volatile_writes=True)) as opened:
        yield opened


# --- Puts -------------------------------------------------------------------------------------


async def test_a_put_value_is_read_at_once_and_written_later(
    world: World, clock: MockClock
) -> None:
    """By whoever claims it, who says so when it is done."""
    producer, writer = Writer(world), Writer(world)
    seq = await producer.put("k", b"7")
    hit = await producer.client.ask(CacheGet("k"), CacheHit)
    assert hit.value == Json(b"7")
    write = await writer.claim_one()
    assert (write.key, write.value, write.seq, write.attempt) == ("k", Json(b"7"), seq, 1)
    assert await writer.ack(write) == 1
    assert await writer.ack(write) == 0
    assert await writer.claim() == ()


async def test_a_store_that_may_lose_writes_refuses_them(clock: MockClock) -> None:
    """Unless that is allowed; what was queued before can be claimed and settled."""
    async with open_world(Limits()) as world:
        writer = Writer(world)
        with pytest.raises(Forbidden, match="--allow-volatile-writes"):
            await writer.put("k")
        assert await writer.claim() == ()
        assert (await writer.dead()).writes == ()


async def test_a_full_queue_is_overload(clock: MockClock) -> None:
    """L12: told at once, with when to come back."""
    limits = Limits(writes_per_queue=1)
    async with open_world(limits, MemoryStore(allow_volatile_writes=True)) as world:
        writer = Writer(world)
        await writer.put("k")
        with pytest.raises(Overloaded) as caught:
            await writer.put("l")
        assert caught.value.data == {"retry_after_ms": 1000}
        await writer.put("l", queue="other")


async def test_too_large_a_value_is_refused(clock: MockClock) -> None:
    """L12: a value that cannot be cached cannot be written behind the cache."""
    limits = Limits(value_bytes=10)
    async with open_world(limits, MemoryStore(allow_volatile_writes=True)) as world:
        with pytest.raises(LimitReached, match="value_bytes"):
            await Writer(world).put("k", b"x" * 11)


async def test_a_key_is_written_in_one_way_at_a_time(world: World, clock: MockClock) -> None:
    """While a write is queued there is no write-through and no set, nor the other way round."""
    writer = Writer(world)
    begun = await writer.client.ask(CacheBeginWrite("k"), CacheWriting)
    with pytest.raises(Busy):
        await writer.put("k")
    await writer.client.ask(CacheAbortWrite("k", begun.write), CacheWritten)
    await writer.put("k")
    handle, session = world.keeper.handle, writer.client.session
    with pytest.raises(Busy):
        await handle(session, CacheBeginWrite("k"))
    with pytest.raises(Busy):
        await handle(session, CacheSet("k", Json(b"2"), ttl_ms=1_000))


# --- Claims that wait -------------------------------------------------------------------------


async def test_who_waits_is_told_of_a_put_at_once(world: World, clock: MockClock) -> None:
    """L5: by push."""
    writer = Writer(world)
    pending = await writer.begin()
    began = trio.current_time()
    await Writer(world).put("k")
    await pending.done.wait()
    assert claimed(pending) == ["k"]
    assert trio.current_time() == began
    assert not len(world.keeper.writes)


async def test_those_who_wait_are_served_in_order(world: World, clock: MockClock) -> None:
    """Who has waited longest is next; one that does not wait is not served before."""
    writers = [Writer(world) for _ in range(3)]
    waiting = [await each.begin(max=1) for each in writers]
    producer = Writer(world)
    for number in range(3):
        await producer.put(f"k{number}")
        await waiting[number].done.wait()
        assert [each.done.is_set() for each in waiting] == [at <= number for at in range(3)]
    assert [claimed(each) for each in waiting] == [["k0"], ["k1"], ["k2"]]


async def test_a_wait_ends_with_nothing(world: World, clock: MockClock) -> None:
    """That is an answer, and no error."""
    began = trio.current_time()
    assert await Writer(world).claim(wait_ms=4_000) == ()
    assert trio.current_time() - began == pytest.approx(4)
    assert not len(world.keeper.writes)


async def test_who_waits_is_served_when_a_claim_is_over(world: World, clock: MockClock) -> None:
    """L5, L8: a writer that hangs holds its writes no longer than it has claimed them."""
    slow, other = Writer(world), Writer(world)
    await other.put("k")
    first = await slow.claim_one(claim_ms=1_000)
    pending = await other.begin()
    began = trio.current_time()
    await pending.done.wait()
    assert trio.current_time() - began == pytest.approx(1, abs=0.1)
    [second] = writes_of(pending)
    assert second.attempt == 2
    assert second.fence > first.fence
    assert await slow.ack(first) == 0
    assert await other.ack(second) == 1


async def test_who_waits_is_served_when_a_back_off_is_over(world: World, clock: MockClock) -> None:
    """L5: also if that is sooner than it was known when the wait began."""
    writer, other = Writer(world), Writer(world)
    await writer.put("k")
    write = await writer.claim_one()
    pending = await other.begin()
    await writer.retry(write, error="no database", after_ms=300)
    began = trio.current_time()
    await pending.done.wait()
    assert trio.current_time() - began == pytest.approx(0.3, abs=0.05)


async def test_whoever_waits_claims_again_though_it_is_told_nothing(clock: MockClock) -> None:
    """L5: a message is a hint."""
    store = Deaf(allow_volatile_writes=True)
    async with open_world(Limits(), store) as world:
        pending = await Writer(world).begin()
        await Writer(world).put("k")
        began = trio.current_time()
        await pending.done.wait()
        assert trio.current_time() - began <= CLAIM_MS / 1000 + 0.1


async def test_too_many_who_wait_are_refused(clock: MockClock) -> None:
    """L12."""
    limits = Limits(waiters_per_queue=1, claims_per_session=20)
    async with open_world(limits, MemoryStore(allow_volatile_writes=True)) as world:
        await Writer(world).begin()
        with pytest.raises(LimitReached, match="waiters_per_queue"):
            await Writer(world).claim()


async def test_a_session_claims_no_more_than_it_may(clock: MockClock) -> None:
    """L12: also if it asks for them at the same time; what is over does not count."""
    limits = Limits(claims_per_session=3)
    async with open_world(limits, MemoryStore(allow_volatile_writes=True)) as world:
        writer = Writer(world)
        with pytest.raises(LimitReached, match="claims_per_session"):
            await writer.claim(max=4)
        waiting = [await writer.begin(max=2, claim_ms=1_000) for _ in range(2)]
        for key in "abcd":
            await writer.put(key)
        for each in waiting:
            await each.done.wait()
        assert len(claimed(waiting[0])) + len(writer.client.session.claims) == 2 * 2
        assert isinstance(waiting[1].error, LimitReached)
        await trio.sleep(1.1)
        assert len(await writer.claim(max=3)) == 3


# --- The end of sessions ----------------------------------------------------------------------


@pytest.mark.parametrize("clean", [True, False])
async def test_claims_of_one_who_is_gone_are_given_back_at_once(
    clean: bool, world: World, clock: MockClock
) -> None:
    """L8: without a grace; and they count as attempts."""
    gone, other = Writer(world), Writer(world)
    for key in "ab":
        await other.put(key)
    await gone.claim()
    pending = await other.begin()
    began = trio.current_time()
    (gone.client.close if clean else gone.client.drop)()
    await pending.done.wait()
    assert trio.current_time() == began
    again = [*writes_of(pending), *await other.claim()]
    assert [(each.key, each.attempt) for each in again] == [("a", 2), ("b", 2)]


async def test_a_settled_claim_is_not_given_back(world: World, clock: MockClock) -> None:
    """Its write may be claimed by another by then."""
    gone, other = Writer(world), Writer(world)
    await other.put("k")
    await gone.retry(await gone.claim_one(), after_ms=0)
    write = await other.claim_one()
    gone.client.drop()
    await trio.testing.wait_all_tasks_blocked()
    assert await Writer(world).claim() == ()
    assert await other.ack(write) == 1


async def test_a_claim_that_is_cancelled_leaves_nothing_behind(
    world: World, clock: MockClock
) -> None:
    """L6: who waits behind it is served, and it was no attempt."""
    first, second = await Writer(world).begin(), await Writer(world).begin()
    first.scope.cancel()
    await Writer(world).put("k")
    await second.done.wait()
    assert claimed(second) == ["k"]
    assert first.result is None


async def test_a_claim_that_is_cancelled_as_it_is_answered_is_given_back(
    clock: MockClock,
) -> None:
    """L6: nobody heard of it, so it was no attempt."""
    store = Deaf(allow_volatile_writes=True)
    async with open_world(Limits(), store) as world:
        pending, other = await Writer(world).begin(), Writer(world)
        await other.put("k")
        store.writes.on_claimed = pending.scope.cancel
        await pending.done.wait()
        assert pending.result is None
        assert world.keeper.metrics.writes_claimed.value == 1
        store.writes.on_claimed = lambda: None
        [write] = await other.claim(wait_ms=None)
        assert write.attempt == 1


async def test_nothing_is_remembered_of_a_queue_at_rest(world: World, clock: MockClock) -> None:
    """L9: once everything is written, and those who waited have gone."""
    writer = Writer(world)
    await writer.put("k")
    await writer.ack(await writer.claim_one())
    assert await writer.claim(wait_ms=3_000) == ()
    await trio.sleep(16)
    store = world.keeper.store
    assert isinstance(store, MemoryStore)
    assert not len(store.writes)
    assert not len(store.cache)
    assert not writer.client.session.claims


# --- Failures ---------------------------------------------------------------------------------


async def test_a_write_that_fails_too_often_is_dead_and_can_be_revived(
    clock: MockClock,
) -> None:
    """It is listed with its last error, and counted."""
    limits = Limits(writes_attempts_max=2)
    async with open_world(limits, MemoryStore(allow_volatile_writes=True)) as world:
        writer = Writer(world)
        await writer.put("k", b"7")
        await writer.retry(await writer.claim_one(), error="first", after_ms=0)
        await writer.retry(await writer.claim_one(), error="second", after_ms=0)
        assert await writer.claim() == ()
        [dead] = (await writer.dead()).writes
        assert (dead.key, dead.value, dead.attempts, dead.error) == ("k", Json(b"7"), 2, "second")
        metrics = world.keeper.metrics
        assert metrics.writes_dead.value == 1
        assert metrics.writes_retried.value == 1
        assert await writer.revive("k", "k", "l") == 1
        await writer.ack(await writer.claim_one())
        assert metrics.writes_queued.value == 2
        assert metrics.writes_claimed.value == 3
        assert metrics.writes_acked.value == 1


async def test_a_write_that_kills_its_writers_is_dead_in_the_end(clock: MockClock) -> None:
    """L8: and holds up no other."""
    limits = Limits(writes_attempts_max=2)
    async with open_world(limits, MemoryStore(allow_volatile_writes=True)) as world:
        producer = Writer(world)
        await producer.put("poison")
        for _ in range(2):
            victim = Writer(world)
            await victim.claim_one()
            victim.client.drop()
            await trio.testing.wait_all_tasks_blocked()
        await producer.put("k")
        assert (await producer.claim_one()).key == "k"
        assert [each.key for each in (await producer.dead()).writes] == ["poison"]
        assert world.keeper.metrics.writes_dead.value == 1


async def test_dead_writes_come_in_pages(clock: MockClock) -> None:
    """And only with a cursor of ours."""
    limits = Limits(writes_attempts_max=1)
    async with open_world(limits, MemoryStore(allow_volatile_writes=True)) as world:
        writer = Writer(world)
        for key in "abc":
            await writer.put(key)
            await writer.retry(await writer.claim_one())
        page = await writer.dead(limit=2)
        assert [each.key for each in page.writes] == ["a", "b"]
        page = await writer.dead(limit=2, cursor=page.cursor)
        assert ([each.key for each in page.writes], page.cursor) == (["c"], None)
        for cursor in ("nonsense", "1.5", "0.x"):
            with pytest.raises(InvalidParams):
                await writer.dead(cursor=cursor)


@pytest.mark.parametrize("outcome", [Outcome.NONE, Outcome.UNKNOWN])
async def test_an_outage_is_told_to_all_who_wait(outcome: Outcome, clock: MockClock) -> None:
    """L14: it is no empty queue. What was claimed and not heard of can be claimed in time."""
    store = Deaf(allow_volatile_writes=True)
    async with open_world(Limits(), store) as world:
        waiting = [await Writer(world).begin(claim_ms=2_000) for _ in range(3)]
        await Writer(world).put("k")
        store.writes.lost = outcome
        for each in waiting:
            await each.done.wait()
            assert isinstance(each.error, Unavailable)
        store.writes.lost = None
        began = trio.current_time()
        write = await Writer(world).claim(wait_ms=None)
        assert trio.current_time() - began <= 2.1
        assert write[0].attempt == (1 if outcome is Outcome.NONE else 2)


async def test_claims_are_given_back_as_soon_as_the_store_answers(clock: MockClock) -> None:
    """L8: an outage delays it."""
    store = Deaf(allow_volatile_writes=True)
    async with open_world(Limits(), store) as world:
        gone, other = Writer(world), Writer(world)
        await other.put("k")
        await gone.claim_one(claim_ms=60_000)
        store.writes.deaf_until = trio.current_time() + 5
        gone.client.drop()
        began = trio.current_time()
        write = await other.claim(wait_ms=None)
        assert 5 <= trio.current_time() - began <= 7
        assert write[0].attempt == 2


async def test_a_claim_that_comes_back_after_its_wait_is_given_back(clock: MockClock) -> None:
    """The store was slow: it was no attempt."""
    store = Deaf(allow_volatile_writes=True)
    async with open_world(Limits(), store) as world:
        assert await Writer(world).claim() == ()
        pending = await Writer(world).begin(wait_ms=1_400)
        store.writes.slow_s = 1.0
        await Writer(world).put("k")
        await pending.done.wait()
        assert claimed(pending) == []
        store.writes.slow_s = 0
        write = await Writer(world).claim(wait_ms=None)
        assert write[0].attempt == 1
