"""The cache in Redis: round trips, keys, memory, news, and all partitions of a cluster."""

import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from secrets import token_hex
from typing import Final

import pytest
import trio

from leasekeeper.core.fills import Ask, Closed, Conflict, Content, Failed, Intent
from leasekeeper.errors import Outcome, Unavailable
from leasekeeper.messages import FillOutcome, Mark
from leasekeeper.store.redis import scripts
from leasekeeper.store.redis.cache_calling import CacheCall
from leasekeeper.store.redis.caches import content_args
from leasekeeper.store.redis.store import Options
from tests.polling import eventually
from tests.redis_groups import Redises
from tests.redises import HOST, REPLY_S, RunningRedis, packed, running_redis
from tests.store.actors import Place
from tests.store.caching import TTL_MS, CacheServer, caching

pytestmark = pytest.mark.system

FORGETFUL: Final = Options(fence_memory_ms=1000)
HOUR_MS: Final = 3_600_000
TAGGED_KEYS: Final = 100_000
AT_ONCE: Final = 1000
MULTIPLY: Final = """
for number = ARGV[1], ARGV[2] do
  redis.call('COPY', KEYS[1], KEYS[1] .. string.format('%d', number))
end
"""
"""An entry does not know whose it is."""
BY_TAG_S: Final = 1.0
"""Bound for a busy machine. It takes about a millisecond, as the figure says."""


@contextmanager
def monitored(redis: RunningRedis) -> Iterator[list[str]]:
    """What Redis carries out on a partition meanwhile: the list is filled in at the end."""
    lines: list[str] = []
    with socket.create_connection((HOST, redis.port), REPLY_S) as connection:
        connection.sendall(packed(["MONITOR"]))
        said = connection.makefile("r", encoding="utf-8", errors="replace")
        assert said.readline() == "+OK\n"
        yield lines
        last = token_hex(8)
        redis.cli("ECHO", last)
        for line in said:
            if last in line:
                return
            lines.append(line)


def commands(lines: list[str], by: str) -> list[str]:
    """Their names, of those by clients, or by "lua"."""
    is_by_lua = [" lua] " in line for line in lines]
    return [
        line.split('"')[1].lower()
        for line, lua in zip(lines, is_by_lua, strict=True)
        if lua is (by == "lua") and "lk:{c0}" in line
    ]


# --- Round trips ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tags", [(), ("t", "u")])
async def test_a_hit_is_one_command(redises: Redises, tags: tuple[str, ...]) -> None:
    """One round trip, and Redis writes nothing."""
    redis = redises.single()
    async with caching(redis.url) as one:
        await one.cache.invalidate([], tags, Mark.HARD)
        await one.load("k", b"1", tags)
        await one.value("k")
        with monitored(redis) as lines:
            for _ in range(20):
                assert await one.value("k") == b"1"
        assert commands(lines, "clients") == ["evalsha"] * 20
        assert set(commands(lines, "lua")) <= {"hmget", "hget", "exists", "zscore"}


async def test_every_call_is_one_command(redises: Redises) -> None:
    """Where there is one partition, and not both keys and tags are invalidated."""
    redis = redises.single()
    content = Content(b"1", TTL_MS, tags=("t",))
    async with caching(redis.url) as one:
        cache = one.cache

        async def everything(number: int) -> None:
            fill, write = f"{number:032x}", f"{number + 100:032x}"
            await cache.look("k", Ask(fill))
            await cache.wait_for("k", fill, "other")
            await cache.waits_for("k")
            await cache.fill("k", fill, content)
            await cache.fail("k", fill, "no", None, 0.5)
            await cache.unshare("k", fill, 100)
            await cache.give_up("k", fill, died=True, jitter=0.5)
            await cache.set("k", content)
            await cache.invalidate(["k", "l", "m"], [], Mark.HARD)
            await cache.invalidate([], ["t", "u"], Mark.SOFT)
            await cache.begin_write("k", write, ("t", "u"), 1000)
            await cache.close_write("k", write, content, ("t", "u"))

        await everything(1)  # Redis has seen all scripts after this
        with monitored(redis) as lines:
            await everything(2)
        assert commands(lines, "clients") == ["evalsha"] * 12


# --- Keys -------------------------------------------------------------------------------------


async def everything(one: CacheServer) -> None:
    """Does all that can be done, and leaves it."""
    cache = one.cache
    content = Content(b"1", TTL_MS, TTL_MS, ("t", "u"), "etag")
    await one.load("loaded", b"1", ["t"])
    await cache.look("waited-for", one.ask(waits=True))
    await cache.look("waited-for", Ask(server="another"))
    fill, _ = await one.grant("failed")
    await cache.fail("failed", fill, "no database", None, 1.0)
    fill, _ = await one.grant("private")
    await cache.unshare("private", fill, 5000)
    fill, _ = await one.grant("given-up")
    await cache.give_up("given-up", fill, died=True, jitter=1.0)
    fill, _ = await one.grant("refused")
    await cache.invalidate(["refused", "nothing"], ["t"], Mark.HARD)
    assert await cache.fill("refused", fill, content) is FillOutcome.VOIDED
    await cache.set("set", content)
    await cache.invalidate(["set"], ["u"], Mark.SOFT)
    await cache.begin_write("abandoned", "1" * 32, ("t", "v"), 10_000)
    await cache.begin_write("written", "2" * 32, ("w",), 10_000)
    committed = Content(b"2", TTL_MS, tags=("w",))
    closed = await cache.close_write("written", "2" * 32, committed, ("w",))
    assert closed == Closed(stored=True, in_time=True)


async def test_nothing_remains_of_a_cache_at_rest(shared: Place) -> None:
    """L9: with a server still there, but nobody who asks."""
    async with caching(shared.url, options=FORGETFUL) as one:
        for key in ("a", "b", "c"):
            fill, _ = await one.grant(key, fill_ms=100)
            await one.cache.fill(key, fill, Content(b"1", 200, 200, ("t", key)))
        await one.cache.invalidate(["a"], ["t"], Mark.HARD)
        await one.cache.begin_write("b", "1" * 32, ("u",), 300)
        assert shared.keys()
        assert shared.keys_for_ever() == []

        async def is_empty() -> bool:
            return not shared.keys()

        await eventually(is_empty, within_s=10)


async def test_all_keys_end_by_themselves() -> None:
    """L9: also what has failed, is waited for, or was begun and never ended."""
    with running_redis(skewed=True) as redis:
        place = Place(redis.url, (redis,))
        async with caching(redis.url) as one:
            await everything(one)
            assert place.keys_for_ever() == []
        redis.step_clock(2 * HOUR_MS)
        assert place.keys() == []


async def test_keys_are_where_the_layout_has_them(redises: Redises) -> None:
    redis = redises.single()
    async with caching(redis.url, options=Options(prefix="a.b")) as one:
        await everything(one)
        keys = set(Place(redis.url, (redis,)).keys())
        named = ("loaded", "waited-for", "failed", "private", "given-up", "refused", "set")
        entries = {f"a.b:{{c0}}:e:{key}" for key in (*named, "abandoned", "written")}
        clock = {f"a.b:{{c0}}:{part}" for part in ("clock", "hard", "soft", "ends", "writes")}
        assert keys == entries | clock


async def test_a_partition_is_in_one_slot(redises: Redises) -> None:
    """And a cluster has 64 of them, on all of its nodes."""
    cluster = redises.cluster()
    place = Place(cluster.url, tuple(cluster.nodes))
    async with caching(cluster.url) as one:
        for number in range(300):
            await one.cache.set(f"k{number}", Content(b"1", TTL_MS, tags=("t",)))
        await one.cache.invalidate([], ["t"], Mark.SOFT)
        keys = place.keys()
        found = [re.fullmatch(r"lk:\{c(\d+)\}:(clock|soft|e:k\d+)", key) for key in keys]
        assert all(found)
        partitions = {int(each[1]) for each in found if each}
        assert partitions == set(range(64))
        assert all(node.cli("DBSIZE") for node in cluster.nodes)
        assert (await one.see("k7")).found is None


async def test_memory_does_not_grow() -> None:
    """L9, L12: however many keys and tags come and go."""
    with running_redis(skewed=True) as redis:
        used: list[int] = []
        async with caching(redis.url, options=FORGETFUL) as one:
            for cycle in range(6):
                for some in range(5):
                    names = [f"{cycle}-{some}-{number}" for number in range(100)]
                    await one.cache.caller.call_all(
                        [setting(name, Content(b"x" * 100, 1000, tags=(name,))) for name in names]
                    )
                    await one.cache.invalidate([], names, Mark.SOFT)
                # The clock has no rest, so its keys do not simply expire.
                redis.step_clock(1500)
                await one.cache.set("last", Content(b"1", 1000))
                redis.cli("MEMORY", "PURGE")
                await eventually_expired(redis)
                used.append(int(redis.info("memory")["used_memory_dataset"]))
        assert max(used[3:]) < 1.2 * max(used[:3])


async def eventually_expired(redis: RunningRedis) -> None:
    """Waits until Redis has deleted what has expired: no more than a cycle's clock is left."""

    async def is_little() -> bool:
        size = redis.cli("DBSIZE")
        return isinstance(size, int) and size < 20

    await eventually(is_little)


def setting(key: str, content: Content) -> CacheCall:
    """A `set` in a partition that has all keys."""
    return CacheCall(0, scripts.CACHE_SET, (key,), content_args(content))


async def test_a_hundred_thousand_values_are_invalidated_by_one_call(redises: Redises) -> None:
    """L11: it costs the same however many have the tag."""
    redis = redises.single()
    async with caching(redis.url) as one:
        await one.load("k", b"1", ["t"], ttl_ms=600_000)
        for start in range(0, TAGGED_KEYS, AT_ONCE):
            redis.cli("EVAL", MULTIPLY, 1, "lk:{c0}:e:k", start, start + AT_ONCE - 1)
        assert await one.value("k99999") == b"1"
        began_s = time.monotonic()
        await one.cache.invalidate([], ["t"], Mark.HARD)
        took_s = time.monotonic() - began_s
        print(f"FIGURE {TAGGED_KEYS} values invalidated by tag in {took_s * 1000:.2f} ms")
        assert took_s < BY_TAG_S
        for number in range(0, TAGGED_KEYS, 9999):
            assert await one.value(f"k{number}") is None


# --- News -------------------------------------------------------------------------------------


async def test_news_goes_to_the_servers_that_wait(shared: Place) -> None:
    """Once; whoever still waits says so with his next look."""
    async with caching(shared.url, "one") as one, caching(shared.url, "two") as two:
        fill, _ = await one.grant("k")
        await one.cache.look("k", Ask(server="one"))
        seen = await two.cache.look("k", two.ask(waits=True))
        assert seen.grant is None
        assert seen.filling_ms is not None
        await one.cache.fill("k", fill, Content(b"1", TTL_MS))
        assert await one.next_news() == await two.next_news() == "k"
        await two.load("other", b"2")
        await one.cache.invalidate(["k"], [], Mark.HARD)
        assert one.news == two.news == []


async def test_who_is_cancelled_hears_of_his_key(redises: Redises) -> None:
    """The events of his call may be lost with its reply."""
    redis = redises.single()
    async with caching(redis.url) as one:
        await one.load("k", b"1")
        redis.pause()
        try:
            with trio.move_on_after(0.05):
                await one.cache.set("k", Content(b"2", TTL_MS))
            assert await one.next_news() == "k"
        finally:
            redis.resume()


# --- On one Redis and on a cluster ----------------------------------------------------------------


async def test_tags_reach_every_partition(shared: Place) -> None:
    """L11: when the call has returned, no server serves what it invalidated."""
    keys = [f"k{number}" for number in range(100)]
    async with caching(shared.url, "one") as one, caching(shared.url, "two") as two:
        for key in keys:
            assert await one.load(key, b"1", ["t"]) is FillOutcome.STORED
        fills = {key: (await two.grant(f"{key}-late"))[0] for key in keys[:20]}
        await one.cache.invalidate(["k0"], ["t"], Mark.HARD)
        for key in keys:
            assert await two.value(key) is None
        for key, fill in fills.items():
            content = Content(b"1", TTL_MS, tags=("t",))
            assert await two.cache.fill(f"{key}-late", fill, content) is FillOutcome.VOIDED


async def test_keys_of_all_partitions_are_invalidated(shared: Place) -> None:
    keys = [f"k{number}" for number in range(250)]
    async with caching(shared.url) as one:
        for key in keys:
            await one.cache.set(key, Content(b"1", TTL_MS))
        await one.cache.invalidate([*keys, *keys], [], Mark.HARD)
        for key in keys:
            assert await one.value(key) is None


async def test_a_write_through_is_open_in_every_partition(shared: Place) -> None:
    """L11: nothing with its tags is cached from the old state until it is over."""
    keys = [f"k{number}" for number in range(40)]
    content = Content(b"1", TTL_MS, tags=("t",))
    async with caching(shared.url, "one") as one, caching(shared.url, "two") as two:
        begun = await one.cache.begin_write("k", "1" * 32, ("t", "u"), 10_000)
        assert isinstance(begun, Intent)
        assert await one.cache.begin_write("k", "1" * 32, ("t", "u"), 10_000) == begun
        for key in keys:
            assert await two.load(key, b"old", ["t"]) is FillOutcome.VOIDED
            grant = (await two.cache.look(key, two.ask())).grant
            assert grant is not None
            assert not grant.shared
        closed = await two.cache.close_write("k", "1" * 32, content, ())
        assert closed == Closed(stored=True, in_time=True)
        assert await one.value("k") == b"1"
        for key in keys:
            assert await two.load(key, b"new", ["t"]) is FillOutcome.STORED


async def test_values_are_bytes(shared: Place) -> None:
    """Up to a mebibyte, and beyond; nobody looks into them."""
    async with caching(shared.url) as one:
        for value in (b"", b"\x00\xff\r\n$-1\r\n", b"0", b"x" * 1024 * 1024):
            await one.cache.set("k", Content(value, TTL_MS))
            assert await one.value("k") == value


async def test_a_failure_says_what_it_was_told(shared: Place) -> None:
    async with caching(shared.url) as one:
        fill, _ = await one.grant("k")
        await one.cache.fail("k", fill, "é \n\x00 {}", 5000, 0.0)
        failed = (await one.cache.look("k", one.ask())).failed
        assert failed is not None
        assert failed.error == "é \n\x00 {}"
        assert 0 < failed.retry_after_ms <= 5000
        assert isinstance(failed, Failed)


async def test_a_full_redis_can_still_invalidate(redises: Redises) -> None:
    """L12: nothing more is stored, by a typed error; but nothing old is kept for want of memory."""
    redis = redises.single()
    async with caching(redis.url) as one:
        for key, tag in (("a", "t"), ("b", "u"), ("c", "v")):
            await one.load(key, b"1", [tag])
        fill, _ = await one.grant("late")
        redis.cli("CONFIG", "SET", "maxmemory", "1kb")
        try:
            with pytest.raises(Unavailable) as caught:
                await one.cache.set("a", Content(b"2", TTL_MS))
            assert caught.value.outcome is Outcome.NONE
            await one.cache.invalidate(["a", "late"], [], Mark.HARD)
            await one.cache.invalidate([], ["u"], Mark.HARD)
            await one.cache.begin_write("d", "1" * 32, ("v",), 10_000)
            assert [await one.value(key) for key in ("a", "b", "c")] == [None] * 3
        finally:
            redis.cli("CONFIG", "SET", "maxmemory", 0)
        late = await one.cache.fill("late", fill, Content(b"1", TTL_MS))
        assert late is FillOutcome.VOIDED


# --- What others wrote ----------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["clock", "hard", "soft", "ends", "writes", "e:k"])
async def test_a_key_of_another_type_is_no_crash(redises: Redises, part: str) -> None:
    """L14: the cache is unavailable, or goes on; and does go on when the key is gone."""
    redis = redises.single()
    async with caching(redis.url) as one:
        await one.load("k", b"1", ["t"])
        await one.cache.invalidate([], ["t"], Mark.SOFT)
        await one.cache.begin_write("l", "1" * 32, ("u",), 10_000)
        redis.cli("DEL", f"lk:{{c0}}:{part}")
        redis.cli("RPUSH", f"lk:{{c0}}:{part}", "what is this")
        for _ in range(2):
            with suppress(Unavailable, AssertionError):
                await one.load("k", b"2", ["t"])
            with suppress(Unavailable):
                await one.cache.invalidate(["k"], ["t"], Mark.HARD)
        redis.cli("DEL", f"lk:{{c0}}:{part}")
        await one.cache.invalidate(["k"], ["t"], Mark.HARD)
        assert await one.load("k", b"3", ["t"]) is FillOutcome.STORED
        assert not isinstance(await one.cache.set("k", Content(b"4", TTL_MS)), Conflict)


@pytest.mark.parametrize("meta", [b"", b"rubbish", b"\x80", b"\x93\x01\x02\x03"])
async def test_an_entry_that_cannot_be_read_spoils_its_own_key_only(
    redises: Redises, meta: bytes
) -> None:
    redis = redises.single()
    async with caching(redis.url) as one:
        await one.load("k", b"1")
        redis.cli("HSET", "lk:{c0}:e:k", "meta", meta)
        with suppress(Unavailable):
            await one.cache.set("k", Content(b"2", TTL_MS))
        assert await one.load("other", b"1") is FillOutcome.STORED


async def test_a_value_that_was_taken_away_is_loaded_anew(redises: Redises) -> None:
    redis = redises.single()
    async with caching(redis.url) as one:
        await one.load("k", b"1")
        redis.cli("HDEL", "lk:{c0}:e:k", "value")
        assert await one.load("k", b"2") is FillOutcome.STORED
        assert await one.value("k") == b"2"
