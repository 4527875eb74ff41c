"""What every store owes write-behind: the duties of `store/writes.py`, over all of them."""

from functools import partial
from secrets import token_hex
from typing import Final

import pytest
import trio

from leasekeeper.core.fills import Ask, Conflict, Content
from leasekeeper.core.writes import ANSWER_BYTES_MAX, Bounds, Full, Settled, Take, Taken
from leasekeeper.errors import InvalidParams
from leasekeeper.messages import ClaimedWrite, DeadWrite, Json
from leasekeeper.store.writes import QueueNews
from tests.polling import eventually
from tests.store.actors import Actor, Place

Q: Final = "orders"
CLAIM_MS: Final = 30_000
ATTEMPTS_MAX: Final = 3
PLENTY: Final = Bounds(100_000, 100_000_000)
MANY: Final = [f"key:{number}" for number in range(100)]


async def put(actor: Actor, key: str, value: bytes = b"1", ttl_ms: int = 0) -> int:
    """A write is put, which must be possible."""
    seq = await actor.store.writes.put(Q, key, Content(value, ttl_ms), PLENTY)
    assert isinstance(seq, int), seq
    return seq


async def claim(actor: Actor, count: int = 1_000, claim_ms: int = CLAIM_MS) -> Taken:
    """Whatever can be claimed, or so many. The server waits if there is nothing."""
    take = Take(token_hex(16), count, claim_ms, ATTEMPTS_MAX, actor.server)
    return await actor.store.writes.claim(Q, take)


async def fail(actor: Actor, taken: Taken, error: str = "no luck") -> list[Settled]:
    """Whatever was claimed cannot be written, and may be claimed again at once."""
    ids = [write.id for write in taken.writes]
    jitters = [0.5] * len(ids)
    return list(await actor.store.writes.retry(Q, ids, error, 0, jitters, ATTEMPTS_MAX))


async def bury(actor: Actor, keys: list[str]) -> None:
    """Writes of these keys die, and there are no others."""
    for key in keys:
        await put(actor, key, key.encode())
    settled = [await fail(actor, await claim(actor)) for _ in range(ATTEMPTS_MAX)]
    assert settled[-1] == [Settled.DEAD] * len(keys)


async def ack(actor: Actor, taken: Taken) -> list[Settled]:
    """Whatever was claimed is written."""
    return list(await actor.store.writes.ack(Q, [write.id for write in taken.writes]))


async def cached(actor: Actor, key: str) -> bytes | None:
    """The cached value."""
    found = (await actor.store.cache.look(key, Ask())).found
    return found.value if found else None


def told(actor: Actor) -> int:
    """How often this server was told to claim again."""
    events: list[object] = [*actor.told]
    return events.count(QueueNews(Q))


def keys_of_queues(place: Place) -> list[str]:
    """Whatever of a queue is there, but who waits for it."""
    there = place.keys()
    return [key for key in there if ":q:" in key and not key.endswith(":news")]


# --- Puts, claims, acks -------------------------------------------------------------------


async def test_a_put_value_is_cached_and_claimed_and_written(one: Actor) -> None:
    """In one step; and it stays for its TTL once it is written."""
    seq = await put(one, "k", b'"7"', ttl_ms=60_000)
    assert await cached(one, "k") == b'"7"'
    taken = await claim(one)
    [write] = taken.writes
    assert (write.key, write.value, write.seq, write.attempt) == ("k", Json(b'"7"'), seq, 1)
    assert taken.next_ms is not None
    assert CLAIM_MS - 5_000 <= taken.next_ms <= CLAIM_MS
    assert await ack(one, taken) == [Settled.DONE]
    assert await ack(one, taken) == [Settled.NOT_HELD]
    assert await claim(one) == Taken()
    assert await cached(one, "k") == b'"7"'


@pytest.mark.parametrize("count", [7, 90])
async def test_every_write_is_claimed_once_whatever_its_partition(one: Actor, count: int) -> None:
    """As many at a time as there may be, and with fences above their numbers."""
    seqs = {key: await put(one, key, key.encode()) for key in MANY}
    found: dict[str, ClaimedWrite] = {}
    while (taken := await claim(one, count)).writes:
        assert len(taken.writes) == min(count, len(MANY) - len(found))
        for write in taken.writes:
            assert write.key not in found
            assert write.value == Json(write.key.encode())
            assert write.fence > write.seq == seqs[write.key]
            found[write.key] = write
    assert found.keys() == seqs.keys()


async def test_those_are_claimed_first_that_have_waited_longest(one: Actor) -> None:
    """In whatever partitions they are."""
    for key in MANY[:10]:
        await put(one, key)
        await trio.sleep(0.003)  # the store's clock has to move on
    for key in MANY[:10]:
        [write] = (await claim(one, 1)).writes
        assert write.key == key


async def test_a_newer_value_follows_the_one_that_is_being_written(one: Actor) -> None:
    """With a higher fence; readers have it all the time."""
    await put(one, "k", b"1")
    first = await claim(one)
    await put(one, "k", b"2")
    assert (await claim(one)).writes == ()
    assert await ack(one, first) == [Settled.QUEUED]
    assert await cached(one, "k") == b"2"
    second = await claim(one)
    assert second.writes[0].value == Json(b"2")
    assert second.writes[0].fence > first.writes[0].fence
    assert await ack(one, second) == [Settled.DONE]
    assert await cached(one, "k") is None


async def test_a_claim_ends_by_its_time(one: Actor) -> None:
    """L8: by the store's clock; who comes too late settles nothing."""
    await put(one, "k")
    first = await claim(one, claim_ms=100)

    async def is_claimed_again() -> bool:
        taken = await claim(one)
        if taken.writes:
            again.append(taken)
        return bool(taken.writes)

    again: list[Taken] = []
    await eventually(is_claimed_again)
    assert again[0].writes[0].attempt == 2
    assert again[0].writes[0].fence > first.writes[0].fence
    assert await ack(one, first) == [Settled.NOT_HELD]
    assert await fail(one, first) == [Settled.NOT_HELD]
    assert await ack(one, again[0]) == [Settled.DONE]


async def test_what_is_given_back_can_be_claimed_at_once(one: Actor) -> None:
    """L8: what nobody has heard of was no attempt."""
    await put(one, "k")
    for unseen, attempt in ((True, 1), (False, 2)):
        [write] = (await claim(one)).writes
        settled = await one.store.writes.give_back(Q, [write.id, "x.y", "z"], unseen=unseen)
        assert settled == [Settled.QUEUED, Settled.NOT_HELD, Settled.NOT_HELD]
        [write] = (await claim(one)).writes
        assert write.attempt == attempt
        await one.store.writes.give_back(Q, [write.id], unseen=True)


async def test_a_key_is_written_in_one_way_at_a_time(one: Actor) -> None:
    """A queued write keeps others out, and the other way round."""
    cache, writes = one.store.cache, one.store.writes
    await put(one, "k")
    assert await cache.set("k", Content(b"2", 1_000)) == Conflict()
    assert await cache.begin_write("k", "w", ("t",), 10_000) == Conflict()
    await cache.begin_write("l", "w", ("t",), 10_000)
    assert await writes.put(Q, "l", Content(b"1", 0), PLENTY) == Conflict()
    await cache.close_write("l", "w", None, ("t",))
    await put(one, "l")


async def test_queues_are_apart(one: Actor) -> None:
    """A key has one queue at a time; of another, nothing is claimed."""
    await put(one, "k")
    take = Take(token_hex(16), 10, CLAIM_MS, ATTEMPTS_MAX)
    assert (await one.store.writes.claim("other", take)).writes == ()
    assert len((await claim(one)).writes) == 1


# --- Bounds (L12) ---------------------------------------------------------------------------------


async def test_a_full_queue_takes_no_new_key(one: Actor) -> None:
    """L12: each partition has its share; it is refused as a whole, and nothing has changed."""
    writes = one.store.writes
    few, small = Bounds(1, 10_000), Bounds(1_000, 3)
    assert isinstance(await writes.put(Q, "k", Content(b"12", 0), few), int)
    for bounds in (few, small):
        refused = [key for key in MANY if await _is_refused(one, key, bounds)]
        assert refused
        for key in refused:
            assert await cached(one, key) is None
    assert isinstance(await writes.put(Q, "k", Content(b"21", 0), few), int)


async def _is_refused(actor: Actor, key: str, bounds: Bounds) -> bool:
    answer = await actor.store.writes.put(Q, key, Content(b"1234", 0), bounds)
    return isinstance(answer, Full)


async def test_an_answer_has_a_bound(one: Actor) -> None:
    """L12: large values come one by one, and all of them come; so do dead ones."""
    keys = MANY[:3]
    for key in keys:
        await put(one, key, b"x" * (ANSWER_BYTES_MAX * 2 // 3))
    for attempt in range(ATTEMPTS_MAX):
        claims = [await claim(one) for _ in keys]
        assert [len(each.writes) for each in claims] == [1, 1, 1]
        settled = [await fail(one, each) for each in claims]
        assert settled == [[Settled.DEAD if attempt == 2 else Settled.QUEUED]] * 3
    cursor, found = None, list[str]()
    while cursor is not None or not found:
        page = await one.store.writes.dead(Q, 10, cursor)
        assert len(page.writes) <= 2
        found, cursor = found + [each.key for each in page.writes], page.cursor
    assert sorted(found) == keys


# --- The dead -------------------------------------------------------------------------------------


async def test_a_write_that_fails_too_often_is_dead(one: Actor) -> None:
    """It is not claimed, its value is not served, and the key may be loaded (L10)."""
    await bury(one, ["k"])
    assert (await claim(one)).writes == ()
    seen = await one.store.cache.look("k", Ask(fill=token_hex(16)))
    assert seen.found is None
    assert seen.grant is not None
    page = await one.store.writes.dead(Q, 10, None)
    [dead] = page.writes
    assert dead == DeadWrite("k", Json(b"k"), dead.seq, ATTEMPTS_MAX, "no luck")
    assert page.cursor is None


async def test_a_write_whose_writers_all_die_is_dead(one: Actor) -> None:
    """L8: and the claim that finds it says so, and has the others."""
    await put(one, "k")
    for _ in range(ATTEMPTS_MAX):
        [write] = (await claim(one)).writes
        await one.store.writes.give_back(Q, [write.id], unseen=False)
    await put(one, "l")
    taken = await claim(one)
    assert [write.key for write in taken.writes] == ["l"]
    assert taken.spent == ("k",)
    assert [each.key for each in (await one.store.writes.dead(Q, 10, None)).writes] == ["k"]


async def test_all_the_dead_are_listed_in_pages(one: Actor) -> None:
    """Each once; in the end there is no cursor."""
    await bury(one, MANY)
    found: list[str] = []
    cursor = None
    for _ in range(2 * len(MANY)):
        page = await one.store.writes.dead(Q, 7, cursor)
        assert len(page.writes) <= 7
        found += [each.key for each in page.writes]
        cursor = page.cursor
        if cursor is None:
            break
    assert cursor is None
    assert sorted(found) == sorted(MANY)


@pytest.mark.parametrize("cursor", ["nonsense", "99.1", "0.x y", "-1.1", "0.1-"])
async def test_a_cursor_is_one_of_ours(one: Actor, cursor: str) -> None:
    """A peer's nonsense is told."""
    with pytest.raises(InvalidParams):
        await one.store.writes.dead(Q, 10, cursor)


async def test_the_dead_are_revived_once_and_not_if_they_were_put_anew(one: Actor) -> None:
    """A newer write stands."""
    await bury(one, ["k", "l", "m"])
    await put(one, "l", b"newer")
    assert await one.store.writes.revive(Q, ["k", "l", "nobody"]) == 1
    assert await one.store.writes.revive(Q, ["k", "l"]) == 0
    values = {write.key: write.value.text for write in (await claim(one)).writes}
    assert values == {"k": b"k", "l": b"newer"}
    assert await cached(one, "k") == b"k"
    assert [each.key for each in (await one.store.writes.dead(Q, 10, None)).writes] == ["m"]


# --- News, and rest -------------------------------------------------------------------------------


async def test_a_server_that_claimed_in_vain_hears_of_a_write(one: Actor) -> None:
    """L5."""
    assert await claim(one) == Taken()
    await put(one, "k")
    await eventually(partial(_told, one))


async def test_servers_that_wait_hear_of_what_others_put(shared: Place) -> None:
    """L5: all of them; and one of them gets it."""
    async with shared.acting("one") as one, shared.acting("two") as two:
        async with shared.acting("three") as three:
            for each in (one, two):
                assert await claim(each) == Taken()
            await put(three, "k")
        for each in (one, two):
            await eventually(partial(_told, each))
        got = [(await claim(each)).writes for each in (one, two)]
        assert sorted(map(len, got)) == [0, 1]


async def _told(actor: Actor) -> bool:
    return told(actor) > 0


async def test_writes_outlive_the_server_that_put_them(shared: Place) -> None:
    """They are in the store, and never end by themselves."""
    async with shared.acting("one") as one:
        for key in MANY[:5]:
            await put(one, key)
    assert shared.keys_for_ever()
    async with shared.acting("two") as two:
        taken = await claim(two)
        assert sorted(write.key for write in taken.writes) == MANY[:5]


async def test_a_queue_without_writes_leaves_no_key(shared: Place) -> None:
    """L9: but one that ends by itself, while a server waits."""
    async with shared.acting() as one:
        for key in MANY[:20]:
            await put(one, key)
        await ack(one, await claim(one))
        assert keys_of_queues(shared) == []
        await bury(one, MANY[:3])
        assert await one.store.writes.revive(Q, MANY[:3]) == 3
        await ack(one, await claim(one))
        assert await claim(one) == Taken()
        assert keys_of_queues(shared) == []
        assert shared.keys_for_ever() == []
