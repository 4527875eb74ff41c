"""How requests share frames, without a socket."""

import json

import pytest
from leasekeeper_client import InvalidRequest, LimitReached
from leasekeeper_client._json import Malformed
from leasekeeper_client._rpc import Answer, Call, Outbox, constant


def an_outbox(*calls: Call, frame_bytes: int = 65536, frame_requests: int = 1000) -> Outbox:
    outbox = Outbox(frame_bytes=frame_bytes, frame_requests=frame_requests)
    outbox.queued.extend(calls)
    return outbox


def a_call(size: int = 0) -> Call:
    return Call("lease.inspect", constant(name="n" * size))


def test_a_single_request_is_no_batch() -> None:
    frame = json.loads(an_outbox(a_call()).next_frame(1.0) or "")
    assert frame["method"] == "lease.inspect"


def test_requests_that_are_ready_together_share_a_frame() -> None:
    outbox = an_outbox(a_call(), a_call(), a_call())
    frame = json.loads(outbox.next_frame(1.0) or "")
    assert [request["id"] for request in frame] == [1, 2, 3]
    assert outbox.next_frame(2.0) is None


def test_a_frame_respects_the_servers_message_size() -> None:
    outbox = an_outbox(*(a_call(100) for _ in range(10)), frame_bytes=500)
    frames = []
    while frame := outbox.next_frame(1.0):
        frames.append(frame)
    assert all(len(frame) <= 500 for frame in frames)
    assert len(outbox.pending) == 10
    assert len(frames) > 1


def test_a_frame_respects_the_servers_batch_size() -> None:
    outbox = an_outbox(*(a_call() for _ in range(5)), frame_requests=2)
    sizes = [len(json.loads(outbox.next_frame(1.0) or "[]")) for _ in range(2)]
    assert sizes == [2, 2]


def test_a_request_that_fits_no_frame_fails_alone() -> None:
    long, short = a_call(600), a_call()
    assert an_outbox(long, short, frame_bytes=500).next_frame(1.0) is not None
    assert isinstance(long.outcome, LimitReached)
    assert short.sends == 1


def test_the_send_time_is_that_of_the_frame() -> None:
    call = a_call()
    outbox = an_outbox(call)
    outbox.next_frame(12.5)
    outbox.answered({"id": 1, "result": {}}, 13.0)
    assert isinstance(call.outcome, Answer)
    assert (call.outcome.sent_at, call.outcome.received_at) == (12.5, 13.0)


def test_an_error_answer_becomes_its_exception() -> None:
    call = a_call()
    outbox = an_outbox(call)
    outbox.next_frame(1.0)
    error = {"code": -32602, "message": "no", "data": {"path": "$.name"}}
    outbox.answered({"id": 1, "error": error}, 2.0)
    with pytest.raises(InvalidRequest) as caught:
        call.result()
    assert caught.value.path == "$.name"


def test_an_answer_that_nobody_waits_for_is_dropped() -> None:
    an_outbox().answered({"id": 99, "result": {}}, 1.0)


def test_a_malformed_answer_is_told() -> None:
    with pytest.raises(Malformed):
        an_outbox().answered({"id": "x", "result": {}}, 1.0)


def test_only_what_is_safe_moves_to_another_connection() -> None:
    safe, risky, bound, unsent = a_call(), a_call(), a_call(), a_call()
    risky.repeatable = False
    bound.bound = True
    outbox = an_outbox(safe, risky, bound)
    outbox.next_frame(1.0)
    unsent.repeatable = False
    outbox.queued.append(unsent)
    assert outbox.take_movable() == [safe, unsent]
    assert list(outbox.pending.values()) == [risky, bound]
