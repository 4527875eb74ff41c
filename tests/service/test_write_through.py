"""Write-through: whatever dies in between, nothing older than the write is read after it (L11)."""

import pytest
import trio
from trio.testing import MockClock

from leasekeeper.messages import (
    CacheAbortWrite,
    CacheBeginWrite,
    CacheCommitWrite,
    CacheInvalidate,
    CacheSet,
    CacheToFill,
    CacheWriting,
    CacheWritten,
    Done,
    FillOutcome,
    Json,
)
from tests.service.caching import KEY, Reader, fill_of, value_of
from tests.service.conftest import World


async def begin(writer: Reader, **fields: object) -> str:
    ask = CacheBeginWrite(KEY, **fields)  # type: ignore[arg-type]
    return (await writer.client.ask(ask, CacheWriting)).write


async def commit(writer: Reader, write: str, **fields: object) -> CacheWritten:
    ask = CacheCommitWrite(KEY, write, **fields)  # type: ignore[arg-type]
    return await writer.client.ask(ask, CacheWritten)


async def test_a_commit_with_a_value_is_a_hit(world: World, clock: MockClock) -> None:
    writer, reader = Reader(world), Reader(world)
    await writer.fill((await writer.load()).fill, b"0")
    write = await begin(writer)
    assert await commit(writer, write, value=Json(b"1"), ttl_ms=1_000) == CacheWritten(True, True)
    assert (await reader.hit()).value == Json(b"1")


async def test_while_a_write_is_open_everybody_reads_the_source(
    world: World, clock: MockClock
) -> None:
    """The old value is gone at once, and nothing that is loaded meanwhile is kept."""
    writer, reader = Reader(world), Reader(world)
    await writer.fill((await writer.load()).fill, b"0")
    await begin(writer)
    for _ in range(2):
        answer = await reader.load()
        assert not answer.shared
        assert await reader.fill(answer.fill, b"0") is FillOutcome.TOO_LATE


async def test_those_who_wait_when_a_write_begins_do_not_wait_for_it(
    world: World, clock: MockClock
) -> None:
    filler, reader, writer = Reader(world), Reader(world), Reader(world)
    granted = await filler.load()
    waiting = await reader.begin()
    write = await begin(writer)
    await waiting.done.wait()
    assert isinstance(waiting.result, CacheToFill)
    assert not waiting.result.shared
    assert await filler.fill(granted.fill, b"old") is FillOutcome.VOIDED
    await commit(writer, write)
    assert (await reader.load()).shared


@pytest.mark.parametrize("clean", [True, False])
async def test_a_writer_that_dies_leaves_nothing_stale(
    clean: bool, world: World, clock: MockClock
) -> None:
    """Its transaction may have been committed, at any time until the intent is over."""
    writer, reader, tagged = Reader(world), Reader(world), Reader(world)
    await tagged.fill((await tagged.load("list")).fill, b"0", key="list", tags=("t",))
    await begin(writer, tags=("t",), ttl_ms=5_000)
    known, new = await tagged.load("list"), await tagged.load("new")
    assert (known.shared, new.shared) == (False, True)
    (writer.client.close if clean else writer.client.drop)()
    await trio.sleep(2)
    assert not (await reader.load()).shared
    await trio.sleep(4)
    assert await tagged.fill(new.fill, b"old", key="new", tags=("t",)) is FillOutcome.VOIDED
    assert (await reader.load()).shared
    assert (await tagged.load("list")).shared


async def test_an_aborted_write_may_have_changed_something(world: World, clock: MockClock) -> None:
    writer, reader = Reader(world), Reader(world)
    write = await begin(writer, tags=("t",))
    during = await reader.load("list")
    await writer.client.ask(CacheAbortWrite(KEY, write), CacheWritten)
    assert await reader.fill(during.fill, key="list", tags=("t",)) is FillOutcome.VOIDED
    assert (await reader.load()).shared


async def test_two_writes_at_once_store_neither_value(world: World, clock: MockClock) -> None:
    """There is no telling which transaction came last."""
    one, two, reader = Reader(world), Reader(world), Reader(world)
    first, second = await begin(one), await begin(two)
    assert not (await commit(one, first, value=Json(b"1"), ttl_ms=1_000)).stored
    assert not (await commit(two, second, value=Json(b"2"), ttl_ms=1_000)).stored
    assert (await reader.load()).shared


async def test_a_write_that_took_too_long_is_told(world: World, clock: MockClock) -> None:
    """The residual hole: a transaction that outlives its intent. Its end still invalidates."""
    writer, reader = Reader(world), Reader(world)
    write = await begin(writer, ttl_ms=1_000)
    await trio.sleep(2)
    await reader.fill((await reader.load()).fill, b"old")
    assert await commit(writer, write, value=Json(b"1"), ttl_ms=1_000) == CacheWritten(False, False)
    assert (await reader.load()).shared


async def test_a_write_begun_twice_is_one(world: World, clock: MockClock) -> None:
    """L6."""
    writer = Reader(world)
    write = "ab" * 16
    assert await begin(writer, write=write) == await begin(writer, write=write)
    assert (await commit(writer, write, value=Json(b"1"), ttl_ms=1_000)).stored
    assert not (await commit(writer, write, value=Json(b"1"), ttl_ms=1_000)).in_time


async def test_nothing_is_set_while_a_write_is_open(world: World, clock: MockClock) -> None:
    writer, reader = Reader(world), Reader(world)
    write = await begin(writer)
    await reader.client.ask(CacheSet(KEY, Json(b"9"), 1_000), Done)
    assert not (await reader.load()).shared
    await commit(writer, write)
    await reader.client.ask(CacheSet(KEY, Json(b"9"), 1_000), Done)
    assert (await reader.hit()).value == Json(b"9")


async def test_a_list_is_loaded_by_each_for_himself_while_its_tag_is_written(
    world: World, clock: MockClock
) -> None:
    """Or each of those who wait would load in turn, for nothing of it is kept."""
    writer, filler, reader = Reader(world), Reader(world), Reader(world)
    granted = await filler.load("list")
    waiting = await reader.begin("list")
    write = await begin(writer, tags=("t",))
    assert await filler.fill(granted.fill, key="list", tags=("t",)) is FillOutcome.VOIDED
    await waiting.done.wait()
    assert isinstance(waiting.result, CacheToFill)
    assert not waiting.result.shared
    await commit(writer, write)
    again = await reader.load("list")
    assert again.shared
    late = await filler.begin("list")
    await reader.fill(again.fill, b"new", key="list", tags=("t",))
    await late.done.wait()
    assert value_of(late) == b"new"
    await filler.client.ask(CacheInvalidate(tags=("t",)), Done)
    assert fill_of(await filler.begin("list"))
