"""The matcher: what matches, what does not, and what is bound."""

import pytest

from tests.conformance.patterns import MISSING, Bindings, Value, match, match_unordered
from tests.conformance.vectors import Json


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        (None, None),
        (1, 1),
        ("a", "a"),
        ([1, "a"], [1, "a"]),
        ({}, {"a": 1}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ({"a": {"$absent": True}}, {"b": 2}),
        ({"a": {"$optional": 1}}, {}),
        ({"a": {"$optional": 1}}, {"a": 1}),
        ({"$any": "int"}, 1),
        ({"$any": "float"}, 1.0),
        ({"$any": "string"}, ""),
        ({"$any": "bool"}, False),
        ({"$any": "null"}, None),
        ({"$any": "object"}, {}),
        ({"$any": "array"}, []),
        ({"$any": "any"}, None),
        ({"$any": ["string", "null"]}, None),
        ({"$gt": 1}, 2),
        ({"$ge": 2}, 2),
        ({"$lt": 3}, 2),
        ({"$le": 2}, 2),
        ({"$gt": 1, "$lt": 3}, 2),
        ({"$between": [1, 3]}, 3),
        ({"$regex": "[a-z]+: .+"}, "busy: really\nso"),
        ({"$length": 2}, [1, 2]),
        ({"$length": {"$gt": 1}}, "ab"),
        ({"$every": {"$gt": 0}}, [1, 2]),
        ({"$every": 1}, []),
        ({"$contains": {"a": 1}}, [{}, {"a": 1}]),
        ({"$unordered": [1, {"$any": "int"}]}, [2, 1]),
        ({"$unordered": [{"$any": "int"}, 1]}, [1, 2]),
        ({"$exact": {"a": 1}}, {"a": 1}),
        ({"$exact": {"a": 1, "b": {"$absent": True}}}, {"a": 1}),
        ({"$one_of": [1, 2]}, 2),
        ({"$not": 1}, 2),
        ({"$not": 1}, True),
        ({"$mentions": "abc"}, {"x": ["-abc-"]}),
        ({"$not": {"$mentions": "abc"}}, {"x": ["ab", "c"]}),
    ],
)
def test_it_matches(pattern: Json, value: Json) -> None:
    assert match(pattern, value, {}) is None


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        (None, False),
        (1, True),
        (1, 1.0),
        (1.0, 1),
        (False, 0),
        ("1", 1),
        ([1], [1, 2]),
        ([1, 2], [2, 1]),
        ([], {}),
        ({}, []),
        ({"a": 1}, {}),
        ({"a": None}, {}),
        ({"a": {"$absent": True}}, {"a": None}),
        ({"a": {"$any": "any"}}, {}),
        ({"a": {"$not": 1}}, {}),
        ({"a": {"$bind": "x"}}, {}),
        ({"a": {"$optional": 1}}, {"a": 2}),
        ({"$any": "int"}, True),
        ({"$any": "int"}, 1.0),
        ({"$any": "bool"}, 1),
        ({"$any": ["string", "null"]}, 0),
        ({"$gt": 1}, 1),
        ({"$gt": 1}, 2.0),
        ({"$gt": 0}, True),
        ({"$ge": 2}, 1),
        ({"$lt": 3}, 3),
        ({"$le": 2}, 3),
        ({"$gt": 1, "$lt": 3}, 3),
        ({"$between": [1, 3]}, 4),
        ({"$regex": "a"}, "ab"),
        ({"$regex": "a"}, "a\n"),
        ({"$length": 2}, [1]),
        ({"$length": 2}, 2),
        ({"$every": 1}, [1, 2]),
        ({"$contains": 3}, [1, 2]),
        ({"$unordered": [1, 2]}, [1, 1]),
        ({"$unordered": [1]}, [1, 1]),
        ({"$exact": {"a": 1}}, {"a": 1, "b": 1}),
        ({"$exact": {"a": 1}}, {"a": 2}),
        ({"$one_of": [1, 2]}, 3),
        ({"$not": {"$any": "int"}}, 2),
        ({"$mentions": "abc"}, {"x": "ab"}),
    ],
)
def test_it_does_not_match(pattern: Json, value: Json) -> None:
    assert match(pattern, value, {}) is not None


def test_the_reason_names_the_path() -> None:
    why = match({"holders": [{"fence": {"$gt": 7}}]}, {"holders": [{"fence": 7}]}, {})
    assert why == "$.holders[0].fence was expected to be an integer above 7, but is 7"


def test_what_is_there_is_not_absent() -> None:
    absent: Value = MISSING
    assert match({"$absent": True}, absent, {}) is None
    assert match({"$any": "any"}, absent, {}) is not None


def test_a_match_binds() -> None:
    bindings: Bindings = {}
    assert match({"a": {"$bind": "x", "$any": "int"}}, {"a": 3}, bindings) is None
    assert bindings == {"x": 3}


def test_an_option_that_does_not_match_binds_nothing() -> None:
    bindings: Bindings = {}
    pattern: Json = {"$one_of": [{"a": {"$bind": "x"}, "b": 1}, {"a": {"$bind": "y"}}]}
    assert match(pattern, {"a": 3, "b": 2}, bindings) is None
    assert bindings == {"y": 3}


def test_no_order_misleads_an_unordered_match() -> None:
    expected: list[Json] = [{"$any": "any"}, {"$any": "int"}, {"$gt": 2}, 3]
    values: list[Json] = [3, 4, 1, "x"]
    assert match_unordered(expected, values, {}) is None
    assert match_unordered(expected, [*reversed(values)], {}) is None
    assert match_unordered(expected, [3, 1, 1, "x"], {}) is not None


def test_an_unordered_match_binds_what_it_settled_on() -> None:
    bindings: Bindings = {}
    expected: list[Json] = [{"$bind": "any"}, {"$bind": "one", "$le": 1}]
    assert match_unordered(expected, [1, 2], bindings) is None
    assert bindings == {"any": 2, "one": 1}


def test_long_lists_are_matched_quickly() -> None:
    expected: list[Json] = [{"id": i} for i in range(1000)]
    assert match_unordered(expected, [{"id": i} for i in range(1000)], {}) is None
