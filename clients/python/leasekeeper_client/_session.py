"""The connection that is always there, or on its way back."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from typing import Final, Protocol

import anyio
from anyio import TASK_STATUS_IGNORED, create_task_group, move_on_after
from anyio.abc import TaskGroup, TaskStatus

from leasekeeper_client._connection import Connection, is_fatal, open_connection
from leasekeeper_client._json import JsonObject, seconds_or
from leasekeeper_client._rpc import Answer, Call
from leasekeeper_client._settings import Settings
from leasekeeper_client.errors import (
    TRANSIENT,
    ConnectionFailed,
    KeeperError,
    Outcome,
    Overloaded,
    Unavailable,
)

STABLE_SECONDS: Final = 1.0
"""A connection that lived for so long resets the back-off."""
AT_STAKE_SHARE: Final = 0.25
"""The longest delay until the next attempt, of the time until something is lost without one."""


class Listener(Protocol):
    """Who is told what happens to the session. No method may raise, and only `settle_in` awaits."""

    def opened(self, connection: Connection) -> None:
        """A new connection is up; nothing has been sent on it yet."""

    async def settle_in(self, connection: Connection) -> None:
        """Move to the new connection what the old one held."""

    def at_stake(self) -> float:
        """Seconds until something that is held is lost without a connection; else infinity."""

    def dropped(self) -> None:
        """The connection is gone, and there is no other yet."""

    def failed(self, failure: KeeperError) -> None:
        """There will be no other."""

    def notice(self, method: str, params: JsonObject) -> None:
        """The server said something of its own accord."""


class Session:
    """Keeps one connection up, and carries calls over its interruptions.

    A call is repeated on the next connection if that is safe; else it fails with
    `Unavailable(outcome="unknown")`. It does not know what calls mean.
    """

    def __init__(self, settings: Settings, listener: Listener) -> None:
        self.connection: Connection | None = None
        self.failure: KeeperError | None = None
        self._settings = settings
        self._listener = listener
        self._addresses = cycle(settings.addresses)
        self._backlog: deque[Call] = deque()
        self._wanted = anyio.Event()
        self._attempt = 0
        self._opened_at = 0.0
        self._outstanding = 0

    async def open(self) -> Connection:
        """Make the first connection.

        Raises:
            ConnectionFailed: None of the addresses could be reached in time.
            Unauthenticated, Forbidden, LimitReached: A server does not want us.
        """
        last: KeeperError | None = None
        with move_on_after(self._settings.connect_timeout):
            while True:
                try:
                    return await open_connection(next(self._addresses), self._settings)
                except KeeperError as exc:
                    if is_fatal(exc):
                        raise
                    last = exc
                await anyio.sleep(self._delay(last))
        where = ", ".join(address.url for address in self._settings.addresses)
        raise ConnectionFailed(
            f"no server at {where} within {self._settings.connect_timeout} s"
        ) from last

    async def run(
        self, first: Connection, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
    ) -> None:
        """Keep a connection up until it fails for good or the task is cancelled.

        It has started when calls go to the first connection.
        """
        connection = first
        async with create_task_group() as tasks:
            while True:
                self._adopt(connection, tasks)
                if connection is first:
                    task_status.started()
                await self._wanted.wait()
                if self.failure is not None:
                    return
                try:
                    connection = await self._reconnect()
                except KeeperError as exc:
                    self.fail(exc)
                    return

    async def close(self) -> None:
        """Close cleanly, so that the server releases at once what is still held."""
        if self.connection is not None:
            await self.connection.close()

    def submit(self, call: Call) -> None:
        """Send a call as soon as there is a connection. Never blocks."""
        if self.failure is not None:
            call.settle(self.failure)
        elif self.connection is not None and self.connection.alive:
            self.connection.submit(call)
        else:
            self._backlog.append(call)

    async def ask(self, call: Call, patience: float) -> Answer:
        """Send a call and wait for its answer.

        Args:
            call: The call.
            patience: Seconds to wait, over reconnections too.

        Raises:
            ConnectionFailed: No answer in time, and nothing was changed, or may be repeated.
            Unavailable: No answer in time, and what was asked may or may not have been done.
            KeeperError: What the server answered.

        Cancellation: the call is abandoned; the server may still do what it says.
        """
        with self.outstanding():
            self.submit(call)
            try:
                with move_on_after(patience):
                    await call.done.wait()
            finally:
                self.abandon_unless_done(call)
        if call.outcome is None:
            raise self.silence(call, patience)
        return call.result()

    @contextmanager
    def outstanding(self) -> Iterator[None]:
        """Take a place among the callers that wait, of which there is a bounded number.

        Raises:
            Overloaded: There is none left.
        """
        limit = self._settings.outstanding_max
        if self._outstanding >= limit:
            raise Overloaded(f"{limit} requests are outstanding in this client")
        self._outstanding += 1
        try:
            yield
        finally:
            self._outstanding -= 1

    def silence(self, call: Call, patience: float) -> KeeperError:
        """Return the error for a call without an answer."""
        message = f"{call.method} had no answer within {patience:.3g} s"
        if call.sends and not call.repeatable:
            return Unavailable(message, outcome="unknown")
        return ConnectionFailed(message)

    def abandon_unless_done(self, call: Call) -> None:
        """Nobody waits for the answer of this call any more."""
        if call.outcome is None:
            call.abandoned = True
            if self.connection is not None:
                self.connection.forget(call)

    def fail(self, failure: KeeperError) -> None:
        """It is over: every call, now and later, fails with this."""
        if self.failure is not None:
            return
        self.failure = failure
        self._wanted.set()
        calls = [*self._backlog]
        self._backlog.clear()
        if self.connection is not None:
            calls += self.connection.take_calls()
            self.connection.kill("the session has failed")
        for call in calls:
            call.settle(failure)
        self._listener.failed(failure)

    def _adopt(self, connection: Connection, tasks: TaskGroup) -> None:
        old, self.connection = self.connection, connection
        self._wanted = anyio.Event()
        self._opened_at = self._settings.clock()
        connection.on_notice = partial(self._notice, connection, tasks)
        moving = old.take_movable() if old is not None else []
        self._listener.opened(connection)
        waiting, self._backlog = self._backlog, deque()
        for call in (*waiting, *moving):
            self._carry(call)
        tasks.start_soon(self._serve, connection)
        tasks.start_soon(self._settle_in, connection, old)

    async def _settle_in(self, connection: Connection, old: Connection | None) -> None:
        await self._listener.settle_in(connection)
        if old is None:
            return
        if connection.dead.is_set():
            # Not everything may have moved, and a clean close would have it released.
            old.kill("the connection that was to follow it is gone")
        else:
            await old.close()

    async def _serve(self, connection: Connection) -> None:
        await connection.run()
        if connection is self.connection:
            self._down(connection)
        for call in connection.take_calls():
            self._carry_after_drop(call)

    def _down(self, connection: Connection) -> None:
        self.connection = None
        now = self._settings.clock()
        if now - self._opened_at >= STABLE_SECONDS:
            self._attempt = 0
        self._listener.dropped()
        if connection.failure is not None and is_fatal(connection.failure):
            for call in connection.take_calls():
                call.settle(connection.failure)
            self.fail(connection.failure)
        self._wanted.set()

    def _carry_after_drop(self, call: Call) -> None:
        if call.bound or (call.on_the_wire and not call.repeatable):
            message = f"the connection broke before {call.method} was answered"
            outcome: Outcome = "unknown" if call.on_the_wire else "none"
            call.settle(Unavailable(message, outcome=outcome))
        else:
            self._carry(call)

    def _carry(self, call: Call) -> None:
        now = self._settings.clock()
        if call.abandoned:
            return
        if call.useful_until is not None and now >= call.useful_until:
            call.settle(ConnectionFailed(f"{call.method} could not be sent in time"))
        else:
            self.submit(call)

    async def _reconnect(self) -> Connection:
        last: KeeperError | None = None
        while True:
            await anyio.sleep(self._delay(last))
            try:
                return await open_connection(next(self._addresses), self._settings)
            except KeeperError as exc:
                if is_fatal(exc):
                    raise
                last = exc

    def _delay(self, last: KeeperError | None) -> float:
        settings = self._settings
        ceiling = min(settings.backoff_max, settings.backoff_first * 2.0**self._attempt)
        # Whoever holds something has several attempts before it is lost.
        at_stake = self._listener.at_stake() * AT_STAKE_SHARE
        ceiling = min(ceiling, max(settings.backoff_first, at_stake))
        self._attempt = min(self._attempt + 1, 30)
        hint = last.retry_after if isinstance(last, TRANSIENT) else 0.0
        return min(hint, settings.backoff_max) + settings.jitter(ceiling)

    def _notice(
        self, connection: Connection, tasks: TaskGroup, method: str, params: JsonObject
    ) -> None:
        if method == "server.draining":
            after = seconds_or(params, "reconnect_after_ms", 0.0)
            tasks.start_soon(self._move_later, connection, after)
        else:
            self._listener.notice(method, params)

    async def _move_later(self, connection: Connection, after: float) -> None:
        with move_on_after(after):
            await connection.dead.wait()
        if connection is self.connection:
            self._wanted.set()
