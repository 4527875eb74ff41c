"""JSON-RPC calls and the frames they share. Pure: nothing is sent here."""

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, TypeAlias

import anyio
from attrs import define, field, frozen

from leasekeeper_client._contact import Lifeline
from leasekeeper_client._json import JsonObject, Malformed, as_object, encode, integer, text_or
from leasekeeper_client.errors import (
    KeeperError,
    LimitReached,
    ProtocolError,
    error_from_wire,
)

FRAME_BYTES_MAX: Final = 65536
"""A frame of ours is never longer, whatever the server would take."""

Params: TypeAlias = Callable[[float], JsonObject]


def constant(**params: object) -> Params:
    """Return parameters that do not depend on when they are sent; None means absent."""
    present = {key: value for key, value in params.items() if value is not None}
    return partial(_ignore_time, present)


def _ignore_time(params: JsonObject, _now: float) -> JsonObject:
    return params


@frozen
class Answer:
    """What the server answered.

    Attributes:
        result: The result, as JSON says it.
        sent_at: When the answered request was sent, by the client's clock.
        received_at: When the answer was read.
        sends: How often the request has been sent, counting this one.
    """

    result: object = field(repr=False)
    sent_at: float
    received_at: float
    sends: int


@define(eq=False)
class Call:
    """One request, from the asking to the answer, over as many connections as that takes.

    Attributes:
        method: Its name.
        params: Its parameters, given the time of sending (a wait shrinks while we are offline).
        repeatable: Whether it may be sent again when its answer was lost with a connection.
        bound: Whether it means something on one connection only, so that it dies with it.
        on_result: Runs in the reader, before anything that came behind the answer is read.
        on_error: The same, for an error.
        on_error_data: Before that, for what the error's data says was done all the same.
        value: JSON text that goes along as the parameter `value`. It is made once, and may be long.
    """

    method: str
    params: Params = field(repr=False)
    repeatable: bool = True
    bound: bool = False
    on_result: Callable[[Answer], None] | None = field(default=None, repr=False)
    on_error: Callable[[KeeperError], None] | None = field(default=None, repr=False)
    on_error_data: Callable[[Answer], None] | None = field(default=None, repr=False)
    value: str | None = field(default=None, repr=False)
    useful_until: float | None = None
    """When sending it (again) has become pointless, by the client's clock."""
    carrier: object | None = field(default=None, repr=False)
    """The connection that has it; `request_id` counts on that one."""
    request_id: int | None = None
    sent_at: float = 0.0
    first_sent_at: float | None = None
    sends: int = 0
    abandoned: bool = False
    outcome: Answer | KeeperError | None = field(default=None, repr=False)
    done: anyio.Event = field(factory=anyio.Event, repr=False)

    @property
    def on_the_wire(self) -> bool:
        """Whether its carrier has sent it."""
        return self.request_id is not None

    def settle(self, outcome: Answer | KeeperError) -> None:
        """Give it its outcome; the first one stays."""
        if self.outcome is not None or self.abandoned:
            return
        if isinstance(outcome, Answer) and self.on_result is not None:
            try:
                self.on_result(outcome)
            except Malformed as exc:
                outcome = ProtocolError(f"the answer to {self.method} is malformed: {exc}")
        self.outcome = outcome
        if isinstance(outcome, KeeperError) and self.on_error is not None:
            self.on_error(outcome)
        self.done.set()

    def result(self) -> Answer:
        """Return the answer.

        Raises:
            KeeperError: It was an error.
        """
        assert self.outcome is not None, "result() before the call is done"
        if isinstance(self.outcome, KeeperError):
            raise self.outcome
        return self.outcome

    def encode(self, request_id: int, now: float) -> str:
        """Return the request as JSON."""
        message = {
            "jsonrpc": "2.0",
            "id": request_id,
            "method": self.method,
            "params": self.params(now),
        }
        text = encode(message)
        return text if self.value is None else f'{text[:-2]},"value":{self.value}}}}}'

    def stamp(self, request_id: int, now: float) -> None:
        """It is being sent now."""
        self.request_id = request_id
        self.sent_at = now
        self.sends += 1
        if self.first_sent_at is None:
            self.first_sent_at = now


@define
class Outbox:
    """Calls on their way out of one connection, and those sent and not answered.

    Invariant: a call is in `queued` or in `pending` or in neither, never in both.
    """

    frame_bytes: int
    frame_requests: int
    request_bytes: int | None = None
    """A request may be so long if it has a frame of its own; None: no longer than other frames."""
    lifeline: Lifeline = field(factory=Lifeline)
    """Told what each answer proves, before anyone acts on the answer."""
    queued: deque[Call] = field(factory=deque)
    pending: dict[int, Call] = field(factory=dict)
    next_id: int = 1

    def next_frame(self, now: float) -> str | None:
        """Take as many queued calls as one frame holds; None when none is queued.

        The send time of all of them is `now`, which is not after the first byte leaves.
        """
        parts: list[str] = []
        size = 2
        longest = max(self.frame_bytes, self.request_bytes or 0)
        while self.queued and len(parts) < self.frame_requests:
            call = self.queued[0]
            if call.abandoned:
                self.queued.popleft()
                continue
            text = call.encode(self.next_id, now)
            length = len(text) if text.isascii() else len(text.encode())
            if length + 2 > longest:
                self.queued.popleft()
                call.settle(_too_long(longest))
                continue
            if parts and size + length + 1 > self.frame_bytes:
                break
            size += length + 1
            parts.append(text)
            self._sent(self.queued.popleft(), now)
        if not parts:
            return None
        return parts[0] if len(parts) == 1 else f"[{','.join(parts)}]"

    def answered(self, message: JsonObject, now: float) -> None:
        """Take one answer. One that nobody waits for (any more) is dropped.

        Raises:
            Malformed: It is no JSON-RPC answer.
        """
        if message.get("id") is None and "error" in message:
            error = as_object(message["error"])
            raise Malformed(f"the server rejected a frame: {text_or(error, 'message', '')}")
        call = self.pending.pop(integer(message, "id"), None)
        if call is None:
            return
        self.lifeline.proven(call.sent_at, now)
        if "error" in message:
            error = as_object(message["error"])
            if call.on_error_data is not None and "data" in error:
                call.on_error_data(Answer(error["data"], call.sent_at, now, call.sends))
            call.settle(_error(error))
        elif "result" in message:
            call.settle(Answer(message["result"], call.sent_at, now, call.sends))
        else:
            raise Malformed("neither result nor error")

    def take_movable(self) -> list[Call]:
        """Take out every call that another connection may carry, oldest first."""
        calls = [call for call in self._calls() if not call.bound]
        unsent = set(self.queued)
        moving = [call for call in calls if call.repeatable or call in unsent]
        gone = set(moving)
        self.pending = {key: call for key, call in self.pending.items() if call not in gone}
        self.queued = deque(call for call in self.queued if call not in gone)
        return moving

    def take_all(self) -> list[Call]:
        """Take out every call that has no answer, oldest first."""
        calls = self._calls()
        self.pending.clear()
        self.queued.clear()
        return calls

    def _calls(self) -> list[Call]:
        calls = [*self.pending.values(), *self.queued]
        return [call for call in calls if not call.abandoned]

    def forget(self, call: Call) -> None:
        """A call that was abandoned is answered to nobody."""
        if call.request_id is not None and self.pending.get(call.request_id) is call:
            del self.pending[call.request_id]

    def _sent(self, call: Call, now: float) -> None:
        call.stamp(self.next_id, now)
        self.pending[self.next_id] = call
        self.next_id += 1


def _too_long(frame_bytes: int) -> LimitReached:
    return LimitReached(
        f"a request is longer than {frame_bytes} bytes", limit="message_bytes", max=frame_bytes
    )


def _error(error: JsonObject) -> KeeperError:
    data = error.get("data")
    return error_from_wire(
        integer(error, "code"),
        text_or(error, "message", ""),
        data if isinstance(data, Mapping) else {},
    )
