"""The placeholders of vectors."""

import pytest

from tests.conformance.templates import Scope, fill
from tests.conformance.vectors import Json, exemplify

SCOPE = Scope(
    ns="n/",
    host="h:1",
    bound={"x": 5, "limits": {"fragments": 64}, "list": [1]},
    ids={"w": 100001},
)


@pytest.mark.parametrize(
    ("template", "value"),
    [
        (None, None),
        (1.5, 1.5),
        ("{ns}a at {host}, port {port}, not {i}", "n/a at h:1, port 1, not {i}"),
        ({"name": "{ns}x", "l": ["{ns}", 1]}, {"name": "n/x", "l": ["n/", 1]}),
        ({"$ref": "x"}, 5),
        ({"$ref": "limits.fragments"}, 64),
        ([{"$ref": "list"}], [[1]]),
        ({"$id": "w"}, 100001),
        ({"$repeat": "ab", "times": 3}, "ababab"),
        ({"$repeat": "ab", "times": {"$ref": "x"}}, "ab" * 5),
        ({"$list": ["{i}", {"$index": True}], "times": 2}, [["0", 0], ["1", 1]]),
        ({"$list": {"$list": {"$index": True}, "times": 2}, "times": 1}, [[0, 1]]),
        ({"$add": [1, {"$ref": "x"}, -2]}, 4),
        ({"$list": {"$add": [{"$index": True}, 10]}, "times": 2}, [10, 11]),
        ({"$concat": ["a", {"$repeat": "b", "times": 2}]}, "abb"),
        ({"$pad": "\u20ac", "to": 5}, "\u20ac  "),
        ({"$cut": "abcde", "into": 2}, ["ab", "cde"]),
        ({"$cut": "ab", "into": 3}, ["", "a", "b"]),
        ({"$json": {"a": {"$ref": "x"}}}, '{"a": 5}'),
        ({"$gt": {"$ref": "x"}}, {"$gt": 5}),
        ({"$one_of": ["{ns}", {"$ref": "x"}]}, {"$one_of": ["n/", 5]}),
    ],
)
def test_a_template_is_filled(template: Json, value: Json) -> None:
    assert fill(template, SCOPE) == value


@pytest.mark.parametrize(
    "template", [{"$ref": "nothing"}, {"$id": "nothing"}, {"$ref": "limits.x"}]
)
def test_what_nothing_bound_is_an_error(template: Json) -> None:
    with pytest.raises(KeyError):
        fill(template, SCOPE)


def test_an_index_outside_a_list_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\$index"):
        fill({"$index": True}, SCOPE)


def test_an_example_is_put_in_as_it_is() -> None:
    step: Json = {"send": {"v": {"$example": "v"}, "l": [{"$example": "v"}]}}
    assert exemplify(step, {"v": None}) == {"send": {"v": None, "l": [None]}}
