"""What the cache and its values are over the wire: strict, and the same value that was given."""

from typing import Final

import attrs
import orjson
import pytest
from hypothesis import given

from leasekeeper.errors import Deadlock, FillFailed, InvalidParams, ParseError, RpcError
from leasekeeper.messages import (
    CacheCommitWrite,
    CacheFail,
    CacheFill,
    CacheFilled,
    CacheGet,
    CacheHit,
    CacheInvalidate,
    CacheNegative,
    CacheSet,
    CacheState,
    CacheToFill,
    ClaimedWrite,
    DeadPage,
    DeadWrite,
    FillOutcome,
    Json,
    Mark,
    Params,
    Refresh,
    Result,
    WritesClaimed,
)
from leasekeeper.wire.codec import (
    VALUE_LEVELS_MAX,
    Request,
    decode_frame,
    decode_params,
    encode_error,
    encode_result,
)
from tests import strategies
from tests.wire.asking import LEASE, error_of

ENOUGH: Final[dict[str, dict[str, object]]] = {
    "cache.get": {"key": "k"},
    "cache.fill": {"key": "k", "fill": LEASE, "ttl_ms": 1000},
    "cache.fail": {"key": "k", "fill": LEASE, "error": "no"},
    "cache.set": {"key": "k", "value": 1, "ttl_ms": 1000},
    "cache.invalidate": {"keys": ["k"]},
    "cache.commit_write": {"key": "k", "write": LEASE},
    "writes.claim": {"queue": "q"},
    "writes.ack": {"queue": "q", "ids": ["i"]},
}
"""Parameters to which those of a case are added."""


def nested(levels: int) -> list[object]:
    """Lists in lists."""
    value: list[object] = []
    for _ in range(levels - 1):
        value = [value]
    return value


# --- Parameters -------------------------------------------------------------------------------


def test_absent_parameters_of_the_cache_have_the_defaults_of_the_contract() -> None:
    assert decode_params("cache.get", {"key": "a"}) == CacheGet(
        "a",
        wait_ms=30_000,
        can_fill=True,
        stale_ok=True,
        fill_ms=10_000,
        within_key=None,
        within_fill=None,
    )


@pytest.mark.parametrize(
    ("method", "field", "values"),
    [
        ("cache.get", "fill_ms", (100, 600_000)),
        ("cache.set", "ttl_ms", (1, 30 * 24 * 3_600_000)),
        ("cache.set", "stale_ms", (0, 30 * 24 * 3_600_000)),
        ("cache.set", "tags", ([], ["a", "a"], [f"t{each}" for each in range(16)])),
        ("cache.set", "etag", ("e", "é" * 255)),
        ("cache.fail", "error", ("", "é" * 1000)),
        ("cache.fail", "retry_after_ms", (0, 3_600_000)),
        ("cache.invalidate", "keys", (["a", "a"], [f"k{each}" for each in range(1000)])),
        ("cache.invalidate", "tags", (["a", "a"], [f"t{each}" for each in range(100)])),
        ("cache.invalidate", "mode", ("hard", "soft")),
        ("writes.claim", "max", (1, 1000)),
        ("writes.ack", "ids", (["0-1.a"], ["i", "i"], ["i" * 300] * 1000)),
    ],
)
def test_the_outermost_values_of_the_cache_are_allowed(
    method: str, field: str, values: tuple[object, ...]
) -> None:
    for value in values:
        decoded = attrs.asdict(decode_params(method, ENOUGH[method] | {field: value}))
        assert orjson.loads(orjson.dumps(decoded[field])) == value


@pytest.mark.parametrize(
    ("method", "params", "path", "problem"),
    [
        ("cache.set", {"value": nested(VALUE_LEVELS_MAX + 1)}, "$.value", "than 254 levels"),
        ("cache.set", {"tags": ["a", "b", 3]}, "$.tags[2]", "a string"),
        ("cache.set", {"tags": ["a", "b\n"]}, "$.tags[1]", "expected only"),
        ("cache.set", {"tags": ["t"] * 17}, "$.tags", "0 to 16 items"),
        ("cache.set", {"tags": None}, "$.tags", "a list"),
        ("cache.set", {"etag": ""}, "$.etag", "1 to 255 characters"),
        ("cache.set", {"ttl_ms": 0}, "$.ttl_ms", "1 to 2592000000"),
        ("cache.set", {"ttl_ms": 1e3}, "$.ttl_ms", "an integer"),
        ("cache.fill", {"value": 1, "fill": None}, "$.fill", "a string"),
        ("cache.fill", {"value": 1, "stale_ms": None}, "$.stale_ms", "an integer"),
        ("cache.fill", {}, "$.value", "is missing"),
        ("cache.fill", {"not_modified": False}, "$.value", "is missing"),
        ("cache.fill", {"not_modified": True, "value": 1}, "$.value", "not_modified"),
        ("cache.fill", {"not_modified": True, "value": None}, "$.value", "not_modified"),
        ("cache.fail", {"not_found": True}, "$.ttl_ms", "is missing"),
        ("cache.fail", {"ttl_ms": 5}, "$.ttl_ms", "only not_found"),
        ("cache.fail", {"tags": ["t"]}, "$.tags", "only not_found"),
        ("cache.fail", {"private_ms": 5, "not_found": True}, "$.private_ms", "not_found"),
        ("cache.fail", {"private_ms": 5, "promote": True}, "$.promote", "private_ms"),
        ("cache.fail", {"not_found": True, "promote": True}, "$.promote", "not_found"),
        ("cache.fail", {"error": "x" * 1001}, "$.error", "0 to 1000 characters"),
        ("cache.get", {"within_key": "b"}, "$.within_fill", "is missing"),
        ("cache.get", {"within_fill": LEASE}, "$.within_key", "is missing"),
        ("cache.get", {"within_key": None}, "$.within_key", "a string"),
        ("cache.get", {"fill_ms": 99}, "$.fill_ms", "100 to 600000"),
        ("cache.invalidate", {"keys": []}, "$.keys", "at least one key or tag"),
        ("cache.invalidate", {"keys": ["a"] * 1001}, "$.keys", "0 to 1000 items"),
        ("cache.invalidate", {"mode": "gone"}, "$.mode", "one of hard, soft"),
        ("cache.invalidate", {"keys": ["a", None]}, "$.keys[1]", "a string"),
        ("cache.commit_write", {"value": 1}, "$.ttl_ms", "is missing"),
        ("cache.commit_write", {"ttl_ms": 5}, "$.value", "is missing"),
        ("cache.commit_write", {"stale_ms": 5}, "$.stale_ms", "only a value"),
        ("cache.commit_write", {"etag": "e"}, "$.etag", "only a value"),
        ("writes.claim", {"max": 1001}, "$.max", "1 to 1000"),
        ("writes.ack", {"ids": []}, "$.ids", "1 to 1000 items"),
        ("writes.ack", {"ids": ["a", "b c"]}, "$.ids[1]", "expected only"),
        ("writes.ack", {"ids": {"a": 1}}, "$.ids", "a list"),
        ("writes.ack", {"ids": ["i"], "id": "i"}, "$.id", "no such parameter"),
    ],
)
def test_bad_parameters_of_the_cache_are_refused_with_their_path(
    method: str, params: dict[str, object], path: str, problem: str
) -> None:
    with pytest.raises(InvalidParams) as caught:
        decode_params(method, ENOUGH[method] | params)
    assert caught.value.data == {"path": path}
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("method", "params", "decoded"),
    [
        ("cache.fill", {"value": 0}, CacheFill("k", LEASE, 1000, Json(b"0"))),
        ("cache.fill", {"not_modified": True}, CacheFill("k", LEASE, 1000, not_modified=True)),
        (
            "cache.fail",
            {"not_found": True, "ttl_ms": 5, "tags": ["t"]},
            CacheFail("k", LEASE, "no", not_found=True, ttl_ms=5, tags=("t",)),
        ),
        (
            "cache.fail",
            {"private_ms": 5, "not_found": False, "tags": []},
            CacheFail("k", LEASE, "no", private_ms=5),
        ),
        (
            "cache.fail",
            {"promote": True, "retry_after_ms": 0},
            CacheFail("k", LEASE, "no", 0, promote=True),
        ),
        (
            "cache.get",
            {"within_key": "b", "within_fill": LEASE},
            CacheGet("k", within_key="b", within_fill=LEASE),
        ),
        ("cache.invalidate", {"keys": [], "tags": ["t"]}, CacheInvalidate(tags=("t",))),
        ("cache.commit_write", {"tags": ["t"]}, CacheCommitWrite("k", LEASE, tags=("t",))),
        (
            "cache.commit_write",
            {"value": None, "ttl_ms": 5},
            CacheCommitWrite("k", LEASE, Json(b"null"), 5),
        ),
        (
            "cache.set",
            {"value": {"a": []}, "tags": ["b", "a"]},
            CacheSet("k", Json(b'{"a":[]}'), 1000, tags=("b", "a")),
        ),
    ],
)
def test_what_goes_together_is_accepted(
    method: str, params: dict[str, object], decoded: Params
) -> None:
    assert decode_params(method, ENOUGH[method] | params) == decoded


def test_a_mark_arrives_as_a_member() -> None:
    invalidate = decode_params("cache.invalidate", {"tags": ["t"], "mode": "soft"})
    assert isinstance(invalidate, CacheInvalidate)
    assert invalidate.mode is Mark.SOFT


# --- Cached values ----------------------------------------------------------------------------


def asked(text: bytes) -> Request:
    """A request that brings this value."""
    frame = b'{"jsonrpc":"2.0","method":"cache.set","params":{"key":"k","ttl_ms":1,"value":%b}}'
    (request,) = decode_frame(frame % text).requests
    return request


def stored(text: bytes) -> Json:
    """The value as it is after it came over the wire."""
    params = asked(text).params
    assert isinstance(params, CacheSet)
    return params.value


@pytest.mark.parametrize(
    "text",
    [
        *(b"null", b"true", b"false", b"0", b"-1", b'""', b"[]", b"{}", b'[null,{"":[]}]'),
        *(b"9223372036854775807", b"-9223372036854775808", b"18446744073709551615"),
        *(b"9007199254740993", b"1.0", b"-0.0", b"0.1", b"5e-324", b"1.7976931348623157e+308"),
        *('"é😀\u2028\x7f"'.encode(), b'"\\u0000\\n\\"\\\\"', b'{"b":1,"a":2}'),
        *(orjson.dumps(nested(VALUE_LEVELS_MAX)), b'{"a":' * 254 + b"1" + b"}" * 254),
    ],
)
def test_a_value_in_its_shortest_form_keeps_its_text(text: bytes) -> None:
    assert stored(text) == Json(text)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b' { "a" : [ 1 ,\t2 ]\n} ', b'{"a":[1,2]}'),
        (b'"\\u00e9\\/\\ud83d\\ude00\\u0041"', '"é/😀A"'.encode()),
        (b"1e2", b"100.0"),
        (b"1E30", b"1e+30"),
        (b"0.1000000000000000055511151231257827", b"0.1"),
        (b"1e-400", b"0.0"),
        (b"-0", b"0"),
        (b"18446744073709551616", b"1.8446744073709552e+19"),
        (b"-9223372036854775809", b"-9.223372036854776e+18"),
        (b'{"a":1,"b":2,"a":3}', b'{"a":3,"b":2}'),
    ],
)
def test_a_value_is_written_anew_as_the_module_says(text: bytes, kept: bytes) -> None:
    assert stored(text) == Json(kept)


@pytest.mark.parametrize("text", [b"1e400", b"9" * 400, b'"\\ud800"', b"[" * 1100 + b"]" * 1100])
def test_a_value_that_cannot_be_read_makes_the_frame_unreadable(text: bytes) -> None:
    """As any other text that is not JSON does; the connection stays open."""
    assert isinstance(error_of(asked(text)), ParseError)


def test_a_value_that_is_null_is_not_absent() -> None:
    """So that null, too, can be cached."""
    there = decode_params("cache.fill", ENOUGH["cache.fill"] | {"value": None})
    assert isinstance(there, CacheFill)
    assert there.value == Json(b"null")
    absent = decode_params("cache.fill", ENOUGH["cache.fill"] | {"not_modified": True})
    assert isinstance(absent, CacheFill)
    assert absent.value is None


@pytest.mark.parametrize("text", [b"null", b'{"b":  1, "a": 1e2}', b"18446744073709551616"])
def test_a_value_goes_out_as_it_is_kept(text: bytes) -> None:
    """It is not read again on its way."""
    assert b'"value":' + text + b"," in encode_result(1, CacheHit(CacheState.HIT, Json(text), 0, 1))


@given(strategies.json_values)
def test_a_value_is_the_same_when_it_comes_back(value: object) -> None:
    """Whatever it is, and as often as it goes back and forth."""
    once = stored(orjson.dumps(value))
    assert stored(once.text) == once
    hit = encode_result(1, CacheHit(CacheState.HIT, once, 0, 1))
    back = orjson.loads(hit)["result"]["value"]
    assert repr(back) == repr(value)  # for 1, 1.0 and true are equal


# --- Answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "sent"),
    [
        (
            CacheHit(CacheState.HIT, Json(b"null"), 10, 20),
            {"state": "hit", "value": None, "age_ms": 10, "ttl_ms": 20},
        ),
        (
            CacheHit(CacheState.STALE, Json(b"[1]"), 10, 0, Refresh(LEASE, 7, 500)),
            {
                "state": "stale",
                "value": [1],
                "age_ms": 10,
                "ttl_ms": 0,
                "refresh": {"fill": LEASE, "fence": 7, "fill_ms": 500},
            },
        ),
        (
            CacheHit(CacheState.HIT, Json(b"{}"), 10, 20, Refresh(LEASE, 7, 500, "e")),
            {
                "state": "hit",
                "value": {},
                "age_ms": 10,
                "ttl_ms": 20,
                "refresh": {"fill": LEASE, "fence": 7, "fill_ms": 500, "etag": "e"},
            },
        ),
        (
            CacheToFill(LEASE, 7, 500, shared=True),
            {"state": "fill", "fill": LEASE, "fence": 7, "fill_ms": 500, "shared": True},
        ),
        (
            CacheToFill(LEASE, 7, 500, shared=False, etag="e"),
            {
                "state": "fill",
                "fill": LEASE,
                "fence": 7,
                "fill_ms": 500,
                "shared": False,
                "etag": "e",
            },
        ),
        (CacheNegative(9), {"state": "negative", "retry_after_ms": 9}),
        (CacheFilled(FillOutcome.TOO_LATE), {"outcome": "too_late"}),
        (
            WritesClaimed((ClaimedWrite("i", "k", Json(b'"v"'), 1, 2, 3),)),
            {"writes": [{"id": "i", "key": "k", "value": "v", "seq": 1, "fence": 2, "attempt": 3}]},
        ),
        (
            DeadPage((DeadWrite("k", Json(b"1"), 1, 5, "no"),), None),
            {
                "writes": [{"key": "k", "value": 1, "seq": 1, "attempts": 5, "error": "no"}],
                "cursor": None,
            },
        ),
    ],
)
def test_what_a_result_does_not_have_is_left_out_where_the_contract_says_so(
    result: Result, sent: object
) -> None:
    """And null elsewhere."""
    assert orjson.loads(encode_result(1, result))["result"] == sent


@pytest.mark.parametrize(
    ("error", "data"),
    [
        (FillFailed("no such host", 50), {"error": "no such host", "retry_after_ms": 50}),
        (Deadlock(["a", "b"]), {"cycle": ["a", "b"]}),
    ],
)
def test_an_error_of_the_cache_carries_its_data(error: RpcError, data: object) -> None:
    assert orjson.loads(encode_error(1, error))["error"]["data"] == data
