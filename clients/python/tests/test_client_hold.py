"""The deadline of a lease, and nothing else (L3)."""

import pickle

import pytest
from leasekeeper_client import Busy, LeaseLost
from leasekeeper_client._contact import Contact, Lifeline, drift_margin
from leasekeeper_client._hold import Hold, State
from leasekeeper_client.errors import FROM_WIRE, ProtocolError, error_from_wire

LEASE_ID = "0123456789abcdef" * 2


def a_hold(
    ttl: float = 30.0, max_hold: float | None = None, contact: Contact | None = None
) -> Hold:
    hold = Hold("orders", LEASE_ID, ttl, max_hold)
    hold.grant(
        7,
        contact=contact,
        sent_at=100.0,
        received_at=100.2,
        waited=0.0,
        ttl=ttl,
        asked_at=100.0,
    )
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


def test_the_grace_counts_from_the_last_proof_of_the_connection() -> None:
    contact = Contact(grace=5.0)
    hold = a_hold(contact=contact)
    assert hold.deadline == pytest.approx(100.0 + 5.0 - 0.05)
    contact.confirm(103.0)
    assert hold.deadline == pytest.approx(103.0 + 5.0 - 0.05)
    contact.confirm(101.0)
    assert hold.deadline == pytest.approx(103.0 + 5.0 - 0.05)


def test_a_drop_prolongs_nothing() -> None:
    hold = a_hold(contact=Contact(grace=5.0))
    hold.drop()
    assert hold.deadline == pytest.approx(100.0 + 5.0 - 0.05)


def test_a_grace_that_is_no_shorter_than_the_ttl_never_matters() -> None:
    hold = a_hold(ttl=5.0, contact=Contact(grace=5.0))
    assert hold.deadline == pytest.approx(100.0 + 5.0 - 0.05)


def test_a_grant_after_a_wait_proves_the_time_of_the_grant() -> None:
    contact = Contact(grace=5.0)
    hold = Hold("orders", LEASE_ID, 30.0)
    hold.grant(
        7, contact=contact, sent_at=100.0, received_at=112.5, waited=12.0, ttl=30.0, asked_at=100.0
    )
    assert hold.deadline == pytest.approx(112.0 + 5.0 - 0.05)


def test_a_resumed_lease_counts_from_the_new_connection() -> None:
    old, new = Contact(grace=5.0), Contact(grace=5.0)
    hold = a_hold(contact=old)
    hold.drop()
    new.confirm(103.0)
    hold.confirm(contact=new, sent_at=103.0, received_at=103.1)
    assert hold.deadline == pytest.approx(103.0 + 5.0 - 0.05)


def test_a_resume_that_is_answered_after_the_grace_does_not_resurrect() -> None:
    hold = a_hold(contact=Contact(grace=5.0))
    new = Contact(grace=5.0)
    new.confirm(104.0)
    hold.confirm(contact=new, sent_at=104.0, received_at=106.0)
    assert hold.state is State.LOST


def test_a_contact_that_lapsed_is_over_for_those_who_relied_on_it() -> None:
    lifeline = Lifeline(grace=5.0)
    lifeline.proven(100.0, 100.1)
    hold = a_hold(contact=lifeline.contact)
    lifeline.proven(106.0, 106.1)
    assert not hold.believed(106.2)
    assert lifeline.contact.kept_until == pytest.approx(106.0 + 5.0 - 0.05)


def test_a_pong_proves_the_time_of_its_own_ping() -> None:
    lifeline = Lifeline(grace=6.0)
    first, second = lifeline.ping(100.0), lifeline.ping(102.0)
    lifeline.pong(first, 103.0)
    assert lifeline.contact.confirmed_at == 100.0
    lifeline.pong(b"never sent", 103.0)
    assert lifeline.contact.confirmed_at == 100.0
    lifeline.pong(second, 103.5)
    assert lifeline.contact.confirmed_at == 102.0


def test_pings_that_can_prove_nothing_new_are_forgotten() -> None:
    lifeline = Lifeline(grace=6.0)
    for second in range(100):
        lifeline.ping(float(second))
        lifeline.proven(second + 0.5, second + 0.6)
    assert len(lifeline._pings) == 1


@pytest.mark.parametrize("grace", [None, 0.0, 0.05])
def test_where_nothing_can_be_proven_there_is_no_cap(grace: float | None) -> None:
    lifeline = Lifeline(grace)
    assert lifeline.interval is None
    assert a_hold(contact=lifeline.contact).deadline == pytest.approx(100.0 + 30.0 - 0.3)


def test_what_the_server_does_not_keep_is_lost_with_the_connection() -> None:
    released, unkept, unstated = (a_hold(contact=Contact(grace)) for grace in (5.0, 0.0, None))
    released.on_drop = "release"
    for hold in (released, unkept, unstated):
        hold.drop()
    assert released.loss().reason == unkept.loss().reason == "disconnected"
    assert unstated.state is State.HELD


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
