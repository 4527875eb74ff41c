"""The client behind its faces: one session, what it holds, what it watches, and their tasks."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import anyio
from anyio import CancelScope, create_task_group, move_on_after
from anyio.abc import TaskGroup, TaskStatus
from attrs import evolve

from leasekeeper_client._acquire import Acquisition
from leasekeeper_client._connection import Connection
from leasekeeper_client._hold import Hold, State
from leasekeeper_client._holdings import RETRY_MIN, Holdings
from leasekeeper_client._json import JsonObject, as_object, seconds
from leasekeeper_client._lines import Lines
from leasekeeper_client._plan import Plan
from leasekeeper_client._rpc import Answer, Call, Params, constant
from leasekeeper_client._session import Session
from leasekeeper_client._settings import Settings
from leasekeeper_client._watches import Watcher, Watches
from leasekeeper_client.errors import (
    TRANSIENT,
    ConnectionFailed,
    KeeperError,
    LeaseLost,
    Unavailable,
)
from leasekeeper_client.model import NameState

RELEASE_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 2.0
_log: Final = logging.getLogger("leasekeeper_client")


class Engine:
    """What the async and the sync keeper have in common. It is the session's listener."""

    tasks: TaskGroup
    """Where everything of the client runs; set by `run`."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.clock: Callable[[], float] = settings.clock
        self.session: Session = Session(settings, self)
        self._holdings = Holdings(settings)
        self._watches = Watches()
        self.lines: Lines = Lines(settings, self.session)

    async def acquire(self, plan: Plan) -> tuple[Hold, ...]:
        """Wait until everything that is planned is granted.

        Raises:
            LeaseLost: It was granted, and lost again before anyone could use it.
            KeeperError: As `Acquisition.run`.

        Cancellation: what was asked for is given back.
        """
        if plan.on_contended is not None:
            plan = evolve(plan, on_contended=partial(_call_safely, plan.on_contended))
        holds = await Acquisition(
            plan, self.settings, self.session, self._holdings, self.tasks
        ).run()
        if not all(hold.believed(self.clock()) for hold in holds):
            raise await self.finish(holds) or holds[0].loss()
        return holds

    async def finish(self, holds: Sequence[Hold]) -> LeaseLost | None:
        """Give leases back at the end of their use.

        Returns:
            How they were lost before that, or None.

        Cancellation: shielded, for as long as the shortest of them lasts, and 5 s at most; after
            that the release goes on in the background.
        """
        now = self.clock()
        for hold in holds:
            hold.expire(now)
        loss = next((hold.loss() for hold in holds if hold.state is not State.HELD), None)
        bound = min(RELEASE_SECONDS, *(hold.remaining(now) for hold in holds))
        calls = [self._holdings.release(hold, self.session, self.tasks) for hold in holds]
        if loss is not None:
            return loss
        with move_on_after(bound, shield=True):
            for call in calls:
                await call.done.wait()
        for hold, call in zip(holds, calls, strict=True):
            if _was_gone(call):
                hold.reason = "unknown"
                return hold.loss()
        return None

    async def renew(self, hold: Hold) -> None:
        """Renew a lease now.

        Raises:
            LeaseLost: It is lost.
            KeeperError: It could not be renewed; it lasts until its deadline.
        """

        def renewed(answer: Answer) -> None:
            ttl = seconds(as_object(answer.result), "ttl_ms")
            hold.confirm(sent_at=answer.sent_at, received_at=answer.received_at, ttl=ttl)

        params = constant(name=hold.name, lease=hold.lease_id)
        try:
            await self.ask("lease.renew", params, on_result=renewed)
        except LeaseLost:
            hold.lose("unknown", "the server no longer has it")
        if not hold.believed(self.clock()):
            raise hold.loss()

    async def ask(
        self,
        method: str,
        params: Params,
        *,
        repeatable: bool = True,
        on_result: Callable[[Answer], None] | None = None,
        value: str | None = None,
    ) -> Answer:
        """Ask a question that the server answers at once; `value` as in `Call`.

        Raises:
            ConnectionFailed: No answer within the answer timeout.
            Unavailable: The store cannot be reached, or what was asked may have been done.
            KeeperError: What the server answered.

        Cancellation: the answer is dropped.
        """
        end = self.clock() + self.settings.answer_timeout
        while True:
            call = Call(method, params, repeatable=repeatable, on_result=on_result, value=value)
            try:
                return await self.session.ask(call, max(0.0, end - self.clock()))
            except TRANSIENT as exc:
                pause = max(exc.retry_after, RETRY_MIN)
                undone = not isinstance(exc, Unavailable) or exc.outcome == "none"
                if self.clock() + pause >= end or not (repeatable or undone):
                    raise
            await anyio.sleep(pause)

    async def watch(self, name: str) -> AsyncGenerator[NameState, None]:
        """Yield the present state of a name, and every later one that there is time for."""
        watcher = Watcher(name)
        self._watches.enter(watcher, self.tasks)
        try:
            while True:
                yield await watcher.next()
        finally:
            self._watches.leave(watcher)

    async def run(
        self, first: Connection, shield: CancelScope, *, task_status: TaskStatus[None]
    ) -> None:
        """Keep the session up and the deadlines watched, until the shield is cancelled."""
        with shield:
            async with create_task_group() as self.tasks:
                self.lines.tasks = self.tasks
                self.tasks.start_soon(self._holdings.run_deadlines)
                await self.tasks.start(self.session.run, first)
                task_status.started()

    def _listens(self) -> bool:
        """Whether it matters that the connection stands, though nothing is held."""
        return self._watches.some() or self.lines.some()

    # The session tells:

    def opened(self, connection: Connection) -> None:
        self.tasks.start_soon(self._holdings.beat, connection, self._listens)
        self.tasks.start_soon(self._holdings.prove, connection)
        self._watches.opened(connection, self.tasks)

    async def settle_in(self, connection: Connection) -> None:
        await self._holdings.resume(connection)

    def at_stake(self) -> float:
        return self._holdings.at_stake()

    def dropped(self) -> None:
        self._holdings.dropped()

    def failed(self, failure: KeeperError) -> None:
        self._holdings.failed()
        self._watches.failed(failure)

    def notice(self, method: str, params: JsonObject) -> None:
        if method == "lease.lost":
            self._holdings.lost(params)
        elif method == "lease.contended":
            self._holdings.contended(params)
        elif method == "lease.changed":
            self._watches.changed(params)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Engine]:
    """Connect, and keep connected while the body runs; then close cleanly.

    Raises:
        ConnectionFailed, Unauthenticated, Forbidden, LimitReached: As `Session.open`.

    Cancellation: what the body cleans up still reaches the server, because the tasks in here are
        shielded until the body is out. Exceptions of the body come out as they are.
    """
    raised: BaseException | None = None
    engine = Engine(settings)
    first = await engine.session.open()
    shield = CancelScope(shield=True)
    async with create_task_group() as host:
        with CancelScope(shield=True):
            await host.start(engine.run, first, shield)
        try:
            yield engine
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as exc:
            # Out of the task group's sight, or it would come out wrapped in a group.
            raised = exc
        finally:
            with CancelScope(shield=True), move_on_after(CLOSE_SECONDS):
                with move_on_after(CLOSE_SECONDS / 2):
                    await engine.lines.close()
                await engine.session.close()
            engine.session.fail(ConnectionFailed("this keeper has been closed"))
            shield.cancel()
    if raised is not None:
        raise raised


def _call_safely(callback: Callable[[int], None], waiting: int) -> None:
    """Call what the user gave us, whose failure must not stop the reader."""
    try:
        callback(waiting)
    except Exception:
        _log.exception("on_contended failed")


def _was_gone(release: Call) -> bool:
    """Return whether the server says that there was nothing to release.

    A repeated release says so too, so it proves nothing.
    """
    if not isinstance(release.outcome, Answer) or release.outcome.sends > 1:
        return False
    return as_object(release.outcome.result).get("released") is False
