"""Write-behind: values that are cached at once, and written to the database a little later."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final

import anyio
from anyio import CancelScope, move_on_after
from attrs import define, field

from leasekeeper_client._connection import Connection
from leasekeeper_client._contact import drift_margin
from leasekeeper_client._fills import ERROR_LENGTH_MAX, error_text
from leasekeeper_client._holdings import RETRY_MIN
from leasekeeper_client._json import (
    JsonObject,
    Malformed,
    as_list,
    as_object,
    integer,
    integer_or,
    milliseconds,
    seconds_or,
    text,
    text_or,
    text_or_none,
)
from leasekeeper_client._plan import check_name
from leasekeeper_client._rpc import Answer, Call, constant
from leasekeeper_client._terms import check_fill, check_keeping
from leasekeeper_client.codecs import Codec, check_size, from_wire, to_wire
from leasekeeper_client.errors import TRANSIENT, KeeperError

if TYPE_CHECKING:
    from leasekeeper_client._engine import Engine

CLAIM_WAIT_MAX: Final = 20.0
CLAIM_WAIT_SHARE: Final = 3
"""A claim is counted from its asking, so that it must not wait for most of its own time."""
SETTLE_SECONDS: Final = 5.0
CLAIMS_MAX: Final = 1000
_log: Final = logging.getLogger("leasekeeper_client")


class WriteBehind:
    """One queue of writes: `keeper.cache.write_behind("orders")`.

    What is put there is what readers of the key get from then on, and is written to the database
    by whoever takes it with `keeper.writes("orders")`.
    """

    def __init__(self, engine: "Engine", codec: Codec, queue: str) -> None:
        check_name(queue)
        self._engine = engine
        self._codec = codec
        self._queue = queue

    @property
    def queue(self) -> str:
        """The name of the queue."""
        return self._queue

    async def put(self, key: str, value: object, *, ttl: float | None = None) -> int:
        """Replace the value of a key, and queue the write of it, in one step.

        A later put of the same key replaces one that nobody has taken yet.

        Args:
            key: The key.
            value: The value.
            ttl: Seconds for which it stays cached once it is written; None: no longer than that.

        Returns:
            Its number, which rises with every write of the key.

        Raises:
            Forbidden: The server's store could lose the write.
            Overloaded: Too much is queued.
            Busy: A write-through of this key is under way.
            Unavailable: With `outcome == "unknown"`, it may or may not be queued; it is not
                repeated, because that could replace what was put after it.
            ValueTooLarge: It is longer than the server takes.
            KeeperError: The server refused, or could not be asked.
            ValueError, TypeError: It cannot be said in the codec, or an argument is out of range.

        Cancellation: it may be queued, or not.
        """
        check_name(key)
        if ttl is not None:
            check_keeping(ttl)
        wire = to_wire(self._codec, value)
        connection = self._engine.session.connection
        if connection is not None:
            check_size(wire, connection.info.value_bytes)
        ttl_ms = None if ttl is None else milliseconds(ttl)
        params = constant(queue=self._queue, key=key, ttl_ms=ttl_ms)
        answer = await self._engine.ask("writes.put", params, repeatable=False, value=wire)
        return integer(as_object(answer.result), "seq")


@define(eq=False)
class Claim:
    """One write that we have claimed. It is a lease: others may claim it when its time is over."""

    engine: "Engine" = field(repr=False)
    codec: Codec = field(repr=False)
    queue: str
    obj: JsonObject = field(repr=False)
    until: float
    connection: Connection = field(repr=False)
    settled: bool = False

    @property
    def remaining(self) -> float:
        """Seconds until its time is over; 0 when it is, or when the connection is gone."""
        if self.connection.dead.is_set():
            return 0.0
        return max(0.0, self.until - self.engine.clock())

    def value(self) -> object:
        """Return the value.

        Raises:
            UnknownCodec: It is under a codec that is not in use here.
        """
        return from_wire(self.codec, self.obj.get("value"))

    async def ack(self) -> bool:
        """Say that it is carried out; return whether the claim was still ours."""
        return await self._settle("writes.ack")

    async def retry(self, error: str = "", after: float | None = None) -> bool:
        """Say that it has failed; return whether the claim was still ours."""
        return await self._settle(
            "writes.retry",
            error=error[:ERROR_LENGTH_MAX],
            after_ms=None if after is None else milliseconds(after),
        )

    async def _settle(self, method: str, **params: object) -> bool:
        self.settled = True
        ids = [text(self.obj, "id")]
        answer = await self.engine.ask(method, constant(queue=self.queue, ids=ids, **params))
        # A repeat finds nothing to settle, which says nothing.
        return answer.sends > 1 or integer_or(as_object(answer.result), "settled", 1) > 0

    async def settle_quietly(self, error: BaseException | None, *, late: bool) -> None:
        """Say how it went, if that has not been said yet. Failures are logged.

        Cancellation: shielded; five seconds at most.
        """
        name = f"the write of {text(self.obj, 'key')!r}"
        if self.settled:
            return
        if late:
            _log.warning("%s took too long, or was cut off: it is claimed again", name)
            return
        with CancelScope(shield=True), move_on_after(SETTLE_SECONDS):
            try:
                if error is None:
                    held = await self.ack()
                elif isinstance(error, Exception):
                    held = await self.retry(error_text(error))
                else:
                    held = await self.retry("the writer has left", after=0)
            except KeeperError as exc:
                _log.warning("the outcome of %s was not told: %s", name, exc)
            else:
                if not held:
                    _log.warning("%s came too late: it had been claimed again", name)


class WriteView:
    """A write to carry out, without what waits. Safe to read from any thread."""

    def __init__(self, claim: Claim) -> None:
        self._claim = claim

    @property
    def key(self) -> str:
        """What is to be written."""
        return text(self._claim.obj, "key")

    @property
    def value(self) -> object:
        """The latest value of the key.

        Raises:
            UnknownCodec: It is under a codec that is not in use here.
        """
        return self._claim.value()

    @property
    def seq(self) -> int:
        """Its number, which rises with every write of the key."""
        return integer(self._claim.obj, "seq")

    @property
    def fence(self) -> int:
        """Rises with every claim of the key: have the database refuse a lower one."""
        return integer(self._claim.obj, "fence")

    @property
    def attempt(self) -> int:
        """How often this write has been claimed, counting this time."""
        return integer_or(self._claim.obj, "attempt", 1)

    @property
    def remaining(self) -> float:
        """Seconds within which it must be carried out; 0 when it is too late."""
        return self._claim.remaining

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.key!r} seq={self.seq} attempt={self.attempt}>"


class Write(WriteView):
    """A write to carry out: `async with write:`.

    The body is cancelled when the time of the claim is over, or the connection is lost, for
    somebody else may carry it out then. Left without an exception, the write is acknowledged. An
    `Exception` of the body is logged, told to the queue, and *not* raised: the queue tries again,
    later every time, and keeps a write that has failed too often as a dead letter.
    """

    def __init__(self, claim: Claim) -> None:
        super().__init__(claim)
        self._context: AbstractAsyncContextManager[None] | None = None

    async def ack(self) -> bool:
        """Say that it is carried out.

        Returns:
            Whether the claim was still ours. If not, somebody else has carried it out, or will.

        Raises:
            KeeperError: The server could not be told; it will be carried out once more.
        """
        return await self._claim.ack()

    async def retry(self, error: str = "", *, after: float | None = None) -> bool:
        """Say that it has failed, and is to be claimed again.

        Args:
            error: What is said of it in the dead letters.
            after: Seconds until it may be claimed again; None: longer every time.

        Returns:
            Whether the claim was still ours.

        Raises:
            KeeperError: The server could not be told; it is claimed again after its time.
        """
        return await self._claim.retry(error, after)

    async def __aenter__(self) -> "Write":
        self._context = carrying_out(self._claim)
        await self._context.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._context is not None, "left after it was entered"
        return await self._context.__aexit__(kind, error, trace)


@asynccontextmanager
async def carrying_out(claim: Claim) -> AsyncIterator[None]:
    """Carry out a write in the body, as `Write` says."""
    over, scope = anyio.Event(), CancelScope()

    async def watch() -> None:
        with move_on_after(claim.remaining):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_when, over, tasks.cancel_scope)
                await claim.connection.dead.wait()
                tasks.cancel_scope.cancel()
        if not over.is_set():
            scope.cancel()

    claim.engine.tasks.start_soon(watch)
    try:
        with scope:
            yield
    except Exception as exc:
        _log.warning("writing %r failed", text(claim.obj, "key"), exc_info=exc)
        await claim.settle_quietly(exc, late=False)
    except BaseException as exc:
        await claim.settle_quietly(exc, late=False)
        raise
    else:
        await claim.settle_quietly(None, late=scope.cancelled_caught)
    finally:
        over.set()


async def _cancel_when(event: anyio.Event, scope: CancelScope) -> None:
    await event.wait()
    scope.cancel()


@define(eq=False)
class Consumer:
    """Claims the writes of one queue. It gives back what it has not handed on."""

    engine: "Engine" = field(repr=False)
    codec: Codec = field(repr=False)
    queue: str
    max: int
    claim: float
    _claims: list[Claim] = field(factory=list, init=False)
    _call: Call | None = field(default=None, init=False)
    _left: bool = field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        check_name(self.queue)
        check_fill("claim", self.claim)
        if not 1 <= self.max <= CLAIMS_MAX:
            raise ValueError(f"max must be 1 to {CLAIMS_MAX}")

    async def next(self) -> Claim:
        """Return the next write that has time left, waiting for it as long as it takes.

        Raises:
            Forbidden, LimitReached, KeeperError: The server refused.
        """
        while True:
            while self._claims:
                claim = self._claims.pop(0)
                if claim.remaining > 0:
                    return claim
            await self._claim_some()

    async def _claim_some(self) -> None:
        wait = min(CLAIM_WAIT_MAX, self.claim / CLAIM_WAIT_SHARE)
        params = constant(
            queue=self.queue,
            max=self.max,
            claim_ms=milliseconds(self.claim),
            wait_ms=milliseconds(wait),
        )
        session = self.engine.session
        self._call = call = Call("writes.claim", params, on_result=self._arrived)
        with session.outstanding():
            session.submit(call)
            await call.done.wait()
        try:
            call.result()
        except TRANSIENT as exc:
            pause = max(exc.retry_after, RETRY_MIN)
            _log.warning("nothing can be claimed of %r: %s", self.queue, exc)
            await anyio.sleep(pause + self.engine.settings.jitter(pause))

    def _arrived(self, answer: Answer) -> None:
        assert self._call is not None, "an answer comes after its question"
        connection = self._call.carrier
        assert isinstance(connection, Connection), "and from the connection that carried it"
        waited = seconds_or(as_object(answer.result), "waited_ms", 0.0)
        claimed_at = min(answer.sent_at + waited, answer.received_at)
        until = claimed_at + self.claim - drift_margin(self.claim)
        for item in as_list(as_object(answer.result).get("writes")):
            obj = as_object(item)
            for name in ("id", "key"):
                text(obj, name)
            if "value" not in obj:
                raise Malformed("a write without its value")
            self._claims.append(Claim(self.engine, self.codec, self.queue, obj, until, connection))
        if self._left:
            self._give_back()

    def leave(self) -> None:
        """Nobody takes writes from here any more. Never blocks."""
        self._left = True
        self._give_back()
        call, session = self._call, self.engine.session
        if call is None or call.outcome is not None:
            return
        if isinstance(call.carrier, Connection) and call.carrier.alive and call.on_the_wire:
            call.bound = True
            call.carrier.submit(Call("rpc.cancel", constant(id=call.request_id), bound=True))
        else:
            session.abandon_unless_done(call)

    async def leave_soon(self) -> None:
        """The same, for another thread."""
        self.leave()

    def _give_back(self) -> None:
        claims, self._claims = self._claims, []
        if claims:
            ids = [text(claim.obj, "id") for claim in claims]
            params = constant(queue=self.queue, ids=ids, after_ms=0)
            self.engine.session.submit(Call("writes.retry", params, useful_until=claims[0].until))


async def consume(consumer: Consumer) -> AsyncGenerator[Write, None]:
    """Yield writes to carry out, for ever."""
    try:
        while True:
            yield Write(await consumer.next())
    finally:
        consumer.leave()


class DeadWrite:
    """A write that has failed too often, and is not tried any more until it is revived."""

    def __init__(self, codec: Codec, obj: JsonObject) -> None:
        self._codec = codec
        self._obj = obj

    @property
    def key(self) -> str:
        """What was to be written."""
        return text(self._obj, "key")

    @property
    def value(self) -> object:
        """Its value.

        Raises:
            UnknownCodec: It is under a codec that is not in use here.
        """
        return from_wire(self._codec, self._obj.get("value"))

    @property
    def seq(self) -> int:
        """Its number, which rises with every write of the key."""
        return integer_or(self._obj, "seq", 0)

    @property
    def attempts(self) -> int:
        """How often it has failed."""
        return integer_or(self._obj, "attempts", 0)

    @property
    def error(self) -> str:
        """What was said when it failed last."""
        return text_or(self._obj, "error", "")

    def __repr__(self) -> str:
        return f"<DeadWrite {self.key!r} attempts={self.attempts} error={self.error!r}>"


async def list_dead(engine: "Engine", codec: Codec, queue: str) -> AsyncGenerator[DeadWrite, None]:
    """Yield the dead letters of a queue."""
    ask = partial(engine.ask, "writes.dead")
    cursor: str | None = None
    while True:
        answer = await ask(constant(queue=queue, cursor=cursor))
        page = as_object(answer.result)
        for item in as_list(page.get("writes")):
            obj = as_object(item)
            text(obj, "key")
            yield DeadWrite(codec, obj)
        cursor = text_or_none(page, "cursor")
        if cursor is None:
            return


async def revive(engine: "Engine", queue: str, keys: tuple[str, ...]) -> int:
    """Queue dead letters again; return how many."""
    check_name(queue)
    for key in keys:
        check_name(key)
    revived = 0
    for start in range(0, len(keys), 200):
        some = list(keys[start : start + 200])
        answer = await engine.ask("writes.revive", constant(queue=queue, keys=some))
        revived += integer(as_object(answer.result), "revived")
    return revived
