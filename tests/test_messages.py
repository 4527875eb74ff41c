"""The vocabulary itself: complete, frozen, and silent about lease ids."""

import re
from typing import Any, get_args

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leasekeeper import messages
from leasekeeper.messages import (
    INTEGER_MAX,
    METHODS,
    NOTIFICATIONS,
    LeaseAcquire,
    LeaseAcquireAll,
    LeaseId,
    Mode,
    Name,
    Notification,
    OnDrop,
    Params,
    Result,
    SessionOpen,
    Text,
)
from tests import strategies

VOCABULARY = [*get_args(Params), *get_args(Result), *get_args(Notification)]
LEASE = "0123456789abcdef0123456789abcdef"


def test_every_message_belongs_to_a_method_or_a_notification() -> None:
    assert [params for params, _ in METHODS.values()] == list(get_args(Params))
    assert {result for _, result in METHODS.values()} == set(get_args(Result))
    assert set(NOTIFICATIONS) == set(get_args(Notification))


@pytest.mark.parametrize("cls", VOCABULARY, ids=lambda cls: cls.__name__)
@settings(max_examples=5)
@given(data=st.data())
def test_no_repr_shows_a_lease_id(cls: Any, data: st.DataObject) -> None:  # noqa: ANN401 # a class
    """A lease id is a capability, and a repr ends up in a log (L7)."""
    message = attrs.evolve(
        data.draw(strategies.instances(cls)),
        **{each.name: LEASE for each in attrs.fields(cls) if each.name == "lease"},
        **{each.name: (LEASE,) for each in attrs.fields(cls) if each.name == "lost"},
    )
    assert LEASE not in repr(message)


def test_a_token_stays_out_of_repr() -> None:
    assert "secret" not in repr(SessionOpen(token="secret"))


@pytest.mark.parametrize("cls", VOCABULARY, ids=lambda cls: cls.__name__)
@settings(max_examples=5)
@given(data=st.data())
def test_messages_are_values(cls: Any, data: st.DataObject) -> None:  # noqa: ANN401 # a class
    message = data.draw(strategies.instances(cls))
    assert message == attrs.evolve(message)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        message.anything = 1


def test_acquire_all_asks_for_each_name_under_one_lease_id() -> None:
    """All or nothing is repeatable, because every name has the same id (L6)."""
    everything = LeaseAcquireAll(
        ("b", "a"),
        ttl_ms=500,
        wait_ms=None,
        mode=Mode.SHARED,
        limit=3,
        label="nightly",
        auto_renew=False,
        max_hold_ms=900,
        on_drop=OnDrop.RELEASE,
    )
    assert everything.one("a", LEASE) == LeaseAcquire(
        "a",
        ttl_ms=500,
        wait_ms=None,
        mode=Mode.SHARED,
        limit=3,
        label="nightly",
        lease=LEASE,
        auto_renew=False,
        max_hold_ms=900,
        on_drop=OnDrop.RELEASE,
    )


def test_acquire_and_acquire_all_have_the_same_options() -> None:
    one = [each for each in attrs.fields(LeaseAcquire) if each.name != "name"]
    several = [each for each in attrs.fields(LeaseAcquireAll) if each.name != "names"]
    assert [(each.name, each.type, each.default) for each in one] == [
        (each.name, each.type, each.default) for each in several
    ]


def test_a_lease_id_has_128_bits() -> None:
    """L7."""
    (text,) = get_args(LeaseId)[1:]
    assert text == Text(32, 32, r"[0-9a-fA-F]+")


@pytest.mark.parametrize(
    ("name", "good"),
    [("jobs:nightly/42@eu-west-1.a_b+c", True), ("{tag}", False), ("a b", False), ("é", False)],
)
def test_names_are_of_characters_that_no_store_or_shell_minds(name: str, good: bool) -> None:
    """Braces are not among them: they would choose the cluster slot of a key."""
    (text,) = get_args(Name)[1:]
    assert bool(re.fullmatch(text.pattern, name)) is good


def test_no_integer_is_beyond_what_a_double_holds() -> None:
    assert int(float(INTEGER_MAX)) == INTEGER_MAX
    assert int(float(INTEGER_MAX + 2)) != INTEGER_MAX + 2
    assert messages.ORIGINAL_WAIT < 0
