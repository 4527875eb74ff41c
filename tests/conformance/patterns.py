"""What a vector expects: patterns, and why a value does not match one.

``match`` answers None, or a sentence with the path of the first difference. Patterns are filled
(``templates.fill``) before they come here.
"""

import json
import re
from collections.abc import Callable
from typing import Final, TypeAlias

from tests.conformance.vectors import Json, as_list, as_object, as_text

Bindings: TypeAlias = dict[str, Json]


class Missing:
    """What stands for a member that is not there."""

    def __repr__(self) -> str:
        return "nothing"


MISSING: Final = Missing()
Value: TypeAlias = "Json | Missing"


def match(pattern: Json, value: Value, bindings: Bindings, path: str = "$") -> str | None:
    """Why the value does not match; None if it does. ``$bind`` writes into the bindings."""
    match pattern:
        case dict() if is_condition(pattern):
            return _conditions(pattern, value, bindings, path)
        case dict():
            return _members(pattern, value, bindings, path)
        case list():
            return _elements(pattern, value, bindings, path)
        case _ if equal(pattern, value):
            return None
        case _:
            return differs(path, f"to be {show(pattern)}", value)


def is_condition(pattern: dict[str, Json]) -> bool:
    return bool(pattern) and all(key.startswith("$") for key in pattern)


def equal(one: Value, other: Value) -> bool:
    """Equality that tells 1, 1.0 and true apart, at every depth."""
    match one, other:
        case dict(), dict():
            return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
        case list(), list():
            return len(one) == len(other) and all(map(equal, one, other))
        case _:
            return type(one) is type(other) and one == other


def show(value: object) -> str:
    """The value as JSON, cut where it becomes too long to read."""
    return "nothing" if isinstance(value, Missing) else cut(json.dumps(value, ensure_ascii=False))


def cut(text: str) -> str:
    return text if len(text) <= 400 else f"{text[:400]}... ({len(text)} characters)"


def differs(path: str, expected: str, value: Value) -> str:
    return f"{path} was expected {expected}, but is {show(value)}"


def _members(pattern: dict[str, Json], value: Value, bindings: Bindings, path: str) -> str | None:
    if not isinstance(value, dict):
        return differs(path, "to be an object", value)
    for key, member in pattern.items():
        why = match(member, value.get(key, MISSING), bindings, f"{path}.{key}")
        if why is not None:
            return why
    return None


def _elements(pattern: list[Json], value: Value, bindings: Bindings, path: str) -> str | None:
    if not isinstance(value, list):
        return differs(path, "to be a list", value)
    if len(pattern) != len(value):
        return differs(path, f"to have {len(pattern)} elements", value)
    for i, (expected, element) in enumerate(zip(pattern, value, strict=True)):
        why = match(expected, element, bindings, f"{path}[{i}]")
        if why is not None:
            return why
    return None


def _conditions(
    pattern: dict[str, Json], value: Value, bindings: Bindings, path: str
) -> str | None:
    if isinstance(value, Missing) and not pattern.keys() & {"$absent", "$optional"}:
        return differs(path, "to be there", value)
    for name, operand in pattern.items():
        why = CONDITIONS[name](operand, value, bindings, path)
        if why is not None:
            return why
    return None


def _any(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    types = operand if isinstance(operand, list) else [operand]
    if any(_is_of_type(as_text(name), value) for name in types):
        return None
    return differs(path, f"to be of type {' or '.join(map(str, types))}", value)


def _is_of_type(name: str, value: Value) -> bool:
    return name == "any" or type(value) is TYPES[name]


def _bind(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    assert not isinstance(value, Missing)
    bindings[as_text(operand)] = value
    return None


def _compare(words: str, holds: Callable[[int, int], bool]) -> "Condition":
    def condition(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
        assert isinstance(operand, int)
        if type(value) is int and holds(value, operand):
            return None
        return differs(path, f"to be an integer {words} {operand}", value)

    return condition


def _between(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    low, high = as_list(operand)
    assert isinstance(low, int)
    assert isinstance(high, int)
    if type(value) is int and low <= value <= high:
        return None
    return differs(path, f"to be an integer between {low} and {high}", value)


def _regex(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    if isinstance(value, str) and re.fullmatch(as_text(operand), value, re.DOTALL):
        return None
    return differs(path, f"to be a string that matches {operand}", value)


def _length(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    if isinstance(value, str | list | dict):
        why = match(operand, len(value), bindings, f"the length of {path}")
        return why and f"{why}: {show(value)}"
    return differs(path, "to have a length", value)


def _every(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    if not isinstance(value, list):
        return differs(path, "to be a list", value)
    return _elements([operand] * len(value), value, bindings, path)


def _contains(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    if not isinstance(value, list):
        return differs(path, "to be a list", value)
    for i, element in enumerate(value):
        if _tried(operand, element, bindings, f"{path}[{i}]") is None:
            return None
    return differs(path, f"to contain {show(operand)}", value)


def _unordered(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    if not isinstance(value, list):
        return differs(path, "to be a list", value)
    return match_unordered(as_list(operand), value, bindings, path)


def _exact(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    expected = as_object(operand)
    why = _members(expected, value, bindings, path)
    if why is not None:
        return why
    others = sorted(as_object(value if not isinstance(value, Missing) else {}).keys() - expected)
    return f"{path} has members that were not expected: {', '.join(others)}" if others else None


def _one_of(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    whys = [_tried(option, value, bindings, path) for option in as_list(operand)]
    return None if None in whys else "; and ".join(why for why in whys if why is not None)


def _not(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    if match(operand, value, dict(bindings), path) is not None:
        return None
    return differs(path, f"not to match {show(operand)}", value)


def _mentions(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    if as_text(operand) in json.dumps(value, ensure_ascii=False):
        return None
    return differs(path, f"to mention {operand}", value)


def _absent(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    return None if isinstance(value, Missing) else differs(path, "not to be there", value)


def _optional(operand: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    return None if isinstance(value, Missing) else match(operand, value, bindings, path)


def _tried(pattern: Json, value: Value, bindings: Bindings, path: str) -> str | None:
    """As match, but binds nothing unless all of it matches."""
    trial = dict(bindings)
    why = match(pattern, value, trial, path)
    if why is None:
        bindings.update(trial)
    return why


def match_unordered(
    expected: list[Json], values: list[Json], bindings: Bindings, path: str = "$"
) -> str | None:
    """Match each pattern with a value of its own: Kuhn's augmenting paths, so no order misleads.

    Pattern i is tried with value i first, which makes the usual case, in order, linear.
    """
    if len(expected) != len(values):
        return differs(path, f"to have {len(expected)} elements", values)
    owner: dict[int, int] = {}
    for i, pattern in enumerate(expected):
        if i not in owner and match(pattern, values[i], dict(bindings)) is None:
            owner[i] = i
        elif not _augment(i, expected, values, owner, set(), bindings):
            taken = {v for v, p in owner.items() if p < i}
            left = [v for j, v in enumerate(values) if j not in taken]
            return f"{path} has nothing left that matches {show(pattern)}, only {show(left)}"
    for j, i in owner.items():
        match(expected[i], values[j], bindings, path)
    return None


def _augment(
    i: int,
    expected: list[Json],
    values: list[Json],
    owner: dict[int, int],
    seen: set[int],
    bindings: Bindings,
) -> bool:
    order = [i, *(j for j in range(len(values)) if j != i)]
    free_first = sorted(order, key=lambda j: j in owner)
    for j in free_first:
        if j in seen or match(expected[i], values[j], dict(bindings)) is not None:
            continue
        seen.add(j)
        if j not in owner or _augment(owner[j], expected, values, owner, seen, bindings):
            owner[j] = i
            return True
    return False


Condition: TypeAlias = Callable[[Json, Value, Bindings, str], str | None]

TYPES: Final[dict[str, type]] = {
    "int": int,
    "float": float,
    "string": str,
    "bool": bool,
    "null": type(None),
    "object": dict,
    "array": list,
}

CONDITIONS: Final[dict[str, Condition]] = {
    "$any": _any,
    "$bind": _bind,
    "$gt": _compare("above", lambda value, bound: value > bound),
    "$ge": _compare("of at least", lambda value, bound: value >= bound),
    "$lt": _compare("below", lambda value, bound: value < bound),
    "$le": _compare("of at most", lambda value, bound: value <= bound),
    "$between": _between,
    "$regex": _regex,
    "$length": _length,
    "$every": _every,
    "$contains": _contains,
    "$unordered": _unordered,
    "$exact": _exact,
    "$one_of": _one_of,
    "$not": _not,
    "$mentions": _mentions,
    "$absent": _absent,
    "$optional": _optional,
}
