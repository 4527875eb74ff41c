"""What a vector sends: values with placeholders, filled in just before they are used."""

import json
from collections.abc import Callable
from typing import Final

import attrs

from tests.conformance.vectors import Json, as_int, as_list, as_object, as_text


@attrs.define
class Scope:
    """What the placeholders of one playing stand for."""

    ns: str
    host: str = ""
    bound: dict[str, Json] = attrs.field(factory=dict)
    ids: dict[str, Json] = attrs.field(factory=dict)


def fill(template: Json, scope: Scope, index: int | None = None) -> Json:
    """The template's value. Conditions of patterns pass through, their operands filled.

    Raises:
        KeyError: If a ``$ref`` or ``$id`` names what nothing has bound.
    """
    match template:
        case str():
            port = scope.host.rpartition(":")[2]
            text = template.replace("{ns}", scope.ns).replace("{host}", scope.host)
            text = text.replace("{port}", port)
            return text if index is None else text.replace("{i}", str(index))
        case list():
            return [fill(element, scope, index) for element in template]
        case dict():
            for key, placeholder in PLACEHOLDERS.items():
                if key in template:
                    return placeholder(template, scope, index)
            return {key: fill(member, scope, index) for key, member in template.items()}
        case _:
            return template


def _ref(template: dict[str, Json], scope: Scope, index: int | None) -> Json:
    name, *path = as_text(template["$ref"]).split(".")
    value = scope.bound[name]
    for key in path:
        value = as_object(value)[key]
    return value


def _id(template: dict[str, Json], scope: Scope, index: int | None) -> Json:
    return scope.ids[as_text(template["$id"])]


def _index(template: dict[str, Json], scope: Scope, index: int | None) -> Json:
    if index is None:
        raise ValueError("$index stands in no $list")
    return index


def _repeat(template: dict[str, Json], scope: Scope, index: int | None) -> Json:
    text = as_text(fill(template["$repeat"], scope, index))
    return text * as_int(fill(template["times"], scope, index))


def _list(template: dict[str, Json], scope: Scope, index: int | None) -> Json:
    times = as_int(fill(template["times"], scope, index))
    return [fill(template["$list"], scope, i) for i in range(times)]


def _add(template: dict[str, Json], scope: Scope, index: int | None) -> Json:
    return sum(as_int(fill(term, scope, index)) for term in as_list(template["$add"]))


def _concat(template: dict[str, Json], scope: Scope, index: int | None) -> Json:
    return "".join(as_text(fill(part, scope, index)) for part in as_list(template["$concat"]))


def _pad(template: dict[str, Json], scope: Scope, index: int | None) -> Json:
    text = as_text(fill(template["$pad"], scope, index))
    return text + " " * (as_int(fill(template["to"], scope, index)) - len(text.encode()))


def _cut(template: dict[str, Json], scope: Scope, index: int | None) -> Json:
    text = as_text(fill(template["$cut"], scope, index))
    pieces = as_int(fill(template["into"], scope, index))
    edges = [len(text) * i // pieces for i in range(pieces + 1)]
    return [text[edges[i] : edges[i + 1]] for i in range(pieces)]


def _json(template: dict[str, Json], scope: Scope, index: int | None) -> Json:
    return json.dumps(fill(template["$json"], scope, index), ensure_ascii=False)


PLACEHOLDERS: Final[dict[str, Callable[[dict[str, Json], Scope, int | None], Json]]] = {
    "$ref": _ref,
    "$id": _id,
    "$index": _index,
    "$repeat": _repeat,
    "$list": _list,
    "$add": _add,
    "$concat": _concat,
    "$pad": _pad,
    "$cut": _cut,
    "$json": _json,
}
