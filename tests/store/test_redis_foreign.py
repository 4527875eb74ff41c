"""Programs that take the lock without a server, as redis-py's `Lock` does (KEY-1, KEY-2)."""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import redis
import trio
from redis.exceptions import LockNotOwnedError
from redis.lock import Lock

from leasekeeper.core.lock import Busy, Left, Missing, WaiterGranted
from leasekeeper.messages import HolderView, Mode
from leasekeeper.store.api import Changed
from tests.redises import HOST
from tests.store.actors import LONG_MS, WAKE_S, Actor, Place

pytestmark = pytest.mark.system

T = TypeVar("T")

SHORT_MS = 300
ROUNDS = 5
KEY = "lk:{n}:lock"
COUNTER = "{n}counter"
NOTICED_S = 1.0
"""How soon a release is seen that nobody tells of."""


@pytest.fixture
async def place(shared: Place) -> Place:
    """No store but Redis has others in it."""
    return shared


@pytest.fixture
def client(place: Place) -> "Iterator[redis.Redis]":
    """A connection to the node of the name."""
    with redis.Redis(HOST, place.node_of("n").port) as client:
        yield client


def foreign(client: "redis.Redis", ttl_ms: int | None = LONG_MS) -> Lock:
    """Another program's lock on the same name."""
    return Lock(client, KEY, timeout=None if ttl_ms is None else ttl_ms / 1000, blocking=False)


async def off(call: Callable[[], T]) -> T:
    """Runs what blocks."""
    return await trio.to_thread.run_sync(call)


@pytest.mark.parametrize("mode", Mode)
async def test_a_foreign_lock_excludes_every_lease(
    one: Actor, client: "redis.Redis", mode: Mode
) -> None:
    """L1."""
    lock = foreign(client)
    assert lock.acquire()
    claim = one.claim(mode)
    assert await one.ask("n", claim) == Busy()
    lock.release()
    await one.take("n", claim)


@pytest.mark.parametrize("mode", Mode)
async def test_every_lease_excludes_a_foreign_lock(
    one: Actor, client: "redis.Redis", mode: Mode
) -> None:
    """L1."""
    held = await one.take("n", one.claim(mode))
    lock = foreign(client)
    assert not lock.acquire()
    await one.renew("n", held.lease)
    assert not lock.acquire()
    await one.release("n", held.lease)
    assert lock.acquire()
    lock.release()


async def test_the_last_of_several_sharers_lets_a_foreign_lock_in(
    one: Actor, client: "redis.Redis"
) -> None:
    """KEY-3."""
    lock = foreign(client)
    held = [await one.take("n", one.claim(Mode.SHARED)) for _ in range(3)]
    for each in held:
        assert not lock.acquire()
        await one.release("n", each.lease)
    assert lock.acquire()


async def test_renewed_sharers_keep_a_foreign_lock_out(one: Actor, client: "redis.Redis") -> None:
    """KEY-3: all the time that any of them is there, and not longer."""
    lock = foreign(client)
    held = await one.take("n", one.claim(Mode.SHARED, ttl_ms=500))
    await one.take("n", one.claim(Mode.SHARED, ttl_ms=SHORT_MS))
    until = trio.current_time() + 1.5
    while trio.current_time() < until:
        await one.renew("n", held.lease)
        assert not lock.acquire()
        await trio.sleep(0.05)
    await one.release("n", held.lease)
    assert lock.acquire()


async def test_a_lease_that_ran_out_lets_a_foreign_lock_in(
    one: Actor, client: "redis.Redis"
) -> None:
    """And the former holder is told."""
    held = await one.take("n", one.claim(ttl_ms=SHORT_MS))
    lock = Lock(client, KEY, timeout=30, sleep=0.01, thread_local=False)
    assert await off(lambda: lock.acquire(blocking_timeout=SHORT_MS / 1000 + 1))
    await one.lost(held.lease, within_s=WAKE_S)
    assert await one.renew("n", held.lease) == Missing()
    assert await one.release("n", held.lease) is Left.NOTHING
    assert lock.owned()


async def test_a_foreign_lock_is_shown(one: Actor, client: "redis.Redis") -> None:
    """KEY-2: without a fence, and never its token."""
    lock = foreign(client)
    assert lock.acquire(token="a-secret-token")
    state = await one.look("n")
    (holder,) = state.holders
    assert LONG_MS - 5000 < holder.ttl_ms <= LONG_MS
    assert holder == HolderView(0, Mode.EXCLUSIVE, None, 0, holder.ttl_ms, None, foreign=True)
    await one.take("m")
    page = await one.store.list_leases("", 10, None)
    assert [(each.name, each.foreign) for each in page.leases] == [("m", False), ("n", True)]
    assert page.leases[1].fence == 0
    assert "secret" not in repr(state) + repr(page)


async def test_pages_go_on_behind_a_foreign_lock(one: Actor, client: "redis.Redis") -> None:
    """Its fence is none, which must not make it come twice."""
    assert foreign(client).acquire()
    await one.take("m")
    await one.take("o")
    names, cursor = [], None
    while True:
        page = await one.store.list_leases("", 1, cursor)
        names += [each.name for each in page.leases]
        cursor = page.cursor
        if cursor is None:
            break
    assert names == ["m", "n", "o"]


@pytest.mark.parametrize("ttl_ms", [LONG_MS, None])
@pytest.mark.parametrize("mode", Mode)
async def test_a_foreign_release_is_noticed(
    one: Actor, client: "redis.Redis", mode: Mode, ttl_ms: int | None
) -> None:
    """EVENT-2: nobody tells of it; also where the lock would never have ended."""
    lock = foreign(client, ttl_ms)
    assert lock.acquire()
    claim = await one.queue("n", one.claim(mode))
    await trio.sleep(0.7)
    assert one.told_of(WaiterGranted) == []
    lock.release()
    await one.granted(claim, within_s=NOTICED_S)


async def test_the_end_of_a_foreign_lock_is_noticed(one: Actor, client: "redis.Redis") -> None:
    """L5."""
    assert foreign(client, SHORT_MS).acquire()
    claim = await one.queue("n")
    await one.granted(claim, within_s=SHORT_MS / 1000 + NOTICED_S)


async def test_a_foreign_lock_between_two_leases_is_noticed(
    one: Actor, client: "redis.Redis"
) -> None:
    """A program may be quicker than the queue when a lease runs out: the queue waits for it."""
    held = await one.take("n", one.claim(ttl_ms=SHORT_MS))
    claim = await one.queue("n")
    # In one step, as if it had come at the very moment.
    client.set(KEY, "a token", px=LONG_MS)
    await one.lost(held.lease, within_s=SHORT_MS / 1000 + WAKE_S)
    assert one.told_of(WaiterGranted) == []
    client.delete(KEY)
    await one.granted(claim, within_s=NOTICED_S)


async def test_break_removes_a_foreign_lock(one: Actor, client: "redis.Redis") -> None:
    """Its program learns of it when it gives it back; who waits has it."""
    lock = foreign(client)
    assert lock.acquire()
    claim = await one.queue("n")
    assert await one.store.break_("n", "because") == 1
    await one.granted(claim)
    with pytest.raises(LockNotOwnedError):
        lock.release()
    assert len(await one.fences("n")) == 1


async def test_watchers_see_a_foreign_lock_come_and_go(one: Actor, client: "redis.Redis") -> None:
    await one.store.watch("n")
    lock = foreign(client)
    assert lock.acquire()
    (holder,) = (await one.next_told(Changed)).state.holders
    assert holder.foreign
    lock.release()
    assert (await one.next_told(Changed, within_s=NOTICED_S)).state.holders == ()


async def test_a_lock_that_was_deleted_by_hand_is_lost(one: Actor, client: "redis.Redis") -> None:
    """Whoever deletes the key breaks the lease."""
    held = await one.take("n")
    client.delete(KEY)
    assert await one.renew("n", held.lease) == Missing()
    assert (await one.lost(held.lease)).fence == held.fence
    assert await one.is_free("n")


async def test_a_deleted_marker_comes_back_with_the_next_renewal(
    one: Actor, client: "redis.Redis"
) -> None:
    """KEY-3: sharers outlive a lock key that was deleted by hand."""
    held = await one.take("n", one.claim(Mode.SHARED))
    client.delete(KEY)
    await one.renew("n", held.lease)
    assert not foreign(client).acquire()


async def test_leases_and_foreign_locks_never_overlap(place: Place) -> None:
    """L1: five of each on one counter that only exclusion protects."""
    node = place.node_of("n")
    with redis.Redis(HOST, node.port, decode_responses=True) as client:
        async with place.acting("one") as one, place.acting("two") as two, trio.open_nursery() as n:
            for actor in (one, two):
                for _ in range(3):
                    n.start_soon(count_under_leases, actor, client)
            for _ in range(4):
                n.start_soon(off, lambda: count_under_foreign_locks(client))
        assert client.get(COUNTER) == str(10 * ROUNDS)


async def count_under_leases(actor: Actor, client: "redis.Redis") -> None:
    for _ in range(ROUNDS):
        claim = actor.claim()
        answer = await actor.ask("n", claim, wait=True)
        if not hasattr(answer, "waited_ms"):
            await actor.granted(claim, within_s=60)
        await off(lambda: add_one(client))
        assert await actor.release("n", claim.lease) is Left.HELD


def count_under_foreign_locks(client: "redis.Redis") -> None:
    for _ in range(ROUNDS):
        with Lock(client, KEY, timeout=30, sleep=0.01):
            add_one(client)


def add_one(client: "redis.Redis") -> None:
    """Reads, sleeps and writes: two at once lose one."""
    number = int(str(client.get(COUNTER) or 0))
    time.sleep(0.01)
    client.set(COUNTER, number + 1)
