"""The lines of flights of one client, and the loads that go on in the background."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import anyio
from anyio import CancelScope, move_on_after
from anyio.abc import TaskGroup
from attrs import define, evolve

from leasekeeper_client._fills import Fill, Grant, Kept, Nothing, Raised, Returned, Run, Stopped
from leasekeeper_client._flights import (
    TELL_SECONDS,
    Alone,
    Failed,
    Flight,
    OwnOf,
    Rider,
    Route,
    busy,
    plain,
)
from leasekeeper_client._session import Session
from leasekeeper_client._settings import Settings
from leasekeeper_client.errors import (
    ConnectionFailed,
    Draining,
    KeeperError,
    Overloaded,
    Unavailable,
)
from leasekeeper_client.loads import Load

REFRESHES_MAX: Final = 100
"""So many loads go on in the background; a caller who is asked for another passes it on."""
EXTRA_ROUNDS: Final = 3
EXTRA_SECONDS: Final = 1.0
"""Whoever must ask again, and not because of a slow load, may do so after his wait, too."""
OUTAGE: Final = (ConnectionFailed, Unavailable, Draining, Overloaded)
_log: Final = logging.getLogger("leasekeeper_client")


@define(eq=False)
class Line:
    """The flights of one route: at most one waits for its answer, and at most one boards."""

    asking: Flight | None = None
    boarding: Flight | None = None


class Lines:
    """Every line of one client. It knows values only to pass them on.

    Invariant: a line that is here has a flight.
    """

    tasks: TaskGroup
    """Where flights and loads run; set by `Engine.run`."""

    def __init__(self, settings: Settings, session: Session) -> None:
        self.settings = settings
        self.session = session
        self._lines: dict[Route, Line] = {}
        self._flying: set[Flight] = set()
        self._refreshing: set[CancelScope] = set()
        self._fewer = anyio.Event()
        self._closed = False

    async def fetch(self, route: Route, rider: Rider) -> Kept | Nothing:
        """Return what there is under a key, having it loaded if need be.

        Raises:
            Busy: The wait is over.
            KeeperError: The server refused, or could not be asked.
            FillFailed: The load has failed, here or elsewhere.
            Exception: This caller's own loading function has failed.

        Cancellation: as `Flight.leave`.
        """
        rounds = 0
        while True:
            flight = self._board(route, rider)
            try:
                try:
                    await flight.wait_for(rider)
                finally:
                    await flight.leave(rider)
                outcome = flight.outcome_for(rider)
            except OUTAGE as exc:
                past = route.through or rider.terms.on_error == "raise"
                if past or isinstance(flight.landing, Failed):
                    raise
                _log.warning("the cache cannot be asked for %r: %s", route.key, exc)
                route = evolve(route, through=True)
                continue
            if isinstance(outcome, Alone):
                result = await self._load_alone(route.key, outcome.grant, rider)
                lost = True
            elif isinstance(outcome, Kept | Nothing):
                return outcome
            else:
                result, lost = None, outcome.lost
            if result is not None:
                return result
            rounds += 1
            now = self.settings.clock()
            if rider.until > now:
                continue
            if lost or rounds > EXTRA_ROUNDS:
                raise busy(route.key, rider)
            rider.until = now + EXTRA_SECONDS

    async def _load_alone(self, key: str, grant: Grant, rider: Rider) -> Kept | Nothing | None:
        """Load a value that nobody else gets; None if that took too long."""
        run = self.prepare(key, rider.load, rider, grant)
        result = await run.carry_out(rider.context)
        if isinstance(result, Stopped):
            return None
        if isinstance(result, Raised):
            raise result.error
        landing = plain(result.value, rider)
        if isinstance(landing, Failed):
            raise landing.error
        return Kept(landing.value) if isinstance(landing, OwnOf) else landing

    def prepare(
        self,
        key: str,
        function: Callable[[], Awaitable[object]],
        rider: Rider,
        grant: Grant | None,
        *,
        background: bool = False,
    ) -> Run:
        """Return the run of a loading function, under a grant or past the cache."""
        clock = self.settings.clock
        shared = grant is not None and grant.shared
        load = Load(
            key=key,
            fence=grant.fence if grant is not None else 0,
            etag=grant.etag if grant is not None else None,
            shared=shared,
            background=background,
            until=grant.until if grant is not None else clock() + rider.terms.fill,
            clock=clock,
            fill=grant.fill if grant is not None else "",
            cache=self,
        )
        connection = grant.connection if grant is not None and shared else None
        return Run(function, load, load._until, clock, connection, rider.stoppable)

    def some(self) -> bool:
        """Return whether anything is asked for or loaded."""
        return bool(self._flying or self._refreshing)

    # --- In the background --------------------------------------------------------------------

    def refresh(self, fill: Fill, rider: Rider) -> None:
        """Load anew what a caller has been given already. Never blocks, never raises."""
        if len(self._refreshing) >= REFRESHES_MAX or self._closed:
            fill.give_up()
            return
        scope = CancelScope()
        self._refreshing.add(scope)
        self.tasks.start_soon(self._refresh, fill, rider, scope)

    async def _refresh(self, fill: Fill, rider: Rider, scope: CancelScope) -> None:
        run = self.prepare(fill.key, rider.load_later, rider, fill.grant, background=True)
        run.stoppable = True
        stopped = False
        try:
            with scope:
                match await run.carry_out(rider.context):
                    case Returned(value=loaded):
                        fill.hand_in(loaded, rider.terms, rider.codec)
                    case Raised(error=error):
                        fill.fail(error)
                        _log.warning("refreshing %r failed", fill.key, exc_info=error)
                    case Stopped():
                        stopped = True
                        _log.warning("refreshing %r took too long, or was cut off", fill.key)
        except Exception as exc:
            fill.fail(exc)
            _log.warning("%r was loaded, but cannot be cached", fill.key, exc_info=exc)
        finally:
            if fill.told is None and not stopped:
                fill.give_up()
            if fill.told is not None:
                with CancelScope(shield=True), move_on_after(TELL_SECONDS):
                    await fill.told.done.wait()
            self._refreshing.discard(scope)
            self._fewer.set()

    async def settled(self) -> None:
        """Wait until nothing is loaded in the background."""
        while self._refreshing:
            await self._next_end()

    # --- Lines --------------------------------------------------------------------------------

    def _board(self, route: Route, rider: Rider) -> Flight:
        if self._closed or self.session.failure is not None:
            raise self.closed()
        line = self._lines.setdefault(route, Line())
        if line.boarding is None:
            line.boarding = Flight(route, self)
            if line.asking is None:
                self._start(line.boarding)
        line.boarding.riders[rider] = None
        return line.boarding

    def _start(self, flight: Flight) -> None:
        if self._closed:
            flight.answered.set()
            flight.done.set()
            return
        self._flying.add(flight)
        self.tasks.start_soon(flight.run)

    def departs(self, flight: Flight) -> None:
        """Nobody boards it any more: it is about to ask."""
        line = self._lines.get(flight.route)
        if line is not None and line.boarding is flight:
            line.asking, line.boarding = flight, None

    def answered(self, flight: Flight) -> None:
        """It has its answer: the next one may ask."""
        line = self._lines.get(flight.route)
        if line is None or line.asking is not flight:
            return
        line.asking = None
        if line.boarding is not None:
            self._start(line.boarding)
        else:
            del self._lines[flight.route]

    def landed(self, flight: Flight) -> None:
        """It is over."""
        self._flying.discard(flight)
        self._fewer.set()

    def asking(self, route: Route) -> Flight | None:
        """Return the flight that waits for its answer."""
        line = self._lines.get(route)
        return line.asking if line is not None else None

    def ground(self, flight: Flight) -> bool:
        """Its last caller has left: return whether it had not departed. It never will."""
        line = self._lines.get(flight.route)
        if line is None or line.boarding is not flight:
            return False
        line.boarding = None
        if line.asking is None:
            del self._lines[flight.route]
        return True

    # --- The end ------------------------------------------------------------------------------

    def closed(self) -> KeeperError:
        """Return the error of those who ask when it is over."""
        return self.session.failure or ConnectionFailed("this keeper has been closed")

    async def close(self) -> None:
        """Cancel what is being loaded, and wait for its end.

        Cancellation: some of it may still be on its way out.
        """
        self._closed = True
        for scope in [*self._refreshing, *(flight.scope for flight in self._flying)]:
            scope.cancel()
        while self._flying or self._refreshing:
            await self._next_end()

    async def _next_end(self) -> None:
        """Wait until a flight or a load in the background is over."""
        if self._fewer.is_set():
            self._fewer = anyio.Event()
        await self._fewer.wait()
