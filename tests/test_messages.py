"""The vocabulary itself: complete, frozen, and silent about lease ids."""

import re
from itertools import combinations
from typing import Any, Final, Literal, get_args, get_origin

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leasekeeper import messages
from leasekeeper.messages import (
    INTEGER_MAX,
    METHODS,
    NOTIFICATIONS,
    Absent,
    ClaimedWrite,
    Json,
    LeaseAcquire,
    LeaseAcquireAll,
    LeaseId,
    Mode,
    Name,
    Notification,
    OnDrop,
    Params,
    Result,
    Text,
    values,
)
from leasekeeper.messages.writes import ClaimIds
from tests import strategies

VOCABULARY: Final = [
    cls
    for cls in vars(messages).values()
    if isinstance(cls, type) and attrs.has(cls) and cls.__module__ != values.__name__
]
LEASE: Final = "0123456789abcdef0123456789abcdef"
SECRET: Final = frozenset({"lease", "fill", "within_fill", "write", "ids", "lost", "token"})
"""Who knows one of these may act as somebody else (L7)."""


def test_every_message_belongs_to_a_method_or_a_notification() -> None:
    assert [params for params, _ in METHODS.values()] == list(get_args(Params))
    assert {form for _, forms in METHODS.values() for form in forms} == set(get_args(Result))
    assert set(NOTIFICATIONS) == set(get_args(Notification))
    assert {*get_args(Params), *get_args(Result), *NOTIFICATIONS} < set(VOCABULARY)


def test_of_several_forms_of_a_result_each_has_a_state_of_its_own() -> None:
    for _, forms in METHODS.values():
        assert forms
        for one, other in combinations(forms, 2):
            assert states(one).isdisjoint(states(other))


def states(cls: Any) -> set[str]:  # noqa: ANN401 # a class
    """The words that tell this form of a result from the others."""
    form = attrs.fields(cls).state.type
    assert get_origin(form) is Literal
    return set(get_args(form))


def test_what_may_be_left_out_is_none_by_default() -> None:
    """Or the encoder could not tell that it is to be left out."""
    defaults = [
        each.default
        for cls in VOCABULARY
        for each in attrs.fields(cls)
        if Absent() in get_args(each.type)
    ]
    assert defaults
    assert set(defaults) == {None}


def is_secret(cls: Any, member: str) -> bool:  # noqa: ANN401 # a class
    """Of the members called `id`, the claim of a write is one, that of a request is not."""
    return member in SECRET or (cls, member) == (ClaimedWrite, "id")


@pytest.mark.parametrize("cls", VOCABULARY, ids=lambda cls: cls.__name__)
@settings(max_examples=5)
@given(data=st.data())
def test_no_repr_shows_a_secret(cls: Any, data: st.DataObject) -> None:  # noqa: ANN401 # a class
    """A lease id is a capability, and a repr ends up in a log (L7)."""
    message = data.draw(strategies.instances(cls))
    secrets = [each.name for each in attrs.fields(cls) if is_secret(cls, each.name)]
    revealing = {name: (LEASE,) if name in ("ids", "lost") else LEASE for name in secrets}
    assert LEASE not in repr(attrs.evolve(message, **revealing))


def test_every_capability_of_a_request_is_known_to_be_secret() -> None:
    """So that one which is new cannot be forgotten above (L7)."""
    capabilities = [
        (cls, each.name)
        for cls in get_args(Params)
        for each in attrs.fields(cls)
        if {LeaseId, ClaimIds} & {each.type, *get_args(each.type)}
    ]
    assert (messages.CacheGet, "within_fill") in capabilities
    assert (messages.WritesAck, "ids") in capabilities
    assert all(is_secret(cls, name) for cls, name in capabilities)


def test_a_repr_hides_nothing_but_secrets() -> None:
    """Or a log would not say what a request was about."""
    hidden = [(cls, each.name) for cls in VOCABULARY for each in attrs.fields(cls) if not each.repr]
    assert hidden
    assert all(is_secret(cls, name) for cls, name in hidden)


def test_a_cached_value_stays_out_of_repr() -> None:
    """It may be large, and it is nobody's business but its peers'."""
    assert "private" not in repr(messages.CacheSet("a", Json(b'"private"'), 1000))


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
