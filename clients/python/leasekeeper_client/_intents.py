"""Write-through: saying in advance that what is cached is about to change."""

import logging
from collections.abc import Iterable
from secrets import token_hex
from typing import TYPE_CHECKING, Final

from anyio import CancelScope, move_on_after
from attrs import define, field

from leasekeeper_client._contact import drift_margin
from leasekeeper_client._json import as_object, integer, milliseconds, seconds
from leasekeeper_client._plan import check_name
from leasekeeper_client._rpc import Answer, Call, constant
from leasekeeper_client._terms import as_tags, check_fill, check_tags, keeping
from leasekeeper_client.codecs import Codec, check_size, to_wire
from leasekeeper_client.errors import (
    KeeperError,
    Unavailable,
    WriteExpired,
    may_have_been_done,
)

if TYPE_CHECKING:
    from leasekeeper_client._engine import Engine

CLOSE_SECONDS: Final = 5.0
_log: Final = logging.getLogger("leasekeeper_client")


@define(eq=False)
class WriteThrough:
    """A write of one key that is under way. Safe to read from any thread.

    Attributes:
        key: What is written.
        tags: What else is invalid when it is done.
        fence: Rises with every write, load and invalidation of the key: have the database refuse a
            lower one, if writes may run at the same time.
        stored: After the context: whether the value given to `set` is cached. It is not if another
            write went on meanwhile.
    """

    key: str
    tags: tuple[str, ...]
    fence: int
    _until: float = field(repr=False)
    _engine: "Engine" = field(repr=False)
    _codec: Codec = field(repr=False)
    stored: bool = field(default=False, init=False)
    _value: str | None = field(default=None, init=False, repr=False)
    _params: dict[str, object] = field(factory=dict, init=False, repr=False)

    @property
    def remaining(self) -> float:
        """Seconds within which the transaction must be over; 0 when it is too late."""
        return max(0.0, self._until - self._engine.clock())

    def ensure(self, margin: float = 0.0) -> None:
        """Check, without waiting, that there is time left: right before the commit.

        Args:
            margin: Seconds that what you are about to do may take.

        Raises:
            WriteExpired: There is not.
        """
        if self.remaining <= margin:
            raise expired(self.key)

    def set(
        self,
        value: object,
        *,
        ttl: float,
        stale: float = 0.0,
        tags: Iterable[str] | None = None,
        etag: str | None = None,
    ) -> None:
        """Give the value that is true once the context is left without an exception.

        Without it, the next who asks loads the value.

        Args:
            value: The value.
            ttl: Seconds for which it is fresh.
            stale: Seconds after that for which it may be served while somebody loads it anew.
            tags: Those of the value; those of the write by default.
            etag: What the next load is shown.

        Raises:
            ValueTooLarge: It is longer than the server takes.
            ValueError, TypeError: It cannot be said in the codec, or an argument is out of range.
        """
        wire = to_wire(self._codec, value)
        connection = self._engine.session.connection
        if connection is not None:
            check_size(wire, connection.info.value_bytes)
        self._params = keeping(ttl, stale, self.tags if tags is None else as_tags(tags), etag)
        self._value = wire


def expired(key: str) -> WriteExpired:
    """Return the error of a write that has taken too long."""
    return WriteExpired(f"the write of {key!r} took longer than it had said", key=key)


@define(eq=False)
class Intent:
    """One write-through, from its beginning to its end. Times are seconds.

    Raises:
        ValueError: Something is out of range.
    """

    engine: "Engine" = field(repr=False)
    codec: Codec = field(repr=False)
    key: str
    tags: tuple[str, ...]
    ttl: float
    _id: str = field(factory=lambda: token_hex(16), init=False, repr=False)
    _until: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        check_name(self.key)
        check_tags(self.tags)
        check_fill("ttl", self.ttl)

    async def begin(self) -> WriteThrough:
        """Say that the write begins.

        Raises:
            KeeperError: The server refused, or could not be asked.

        Cancellation: what may have begun is ended, in the background.
        """
        params = constant(
            key=self.key,
            write=self._id,
            tags=list(self.tags),
            ttl_ms=milliseconds(self.ttl),
        )
        asked_at = self.engine.clock()
        try:
            answer = await self.engine.ask("cache.begin_write", params)
        except KeeperError as exc:
            if may_have_been_done(exc):
                self._send_abort()
            raise
        except BaseException:
            self._send_abort()
            raise
        obj = as_object(answer.result)
        span = seconds(obj, "ttl_ms")
        # Not from the answered request: that may be a repeat, which is told of what had begun.
        self._until = asked_at + span - drift_margin(span)
        return WriteThrough(
            key=self.key,
            tags=self.tags,
            fence=integer(obj, "fence"),
            until=self._until,
            engine=self.engine,
            codec=self.codec,
        )

    async def commit(self, write: WriteThrough) -> None:
        """Say that the write is done.

        Raises:
            WriteExpired: It took too long. All that is old is invalid now, nevertheless.
            Unavailable: The server could not be told. It finds out at the end of the intent, and
                until then caches nothing.
            KeeperError: The server refused.

        Cancellation: shielded; five seconds at most.
        """
        how = write._params or {"tags": list(self.tags)}
        params = constant(key=self.key, write=self._id, **how)
        in_time = self.engine.clock() < self._until
        answer: Answer | None = None
        with move_on_after(CLOSE_SECONDS, shield=True):
            answer = await self.engine.ask("cache.commit_write", params, value=write._value)
        if answer is None:
            raise Unavailable(f"the write of {self.key!r} is done, but the server was not told")
        obj = as_object(answer.result)
        write.stored = obj.get("stored") is True
        if answer.sends == 1:  # a repeat finds nothing open any more, which says nothing
            in_time = obj.get("in_time") is True
        if not in_time:
            raise expired(self.key)

    async def abort(self) -> None:
        """Say that the write was given up. Failing that, the server finds out by itself.

        Cancellation: shielded; five seconds at most.
        """
        with CancelScope(shield=True), move_on_after(CLOSE_SECONDS):
            call = self._send_abort()
            await call.done.wait()
            if isinstance(call.outcome, KeeperError):
                _log.warning("the end of the write of %r was not told: %s", self.key, call.outcome)

    def _send_abort(self) -> Call:
        call = Call(
            "cache.abort_write",
            constant(key=self.key, write=self._id, tags=list(self.tags)),
            useful_until=self.engine.clock() + self.ttl,
        )
        self.engine.session.submit(call)
        return call
