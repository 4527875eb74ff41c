"""One request for all tasks of this program that want one key.

A *flight* is one `cache.get` and, if it comes to that, one load. Callers may board it until its
request is sent, not later: so whoever shares its value had asked before anything was read (L11),
and an invalidation that was acknowledged before he asked holds for him. Those who come later board
the next flight of the *line*, which starts when this one has its answer. If the answer was that we
are to load, the next one's callers wait at the server with everybody else's.

A flight belongs to nobody: it goes on while one caller is left, and is cancelled with the last.
"""

from collections.abc import Awaitable, Callable
from contextvars import Context, copy_context
from copy import copy
from math import inf
from typing import TYPE_CHECKING, Final, TypeAlias

import anyio
from anyio import CancelScope, move_on_after
from attrs import define, field, frozen

from leasekeeper_client._connection import Connection
from leasekeeper_client._fills import (
    Fill,
    Grant,
    Handed,
    Kept,
    Nothing,
    Own,
    Raised,
    Renewed,
    Returned,
    Stopped,
    error_text,
    grant_from,
)
from leasekeeper_client._holdings import RETRY_MIN
from leasekeeper_client._json import (
    JsonObject,
    Malformed,
    as_object,
    milliseconds,
    seconds_or,
    text,
)
from leasekeeper_client._rpc import Answer, Call, constant
from leasekeeper_client._terms import Terms
from leasekeeper_client.codecs import Codec, from_wire
from leasekeeper_client.errors import (
    Busy,
    ConnectionFailed,
    Draining,
    FillFailed,
    KeeperError,
    Overloaded,
)
from leasekeeper_client.loads import Fresh, NotFound, NotModified, Private

if TYPE_CHECKING:
    from leasekeeper_client._lines import Lines

TELL_SECONDS: Final = 2.0
"""So long a caller waits for the server to hear what came of his load; it is told in any case."""
ROUND_TRIP: Final = 0.5
"""So long at least the server is given to say that there is a value, even to a shorter wait."""


class Abandoned(Exception):
    """Whoever was to run the load has left before it began."""


@frozen
class Route:
    """What callers must have in common to share a flight.

    Attributes:
        key: What they want.
        codec_id: Of the codec that they read with.
        stale_ok: Whether a stale value will do.
        at_once: Whether they do not wait. They are never kept waiting behind those who do.
        within: The key and the fill that the caller is loading meanwhile. Such a caller flies
            alone, and at once, or the server could not see that two wait for each other.
        through: Whether it goes past the cache, which cannot be asked.
    """

    key: str
    codec_id: int
    stale_ok: bool
    at_once: bool
    within: tuple[str, str] | None = field(default=None, repr=False)
    through: bool = False


@define(eq=False)
class Rider:
    """One caller.

    Attributes:
        load: Its loading function.
        load_later: The same, for when the caller has gone on with the present value.
        terms: How it wants the value.
        codec: How values travel.
        begun_at: When it came, by the client's clock.
        stoppable: Whether its function can be cancelled.
        on_leave: Called when it leaves before it has its answer.
    """

    load: Callable[[], Awaitable[object]]
    load_later: Callable[[], Awaitable[object]]
    terms: Terms
    codec: Codec
    begun_at: float
    stoppable: bool = True
    on_leave: Callable[[], None] | None = None
    context: Context = field(factory=copy_context, repr=False)

    until: float = field(init=False)
    """When its wait is over; infinite when it waits for ever."""

    @until.default
    def _until(self) -> float:
        return inf if self.terms.wait is None else self.begun_at + self.terms.wait


@frozen
class Failed:
    """The load has failed. Its caller gets the exception, the others the news of it."""

    error: BaseException
    owner: Rider


@frozen
class Refused:
    """The server has refused, or could not be asked."""

    error: Exception


@frozen
class Again:
    """Ask again. `lost`: because our own load was stopped."""

    lost: bool = False


@frozen
class Alone:
    """Everybody is to load for himself."""

    grant: Grant


@frozen
class OwnOf:
    """The value is for the one who loaded it."""

    value: object = field(repr=False)
    owner: Rider


Landing: TypeAlias = Kept | Nothing | OwnOf | Failed | Refused | Again | Alone


@frozen
class Reply:
    """What the server has answered to `cache.get`."""

    obj: JsonObject = field(repr=False)
    grant: Grant | None


@define(eq=False)
class Flight:
    """See the module. It does not know what comes after it has landed."""

    route: Route
    lines: "Lines" = field(repr=False)
    riders: dict[Rider, None] = field(factory=dict)
    """Those who wait for it, in the order in which they came."""
    call: Call | None = None
    reply: Reply | None = None
    fill: Fill | None = None
    landing: Landing | None = None
    until: float = 0.0
    """When the longest wait of its callers is over."""
    refusal: KeeperError | None = None
    scope: CancelScope = field(factory=CancelScope)
    answered: anyio.Event = field(factory=anyio.Event)
    """Set when it need not wait for others any more."""
    done: anyio.Event = field(factory=anyio.Event)

    async def run(self) -> None:
        """Fly. Never raises anything but cancellation."""
        self.lines.departs(self)
        try:
            with self.scope:
                self.landing = await self._fly()
        except Exception as exc:  # also a damaged value, or a mistake of ours
            self.landing = Refused(exc)
        finally:
            self.lines.answered(self)
            self.answered.set()
            with CancelScope(shield=True), move_on_after(TELL_SECONDS):
                await self._wind_up()
            self.done.set()
            self.lines.landed(self)

    async def _fly(self) -> Landing:
        if not self.riders:
            return Again()
        if self.route.through:
            return await self._load_through()
        self.reply = await self._ask()
        self.lines.answered(self)
        self.answered.set()
        if not self.riders:
            return Again()
        obj = self.reply.obj
        match text(obj, "state"):
            case "hit" | "stale":
                if self.fill is not None:
                    fill, self.fill = self.fill, None
                    self.lines.refresh(fill, self.owner)
                return Kept(from_wire(self.owner.codec, obj["value"]))
            case "negative":
                return Nothing(seconds_or(obj, "retry_after_ms", 0.0))
            case _:
                if self.fill is not None:
                    return await self._load(self.fill)
                assert self.reply.grant is not None, "the reply was looked through when it came"
                return Alone(self.reply.grant)

    @property
    def owner(self) -> Rider:
        """Who has waited longest: it is his function that loads."""
        return next(iter(self.riders))

    # --- Asking -------------------------------------------------------------------------------

    async def _ask(self) -> Reply:
        session, settings = self.lines.session, self.lines.settings
        self.until = max(rider.until for rider in self.riders)
        patience = max(rider.begun_at for rider in self.riders) + settings.answer_timeout
        while True:
            self.call = call = Call("cache.get", self._params, on_result=self._arrived)
            with session.outstanding():
                session.submit(call)
                await call.done.wait()
            try:
                call.result()
            except (Draining, Overloaded) as exc:
                # The server has not looked at it, so that even a wait of 0 asks again.
                self.refusal = exc
                pause = max(exc.retry_after, RETRY_MIN)
                if settings.clock() + pause >= max(self.until, patience):
                    raise
            else:
                assert self.reply is not None, "the reply is read when it comes"
                return self.reply
            await anyio.sleep(pause)

    def _params(self, now: float) -> JsonObject:
        route, wait_ms = self.route, None
        if self.until < inf:
            wait_ms = milliseconds(max(0.0, self.until - now))
        params: dict[str, object] = {
            "key": route.key,
            "wait_ms": wait_ms,
            "stale_ok": route.stale_ok,
            "fill_ms": milliseconds(max((r.terms.fill for r in self.riders), default=1.0)),
        }
        if route.within is not None:
            params["within_key"], params["within_fill"] = route.within
        return params

    def _arrived(self, answer: Answer) -> None:
        """Take the answer. Runs in the reader, so that no grant is lost on a caller who leaves."""
        assert self.call is not None, "an answer comes after its question"
        assert isinstance(self.call.carrier, Connection), "and from the connection that carried it"
        obj = as_object(answer.result)
        grant = None
        if text(obj, "state") in ("hit", "stale"):
            if "value" not in obj:
                raise Malformed("a hit without its value")
            if "refresh" in obj:
                grant = grant_from(as_object(obj["refresh"]), answer, self.call.carrier)
        elif obj["state"] != "negative":
            grant = grant_from(obj, answer, self.call.carrier)
        self.reply = Reply(obj, grant)
        if grant is not None and grant.shared:
            self.fill = Fill(self.route.key, grant, self.lines.session)
            if self.done.is_set():
                self.fill.give_up()

    # --- Loading ------------------------------------------------------------------------------

    async def _load(self, fill: Fill) -> Landing:
        """Have one of the callers' functions load the value, under a fill."""
        while self.riders:
            owner, grant = self.owner, fill.grant
            run = self.lines.prepare(self.route.key, owner.load, owner, grant)
            match await run.carry_out(owner.context):
                case Raised(error=Abandoned()):
                    continue
                case Raised(error=error):
                    fill.fail(error)
                    await _heard(fill)
                    return Failed(error, owner)
                case Stopped():
                    # The server knows: its clock, or the end of the connection, has told it.
                    self.fill = None
                    return Again(lost=True)
                case Returned(value=value):
                    return await self._hand_in(fill, value, owner)
        return Again()

    async def _hand_in(self, fill: Fill, value: object, owner: Rider) -> Landing:
        try:
            handed: Handed = fill.hand_in(value, owner.terms, owner.codec)
        except Exception as exc:
            fill.fail(exc)
            await _heard(fill)
            return Failed(exc, owner)
        await _heard(fill)
        match handed:
            case Own(value=own):
                return OwnOf(own, owner)
            case Renewed():
                return Again()
            case _:
                return handed

    async def _load_through(self) -> Landing:
        """Load without the cache. Those who come meanwhile wait for the next load."""
        owner = self.owner
        run = self.lines.prepare(self.route.key, owner.load, owner, None)
        match await run.carry_out(owner.context):
            case Raised(error=Abandoned()):
                return Again()
            case Raised(error=error):
                return Failed(error, owner)
            case Returned(value=value):
                return plain(value, owner)
            case _:
                return Again(lost=True)

    # --- Leaving ------------------------------------------------------------------------------

    async def leave(self, rider: Rider) -> None:
        """A caller does not wait any more, or has what he wanted.

        Cancellation: shielded. If he is the last, it takes as long as his function takes to be
            cancelled, and two seconds at most after that.
        """
        del self.riders[rider]
        if self.done.is_set():
            return
        if rider.on_leave is not None:
            rider.on_leave()
        if not self.riders and not self.lines.ground(self):
            self._withdraw()
            self.scope.cancel()
            with CancelScope(shield=True):
                await self.done.wait()

    async def _wind_up(self) -> None:
        """Leave nothing behind that others would wait for."""
        if self.fill is not None and self.fill.told is None:
            await self.fill.give_up().done.wait()
        self._withdraw()

    def _withdraw(self) -> None:
        """Cancel a request; if it was granted meanwhile, `_arrived` gives that back."""
        call, session = self.call, self.lines.session
        if call is None or call.outcome is not None or call.bound:
            return
        carrier = call.carrier
        if isinstance(carrier, Connection) and carrier.alive and call.on_the_wire:
            call.bound = True  # it is not asked again on another connection
            carrier.submit(Call("rpc.cancel", constant(id=call.request_id), bound=True))
        else:
            session.abandon_unless_done(call)

    # --- Waiting ------------------------------------------------------------------------------

    async def wait_for(self, rider: Rider) -> None:
        """Wait until it has landed. Only the wait for others is bounded, not one's own load.

        Raises:
            Busy: The caller's wait is over.
            ConnectionFailed: It is over, and the server could not be asked.
            KeeperError: The server refused more than once, for the time being.
        """
        bounded = rider.until < inf and not self.route.through
        if bounded and not await self._is_answered_by(rider.until):
            await self._wait_longer(rider)
        await self.done.wait()

    async def _wait_longer(self, rider: Rider) -> None:
        """The wait is over without an answer: raise, or return when a late answer comes."""
        settings = self.lines.settings
        sent = self if self.call is not None else self.lines.asking(self.route)
        others_wait = sent is not None and (sent is not self or self.until > rider.until)
        if others_wait and not self.route.at_once:
            # The server will not say for this one that the wait is over.
            if await self._is_answered_by(max(rider.until, rider.begun_at + ROUND_TRIP)):
                return
            if sent is not None and sent.waits_at_server:
                raise busy(self.route.key, rider)
        patience = settings.answer_timeout if rider.terms.on_error == "raise" else 0.0
        if await self._is_answered_by(max(rider.until, rider.begun_at + patience)):
            return
        if self.waits_at_server and await self._is_answered_by(settings.clock() + patience):
            return
        span = settings.clock() - rider.begun_at
        raise self.refusal or ConnectionFailed(f"cache.get had no answer within {span:.3g} s")

    @property
    def waits_at_server(self) -> bool:
        """Whether the server has its request, as far as we know."""
        call, session = self.call, self.lines.session
        return (
            call is not None
            and call.outcome is None
            and call.on_the_wire
            and session.connection is call.carrier
        )

    async def _is_answered_by(self, end: float) -> bool:
        with move_on_after(max(0.0, end - self.lines.settings.clock())):
            await self.answered.wait()
        return self.answered.is_set()

    def outcome_for(self, rider: Rider) -> Kept | Nothing | Again | Alone:
        """Return what it has come to for one of its callers.

        Raises:
            FillFailed: Another caller's function has failed.
            Exception: The caller's own function has failed, or the server refused.
        """
        match self.landing:
            case Refused(error=error):
                raise copy(error) if isinstance(error, KeeperError) else error
            case Failed(error=error, owner=owner):
                if owner is rider:
                    raise error
                if not isinstance(error, Exception):
                    return Again()
                message = f"the load of {self.route.key!r} has failed"
                raise FillFailed(message, error=error_text(error)) from error
            case OwnOf(value=value, owner=owner):
                return Kept(value) if owner is rider else Again()
            case None:
                raise self.lines.closed()
            case landing:
                return landing


async def _heard(fill: Fill) -> None:
    """Wait, but not for long, until the server has heard what came of a fill."""
    if fill.told is not None:
        with move_on_after(TELL_SECONDS):
            await fill.told.done.wait()


def plain(loaded: object, rider: Rider) -> Kept | Nothing | OwnOf | Failed:
    """Return what a function has loaded that is not handed to anybody else."""
    match loaded:
        case NotFound(ttl=ttl):
            return Nothing(rider.terms.ttl if ttl is None else ttl)
        case Private(value=value):
            return OwnOf(value, rider)
        case Fresh(value=value):
            return Kept(value)
        case NotModified():
            error = ValueError("NotModified, but there is no value to be unmodified")
            return Failed(error, rider)
        case _:
            return Kept(loaded)


def busy(key: str, rider: Rider) -> Busy:
    """Return the error of a caller whose wait is over."""
    return Busy(f"{key!r} was not loaded within {rider.terms.wait} s")
