"""The embedded cache behind a network that is slow, loses calls, and loses answers."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from attrs import define

from leasekeeper.core.fills import Ask, Closed, Conflict, Content, Intent, Seen
from leasekeeper.messages import FillOutcome, Mark
from leasekeeper.store.memory_cache import MemoryCache

T = TypeVar("T")


class Way(Protocol):
    """How a call gets to the store and back, or not."""

    async def __call__(self, method: str, effect: Callable[[], Awaitable[T]]) -> T: ...


@define(eq=False)
class FlakyCache:
    """A `CacheStore`; its faults are those of the `FlakyStore` that it belongs to."""

    inner: MemoryCache
    way: Way

    async def look(self, key: str, ask: Ask) -> Seen:
        return await self.way("look", lambda: self.inner.look(key, ask))

    async def fill(
        self, key: str, fill: str, content: Content, *, not_modified: bool = False
    ) -> FillOutcome:
        return await self.way(
            "fill", lambda: self.inner.fill(key, fill, content, not_modified=not_modified)
        )

    async def fail(
        self, key: str, fill: str, error: str, retry_after_ms: int | None, jitter: float
    ) -> None:
        await self.way("fail", lambda: self.inner.fail(key, fill, error, retry_after_ms, jitter))

    async def unshare(self, key: str, fill: str, ms: int) -> None:
        await self.way("unshare", lambda: self.inner.unshare(key, fill, ms))

    async def give_up(self, key: str, fill: str, *, died: bool, jitter: float) -> None:
        await self.way("give_up", lambda: self.inner.give_up(key, fill, died=died, jitter=jitter))

    async def wait_for(self, key: str, fill: str, on: str | None) -> None:
        await self.way("wait_for", lambda: self.inner.wait_for(key, fill, on))

    async def waits_for(self, key: str) -> str | None:
        return await self.way("waits_for", lambda: self.inner.waits_for(key))

    async def set(self, key: str, content: Content) -> int | Conflict:
        return await self.way("set", lambda: self.inner.set(key, content))

    async def invalidate(self, keys: Sequence[str], tags: Sequence[str], mark: Mark) -> None:
        await self.way("invalidate", lambda: self.inner.invalidate(keys, tags, mark))

    async def begin_write(
        self, key: str, write: str, tags: tuple[str, ...], ttl_ms: int
    ) -> Intent | Conflict:
        return await self.way("begin", lambda: self.inner.begin_write(key, write, tags, ttl_ms))

    async def close_write(
        self, key: str, write: str, content: Content | None, tags: tuple[str, ...]
    ) -> Closed:
        return await self.way("close", lambda: self.inner.close_write(key, write, content, tags))
