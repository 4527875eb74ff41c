"""Asking for leases until they are granted, refused, or no longer wanted."""

from functools import partial
from secrets import token_hex
from typing import Final

import anyio
from anyio import CancelScope, move_on_after
from anyio.abc import TaskGroup

from leasekeeper_client._connection import Connection
from leasekeeper_client._hold import Hold
from leasekeeper_client._holdings import RETRY_MIN, Holdings, take_grant
from leasekeeper_client._json import Malformed, as_list, as_object, text
from leasekeeper_client._plan import Plan
from leasekeeper_client._rpc import Answer, Call, constant
from leasekeeper_client._session import Session
from leasekeeper_client._settings import Settings
from leasekeeper_client.errors import (
    TRANSIENT,
    KeeperError,
    Transient,
    Unavailable,
    may_have_been_done,
)

GIVE_BACK_SECONDS: Final = 2.0


class Acquisition:
    """One acquire, from the first asking to the grant.

    The client chooses the lease id, so that asking again, on whatever connection and however
    often, yields the same grant and keeps the same place in the queue (L6).
    """

    def __init__(
        self,
        plan: Plan,
        settings: Settings,
        session: Session,
        holdings: Holdings,
        tasks: TaskGroup,
    ) -> None:
        self._plan = plan
        self._settings = settings
        self._clock = settings.clock
        self._session = session
        self._holdings = holdings
        self._tasks = tasks
        self._lease_id = token_hex(16)
        self._holds = plan.holds(self._lease_id)
        self._begun_at = self._clock()
        self._until = None if plan.wait is None else self._begun_at + plan.wait
        self._call: Call | None = None
        self._asked_at: float | None = None
        self._unsure = False
        self._refusal: KeeperError | None = None

    async def run(self) -> tuple[Hold, ...]:
        """Wait until everything is granted.

        Raises:
            Busy: The wait is over.
            ConnectionFailed: The wait is over, and no server could be asked.
            KeeperError: The server refused.

        Cancellation: what was asked for is given back.
        """
        for hold in self._holds:
            hold.when_contended = self._plan.on_contended
            self._holdings.add(hold)
        try:
            with self._session.outstanding():
                await self._until_granted()
        except BaseException:
            await self._withdraw()
            raise
        return self._holds

    async def _until_granted(self) -> None:
        while True:
            self._call = call = Call(
                self._plan.method,
                partial(self._plan.params, self._lease_id, self._until),
                on_result=self._granted,
            )
            self._session.submit(call)
            await self._wait(call)
            try:
                call.result()
            except TRANSIENT as exc:
                self._refusal = exc
                self._unsure = self._unsure or may_have_been_done(exc)
                pause = self._pause_before_retry(exc)
                if pause is None:
                    raise
            else:
                return
            await anyio.sleep(pause)

    async def _wait(self, call: Call) -> None:
        """Wait for the answer: as long as the caller would, and for a lame answer a bit longer."""
        if self._until is None:
            await call.done.wait()
            return
        patience = self._settings.answer_timeout
        with move_on_after(max(self._until, self._begun_at + patience) - self._clock()):
            await call.done.wait()
        if call.outcome is None and call.on_the_wire and self._session.connection is call.carrier:
            with move_on_after(patience):
                await call.done.wait()
        if call.outcome is None:
            raise self._refusal or self._session.silence(call, self._clock() - self._begun_at)

    def _pause_before_retry(self, error: Transient) -> float | None:
        """Return the seconds after which to ask again, or None when there is no time for it.

        A server that is leaving or overloaded has not looked at the request, so that even a wait
        of 0 asks again; a store that cannot be reached is waited for as long as the caller waits.
        """
        pause = max(error.retry_after, RETRY_MIN)
        if self._until is None:
            return pause
        end = self._until
        if not isinstance(error, Unavailable):
            end = max(end, self._begun_at + self._settings.answer_timeout)
        return pause if self._clock() + pause < end else None

    def _granted(self, answer: Answer) -> None:
        """Take the grants. Runs in the reader, so that a loss right behind them is not missed."""
        call = self._call
        assert call is not None, "an answer comes after its question"
        assert isinstance(call.carrier, Connection), "and from the connection that carried it"
        contact = call.carrier.lifeline.contact
        if self._asked_at is None:
            self._asked_at = call.first_sent_at or answer.sent_at
        grants = [answer.result]
        if self._plan.together:
            grants = as_list(as_object(answer.result).get("leases"))
        by_name = {text(as_object(grant), "name"): grant for grant in grants}
        for hold in self._holds:
            if hold.name not in by_name:
                raise Malformed(f"no grant for {hold.name}")
            take_grant(hold, by_name[hold.name], answer, self._asked_at, contact)
            self._holdings.granted(hold)

    async def _withdraw(self) -> None:
        """Give back what was, or may have been, granted.

        It is asked for at once, waited for briefly, and done in the background if that is not
        enough; leaving takes at most two seconds, and not longer than the lease.
        """
        call = self._call
        if call is not None:
            self._session.abandon_unless_done(call)
        if call is None or not self._may_be_granted(call):
            for hold in self._holds:
                hold.end()
                self._holdings.discard(hold)
            return
        bound = min(GIVE_BACK_SECONDS, self._plan.ttl)
        with CancelScope(shield=True), move_on_after(bound):
            releases: list[Call] = []
            cancelled = False
            try:
                cancelled = await self._cancel(call)
            finally:
                releases = self._give_back(cancelled)
            for release in releases:
                await release.done.wait()

    def _give_back(self, cancelled: bool) -> list[Call]:
        if not cancelled:
            return [
                self._holdings.release(hold, self._session, self._tasks) for hold in self._holds
            ]
        for hold in self._holds:
            hold.end()
            self._holdings.discard(hold)
        return []

    async def _cancel(self, call: Call) -> bool:
        """Cancel a request that is on the wire; return whether the server says it is undone."""
        carrier = call.carrier
        if call.outcome is not None or not isinstance(carrier, Connection) or not carrier.alive:
            return False
        if call.request_id is None:
            return False
        cancel = Call("rpc.cancel", constant(id=call.request_id), bound=True)
        carrier.submit(cancel)
        await cancel.done.wait()
        if not isinstance(cancel.outcome, Answer):
            return False
        result = cancel.outcome.result
        return isinstance(result, dict) and result.get("cancelled") is True

    def _may_be_granted(self, call: Call) -> bool:
        if call.outcome is None:
            return call.sends > 0 or self._unsure
        if isinstance(call.outcome, KeeperError):
            retried = self._unsure and isinstance(call.outcome, TRANSIENT)
            return retried or may_have_been_done(call.outcome)
        return True
