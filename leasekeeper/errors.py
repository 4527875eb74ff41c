"""The exception tree, and the one table of wire codes.

    LeasekeeperError
    ├── ConfigurationError        this process cannot work as it was told to
    └── RpcError                  reaches the peer as a JSON-RPC error
        ├── ParseError, InvalidRequest, MethodNotFound, InvalidParams, InternalError
        ├── Busy, Lost, Cancelled
        ├── FillFailed, Deadlock
        ├── Unauthenticated, Forbidden
        ├── LimitReached, Overloaded
        └── Unavailable, Draining

An outage is not contention (law L14): `Busy`, `Unavailable` and `Forbidden` never stand in for
each other.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum, StrEnum
from typing import ClassVar, Final


class LeasekeeperError(Exception):
    """Everything this project raises on purpose."""


class ConfigurationError(LeasekeeperError):
    """This process cannot work as configured; the message says what to do."""


class Outcome(StrEnum):
    """What is known of a store call that failed."""

    NONE = "none"
    """It had no effect."""
    UNKNOWN = "unknown"
    """It may have had its effect. Repeating it with the same lease id is safe (law L6)."""


class RpcError(LeasekeeperError):
    """An error with a wire code.

    `data` holds what the contract promises beside the code: JSON values and messages of the
    vocabulary, nothing else.
    """

    code: ClassVar[int]
    name: ClassVar[str]

    def __init__(self, text: str, data: Mapping[str, object] | None = None) -> None:
        super().__init__(f"{self.name}: {text}")
        self.data: Mapping[str, object] = data or {}


class ParseError(RpcError):
    """The frame is not JSON."""

    code = -32700
    name = "parse_error"


class InvalidRequest(RpcError):
    """JSON, but not a JSON-RPC request that may be made now."""

    code = -32600
    name = "invalid_request"


class MethodNotFound(RpcError):
    """No such method in this version."""

    code = -32601
    name = "method_not_found"

    def __init__(self, method: str) -> None:
        super().__init__("there is no such method", {"method": method[:100]})


class InvalidParams(RpcError):
    """A parameter is missing, unknown, ill-typed or out of range."""

    code = -32602
    name = "invalid_params"

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(f"{path}: {problem}", {"path": path})


class InternalError(RpcError):
    """A bug of ours. The log has the traceback; the peer gets none of it."""

    code = -32603
    name = "internal"

    def __init__(self) -> None:
        super().__init__("the server failed to answer this request; its log says why")


class Busy(RpcError):
    """Someone else has it, and the wait is over."""

    code = -32001
    name = "busy"

    def __init__(self, *, holders: Sequence[object], waiting: int, retry_after_ms: int) -> None:
        super().__init__(
            "someone else has it, and the wait is over",
            {"holders": list(holders), "waiting": waiting, "retry_after_ms": retry_after_ms},
        )


class Lost(RpcError):
    """This lease id holds nothing (any more)."""

    code = -32002
    name = "lost"

    def __init__(self) -> None:
        super().__init__("this lease id holds nothing (any more)")


class Cancelled(RpcError):
    """The request was cancelled, or its wait was taken over by another request."""

    code = -32004
    name = "cancelled"

    def __init__(self, text: str = "the request was cancelled") -> None:
        super().__init__(text)


class FillFailed(RpcError):
    """Whoever loaded the value has failed, and nobody tries again yet."""

    code = -32005
    name = "fill_failed"

    def __init__(self, error: str, retry_after_ms: int) -> None:
        super().__init__(
            "the value could not be loaded", {"error": error, "retry_after_ms": retry_after_ms}
        )


class Deadlock(RpcError):
    """Waiting for this value would never end: its filler waits, in turn, for the caller."""

    code = -32006
    name = "deadlock"

    def __init__(self, cycle: Sequence[str]) -> None:
        super().__init__("this wait would close a cycle", {"cycle": list(cycle)})


class Unauthenticated(RpcError):
    """No token, or a wrong one."""

    code = -32010
    name = "unauthenticated"

    def __init__(self) -> None:
        super().__init__("this server wants a token, in session.open or as a bearer header")


class Forbidden(RpcError):
    """This identity may not do that."""

    code = -32011
    name = "forbidden"


class LimitReached(RpcError):
    """A quota or bound, named."""

    code = -32012
    name = "limit"

    def __init__(self, limit: str, maximum: int) -> None:
        super().__init__(f"at most {maximum} {limit}", {"limit": limit, "max": maximum})


class Overloaded(RpcError):
    """The server has more to do than it can; come back."""

    code = -32013
    name = "overloaded"

    def __init__(self, retry_after_ms: int) -> None:
        super().__init__("too much is under way", {"retry_after_ms": retry_after_ms})


class Unavailable(RpcError):
    """The store cannot be reached, or is in its restart hold."""

    code = -32020
    name = "unavailable"

    def __init__(
        self, outcome: Outcome, retry_after_ms: int, text: str = "the store cannot answer now"
    ) -> None:
        super().__init__(text, {"outcome": str(outcome), "retry_after_ms": retry_after_ms})
        self.outcome: Final = outcome
        self.retry_after_ms: Final = retry_after_ms
        self.text: Final = text

    def beside(self, **data: object) -> "Unavailable":
        """The same, with more data."""
        more = Unavailable(self.outcome, self.retry_after_ms, self.text)
        more.data = {**self.data, **data}
        return more


class Draining(RpcError):
    """This server is going away; another one, or its successor, will serve."""

    code = -32021
    name = "draining"

    def __init__(self, reconnect_after_ms: int) -> None:
        super().__init__("this server is going away", {"reconnect_after_ms": reconnect_after_ms})


CODES: Final[Mapping[int, type[RpcError]]] = {
    error.code: error
    for error in (
        ParseError,
        InvalidRequest,
        MethodNotFound,
        InvalidParams,
        InternalError,
        Busy,
        Lost,
        Cancelled,
        FillFailed,
        Deadlock,
        Unauthenticated,
        Forbidden,
        LimitReached,
        Overloaded,
        Unavailable,
        Draining,
    )
}
"""Every wire code of this version."""


class CloseCode(IntEnum):
    """WebSocket close codes. 4000 to 4499: reconnect. 4500 to 4999: do not."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_DATA = 1007
    POLICY = 1008
    TOO_BIG = 1009
    DRAINING = 4000
    SLOW_CONSUMER = 4001
    NO_SIGN_OF_LIFE = 4002
    UNAUTHENTICATED = 4500
    LIMIT = 4501


CLEAN_CLOSES: Final = frozenset({CloseCode.NORMAL, CloseCode.GOING_AWAY, CloseCode.NO_STATUS})
"""A peer's close frame with one of these, or with no code at all, says that it is done."""
