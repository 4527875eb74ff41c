"""What this client holds or waits for: heartbeats, proofs, resuming, and giving back."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import anyio
from anyio import move_on_after
from anyio.abc import TaskGroup

from leasekeeper_client._connection import Connection
from leasekeeper_client._contact import Contact, Lifeline
from leasekeeper_client._deadlines import Deadlines
from leasekeeper_client._hold import Hold, State
from leasekeeper_client._json import (
    JsonObject,
    as_list,
    as_object,
    integer,
    integer_or,
    seconds,
    seconds_or,
    text,
    text_or_none,
)
from leasekeeper_client._rpc import Answer, Call, constant
from leasekeeper_client._session import Session
from leasekeeper_client._settings import Settings
from leasekeeper_client.errors import TRANSIENT, KeeperError, LeaseLost, LossReason

PATIENCE_MIN: Final = 0.25
PATIENCE_MAX: Final = 10.0
RETRY_MIN: Final = 0.05
LAST_LOOK: Final = 0.02
"""After a stretch without the event loop: time to read what had come long before."""
REASONS: Final[dict[str, LossReason]] = {
    "expired": "expired",
    "broken": "broken",
    "max_hold": "max_hold",
    "store_lost": "store_lost",
}


def take_grant(
    hold: Hold, result: object, answer: Answer, asked_at: float, contact: Contact
) -> None:
    """Give a hold what `lease.acquire` granted.

    Raises:
        Malformed: The result is no grant.
    """
    grant = as_object(result)
    hold.grant(
        integer(grant, "fence"),
        contact=contact,
        sent_at=answer.sent_at,
        received_at=answer.received_at,
        waited=seconds_or(grant, "waited_ms", 0.0),
        ttl=seconds(grant, "ttl_ms"),
        asked_at=asked_at,
    )


class Holdings:
    """Every hold of this client, keyed by name and lease id.

    A released hold stays here until the server has confirmed it, because heartbeats renew
    whatever the session holds: a forgotten lease would live for ever.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._clock = settings.clock
        self._holds: dict[tuple[str, str], Hold] = {}
        self._deadlines = Deadlines(settings.clock)
        self._beat_due = 0.0
        self._beat_sooner = anyio.Event()

    def add(self, hold: Hold) -> None:
        """Know a hold from before it is asked for, so that nothing about it is missed."""
        self._holds[hold.name, hold.lease_id] = hold

    def discard(self, hold: Hold) -> None:
        """Forget a hold that the server does not have, or no longer."""
        self._holds.pop((hold.name, hold.lease_id), None)

    def granted(self, hold: Hold) -> None:
        """A hold has just been granted: watch its deadline, and beat in time for it."""
        self._deadlines.watch(hold)
        due = self._clock() + hold.ttl / 3
        if due < self._beat_due:
            self._beat_due = due
            self._beat_sooner.set()

    def held(self) -> list[Hold]:
        """Return the holds that are held."""
        return [hold for hold in self._holds.values() if hold.state is State.HELD]

    def at_stake(self) -> float:
        """Return in how many seconds the first hold is lost if nothing more is heard."""
        now = self._clock()
        return min((hold.remaining(now) for hold in self.held()), default=math.inf)

    async def run_deadlines(self) -> None:
        """Lose holds at their deadlines, until cancelled."""
        await self._deadlines.run()

    def dropped(self) -> None:
        """The connection is gone."""
        for hold in list(self._holds.values()):
            hold.drop()

    def failed(self) -> None:
        """There will be no connection again, so nothing can be renewed."""
        for hold in list(self._holds.values()):
            hold.lose("disconnected")

    def lost(self, params: JsonObject) -> None:
        """The server says that a lease is lost."""
        hold = self._holds.get((text(params, "name"), text(params, "lease")))
        if hold is not None:
            reason = REASONS.get(text(params, "reason"), "unknown")
            hold.lose(reason, text_or_none(params, "detail"))

    def contended(self, params: JsonObject) -> None:
        """The server says that others wait for a lease."""
        hold = self._holds.get((text(params, "name"), text(params, "lease")))
        if hold is not None:
            hold.contend(integer_or(params, "waiting", 1))

    async def beat(self, connection: Connection, listening: Callable[[], bool]) -> None:
        """Send heartbeats while there is something to keep alive; drop a silent connection.

        Args:
            connection: The connection.
            listening: Whether something is expected of the server though nothing is held.
        """
        self._beat_due = self._clock() + self._interval(connection)
        while not connection.dead.is_set():
            self._beat_sooner = anyio.Event()
            with move_on_after(max(0.0, self._beat_due - self._clock())):
                await self._beat_sooner.wait()
                continue
            self._beat_due = self._clock() + self._interval(connection)
            if self._holds or connection.busy or listening():
                await self._beat_once(connection)

    async def _beat_once(self, connection: Connection) -> None:
        contact = connection.lifeline.contact
        holds = [hold for hold in self.held() if hold.contact is contact]
        call = Call(
            "session.heartbeat",
            constant(),
            bound=True,
            on_result=partial(self._beaten, holds),
            on_error_data=partial(_beaten_in_part, holds),
        )
        connection.submit(call)
        with move_on_after(self._patience()):
            await call.done.wait()
        if call.outcome is None:
            connection.kill("a heartbeat was not answered")
            await connection.dead.wait()
        elif isinstance(call.outcome, TRANSIENT):
            # The store did not answer for some: the connection is good, those are not renewed.
            soon = max(call.outcome.retry_after, RETRY_MIN, self._shortest() / 10)
            self._beat_due = min(self._beat_due, self._clock() + soon)

    def _beaten(self, holds: list[Hold], answer: Answer) -> None:
        """Every lease that was held when the heartbeat was sent is renewed, or lost."""
        lost = set(map(str, as_list(as_object(answer.result).get("lost", []))))
        for hold in holds:
            if hold.lease_id not in lost:
                hold.confirm(sent_at=answer.sent_at, received_at=answer.received_at)
            elif hold.state is State.HELD:
                hold.lose("unknown", "the server no longer has it")

    def _shortest(self) -> float:
        """Return the shortest TTL of what is held, or 30 s."""
        return min((hold.ttl for hold in self.held()), default=30.0)

    def _interval(self, connection: Connection) -> float:
        return min(connection.info.heartbeat, self._shortest() / 3)

    def _patience(self) -> float:
        return min(PATIENCE_MAX, max(PATIENCE_MIN, self._shortest() / 3))

    async def prove(self, connection: Connection) -> None:
        """Ping while what is held depends on it; drop a connection that does not answer.

        A ping renews nothing. It proves that the server has not noticed a drop that we have not.
        Where a lease ends by its TTL before any grace is over there is nothing to prove.
        """
        interval = connection.lifeline.interval
        if interval is None:
            return
        pause = interval
        while not await connection.dies_within(pause):
            pause = interval
            if self._depend(connection.lifeline):
                confirmed_at = connection.lifeline.contact.confirmed_at
                pause = max(0.0, confirmed_at + interval - self._clock())
                if pause == 0.0:
                    await self._ping_once(connection, interval)

    def _depend(self, lifeline: Lifeline) -> bool:
        """Return whether a lease would outlast the contact that it is held under."""
        contact, grace = lifeline.contact, lifeline.grace
        return grace is not None and any(
            hold.contact is contact and hold.ttl > grace for hold in self.held()
        )

    async def _ping_once(self, connection: Connection, patience: float) -> None:
        sent_at = connection.ping()
        for span in (patience, LAST_LOOK):
            if await connection.dies_within(span):
                return
            if connection.lifeline.contact.confirmed_at >= sent_at:
                return
        connection.kill("a ping was not answered")

    async def resume(self, connection: Connection) -> None:
        """Move every held lease to a new connection; return when each is moved or lost."""
        while not connection.dead.is_set():
            holds = [hold for hold in self.held() if not _is_on(hold, connection)]
            if not holds:
                return
            calls = [self._resume_call(hold, connection) for hold in holds]
            for call in calls:
                connection.submit(call)
            hint = RETRY_MIN
            for call in calls:
                await call.done.wait()
                if isinstance(call.outcome, TRANSIENT):
                    hint = max(hint, call.outcome.retry_after)
            if all(_is_on(hold, connection) for hold in holds):
                return
            with move_on_after(hint):
                await connection.dead.wait()

    def _resume_call(self, hold: Hold, connection: Connection) -> Call:
        return Call(
            "lease.resume",
            constant(name=hold.name, lease=hold.lease_id),
            bound=True,
            on_result=partial(self._resumed, hold, connection),
            on_error=partial(_not_resumed, hold),
        )

    def _resumed(self, hold: Hold, connection: Connection, answer: Answer) -> None:
        result = as_object(answer.result)
        if integer(result, "fence") != hold.fence:
            hold.lose("store_lost", "it was granted anew in our name")
            return
        hold.confirm(
            contact=connection.lifeline.contact,
            sent_at=answer.sent_at,
            received_at=answer.received_at,
            ttl=seconds(result, "ttl_ms"),
        )
        if hold.state is State.HELD:
            self._deadlines.watch(hold)

    def release(self, hold: Hold, session: Session, tasks: TaskGroup) -> Call:
        """Give a hold back, and go on trying until it is; never blocks.

        Returns:
            The first request, whose answer says whether the lease was still ours.
        """
        until = self._clock() + max(hold.remaining(self._clock()), hold.ttl)
        hold.end()
        return self._send_release(hold, session, tasks, until)

    def _send_release(self, hold: Hold, session: Session, tasks: TaskGroup, until: float) -> Call:
        def failed(error: KeeperError) -> None:
            if isinstance(error, TRANSIENT) and self._clock() < until:
                tasks.start_soon(again, max(error.retry_after, RETRY_MIN))
            else:
                self.discard(hold)

        async def again(pause: float) -> None:
            await anyio.sleep(pause)
            self._send_release(hold, session, tasks, until)

        call = Call(
            "lease.release",
            constant(name=hold.name, lease=hold.lease_id),
            on_result=lambda _: self.discard(hold),
            on_error=failed,
            useful_until=until,
        )
        session.submit(call)
        return call


def _beaten_in_part(holds: list[Hold], answer: Answer) -> None:
    """The heartbeat failed, and these were renewed all the same; of the others nothing is known."""
    data = answer.result if isinstance(answer.result, Mapping) else {}
    renewed = data.get("renewed")
    for hold in holds:
        if isinstance(renewed, list) and hold.lease_id in renewed:
            hold.confirm(sent_at=answer.sent_at, received_at=answer.received_at)


def _is_on(hold: Hold, connection: Connection) -> bool:
    return hold.contact is connection.lifeline.contact


def _not_resumed(hold: Hold, error: KeeperError) -> None:
    if isinstance(error, TRANSIENT):
        return
    reason: LossReason = "unknown"
    hold.lose(reason, None if isinstance(error, LeaseLost) else str(error))
