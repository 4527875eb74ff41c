"""What the server tells about leases. Durations are seconds."""

from typing import Final, Literal, TypeAlias

from attrs import frozen

from leasekeeper_client._json import (
    JsonObject,
    as_list,
    as_object,
    integer_or,
    seconds_or,
    text,
    text_or,
    text_or_none,
)

Mode: TypeAlias = Literal["exclusive", "shared"]
VALUE_BYTES: Final = 1024 * 1024
ENVELOPE_BYTES: Final = 8192
"""What goes around a value in its request: the key, sixteen tags, the etag."""


@frozen
class Holder:
    """Who has a lease.

    Attributes:
        fence: The fencing token of its grant; None for a foreign lock, which has none.
        mode: Exclusive or shared.
        label: What the holder says about itself.
        held: Seconds since the grant; None where the server cannot know.
        ttl: Seconds until it expires unless it is renewed; None if it never does.
        client: The name of the program that holds it.
        foreign: Whether the lock was taken in the store by a program that is no client.
    """

    fence: int | None
    mode: Mode
    label: str | None
    held: float | None
    ttl: float | None
    client: str | None
    foreign: bool


@frozen
class Waiter:
    """Who waits for a lease.

    Attributes:
        position: Its place in the queue, as the server counts.
        mode: Exclusive or shared.
        label: What the waiter says about itself.
        waiting: Seconds since it was queued.
        client: The name of the program that waits.
    """

    position: int
    mode: Mode
    label: str | None
    waiting: float | None
    client: str | None


@frozen
class NameState:
    """What is known of one name: who holds it, and who waits.

    Attributes:
        name: The name.
        holders: Who has it; empty when it is free.
        waiting: The first of those who wait, in order.
        waiting_total: How many wait.
    """

    name: str
    holders: tuple[Holder, ...]
    waiting: tuple[Waiter, ...]
    waiting_total: int


@frozen
class ListedLease:
    """One lease in a listing.

    Attributes:
        name: The name it is held under.
        holder: Who has it.
        waiting: How many wait for the name.
    """

    name: str
    holder: Holder
    waiting: int


@frozen
class SessionInfo:
    """What the server said when the session was opened.

    Attributes:
        server: The id of the server.
        version: The version of the server.
        heartbeat: Seconds between heartbeats, at most.
        message_bytes: The longest message the server takes.
        batch_requests: The most requests it takes in one message.
        grace: Seconds for which a dropped session's leases are kept; None when it does not say.
        value_bytes: The longest value it caches, as JSON.
    """

    server: str
    version: str
    heartbeat: float
    message_bytes: int
    batch_requests: int
    grace: float | None
    value_bytes: int = VALUE_BYTES


def mode_from(obj: JsonObject) -> Mode:
    """Return the mode of a holder or waiter."""
    return "shared" if obj.get("mode") == "shared" else "exclusive"


def holder_from(value: object) -> Holder:
    """Return a holder as the server describes it."""
    obj = as_object(value)
    fence = integer_or(obj, "fence", -1)
    return Holder(
        fence=fence if fence >= 0 else None,
        mode=mode_from(obj),
        label=text_or_none(obj, "label"),
        held=_seconds_or_none(obj, "held_ms"),
        ttl=_seconds_or_none(obj, "ttl_ms"),
        client=text_or_none(obj, "client"),
        foreign=obj.get("foreign") is True,
    )


def holders_from(value: object) -> tuple[Holder, ...]:
    """Return a list of holders as the server describes them."""
    return tuple(map(holder_from, as_list(value)))


def name_state_from(value: object) -> NameState:
    """Return the state of a name from an answer or a `lease.changed`."""
    obj = as_object(value)
    waiting = tuple(map(_waiter_from, as_list(obj.get("waiting", []))))
    return NameState(
        name=text(obj, "name"),
        holders=holders_from(obj.get("holders", [])),
        waiting=waiting,
        waiting_total=integer_or(obj, "waiting_total", len(waiting)),
    )


def listed_from(value: object) -> ListedLease:
    """Return one line of `lease.list`."""
    obj = as_object(value)
    return ListedLease(text(obj, "name"), holder_from(obj), integer_or(obj, "waiting", 0))


def session_from(value: object) -> SessionInfo:
    """Return what `session.open` answered; limits that it does not name have their defaults."""
    obj = as_object(value)
    limits = as_object(obj.get("limits", {}))
    message_bytes = integer_or(limits, "message_bytes", 65536)
    value_bytes = integer_or(limits, "value_bytes", VALUE_BYTES)
    return SessionInfo(
        server=text_or(obj, "server", ""),
        version=text_or(obj, "version", ""),
        heartbeat=seconds_or(obj, "heartbeat_ms", 10.0),
        message_bytes=message_bytes,
        batch_requests=integer_or(limits, "batch_requests", 1000),
        grace=_seconds_or_none(limits, "grace_ms"),
        value_bytes=min(value_bytes, message_bytes - ENVELOPE_BYTES),
    )


def _waiter_from(value: object) -> Waiter:
    obj = as_object(value)
    return Waiter(
        position=integer_or(obj, "position", 0),
        mode=mode_from(obj),
        label=text_or_none(obj, "label"),
        waiting=_seconds_or_none(obj, "waiting_ms"),
        client=text_or_none(obj, "client"),
    )


def _seconds_or_none(obj: JsonObject, key_ms: str) -> float | None:
    span = seconds_or(obj, key_ms, -1.0)
    return span if span >= 0 else None
