"""The exception tree, and the table of wire codes."""

from collections.abc import Iterator

import pytest

from leasekeeper.errors import (
    CLEAN_CLOSES,
    CODES,
    Busy,
    Cancelled,
    CloseCode,
    ConfigurationError,
    Deadlock,
    Draining,
    FillFailed,
    Forbidden,
    InternalError,
    InvalidParams,
    InvalidRequest,
    LeasekeeperError,
    LimitReached,
    Lost,
    MethodNotFound,
    Outcome,
    Overloaded,
    ParseError,
    RpcError,
    Unauthenticated,
    Unavailable,
)


@pytest.mark.parametrize(
    ("error", "code", "message", "data"),
    [
        (ParseError("no"), -32700, "parse_error: no", {}),
        (InvalidRequest("no"), -32600, "invalid_request: no", {}),
        (
            MethodNotFound("lease.steal"),
            -32601,
            "method_not_found: there is no such method",
            {"method": "lease.steal"},
        ),
        (
            InvalidParams("$.ttl_ms", "expected an integer"),
            -32602,
            "invalid_params: $.ttl_ms: expected an integer",
            {"path": "$.ttl_ms"},
        ),
        (
            InternalError(),
            -32603,
            "internal: the server failed to answer this request; its log says why",
            {},
        ),
        (
            Busy(holders=("holder",), waiting=2, retry_after_ms=50),
            -32001,
            "busy: someone else has it, and the wait is over",
            {"holders": ["holder"], "waiting": 2, "retry_after_ms": 50},
        ),
        (Lost(), -32002, "lost: this lease id holds nothing (any more)", {}),
        (Cancelled(), -32004, "cancelled: the request was cancelled", {}),
        (Cancelled("taken over"), -32004, "cancelled: taken over", {}),
        (
            FillFailed("no such host", 50),
            -32005,
            "fill_failed: the value could not be loaded",
            {"error": "no such host", "retry_after_ms": 50},
        ),
        (
            Deadlock(("a", "b", "a")),
            -32006,
            "deadlock: this wait would close a cycle",
            {"cycle": ["a", "b", "a"]},
        ),
        (
            Unauthenticated(),
            -32010,
            "unauthenticated: this server wants a token, in session.open or as a bearer header",
            {},
        ),
        (Forbidden("not yours"), -32011, "forbidden: not yours", {}),
        (
            LimitReached("waiters_per_name", 3),
            -32012,
            "limit: at most 3 waiters_per_name",
            {"limit": "waiters_per_name", "max": 3},
        ),
        (
            Overloaded(50),
            -32013,
            "overloaded: too much is under way",
            {"retry_after_ms": 50},
        ),
        (
            Unavailable(Outcome.UNKNOWN, 50),
            -32020,
            "unavailable: the store cannot answer now",
            {"outcome": "unknown", "retry_after_ms": 50},
        ),
        (
            Draining(50),
            -32021,
            "draining: this server is going away",
            {"reconnect_after_ms": 50},
        ),
    ],
)
def test_an_error_says_what_the_contract_promises(
    error: RpcError, code: int, message: str, data: dict[str, object]
) -> None:
    assert (error.code, str(error), error.data) == (code, message, data)


def test_the_table_of_codes_has_every_error_once() -> None:
    errors = list(leaves(RpcError))
    assert {error.code: error for error in errors} == CODES
    assert len({error.code for error in errors}) == len({error.name for error in errors})
    assert len(errors) == len(CODES)


def leaves(cls: type[RpcError]) -> Iterator[type[RpcError]]:
    """The errors that a peer can meet."""
    for child in cls.__subclasses__():
        yield child
        yield from leaves(child)


def test_an_outage_is_not_contention() -> None:
    """Busy, unavailable and forbidden never stand in for each other (L14)."""
    different = (Busy, Unavailable, Forbidden)
    assert len({error.code for error in different}) == len(different)
    assert not any(
        issubclass(one, other) for one in different for other in different if one is not other
    )
    assert Unavailable(Outcome.NONE, 0).outcome is Outcome.NONE


def test_an_outage_may_say_more_beside_what_it_always_says() -> None:
    """Without changing the one that others may have been given, too."""
    problem = Unavailable(Outcome.UNKNOWN, 50, "the store is loading")
    more = problem.beside(renewed=["a", "b"])
    assert str(more) == str(problem) == "unavailable: the store is loading"
    assert (more.outcome, more.retry_after_ms) == (problem.outcome, problem.retry_after_ms)
    assert more.data == {**problem.data, "renewed": ["a", "b"]}
    assert problem.data == {"outcome": "unknown", "retry_after_ms": 50}


def test_everything_raised_on_purpose_has_one_root() -> None:
    assert issubclass(RpcError, LeasekeeperError)
    assert issubclass(ConfigurationError, LeasekeeperError)
    assert not issubclass(ConfigurationError, RpcError)


def test_close_codes_say_whether_to_come_back() -> None:
    """4000 to 4499: reconnect. 4500 to 4999: do not."""
    back = {CloseCode.DRAINING, CloseCode.SLOW_CONSUMER, CloseCode.NO_SIGN_OF_LIFE}
    away = {CloseCode.UNAUTHENTICATED, CloseCode.LIMIT}
    assert {code for code in CloseCode if 4000 <= code < 4500} == back
    assert {code for code in CloseCode if 4500 <= code < 5000} == away


def test_a_clean_close_is_one_the_peer_meant() -> None:
    """1000, 1001, or a close frame without a code; a drop has none (L8)."""
    assert {1000, 1001, 1005} == CLEAN_CLOSES
    assert CloseCode.ABNORMAL not in CLEAN_CLOSES
