"""What can go wrong, as one tree that mirrors the wire.

`FROM_WIRE` is the one table from error codes to classes. Every error can be pickled (Celery and
multiprocessing do), and none carries a lease id.
"""

from collections.abc import Mapping
from typing import ClassVar, Final, Literal, Self, TypeAlias

from leasekeeper_client._json import integer_or, seconds_or, text_or
from leasekeeper_client.model import Holder, holders_from

LossReason: TypeAlias = Literal[
    "expired",
    "broken",
    "max_hold",
    "store_lost",
    "deadline",
    "disconnected",
    "released",
    "unknown",
]
"""Why a lease was lost.

The server says `expired`, `broken`, `max_hold` or `store_lost`. The client says `deadline` when its
own deadline passed, `disconnected` when the lease went with the connection, `released` when its
context was left already, and `unknown` when the server no longer knows it and cannot say why.
"""


class KeeperError(Exception):
    """Everything this client raises about leases, servers and connections.

    Attributes:
        code: The JSON-RPC error code of this class, or None where it never crosses the wire.
    """

    code: ClassVar[int | None] = None

    @classmethod
    def from_wire(cls, message: str, data: Mapping[str, object]) -> Self:
        """Build the error that an answer of the server describes."""
        del data
        return cls(message)


class Busy(KeeperError):
    """Someone else has it, and the wait is over.

    Attributes:
        holders: Who has it, as far as the server says (at most 16).
        waiting: How many were waiting.
        retry_after: Seconds after which another try makes sense.
    """

    code: ClassVar[int | None] = -32001

    def __init__(
        self,
        message: str,
        *,
        holders: tuple[Holder, ...] = (),
        waiting: int = 0,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.holders = holders
        self.waiting = waiting
        self.retry_after = retry_after

    @classmethod
    def from_wire(cls, message: str, data: Mapping[str, object]) -> Self:
        return cls(
            message,
            holders=holders_from(data.get("holders", [])),
            waiting=integer_or(data, "waiting", 0),
            retry_after=seconds_or(data, "retry_after_ms", 0.0),
        )


class LeaseLost(KeeperError):
    """The lease is gone: what it guarded must not go on.

    Attributes:
        name: The name that was leased.
        fence: The fence of the lost lease, or None when it was lost before it was known.
        reason: Why; see `LossReason`.
        detail: The words given to `break_lease`, or None.
    """

    code: ClassVar[int | None] = -32002

    def __init__(
        self,
        message: str,
        *,
        name: str = "",
        fence: int | None = None,
        reason: LossReason = "unknown",
        detail: str | None = None,
    ) -> None:
        super().__init__(message)
        self.name = name
        self.fence = fence
        self.reason: LossReason = reason
        self.detail = detail


class Cancelled(KeeperError):
    """The server gave the request up: it was cancelled, or its wait moved to another session."""

    code: ClassVar[int | None] = -32004


class FillFailed(KeeperError):
    """The one who filled the cache for all failed.

    Attributes:
        error: What the filler said.
        retry_after: Seconds after which another try makes sense.
    """

    code: ClassVar[int | None] = -32005

    def __init__(self, message: str, *, error: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.error = error
        self.retry_after = retry_after

    @classmethod
    def from_wire(cls, message: str, data: Mapping[str, object]) -> Self:
        return cls(
            message,
            error=str(data.get("error", "")),
            retry_after=seconds_or(data, "retry_after_ms", 0.0),
        )


class Deadlock(KeeperError):
    """Granting this wait would close a cycle of waiters.

    Attributes:
        cycle: The names on the cycle.
    """

    code: ClassVar[int | None] = -32006

    def __init__(self, message: str, *, cycle: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.cycle = cycle

    @classmethod
    def from_wire(cls, message: str, data: Mapping[str, object]) -> Self:
        cycle = data.get("cycle", [])
        return cls(message, cycle=tuple(map(str, cycle)) if isinstance(cycle, list) else ())


class Unauthenticated(KeeperError):
    """The token is missing or wrong."""

    code: ClassVar[int | None] = -32010


class Forbidden(KeeperError):
    """You may not."""

    code: ClassVar[int | None] = -32011


class LimitReached(KeeperError):
    """A quota or bound, which is named.

    Attributes:
        limit: The name of the bound.
        max: Its value, or None when the server does not say.
    """

    code: ClassVar[int | None] = -32012

    def __init__(self, message: str, *, limit: str = "", max: int | None = None) -> None:
        super().__init__(message)
        self.limit = limit
        self.max = max

    @classmethod
    def from_wire(cls, message: str, data: Mapping[str, object]) -> Self:
        maximum = data.get("max")
        return cls(
            message,
            limit=text_or(data, "limit", ""),
            max=maximum if isinstance(maximum, int) else None,
        )


class Overloaded(KeeperError):
    """The server refused more work.

    Attributes:
        retry_after: Seconds after which another try makes sense.
    """

    code: ClassVar[int | None] = -32013

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @classmethod
    def from_wire(cls, message: str, data: Mapping[str, object]) -> Self:
        return cls(message, retry_after=seconds_or(data, "retry_after_ms", 0.0))


Outcome: TypeAlias = Literal["none", "unknown"]


class Unavailable(KeeperError):
    """The store could not be reached, or an answer was lost.

    Attributes:
        outcome: `"none"` when nothing happened, `"unknown"` when it may have.
        retry_after: Seconds after which another try makes sense.
    """

    code: ClassVar[int | None] = -32020

    def __init__(
        self, message: str, *, outcome: Outcome = "unknown", retry_after: float = 0.0
    ) -> None:
        super().__init__(message)
        self.outcome: Outcome = outcome
        self.retry_after = retry_after

    @classmethod
    def from_wire(cls, message: str, data: Mapping[str, object]) -> Self:
        return cls(
            message,
            outcome="none" if data.get("outcome") == "none" else "unknown",
            retry_after=seconds_or(data, "retry_after_ms", 0.0),
        )


class Draining(KeeperError):
    """This server is leaving; another will do.

    Attributes:
        retry_after: Seconds after which to go to another server.
    """

    code: ClassVar[int | None] = -32021

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @classmethod
    def from_wire(cls, message: str, data: Mapping[str, object]) -> Self:
        return cls(message, retry_after=seconds_or(data, "reconnect_after_ms", 0.0))


class InvalidRequest(KeeperError):
    """The server did not accept the shape of a request.

    Attributes:
        path: Where in the parameters, as in `$.ttl_ms`.
    """

    code: ClassVar[int | None] = -32602

    def __init__(self, message: str, *, path: str = "$") -> None:
        super().__init__(message)
        self.path = path

    @classmethod
    def from_wire(cls, message: str, data: Mapping[str, object]) -> Self:
        return cls(message, path=text_or(data, "path", "$"))


class UnknownMethod(KeeperError):
    """The server does not know a method: it speaks an older protocol."""

    code: ClassVar[int | None] = -32601


class ProtocolError(KeeperError):
    """The server said something that the protocol does not allow, or with an unknown code."""


class ConnectionFailed(KeeperError):
    """No server could be reached, or none answered in time.

    Attributes:
        close_code: The WebSocket close code, where one was received.
    """

    def __init__(self, message: str, *, close_code: int | None = None) -> None:
        super().__init__(message)
        self.close_code = close_code


class ValueNotFound(KeeperError):
    """There is no such thing, as whoever was to load it has found out, now or lately.

    Attributes:
        key: Of what.
        retry_after: Seconds for which that is believed.
    """

    def __init__(self, message: str, *, key: str = "", retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.key = key
        self.retry_after = retry_after


class ValueTooLarge(LimitReached):
    """A value that is longer, on the wire, than the server takes."""


class UnknownCodec(KeeperError):
    """A cached value is there, but under a codec that is not in use here.

    Attributes:
        tag: The name of the codec.
    """

    def __init__(self, message: str, *, tag: object = None) -> None:
        super().__init__(message)
        self.tag: str = str(tag)


class WriteExpired(KeeperError):
    """A write-through took longer than it had said.

    The cache has not kept what is old: all of it is invalid now. But reads in between may have
    returned it, and have been cached until the end of the write.

    Attributes:
        key: What was written.
    """

    def __init__(self, message: str, *, key: str = "") -> None:
        super().__init__(message)
        self.key = key


FROM_WIRE: Final[Mapping[int, type[KeeperError]]] = {
    -32001: Busy,
    -32002: LeaseLost,
    -32004: Cancelled,
    -32005: FillFailed,
    -32006: Deadlock,
    -32010: Unauthenticated,
    -32011: Forbidden,
    -32012: LimitReached,
    -32013: Overloaded,
    -32020: Unavailable,
    -32021: Draining,
    -32600: InvalidRequest,
    -32601: UnknownMethod,
    -32602: InvalidRequest,
}

Transient: TypeAlias = Draining | Overloaded | Unavailable
TRANSIENT: Final = (Draining, Overloaded, Unavailable)
"""The errors after which the same request may simply be sent again."""


def error_from_wire(code: int, message: str, data: Mapping[str, object]) -> KeeperError:
    """Return the exception for an error answer; `ProtocolError` for a code we do not know."""
    found = FROM_WIRE.get(code)
    if found is None:
        return ProtocolError(f"the server answered with error {code}: {message}")
    return found.from_wire(message, data)


def may_have_been_done(error: KeeperError) -> bool:
    """Return whether a request that failed so may have been carried out all the same."""
    if isinstance(error, Unavailable):
        return error.outcome != "none"
    return isinstance(error, (ConnectionFailed, ProtocolError))
