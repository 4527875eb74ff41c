"""Readers, writers and invalidators at once, while servers are killed and Redis is emptied.

What each read returned is held against what had been acknowledged before it began: zero stale
reads (L11). The source is a table of versions in this process; a load takes a while, and reads at
some moment in it.
"""

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from random import Random
from typing import Final

import attrs
import pytest
import trio

from tests.conformance.vectors import Json, as_int, as_object
from tests.processes import RunningServer, running_server
from tests.redis_groups import Redises
from tests.redises import RunningRedis
from tests.system.raw import Dial, Raw, Refused, dialling

pytestmark = pytest.mark.system

KEYS: Final = ("a", "b", "c")
TAG: Final = "all"
READERS: Final = 8
RUN_S: Final = 12.0
LOAD_S: Final = 0.02
GONE: Final = 0
"""The code of a request whose connection ended."""


@attrs.define(eq=False)
class History:
    """The source, what was acknowledged, and what was read."""

    versions: Counter[str] = attrs.field(factory=Counter)
    """What the source has now."""
    acknowledged: Counter[str] = attrs.field(factory=Counter)
    """What no read that begins now may be older than."""
    stale: list[tuple[str, int, int]] = attrs.field(factory=list)
    events: Counter[str] = attrs.field(factory=Counter)

    def acknowledge(self, seen: dict[str, int]) -> None:
        """An invalidation that announced these versions was answered."""
        for key, version in seen.items():
            self.acknowledged[key] = max(self.acknowledged[key], version)

    def read(self, key: str, oldest: int, version: int, how: str) -> None:
        """A read that began when `oldest` had been acknowledged returned this."""
        self.events[how] += 1
        if version < oldest:
            self.stale.append((key, oldest, version))


@attrs.define(eq=False)
class Actor:
    """Somebody on a connection of his own, who goes to another server when one is gone."""

    dial: Dial
    urls: list[str]
    history: History
    chance: Random
    hasty: bool = False
    """Whether what is not yet acknowledged is taken for acknowledged: the control."""
    _client: Raw | None = None

    async def call(self, method: str, **params: Json) -> dict[str, Json]:
        """A request; repeated on another server until there is an answer, if it may be."""
        if self._client is None:
            self._client = await self.dial(self.chance.choice(self.urls))
        return await self._client.call(method, **params)

    async def leave(self) -> None:
        """Drops the connection."""
        if self._client is not None:
            await self._client.drop()
            self._client = None

    async def surely(self, method: str, **params: Json) -> None:
        """A request that is repeated until it is acknowledged."""
        while True:
            try:
                await self.call(method, **params)
                return
            except (Refused, OSError, AssertionError):
                self.history.events["repeated"] += 1
                await self.leave()
                await trio.sleep(0.05)

    async def read_for_ever(self) -> None:
        while True:
            try:
                await self.read()
            except (Refused, OSError, AssertionError):
                await self.leave()
                await trio.sleep(0.05)
            await trio.sleep(self.chance.random() * 0.02)

    async def read(self) -> None:
        """One read, with the load if it comes to that."""
        key = self.chance.choice(KEYS)
        oldest = self.history.acknowledged[key]
        got = await self.call("cache.get", key=key, wait_ms=2_000, stale_ok=False)
        if got["state"] == "hit":
            self.history.read(key, oldest, as_int(got["value"]), "hit")
            if "refresh" in got:
                granted = as_object(got["refresh"])
                await self.load(key, {"shared": True} | granted)
        elif got["state"] == "fill":
            self.history.read(key, oldest, await self.load(key, got), "load")

    async def load(self, key: str, granted: dict[str, Json]) -> int:
        await trio.sleep(self.chance.random() * LOAD_S)
        version = self.history.versions[key]
        await trio.sleep(self.chance.random() * LOAD_S)
        if self.chance.random() < 0.05:
            await self.leave()  # the filler is gone
            return version
        if granted["shared"]:
            filled = await self.call(
                "cache.fill",
                key=key,
                fill=granted["fill"],
                value=version,
                ttl_ms=self.chance.choice([20, 500, 60_000]),
                tags=[TAG],
            )
            self.history.events[str(filled["outcome"])] += 1
        return version

    async def write_for_ever(self) -> None:
        writes = (self.by_key, self.by_tag, self.through)
        while True:
            await self.chance.choice(writes)()
            await trio.sleep(self.chance.random() * 0.1)

    async def by_key(self) -> None:
        key = self.chance.choice(KEYS)
        self.history.versions[key] += 1
        seen = {key: self.history.versions[key]}
        await self.announce(seen, keys=[key])

    async def by_tag(self) -> None:
        for key in KEYS:
            self.history.versions[key] += self.chance.randrange(2)
        await self.announce(dict(self.history.versions), tags=[TAG])

    async def announce(self, seen: dict[str, int], **what: Json) -> None:
        if self.hasty:
            self.history.acknowledge(seen)
            await trio.sleep(LOAD_S)
        await self.surely("cache.invalidate", **what)
        self.history.acknowledge(seen)
        self.history.events["invalidated"] += 1

    async def through(self) -> None:
        """Write-through, by a writer that may die at any step; nothing older is read after it."""
        key = self.chance.choice(KEYS)
        try:
            begun = await self.call("cache.begin_write", key=key, ttl_ms=3_000)
            began, fate = time.monotonic(), self.chance.random()
            await trio.sleep(self.chance.random() * LOAD_S)
            if fate < 0.1:
                await self.leave()
                return
            if time.monotonic() - began > 1:
                return  # too late to commit anything under this intent
            self.history.versions[key] += 1
            seen = {key: self.history.versions[key]}
            self.history.acknowledge(seen)
            await trio.sleep(self.chance.random() * LOAD_S)
            if fate < 0.2:
                await self.leave()
                return
            value: dict[str, Json] = {}
            if fate < 0.7:
                value = {"value": seen[key], "ttl_ms": 60_000, "tags": [TAG]}
            done = await self.call("cache.commit_write", key=key, write=begun["write"], **value)
            self.history.events["stored by a writer" if done["stored"] else "written"] += 1
        except (Refused, OSError, AssertionError):
            await self.leave()
            await trio.sleep(0.05)


@pytest.fixture
def redis(redises: Redises) -> RunningRedis:
    """The Redis that the servers share."""
    return redises.single()


@pytest.fixture
def servers(redis: RunningRedis) -> Iterator[list[RunningServer]]:
    """Two of them; the first is killed now and then."""
    with ExitStack() as stack:
        yield [stack.enter_context(running_server(store=redis.url)) for _ in range(2)]


@asynccontextmanager
async def at_work(urls: list[str], *, hasty: bool) -> AsyncIterator[History]:
    history = History()
    async with dialling() as dial, trio.open_nursery() as nursery:

        def actor(name: str) -> Actor:
            return Actor(dial, urls, history, Random(name), hasty)

        for number in range(READERS):
            nursery.start_soon(actor(f"reader {number}").read_for_ever)
        for number in range(2):
            nursery.start_soon(actor(f"writer {number}").write_for_ever)
        yield history
        nursery.cancel_scope.cancel()


async def kill_now_and_then(servers: list[RunningServer], redis: RunningRedis) -> None:
    """A server is killed and another takes its place; and Redis is emptied."""
    store, doomed = redis.url, servers[0]
    with ExitStack() as stack:
        while True:
            await trio.sleep(2)
            redis.cli("FLUSHALL")
            await trio.sleep(1)
            doomed.process.kill()
            doomed.process.wait()
            successor = running_server(listen=doomed.address, store=store)
            doomed = await trio.to_thread.run_sync(stack.enter_context, successor)


async def test_no_read_is_older_than_what_was_acknowledged_before_it(
    servers: list[RunningServer], redis: RunningRedis
) -> None:
    """L11, with invalidations by key and by tag, write-through, kills and FLUSHALL."""
    urls = [each.url for each in servers]
    async with at_work(urls, hasty=False) as history, trio.open_nursery() as nursery:
        nursery.start_soon(kill_now_and_then, servers, redis)
        await trio.sleep(RUN_S)
        nursery.cancel_scope.cancel()
    assert not history.stale
    check_enough(history)


async def test_a_promise_that_is_not_kept_would_be_seen(servers: list[RunningServer]) -> None:
    """The control: what is taken for acknowledged before it is, shows as stale reads."""
    async with at_work([each.url for each in servers], hasty=True) as history:
        with trio.fail_after(RUN_S * 5):
            while not history.stale:  # noqa: ASYNC110 # there is no event for what should not be
                await trio.sleep(0.05)


def check_enough(history: History) -> None:
    """That all of it has happened, and not once or twice."""
    events = history.events
    for what in ("hit", "load", "stored", "voided", "invalidated", "stored by a writer"):
        assert events[what] >= 5, events
