"""The Python client's cache against a real server: what its fake server can only pretend."""

import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from functools import partial

import anyio
import pytest
from leasekeeper_client import (
    Busy,
    Deadlock,
    FillFailed,
    Forbidden,
    Fresh,
    Keeper,
    MsgpackCodec,
    NotFound,
    NotModified,
    Private,
    ValueNotFound,
    ZstdCodec,
    connect,
    current_load,
    sync,
)

from tests.processes import RunningServer, running_server

pytestmark = pytest.mark.system

WITHIN_S = 30
Test = Callable[[Keeper, Keeper], Awaitable[None]]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(options=["--allow-volatile-writes"]) as running:
        yield running


@pytest.fixture(params=["trio", "asyncio"])
def play(request: pytest.FixtureRequest, server: RunningServer) -> Callable[[Test], None]:
    """Runs a test with two clients of one server, as two programs would be."""

    async def main(test: Test) -> None:
        with anyio.fail_after(WITHIN_S):
            async with connect(server.url) as one, connect(server.url) as other:
                await test(one, other)

    def run(test: Test) -> None:
        anyio.run(main, test, backend=request.param)

    return run


@pytest.fixture
def k(request: pytest.FixtureRequest) -> str:
    """A key, and the beginning of keys, that no other test has."""
    return re.sub(r"\W", "-", request.node.name)


async def until_stale(keeper: Keeper, key: str) -> None:
    """Wait until a value has passed its time."""
    while await keeper.cache.get(key, stale_ok=False) is not None:  # noqa: ASYNC110 # the server's
        await anyio.sleep(0.02)


async def never() -> int:
    raise AssertionError("it was called")


def test_two_programs_load_once(play: Callable[[Test], None], k: str) -> None:
    """L10, with a thousand tasks in each."""

    async def test(one: Keeper, other: Keeper) -> None:
        loads = 0
        got: list[int] = []

        async def load() -> int:
            nonlocal loads
            loads += 1
            await anyio.sleep(0.2)
            return 7

        async def get(keeper: Keeper) -> None:
            got.append(await keeper.cache.get_or_fill(k, load, ttl=60))

        async with anyio.create_task_group() as tasks:
            for keeper in (one, other) * 1000:
                tasks.start_soon(get, keeper)
        assert (loads, got) == (1, [7] * 2000)

    play(test)


def test_who_asks_after_an_invalidation_reads_what_is_true_then(
    play: Callable[[Test], None], k: str
) -> None:
    """L11: neither the load under way is joined, nor is its value cached."""

    async def test(one: Keeper, other: Keeper) -> None:
        state = 1
        read, go_on = anyio.Event(), anyio.Event()

        async def slow() -> int:
            seen = state
            read.set()
            await go_on.wait()
            return seen

        async def quick() -> int:
            return state

        async def first() -> None:
            assert await one.cache.get_or_fill(k, slow, ttl=60) == 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            await read.wait()
            state = 2
            await other.cache.invalidate(k)
            assert await one.cache.get_or_fill(k, quick, ttl=60) == 2
            assert await other.cache.get_or_fill(k, never, ttl=60) == 2
            go_on.set()
        assert await other.cache.get_or_fill(k, never, ttl=60) == 2

    play(test)


def test_a_program_that_leaves_hands_the_load_to_the_next(
    play: Callable[[Test], None], server: RunningServer, k: str
) -> None:
    async def test(_: Keeper, other: Keeper) -> None:
        begun = anyio.Event()

        async def hang() -> int:
            begun.set()
            await anyio.sleep_forever()
            return 0

        async def mine() -> int:
            return 7

        async with anyio.create_task_group() as tasks:

            async def leaves() -> None:
                async with connect(server.url) as keeper:
                    with anyio.CancelScope() as scope:
                        scopes.append(scope)
                        await keeper.cache.get_or_fill(k, hang, ttl=60)

            scopes: list[anyio.CancelScope] = []
            tasks.start_soon(leaves)
            await begun.wait()
            with anyio.fail_after(5):
                async with anyio.create_task_group() as more:
                    more.start_soon(expect_seven, other, k, mine)
                    await anyio.sleep(0.2)
                    scopes[0].cancel()

    play(test)


async def expect_seven(keeper: Keeper, k: str, load: Callable[[], Awaitable[int]]) -> None:
    assert await keeper.cache.get_or_fill(k, load, ttl=60) == 7


def test_one_failure_is_told_to_all(play: Callable[[Test], None], k: str) -> None:
    async def test(one: Keeper, other: Keeper) -> None:
        async def fail() -> int:
            await anyio.sleep(0.2)
            raise LookupError("no row")

        errors: list[str] = []

        async def get(keeper: Keeper) -> None:
            try:
                await keeper.cache.get_or_fill(k, fail, ttl=60)
            except (LookupError, FillFailed) as exc:
                errors.append(exc.error if isinstance(exc, FillFailed) else "my own")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(get, one)
            tasks.start_soon(get, other)
        assert sorted(errors) == ["LookupError: no row", "my own"]

    play(test)


def test_all_that_a_load_may_say(play: Callable[[Test], None], k: str) -> None:
    async def test(one: Keeper, other: Keeper) -> None:
        async def fresh() -> Fresh[str]:
            return Fresh("v1", ttl=0.05, stale=60, etag="e1", tags=(k,))

        async def unmodified() -> NotModified:
            assert current_load().etag == "e1"
            return NotModified(ttl=60)

        async def nothing() -> NotFound:
            return NotFound(ttl=60)

        async def private() -> Private[int]:
            return Private(1, for_=60)

        assert await one.cache.get_or_fill(k, fresh, ttl=60) == "v1"
        await until_stale(other, k)
        strict = partial(other.cache.get_or_fill, ttl=60, stale_ok=False)
        assert await strict(k, unmodified) == "v1"
        assert await one.cache.get(k, stale_ok=False) == "v1"
        await one.cache.invalidate(tags=[k])
        with pytest.raises(ValueNotFound):
            await one.cache.get_or_fill(k, nothing, ttl=60)
        assert await other.cache.get_or_fill(k, never, ttl=60, default=0) == 0
        assert await one.cache.get_or_fill(f"{k}/a", private, ttl=60) == 1
        assert await other.cache.get_or_fill(f"{k}/a", private, ttl=60) == 1
        assert await one.cache.get(f"{k}/a") is None

    play(test)


def test_a_stale_value_is_refreshed_by_one(play: Callable[[Test], None], k: str) -> None:
    async def test(one: Keeper, other: Keeper) -> None:
        await one.cache.set(k, "old", ttl=0.001, stale=60)
        await until_stale(other, k)
        loads = 0

        async def load() -> str:
            nonlocal loads
            loads += 1
            assert current_load().background
            await anyio.sleep(0.2)
            return "new"

        for keeper in (one, other, one):
            assert await keeper.cache.get_or_fill(k, load, ttl=60) == "old"
        await one.cache.settled()
        assert await other.cache.get_or_fill(k, load, ttl=60) == "new"
        assert loads == 1

    play(test)


def test_two_programs_that_wait_for_each_other_are_told(
    play: Callable[[Test], None], k: str
) -> None:
    async def test(one: Keeper, other: Keeper) -> None:
        a, b = f"{k}/a", f"{k}/b"
        begun = {a: anyio.Event(), b: anyio.Event()}
        cycles: list[set[str]] = []

        async def crossing(keeper: Keeper, mine: str, theirs: str) -> None:
            async def load() -> int:
                begun[mine].set()
                await begun[theirs].wait()
                try:
                    return await keeper.cache.get_or_fill(theirs, never, ttl=60)
                except Deadlock as exc:
                    cycles.append(set(exc.cycle))
                    return 1

            assert await keeper.cache.get_or_fill(mine, load, ttl=60) == 1

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(crossing, one, a, b)
            tasks.start_soon(crossing, other, b, a)
        assert cycles in ([{a, b}], [{a, b}, {a, b}])

    play(test)


def test_while_it_is_written_through_nothing_old_is_cached(
    play: Callable[[Test], None], k: str
) -> None:
    async def test(one: Keeper, other: Keeper) -> None:
        state = 1

        async def load() -> int:
            return state

        assert await other.cache.get_or_fill(k, load, ttl=60) == 1
        async with one.cache.write_through(k) as write:
            assert await other.cache.get_or_fill(k, load, ttl=60) == 1
            assert await other.cache.get(k) is None
            state = 2
            write.set(2, ttl=60)
        assert write.stored
        assert await other.cache.get_or_fill(k, never, ttl=60) == 2
        with pytest.raises(ZeroDivisionError):
            async with one.cache.write_through(k):
                raise ZeroDivisionError
        assert await other.cache.get(k) is None

    play(test)


def test_values_that_are_large_or_packed(play: Callable[[Test], None], k: str) -> None:
    async def test(one: Keeper, other: Keeper) -> None:
        assert one.cache.value_bytes == 1024 * 1024
        text = "é" * 400_000
        await one.cache.set(k, text, ttl=60)
        assert await other.cache.get(k) == text

        async def load() -> bytes:
            return b"\x00" * 3_000_000

        packed = MsgpackCodec()
        assert len(await one.cache.using(packed).get_or_fill(f"{k}/a", load, ttl=60)) == 3_000_000
        assert await other.cache.get(f"{k}/a") is None, "too large"
        small = ZstdCodec(packed)
        assert len(await one.cache.using(small).get_or_fill(f"{k}/b", load, ttl=60)) == 3_000_000
        assert await other.cache.using(ZstdCodec(packed)).get(f"{k}/b") == b"\x00" * 3_000_000

    play(test)


def test_writes_are_carried_out_by_another_program(play: Callable[[Test], None], k: str) -> None:
    async def test(one: Keeper, other: Keeper) -> None:
        queue = one.cache.write_behind(k)
        await queue.put(k, 1, ttl=60)
        await queue.put(k, 2, ttl=60)
        await queue.put(f"{k}/a", 3)
        assert await other.cache.get(k) == 2
        with pytest.raises(Busy):
            async with other.cache.write_through(k):
                pytest.fail("unreachable")
        done: list[tuple[str, object, int]] = []
        async with aclosing(other.writes(k, max=4, claim=5)) as writes:
            async for write in writes:
                async with write:
                    if write.attempt == 1 and write.key == f"{k}/a":
                        raise LookupError("no table")
                    done.append((write.key, write.value, write.attempt))
                if len(done) == 2:
                    break
        assert done == [(k, 2, 1), (f"{k}/a", 3, 2)]
        assert await one.cache.get(k) == 2
        assert await one.cache.get(f"{k}/a") is None
        assert [letter async for letter in one.writes_dead(k)] == []

    play(test)


def test_a_store_that_may_forget_takes_no_writes() -> None:
    with (
        running_server() as server,
        sync.connect(server.url) as keeper,
        pytest.raises(Forbidden),
    ):
        keeper.cache.write_behind("orders").put("k", 1)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_threads_and_the_sync_facade(server: RunningServer, backend: str, k: str) -> None:
    assert backend in ("trio", "asyncio")
    with sync.connect(server.url, backend="trio" if backend == "trio" else "asyncio") as keeper:

        @keeper.cache.cached(k + ":{n}", ttl=60)
        def double(n: int) -> int:
            return 2 * n

        assert [double(4), double(n=4)] == [8, 8]
        assert keeper.cache.get_or_fill(k, lambda: [current_load().key], ttl=60) == [k]
        with keeper.cache.write_through(k) as write:
            write.set("new", ttl=60)
        assert keeper.cache.get(k) == "new"
