"""What Hypothesis makes examples from: names, ids, messages, and JSON as a peer may send it.

Valid values come from the types of the message classes; `almost_params` spoils them in the ways
that clients get wrong. Nothing here knows how the server decodes.
"""

from collections.abc import Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import attrs
import orjson
from hypothesis import strategies as st

from leasekeeper.messages import (
    INTEGER_MAX,
    METHODS,
    Absent,
    Items,
    Null,
    Range,
    RequestId,
    Text,
)
from leasekeeper.messages import Json as JsonValue

Json = dict[str, Any]
Strategy = st.SearchStrategy[Any]

NAME_CHARACTERS: Final = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/@+-"
HEX_DIGITS: Final = "0123456789abcdefABCDEF"
_ALPHABETS: Final = {
    r"[A-Za-z0-9._:/@+\-]+": NAME_CHARACTERS,
    r"[A-Za-z0-9._:/@+\-]*": NAME_CHARACTERS,
    r"[0-9a-fA-F]+": HEX_DIGITS,
    r"[A-Za-z0-9.\-]+": NAME_CHARACTERS[:62] + ".-",
}

characters: Final = st.characters(codec="utf-8")
finite_floats: Final = st.floats(allow_nan=False, allow_infinity=False)
json_integers: Final = st.integers(-(2**63), 2**64 - 1)
request_ids: Final = st.none() | st.text(characters, max_size=20) | json_integers | finite_floats
json_scalars: Final = (
    st.none() | st.booleans() | json_integers | finite_floats | st.text(characters, max_size=40)
)
json_values: Final = st.recursive(
    json_scalars,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(characters, max_size=9), inner)
    ),
    max_leaves=20,
)
lookalikes: Final[st.SearchStrategy[object]] = st.sampled_from(
    (
        *(True, False, None, 0, 1, -1, 99, 100, 1000, 1001, 10_000, 10_001, 3_600_000, 3_600_001),
        *(1.0, 30_000.0, 0.5, INTEGER_MAX, INTEGER_MAX + 1),
        *("", "1", "30000", "true", "shared", "Shared", "exclusive", "pong", "keep", "drop"),
        *("a\n", "a b", "\x00", "é", "x" * 255, "x" * 256, "x" * 300, "x" * 301, "x" * 4097),
        *("0" * 32, "0" * 31, "0" * 33, "0" * 31 + "\n", "0" * 32 + "\n", "g" * 32),
        *([], {}, ["a"], ["a", "b"], ["a", "a"], ["a", 1], ["a", "b\n"], ["a", None], [["a"], "b"]),
        *([str(each) for each in range(16)], [str(each) for each in range(17)]),
    )
)
"""Values on both sides of every edge of what is allowed."""

_PRIMITIVES: Final[Mapping[type, Strategy]] = {
    str: st.text(characters, max_size=40),
    int: st.integers(0, INTEGER_MAX),
    bool: st.booleans(),
}


def params(method: str) -> st.SearchStrategy[Json]:
    """Parameters that obey every rule of the method."""
    return single_params(method).filter(lambda each: rules_together(method, each))


def single_params(method: str) -> st.SearchStrategy[Json]:
    """Parameters that are right one by one, but perhaps not together."""
    required: Json = {}
    optional: Json = {}
    for each in attrs.fields(METHODS[method][0]):
        (required if each.default is attrs.NOTHING else optional)[each.name] = incoming(each.type)
    return st.fixed_dictionaries(required, optional=optional)


def almost_params(method: str) -> Strategy:
    """Parameters with a few mistakes, or none, or something else altogether."""
    known = [each.name for each in attrs.fields(METHODS[method][0])]
    keys = st.sampled_from(known * 3 + ["bogus", "Name", "ttlMs", "names", "limit", "id", ""])
    put = st.tuples(keys, lookalikes | json_values)
    drop = st.tuples(keys, st.just(_DROP))
    return st.builds(_spoil, single_params(method), st.lists(put | drop, max_size=2)) | json_values


def rules_together(method: str, obj: Json) -> bool:
    """The documented rules that no single parameter can state."""
    match method:
        case "lease.acquire" | "lease.acquire_all":
            names = obj.get("names", [])
            alone = obj.get("mode", "exclusive") == "exclusive"
            return len(set(names)) == len(names) and not (alone and "limit" in obj)
        case "cache.get":
            return ("within_key" in obj) == ("within_fill" in obj)
        case "cache.fill":
            return ("value" in obj) is not obj.get("not_modified", False)
        case "cache.fail":
            fates = (obj.get("not_found"), "private_ms" in obj, obj.get("promote"))
            if sum(map(bool, fates)) > 1:
                return False
            return "ttl_ms" in obj if obj.get("not_found") else not _any(obj, "ttl_ms", "tags")
        case "cache.invalidate":
            return _any(obj, "keys", "tags")
        case "cache.commit_write":
            return (
                "ttl_ms" in obj if "value" in obj else not _any(obj, "ttl_ms", "stale_ms", "etag")
            )
    return True


def _any(obj: Json, *members: str) -> bool:
    """Whether one of these says something: an empty list and 0 are as good as absent."""
    return any(obj.get(member) for member in members)


def incoming(form: Any) -> Strategy:  # noqa: ANN401 # a type form
    """JSON that a peer may send for one type of the vocabulary: never null where just optional."""
    if form == RequestId:
        return request_ids
    if get_origin(form) is Annotated:
        base, *constraints = get_args(form)
        values = _constrained(base, constraints)
        return st.none() | values if Null() in constraints else values
    if get_origin(form) in (Union, UnionType):
        return incoming(_unless_none(form))
    if form is JsonValue:
        return json_values
    if issubclass(form, Enum):
        return st.sampled_from([member.value for member in form])
    return _PRIMITIVES[form]


def instances(form: Any) -> Strategy:  # noqa: ANN401 # a type form
    """Python values of one type of the vocabulary, among them what only the server sends."""
    if form == RequestId:
        return request_ids
    if Absent() in get_args(form):
        return instances(get_args(form)[0])
    if get_origin(form) is Annotated:
        values = incoming(form)
        return values.map(tuple) if get_origin(get_args(form)[0]) is tuple else values
    if get_origin(form) is tuple:
        return st.lists(instances(get_args(form)[0]), max_size=3).map(tuple)
    if get_origin(form) is Mapping:
        return st.dictionaries(*map(instances, get_args(form)), max_size=3)
    if get_origin(form) in (Union, UnionType):
        return st.none() | instances(_unless_none(form))
    if get_origin(form) is Literal:
        return st.sampled_from(get_args(form))
    if form is JsonValue:
        return json_values.map(lambda value: JsonValue(orjson.dumps(value)))
    if attrs.has(form):
        return st.builds(form, **{each.name: instances(each.type) for each in attrs.fields(form)})
    return st.sampled_from(list(form)) if issubclass(form, Enum) else _PRIMITIVES[form]


_DROP: Final = object()


def _spoil(obj: Json, mistakes: list[tuple[str, object]]) -> Json:
    for key, value in mistakes:
        if value is _DROP:
            obj.pop(key, None)
        else:
            obj[key] = value
    return obj


def _constrained(base: Any, constraints: list[object]) -> Strategy:  # noqa: ANN401 # a type form
    for constraint in constraints:
        match constraint:
            case Text(minimum=minimum, maximum=maximum, pattern=pattern):
                alphabet = _ALPHABETS[pattern] if pattern else characters
                return st.text(alphabet, min_size=minimum, max_size=min(maximum, minimum + 20))
            case Range(minimum=minimum, maximum=maximum):
                return st.integers(minimum, maximum)
            case Items(minimum=minimum, maximum=maximum):
                item = incoming(get_args(base)[0])
                return st.lists(item, min_size=minimum, max_size=maximum)
    raise AssertionError(f"no strategy for {constraints}")


def _unless_none(form: Any) -> Any:  # noqa: ANN401 # a type form
    (inner,) = (each for each in get_args(form) if each is not NoneType)
    return inner
