"""The deadline of a lease, and nothing else (L3)."""

import pickle

import pytest
from leasekeeper_client import Busy, LeaseLost
from leasekeeper_client._hold import Hold, State, drift_margin
from leasekeeper_client.errors import FROM_WIRE, ProtocolError, error_from_wire

LEASE_ID = "0123456789abcdef" * 2


def a_hold(ttl: float = 30.0, max_hold: float | None = None) -> Hold:
    hold = Hold("orders", LEASE_ID, ttl, max_hold)
    hold.grant(7, sent_at=100.0, received_at=100.2, waited=0.0, ttl=ttl, asked_at=100.0)
    return hold


def test_the_margin_is_one_percent_and_five_milliseconds_at_least() -> None:
    assert drift_margin(30.0) == pytest.approx(0.3)
    assert drift_margin(0.1) == 0.005


def test_the_deadline_counts_from_the_send_time() -> None:
    assert a_hold().deadline == pytest.approx(100.0 + 30.0 - 0.3)


def test_a_wait_moves_the_deadline() -> None:
    hold = Hold("orders", LEASE_ID, 30.0)
    hold.grant(7, sent_at=100.0, received_at=112.5, waited=12.0, ttl=30.0, asked_at=100.0)
    assert hold.deadline == pytest.approx(112.0 + 30.0 - 0.3)


def test_a_wait_measured_by_a_fast_clock_cannot_outrun_the_answer() -> None:
    hold = Hold("orders", LEASE_ID, 30.0)
    hold.grant(7, sent_at=100.0, received_at=112.0, waited=15.0, ttl=30.0, asked_at=100.0)
    assert hold.deadline == pytest.approx(112.0 + 30.0 - 0.3)


def test_a_renewal_counts_from_its_own_send_time() -> None:
    hold = a_hold()
    hold.confirm(sent_at=110.0, received_at=119.0)
    assert hold.deadline == pytest.approx(110.0 + 30.0 - 0.3)


def test_an_old_answer_does_not_pull_the_deadline_back() -> None:
    hold = a_hold()
    hold.confirm(sent_at=110.0, received_at=110.1)
    hold.confirm(sent_at=105.0, received_at=110.2)
    assert hold.deadline == pytest.approx(110.0 + 30.0 - 0.3)


def test_an_answer_after_the_deadline_does_not_resurrect() -> None:
    """A program stopped for a minute reads an old answer: it was lost in between."""
    hold = a_hold()
    hold.confirm(sent_at=129.0, received_at=160.0)
    assert hold.state is State.LOST
    assert not hold.believed(101.0)


def test_max_hold_caps_every_renewal() -> None:
    hold = a_hold(max_hold=40.0)
    hold.confirm(sent_at=120.0, received_at=120.1)
    assert hold.deadline == pytest.approx(100.0 + 40.0 - 0.4)


def test_a_drop_leaves_the_grace_of_the_server() -> None:
    hold = a_hold()
    hold.drop(102.0, grace=5.0)
    assert hold.deadline == pytest.approx(102.0 + 5.0 - 0.05)


def test_a_drop_never_prolongs() -> None:
    hold = a_hold(ttl=1.0)
    before = hold.deadline
    hold.drop(100.5, grace=5.0)
    assert hold.deadline == before


def test_a_lease_that_ends_with_the_connection_is_lost_with_it() -> None:
    hold = a_hold()
    hold.on_drop = "release"
    hold.drop(102.0, grace=5.0)
    assert hold.state is State.LOST
    assert hold.reason == "disconnected"


def test_the_first_reason_stays() -> None:
    hold = a_hold()
    hold.lose("broken", "maintenance")
    hold.lose("expired")
    assert (hold.loss().reason, hold.loss().detail) == ("broken", "maintenance")


def test_the_lease_id_is_in_no_repr() -> None:
    assert LEASE_ID not in repr(a_hold())


@pytest.mark.parametrize(("code", "kind"), FROM_WIRE.items())
def test_every_code_has_its_class(code: int, kind: type[Exception]) -> None:
    assert type(error_from_wire(code, "words", {})) is kind


def test_an_unknown_code_is_a_protocol_error() -> None:
    assert type(error_from_wire(-1, "words", {})) is ProtocolError


def test_errors_survive_pickling() -> None:
    busy = error_from_wire(-32001, "busy", {"waiting": 3, "retry_after_ms": 50, "holders": []})
    lost = a_hold().loss()
    for error in (busy, lost):
        again = pickle.loads(pickle.dumps(error))
        assert vars(again) == vars(error)
    assert isinstance(busy, Busy)
    assert isinstance(lost, LeaseLost)
    assert busy.retry_after == 0.05
