"""The load of one key under a fill: running it, and telling the server what came of it."""

from collections.abc import Awaitable, Callable
from contextvars import Context
from typing import Final, TypeAlias

import anyio
from anyio import CancelScope, create_task_group, move_on_after
from attrs import define, field, frozen

from leasekeeper_client._connection import Connection
from leasekeeper_client._contact import drift_margin
from leasekeeper_client._json import (
    JsonObject,
    integer,
    milliseconds,
    seconds,
    text,
    text_or_none,
)
from leasekeeper_client._rpc import Answer, Call, constant
from leasekeeper_client._session import Session
from leasekeeper_client._terms import Terms, as_tags, check_keeping, keeping
from leasekeeper_client.codecs import Codec, check_size, to_wire
from leasekeeper_client.errors import FillFailed, ValueTooLarge
from leasekeeper_client.loads import LOADS, Fresh, Load, NotFound, NotModified, Private

ERROR_LENGTH_MAX: Final = 500
RETRY_AFTER_MAX: Final = 3600.0
UNSHARED_MAX: Final = 60.0
"""Seconds for which a value that is too large keeps others from waiting for it."""


@frozen
class Grant:
    """The permission to load, as the server gave it. Times are by the client's clock.

    Attributes:
        fill: Its id, which allows handing in a value.
        fence: The fencing token.
        shared: Whether others wait for the value.
        etag: Of the value that is there.
        until: When its time is over.
        useful_until: When there is no use in handing anything in.
        connection: If it breaks, the server gives the fill to somebody else.
    """

    fill: str = field(repr=False)
    fence: int
    shared: bool
    etag: str | None
    until: float
    useful_until: float
    connection: Connection


def grant_from(obj: JsonObject, answer: Answer, connection: Connection) -> Grant:
    """Return the grant that an answer tells of.

    Its time counts from the answer, and so begins a little late; nothing rests on it. A load that
    goes on for too long is not the only one any more, but what it brings is judged by the server.

    Raises:
        Malformed: It is none.
    """
    span = seconds(obj, "fill_ms")
    return Grant(
        fill=text(obj, "fill"),
        fence=integer(obj, "fence"),
        shared=obj.get("shared", True) is True,
        etag=text_or_none(obj, "etag"),
        until=answer.received_at + span - drift_margin(span),
        useful_until=answer.received_at + 2 * span,
        connection=connection,
    )


# --- Running ----------------------------------------------------------------------------------


@frozen
class Returned:
    """The load has returned this."""

    value: object = field(repr=False)


@frozen
class Raised:
    """The load has raised this."""

    error: BaseException


@frozen
class Stopped:
    """The load was cancelled, because its time was over or the connection gone."""


Result: TypeAlias = Returned | Raised | Stopped


@define(eq=False)
class Run:
    """One run of a loading function, in a task of its own, in its caller's context.

    Attributes:
        function: The function.
        load: What it can know of itself.
        until: When it is cancelled; by the client's clock.
        connection: It is cancelled when this breaks; None: it depends on none.
        stoppable: Whether it can be cancelled. If not, it is told by `load.lost`.
    """

    function: Callable[[], Awaitable[object]]
    load: Load
    until: float
    clock: Callable[[], float]
    connection: Connection | None = None
    stoppable: bool = True
    _result: Result = field(factory=Stopped)

    async def carry_out(self, context: Context) -> Result:
        """Run it to its end.

        Cancellation: the function is cancelled, and waited for.
        """
        async with create_task_group() as tasks:
            context.run(tasks.start_soon, self._run, tasks.cancel_scope)
            tasks.start_soon(self._watch, tasks.cancel_scope)
        return self._result

    async def _run(self, scope: CancelScope) -> None:
        LOADS.set((*LOADS.get(), self.load))
        ended = False
        try:
            self._result = Returned(await self.function())
            ended = True
        except BaseException as exc:
            ended = not _is_cancellation(exc)
            if not ended:
                raise
            self._result = Raised(exc)
        finally:
            self.load.over = True
            if not ended and not scope.cancel_called:
                # It cancelled itself, as a task can on asyncio; nobody else is to die of that.
                self._result = Raised(FillFailed("the load was cancelled", error="cancelled"))
            scope.cancel()

    async def _watch(self, scope: CancelScope) -> None:
        with move_on_after(max(0.0, self.until - self.clock())):
            if self.connection is None:
                await anyio.sleep_forever()
            else:
                await self.connection.dead.wait()
        self.load.lost = True
        if self.stoppable:
            scope.cancel()


def _is_cancellation(error: BaseException) -> bool:
    """Return whether an exception is nothing but a cancellation, in a group or not."""
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(error, BaseExceptionGroup):
        return error.split(cancelled)[1] is None
    return isinstance(error, cancelled)


# --- Handing in -------------------------------------------------------------------------------


@frozen
class Kept:
    """Everybody has this value now."""

    value: object = field(repr=False)


@frozen
class Own:
    """The caller who loaded has this value, and nobody else."""

    value: object = field(repr=False)


@frozen
class Nothing:
    """There is no such thing; that is believed for `retry_after` seconds."""

    retry_after: float


@frozen
class Renewed:
    """The old value is good. It has to be asked for again."""


Handed: TypeAlias = Kept | Own | Nothing | Renewed


@define(eq=False)
class Fill:
    """A fill of ours, until the server is told what came of it. Telling never blocks.

    Invariant: it is told at most once.
    """

    key: str
    grant: Grant
    session: Session = field(repr=False)
    told: Call | None = None

    @property
    def value_bytes(self) -> int:
        """The longest value that the server takes."""
        connection = self.session.connection or self.grant.connection
        return connection.info.value_bytes

    def hand_in(self, loaded: object, terms: Terms, codec: Codec) -> Handed:
        """Tell what a load has returned, and what it means to those who wait.

        Raises:
            ValueError, TypeError: It is nothing that can be cached. Nothing was told.
        """
        match loaded:
            case NotFound(ttl=ttl, tags=tags):
                return self._not_found(terms.ttl if ttl is None else ttl, terms, tags)
            case Private(value=value, for_=span):
                check_keeping(span)
                self._unshare("the value is private", span)
                return Own(value)
            case NotModified():
                if self.grant.etag is None:
                    raise ValueError("NotModified, but there is no value to be unmodified")
                params = self._keeping(loaded, terms, loaded.etag or self.grant.etag)
                self._tell("cache.fill", None, not_modified=True, **params)
                return Renewed()
            case Fresh(value=value):
                self._store(value, self._keeping(loaded, terms, loaded.etag), terms, codec)
                return Kept(value)
            case _:
                params = keeping(terms.ttl, terms.stale, terms.tags, None)
                self._store(loaded, params, terms, codec)
                return Kept(loaded)

    def fail(self, error: BaseException) -> None:
        """Tell that the load has raised an exception, or been interrupted by one."""
        if not isinstance(error, Exception):  # the program is ending: not the load's fault
            self.give_up()
            return
        retry_after = None
        if isinstance(error, FillFailed) and error.retry_after > 0:
            retry_after = milliseconds(min(error.retry_after, RETRY_AFTER_MAX))
        self._tell("cache.fail", None, error=error_text(error), retry_after_ms=retry_after)

    def give_up(self) -> Call:
        """Tell that we do not want it any more: somebody else is to load, at once."""
        return self._tell("cache.fail", None, error="the caller has left", promote=True)

    def _not_found(self, ttl: float, terms: Terms, tags: tuple[str, ...] | None) -> Nothing:
        params = keeping(ttl, 0.0, terms.tags if tags is None else as_tags(tags), None)
        self._tell("cache.fail", None, error="not found", not_found=True, **params)
        return Nothing(ttl)

    def _store(self, value: object, params: dict[str, object], terms: Terms, codec: Codec) -> None:
        wire = to_wire(codec, value)
        try:
            check_size(wire, self.value_bytes)
        except ValueTooLarge:
            self._unshare("too large", min(terms.ttl, UNSHARED_MAX))
        else:
            self._tell("cache.fill", wire, **params)

    def _unshare(self, why: str, span: float) -> None:
        self._tell("cache.fail", None, error=why, private_ms=milliseconds(span))

    def _keeping(
        self, loaded: Fresh[object] | NotModified, terms: Terms, etag: str | None
    ) -> dict[str, object]:
        tags = () if isinstance(loaded, NotModified) else terms.tags
        return keeping(
            terms.ttl if loaded.ttl is None else loaded.ttl,
            terms.stale if loaded.stale is None else loaded.stale,
            tags if loaded.tags is None else as_tags(loaded.tags),
            etag,
        )

    def _tell(self, method: str, value: str | None, **params: object) -> Call:
        assert self.told is None, "a fill is over once"
        self.told = Call(
            method,
            constant(key=self.key, fill=self.grant.fill, **params),
            value=value,
            useful_until=self.grant.useful_until,
        )
        self.session.submit(self.told)
        return self.told


def error_text(error: BaseException) -> str:
    """Return what others are told of an exception: its type and message, bounded."""
    if isinstance(error, FillFailed) and error.error:
        return error.error[:ERROR_LENGTH_MAX]
    message = str(error)
    name = type(error).__name__
    told = f"{name}: {message}" if message else name
    return told.encode(errors="replace").decode()[:ERROR_LENGTH_MAX]
