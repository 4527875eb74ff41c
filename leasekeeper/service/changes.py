"""Changes of cached values that no load brings: set, invalidation, and write-through."""

from secrets import token_hex

from attrs import define, field

from leasekeeper.core.fills import Conflict, Content
from leasekeeper.errors import Busy, LimitReached
from leasekeeper.messages import (
    CacheAbortWrite,
    CacheBeginWrite,
    CacheCommitWrite,
    CacheInvalidate,
    CacheSet,
    CacheWriting,
    CacheWritten,
    Done,
    Json,
)
from leasekeeper.service.limits import Limits
from leasekeeper.service.metrics import Metrics
from leasekeeper.store.caches import CacheStore


@define(eq=False)
class Changes:
    """See the module. It remembers nothing: a write-through may end on another connection.

    All of these raise `Unavailable` where the store did not answer, and may then be repeated. One
    that is cancelled may have had its effect.
    """

    store: CacheStore
    limits: Limits
    metrics: Metrics = field(repr=False)

    async def set(self, ask: CacheSet) -> Done:
        """Replaces a value.

        Raises:
            LimitReached: it is too large; nothing has changed.
            Busy: a write of this key is queued.
        """
        self._refuse_too_large(ask.value)
        content = Content(ask.value.text, ask.ttl_ms, ask.stale_ms, ask.tags, ask.etag)
        if isinstance(await self.store.set(ask.key, content), Conflict):
            raise self._conflict()
        return Done()

    async def invalidate(self, ask: CacheInvalidate) -> Done:
        """Makes values invalid, for every read on every server that begins after the answer."""
        await self.store.invalidate(ask.keys, ask.tags, ask.mode)
        self.metrics.cache_invalidations["keys"].inc(len(ask.keys))
        self.metrics.cache_invalidations["tags"].inc(len(ask.tags))
        return Done()

    async def begin_write(self, ask: CacheBeginWrite) -> CacheWriting:
        """A write-through begins.

        Raises:
            Busy: a write of this key is queued.
        """
        write = ask.write or token_hex(16)
        begun = await self.store.begin_write(ask.key, write, ask.tags, ask.ttl_ms)
        if isinstance(begun, Conflict):
            raise self._conflict()
        return CacheWriting(write, begun.fence, ask.ttl_ms)

    async def commit_write(self, ask: CacheCommitWrite) -> CacheWritten:
        """The write is done. A value that is too large is not stored."""
        content = None
        if ask.value is not None and ask.ttl_ms is not None:
            content = Content(ask.value.text, ask.ttl_ms, ask.stale_ms, ask.tags, ask.etag)
            if len(ask.value.text) > self.limits.value_bytes:
                content = None
        closed = await self.store.close_write(ask.key, ask.write, content, ask.tags)
        return CacheWritten(closed.stored, closed.in_time)

    async def abort_write(self, ask: CacheAbortWrite) -> CacheWritten:
        """The write was given up."""
        closed = await self.store.close_write(ask.key, ask.write, None, ask.tags)
        return CacheWritten(closed.stored, closed.in_time)

    def _refuse_too_large(self, value: Json) -> None:
        most = self.limits.value_bytes
        if len(value.text) > most:
            raise LimitReached("value_bytes", most)

    def _conflict(self) -> Busy:
        return Busy(holders=(), waiting=0, retry_after_ms=self.limits.store_retry_ms)
