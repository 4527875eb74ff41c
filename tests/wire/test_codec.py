"""What goes over the wire: strict on the way in, exact on the way out, and never a raise."""

from typing import Any, get_args

import attrs
import orjson
import pytest
from cattrs.errors import ClassValidationError
from hypothesis import example, given
from hypothesis import strategies as st

from leasekeeper.errors import (
    Busy,
    InvalidParams,
    InvalidRequest,
    LimitReached,
    Lost,
    MethodNotFound,
    ParseError,
    RpcError,
)
from leasekeeper.messages import (
    INTEGER_MAX,
    METHODS,
    ORIGINAL_WAIT,
    HolderView,
    LeaseAcquire,
    LeaseAcquireAll,
    LeaseGrant,
    LeaseInspect,
    LeaseList,
    LeaseLost,
    LeaseReleased,
    LeaseResume,
    LostReason,
    Mode,
    OnDrop,
    Params,
    RpcCancel,
    SessionHeartbeat,
)
from leasekeeper.wire import codec
from leasekeeper.wire.codec import (
    BATCH_REQUESTS_MAX,
    Frame,
    Request,
    decode_frame,
    decode_params,
    encode_error,
    encode_notification,
    encode_result,
    join,
)
from tests import strategies
from tests.wire.asking import LEASE, as_sent, decode_one, error_of

REQUEST = {"jsonrpc": "2.0", "id": 1, "method": "lease.inspect", "params": {"name": "a"}}


# --- Frames -----------------------------------------------------------------------------------


def test_a_request_is_decoded_into_its_message() -> None:
    assert decode_one(REQUEST) == Request(LeaseInspect("a"), id=1, answered=True)


def test_params_may_be_absent_where_none_are_required() -> None:
    request = decode_one({"jsonrpc": "2.0", "id": "h", "method": "session.heartbeat"})
    assert request == Request(SessionHeartbeat(), id="h")


def test_a_request_without_an_id_is_a_notification_and_gets_no_answer() -> None:
    notification = {key: value for key, value in REQUEST.items() if key != "id"}
    assert not decode_one(notification).answered
    wrong = decode_one(notification | {"method": "lease.steal"})
    assert isinstance(wrong.params, MethodNotFound)
    assert not wrong.answered


def test_a_null_id_is_an_id() -> None:
    assert decode_one(REQUEST | {"id": None}) == Request(LeaseInspect("a"), id=None, answered=True)


def test_other_members_beside_a_request_are_ignored() -> None:
    assert decode_one(REQUEST | {"trace": "00-ab"}) == decode_one(REQUEST)


@pytest.mark.parametrize("text", ["", "{", "nonsense", b"\xff", '{"a":NaN}', "[" * 2000, "\ud800"])
def test_what_is_not_json_is_a_parse_error(text: str | bytes) -> None:
    (request,) = decode_frame(text).requests
    assert isinstance(request.params, ParseError)
    assert (request.id, request.answered) == (None, True)


@pytest.mark.parametrize(
    "message",
    [
        1,
        {},
        REQUEST | {"jsonrpc": "1.0"},
        REQUEST | {"jsonrpc": 2.0},
        REQUEST | {"method": None},
        REQUEST | {"id": True},
        REQUEST | {"id": [1]},
        {"id": "x"},
        {"method": "session.heartbeat"},
    ],
)
def test_what_is_no_request_is_refused_and_always_answered(message: object) -> None:
    """With the id null: what is no request has none."""
    request = decode_one(message)
    assert isinstance(request.params, InvalidRequest)
    assert (request.id, request.answered) == (None, True)


def test_a_batch_keeps_its_order_and_its_errors_apart() -> None:
    """One bad request of a batch does not disturb the others (L13)."""
    frame = decode_frame(orjson.dumps([REQUEST, 7, REQUEST | {"id": 2, "method": "lease.steal"}]))
    first, second, third = frame.requests
    assert frame.batch
    assert first == decode_one(REQUEST)
    assert isinstance(second.params, InvalidRequest)
    assert isinstance(third.params, MethodNotFound)
    assert third.id == 2


def test_a_batch_of_one_is_still_a_batch() -> None:
    assert decode_frame(orjson.dumps([REQUEST])) == Frame((decode_one(REQUEST),), batch=True)


def test_an_empty_batch_is_no_request() -> None:
    error = error_of(decode_one([]))
    assert isinstance(error, InvalidRequest)


def test_a_batch_has_a_bound() -> None:
    """Past it comes one error for the whole batch (L12)."""
    full = decode_frame(orjson.dumps([REQUEST] * BATCH_REQUESTS_MAX))
    assert len(full.requests) == BATCH_REQUESTS_MAX
    error = error_of(decode_one([REQUEST] * (BATCH_REQUESTS_MAX + 1)))
    assert isinstance(error, LimitReached)
    assert error.data == {"limit": "batch_requests", "max": 1000}


# --- Parameters -------------------------------------------------------------------------------


def test_absent_parameters_have_the_defaults_of_the_contract() -> None:
    assert decode_params("lease.acquire", {"name": "a"}) == LeaseAcquire(
        name="a",
        ttl_ms=30_000,
        wait_ms=0,
        mode=Mode.EXCLUSIVE,
        limit=None,
        label=None,
        lease=None,
        auto_renew=True,
        max_hold_ms=None,
        on_drop=OnDrop.KEEP,
    )
    assert decode_params("lease.list", {}) == LeaseList(prefix="", limit=100, cursor=None)
    resume = decode_params("lease.resume", {"name": "a", "lease": LEASE})
    assert resume == LeaseResume("a", LEASE, wait_ms=ORIGINAL_WAIT)


@pytest.mark.parametrize(
    ("method", "field", "values"),
    [
        ("lease.acquire", "ttl_ms", (100, 3_600_000)),
        ("lease.acquire", "wait_ms", (0, INTEGER_MAX)),
        ("lease.acquire", "max_hold_ms", (100, INTEGER_MAX)),
        ("lease.acquire", "name", ("a", "a" * 255)),
        ("lease.acquire", "label", ("", "é" * 255)),
        ("lease.acquire", "lease", ("0" * 32,)),
        ("lease.acquire_all", "names", (["a", "b"], [f"n{each}" for each in range(16)])),
        ("lease.list", "limit", (1, 1000)),
        ("lease.list", "prefix", ("", "a" * 255)),
        ("lease.list", "cursor", ("a", "a" * 300)),
        ("session.open", "token", ("t", "t" * 4096)),
    ],
)
def test_the_outermost_values_are_allowed(
    method: str, field: str, values: tuple[object, ...]
) -> None:
    for value in values:
        params = {"lease.acquire": {"name": "n"}}.get(method, {}) | {field: value}
        decoded = attrs.asdict(decode_params(method, params))
        assert orjson.loads(orjson.dumps(decoded[field])) == value


def test_a_null_wait_is_for_ever() -> None:
    decoded = decode_params("lease.acquire", {"name": "a", "wait_ms": None})
    assert decoded == LeaseAcquire("a", wait_ms=None)


def test_acquire_all_is_decoded_into_one_request_for_each_name() -> None:
    """Under one lease id, so that all or nothing can be repeated (L6)."""
    sent = {"names": ["b", "a"], "ttl_ms": 500, "lease": LEASE}
    decoded = decode_params("lease.acquire_all", sent)
    assert decoded == LeaseAcquireAll(("b", "a"), ttl_ms=500, lease=LEASE)
    assert decoded.one("a", LEASE) == LeaseAcquire("a", ttl_ms=500, lease=LEASE)


def test_enumerations_arrive_as_their_members() -> None:
    decoded = decode_params("lease.acquire", {"name": "a", "mode": "shared", "on_drop": "release"})
    assert isinstance(decoded, LeaseAcquire)
    assert decoded.mode is Mode.SHARED
    assert decoded.on_drop is OnDrop.RELEASE


def test_an_unknown_method_is_named_but_not_at_length() -> None:
    with pytest.raises(MethodNotFound) as caught:
        decode_params("x" * 5000, {})
    assert caught.value.data == {"method": "x" * 100}


@pytest.mark.parametrize(
    ("method", "params", "path", "problem"),
    [
        ("lease.inspect", ["a"], "$", "by name"),
        ("lease.inspect", None, "$", "by name"),
        ("lease.inspect", {}, "$.name", "is missing"),
        ("lease.inspect", {"name": "a", "bogus": 1}, "$.bogus", "no such parameter"),
        ("lease.inspect", {"name": "a", "b" * 500: 1}, "$." + "b" * 298, "no such parameter"),
        ("lease.inspect", {"name": None}, "$.name", "expected a string"),
        ("lease.inspect", {"name": 1}, "$.name", "expected a string"),
        ("lease.inspect", {"name": ""}, "$.name", "1 to 255 characters"),
        ("lease.inspect", {"name": "a" * 256}, "$.name", "1 to 255 characters"),
        ("lease.inspect", {"name": "a b"}, "$.name", "expected only"),
        ("lease.inspect", {"name": "a\n"}, "$.name", "expected only"),
        ("lease.acquire", {"name": "a", "ttl_ms": 99}, "$.ttl_ms", "100 to 3600000"),
        ("lease.acquire", {"name": "a", "ttl_ms": 1.9}, "$.ttl_ms", "an integer"),
        ("lease.acquire", {"name": "a", "ttl_ms": 30000.0}, "$.ttl_ms", "an integer"),
        ("lease.acquire", {"name": "a", "ttl_ms": True}, "$.ttl_ms", "an integer"),
        ("lease.acquire", {"name": "a", "ttl_ms": None}, "$.ttl_ms", "an integer"),
        ("lease.acquire", {"name": "a", "wait_ms": -1}, "$.wait_ms", "expected 0 to"),
        ("lease.acquire", {"name": "a", "wait_ms": "0"}, "$.wait_ms", "an integer"),
        ("lease.acquire", {"name": "a", "auto_renew": 1}, "$.auto_renew", "true or false"),
        ("lease.acquire", {"name": "a", "label": None}, "$.label", "a string"),
        ("lease.acquire", {"name": "a", "mode": "Shared"}, "$.mode", "one of exclusive, shared"),
        ("lease.acquire", {"name": "a", "mode": []}, "$.mode", "one of exclusive, shared"),
        ("lease.acquire", {"name": "a", "lease": "g" * 32}, "$.lease", "expected only"),
        ("lease.acquire", {"name": "a", "limit": 2}, "$.limit", "only a shared lease"),
        ("lease.acquire_all", {"names": "ab"}, "$.names", "a list"),
        ("lease.acquire_all", {"names": ["a"]}, "$.names", "2 to 16 items"),
        ("lease.acquire_all", {"names": ["a", "b", 3]}, "$.names[2]", "a string"),
        ("lease.acquire_all", {"names": ["a", "a"]}, "$.names", "the same name twice"),
        ("rpc.cancel", {"id": [1]}, "$.id", "a string, a number or null"),
    ],
)
def test_bad_parameters_are_refused_with_their_path(
    method: str, params: object, path: str, problem: str
) -> None:
    with pytest.raises(InvalidParams) as caught:
        decode_params(method, params)
    assert caught.value.data == {"path": path}
    assert problem in str(caught.value)


@pytest.mark.parametrize("request_id", [None, 7, 1.5, "x"])
def test_any_id_can_be_cancelled(request_id: Any) -> None:  # noqa: ANN401 # JSON
    assert decode_params("rpc.cancel", {"id": request_id}) == RpcCancel(request_id)


def test_no_problem_quotes_a_lease_id() -> None:
    """A lease id is a capability, and error messages end up in logs (L7)."""
    almost = LEASE[:-1] + "g"
    with pytest.raises(InvalidParams) as caught:
        decode_params("lease.release", {"name": "a", "lease": almost})
    assert almost not in str(caught.value)
    assert almost not in repr(decode_one(REQUEST | {"method": "lease.release"}))


def test_an_unforeseen_refusal_is_a_bug_of_ours_not_the_peers() -> None:
    unforeseen = ClassValidationError("?", [RuntimeError("?")], LeaseInspect)
    with pytest.raises(AssertionError, match="unforeseen"):
        codec._first_problem(unforeseen)
    with pytest.raises(AssertionError, match="the quick converter refused"):
        codec._explain({"name": "a"}, LeaseInspect)


# --- Answers ----------------------------------------------------------------------------------


def test_a_result_is_a_json_rpc_answer() -> None:
    assert orjson.loads(encode_result("x", LeaseGrant("a", LEASE, 7, 30_000, 0))) == {
        "jsonrpc": "2.0",
        "id": "x",
        "result": {"name": "a", "lease": LEASE, "fence": 7, "ttl_ms": 30_000, "waited_ms": 0},
    }


def test_an_error_carries_code_name_and_data() -> None:
    holder = HolderView(7, Mode.EXCLUSIVE, None, 10, 20, "worker-3")
    error = Busy(holders=[holder], waiting=2, retry_after_ms=20)
    assert orjson.loads(encode_error(None, error)) == {
        "jsonrpc": "2.0",
        "id": None,
        "error": {
            "code": -32001,
            "message": "busy: someone else has it, and the wait is over",
            "data": {
                "holders": [
                    {
                        "fence": 7,
                        "mode": "exclusive",
                        "label": None,
                        "held_ms": 10,
                        "ttl_ms": 20,
                        "client": "worker-3",
                        "foreign": False,
                    }
                ],
                "waiting": 2,
                "retry_after_ms": 20,
            },
        },
    }


def test_a_notification_has_a_method_and_no_id() -> None:
    lost = LeaseLost("a", LEASE, 7, LostReason.BROKEN, "maintenance")
    assert orjson.loads(encode_notification(lost)) == {
        "jsonrpc": "2.0",
        "method": "lease.lost",
        "params": {
            "name": "a",
            "lease": LEASE,
            "fence": 7,
            "reason": "broken",
            "detail": "maintenance",
        },
    }


def test_encoded_messages_join_into_an_array() -> None:
    answers = [encode_error(1, Lost()), encode_error(2, Lost())]
    assert orjson.loads(join(answers)) == [orjson.loads(each) for each in answers]


# --- Properties -------------------------------------------------------------------------------


def is_answerable(frame: Frame) -> bool:
    """Every request is a message or an error, and its id can be sent back."""
    return all(
        orjson.loads(encode_error(request.id, Lost()))["id"] == request.id
        and isinstance(request.params, (*get_args(Params), RpcError))
        for request in frame.requests
    )


@given(st.binary() | st.text())
@example(b"\xef\xbb\xbf{}")
@example(b'{"id":' + b"9" * 400 + b"}")
@example('{"id":"\\ud800"}')
def test_no_text_or_bytes_make_the_decoder_raise(text: str | bytes) -> None:
    """What one connection sends harms nothing (L13)."""
    frame = decode_frame(text)
    assert frame.requests
    assert is_answerable(frame)


@given(strategies.json_values)
def test_no_json_makes_the_decoder_raise(message: object) -> None:
    """What one connection sends harms nothing (L13)."""
    frame = decode_frame(orjson.dumps(message))
    assert frame.requests
    assert is_answerable(frame)


@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "jsonrpc": st.just("2.0") | strategies.json_scalars,
                "id": strategies.json_values,
                "method": st.sampled_from(sorted(METHODS)) | strategies.json_scalars,
                "params": strategies.json_values | strategies.almost_params("lease.acquire"),
            },
        )
        | strategies.json_values,
        min_size=1,
        max_size=5,
    )
)
def test_a_batch_of_anything_has_one_request_for_each_item(batch: list[object]) -> None:
    """Neighbours of a bad request are decoded as if they were alone (L13)."""
    frame = decode_frame(orjson.dumps(batch))
    assert frame.batch
    assert is_answerable(frame)
    for message, request in zip(batch, frame.requests, strict=True):
        alone = decode_one(message) if not isinstance(message, list) else None
        assert alone is None or described(alone) == described(request)


def described(request: Request) -> tuple[object, ...]:
    """A request in a form that compares errors by what they say."""
    error = isinstance(request.params, RpcError)
    return (str(request.params) if error else request.params, request.id, request.answered)


@given(st.sampled_from(sorted(METHODS)), strategies.request_ids, st.data())
def test_decoding_is_the_inverse_of_encoding(
    method: str,
    request_id: Any,  # noqa: ANN401 # JSON
    data: st.DataObject,
) -> None:
    params = data.draw(strategies.params(method))
    request = decode_one({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
    assert isinstance(request.params, METHODS[method][0])
    assert (request.id, request.answered) == (request_id, True)
    assert type(request.id) is type(request_id)
    decoded = attrs.asdict(request.params, recurse=False)
    assert {key: as_sent(decoded[key]) for key in params} == params
    defaults = {each.name: each.default for each in attrs.fields(METHODS[method][0])}
    assert all(decoded[key] == defaults[key] for key in decoded.keys() - params.keys())


@given(st.sampled_from(sorted(METHODS)), st.data())
def test_a_result_is_sent_member_by_member(method: str, data: st.DataObject) -> None:
    result = data.draw(st.sampled_from(METHODS[method][1]).flatmap(strategies.instances))
    assert orjson.loads(encode_result(1, result))["result"] == as_sent(result)


@given(st.sampled_from(sorted(METHODS)), st.data())
def test_no_parameters_make_the_decoder_raise(method: str, data: st.DataObject) -> None:
    """What one connection sends harms nothing (L13)."""
    params = data.draw(strategies.almost_params(method))
    frame = decode_frame(orjson.dumps({"jsonrpc": "2.0", "method": method, "params": params}))
    assert isinstance(frame.requests[0].params, (METHODS[method][0], InvalidParams))


@given(strategies.request_ids, strategies.instances(LeaseGrant))
def test_an_answer_echoes_the_id(request_id: Any, grant: LeaseGrant) -> None:  # noqa: ANN401 # JSON
    for answer in (encode_result(request_id, grant), encode_error(request_id, Lost())):
        echoed = orjson.loads(answer)["id"]
        assert (echoed, type(echoed)) == (request_id, type(request_id))


def test_a_result_that_many_get_is_the_same_under_every_id() -> None:
    """And never another's, however alike they are."""
    one, other = LeaseReleased(released=True), LeaseReleased(released=False)
    answers = [encode_result(number, each) for number, each in enumerate([one, one, other])]
    assert [orjson.loads(each) for each in answers] == [
        {"jsonrpc": "2.0", "id": 0, "result": {"released": True}},
        {"jsonrpc": "2.0", "id": 1, "result": {"released": True}},
        {"jsonrpc": "2.0", "id": 2, "result": {"released": False}},
    ]
