"""Servers of the cache in Redis without the service above it, and how a test looks at Redis."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Final

import trio
from attrs import define, field

from leasekeeper.core.fills import Ask, Content, FillGrant, Seen
from leasekeeper.messages import FillOutcome
from leasekeeper.resp.settings import parse_url
from leasekeeper.store.api import Event
from leasekeeper.store.caches import KeyNews
from leasekeeper.store.redis.caches import RedisCaches
from leasekeeper.store.redis.store import Options, RedisStore

WITHIN_S: Final = 10.0
TTL_MS: Final = 30_000

_serials = count(1)


@define(eq=False)
class CacheServer:
    """A server with nothing but the cache of its store. `news` has the keys nobody has taken."""

    store: RedisStore
    news: list[str] = field(factory=list)
    _heard: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)

    @property
    def cache(self) -> RedisCaches:
        return self.store.cache

    def hear(self, event: Event) -> None:
        """What the store calls."""
        if isinstance(event, KeyNews):
            self.news.append(event.key)
            self._heard.unpark_all()

    async def next_news(self) -> str:
        """The next key that there is news of."""
        with trio.fail_after(WITHIN_S):
            while not self.news:
                await self._heard.park()
        return self.news.pop(0)

    def ask(self, *, waits: bool = False, fill_ms: int = 10_000) -> Ask:
        """One who can load, with a fill id of its own."""
        server = self.store.server if waits else None
        return Ask(f"{next(_serials):032x}", fill_ms, f"{self.store.server}.1", server=server)

    async def grant(self, key: str, *, fill_ms: int = 10_000) -> tuple[str, FillGrant]:
        """A fill that has to be granted."""
        ask = self.ask(fill_ms=fill_ms)
        grant = (await self.cache.look(key, ask)).grant
        assert grant is not None
        assert ask.fill is not None
        return ask.fill, grant

    async def load(
        self, key: str, value: bytes, tags: Sequence[str] = (), *, ttl_ms: int = TTL_MS
    ) -> FillOutcome:
        """A fill, granted and handed over."""
        fill, _ = await self.grant(key)
        return await self.cache.fill(key, fill, Content(value, ttl_ms, tags=tuple(tags)))

    async def see(self, key: str) -> Seen:
        """A look of one who can load nothing."""
        return await self.cache.look(key, Ask())

    async def value(self, key: str) -> bytes | None:
        """What is cached."""
        found = (await self.see(key)).found
        return found.value if found else None


@asynccontextmanager
async def caching(
    url: str, server: str = "one", options: Options | None = None
) -> AsyncIterator[CacheServer]:
    """A server at work."""
    store = RedisStore(parse_url(url), server, options or Options())
    actor = CacheServer(store)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, actor.hear)
        try:
            yield actor
        finally:
            nursery.cancel_scope.cancel()
