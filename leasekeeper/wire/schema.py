"""The wire vocabulary as an OpenRPC document, `spec/openrpc.json`, for people and code generators.

Everything in it comes from the message classes: names, constraints, defaults, and the docstrings as
descriptions. Run `python -m leasekeeper.wire.schema` after a change of them; `--check` says whether
that was forgotten.

It says nothing of what a method does over time. That is the specification's, in prose.
"""

import argparse
import ast
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from pkgutil import iter_modules
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, assert_never, get_args, get_origin

import attrs
import orjson
from attrs import define, field

from leasekeeper import messages
from leasekeeper.errors import (
    CODES,
    Busy,
    Deadlock,
    Draining,
    FillFailed,
    InvalidParams,
    LimitReached,
    Lost,
    MethodNotFound,
    Outcome,
    Overloaded,
    ParseError,
    RpcError,
    Unavailable,
)
from leasekeeper.messages import (
    METHODS,
    NOTIFICATIONS,
    ORIGINAL_WAIT,
    Absent,
    HolderView,
    Items,
    Null,
    Range,
    RequestId,
    Text,
)
from leasekeeper.messages import Json as JsonValue

Json = dict[str, Any]

PATH: Final = Path("spec/openrpc.json")
REGENERATE: Final = "run `python -m leasekeeper.wire.schema` to write it anew"

DESCRIPTION: Final = """\
JSON-RPC 2.0 over WebSocket text frames. Parameters go by name; names not listed are refused.
A parameter may be absent where it is not required, and null only where its schema says so.
An integer is written without fraction or exponent: 30000.0 is refused.
Results, notifications and error data may gain members within this version; ignore unknown ones.

What no single parameter can say:

- `lease.acquire`, `lease.acquire_all`: `limit` goes with mode "shared" only; `names` all differ.
- `cache.get`: `within_key` and `within_fill` go together.
- `cache.fill`: either `value` or `not_modified`.
- `cache.fail`: at most one of `not_found`, `private_ms` and `promote`. `not_found` needs `ttl_ms`;
  `ttl_ms` and `tags` go with it only.
- `cache.invalidate`: at least one key or tag.
- `cache.commit_write`: `value` and `ttl_ms` go together; `stale_ms` and `etag` go with them only.

A cached value is any JSON, at most 254 lists and objects deep. It comes back as the same value, not
as the same text. Integers beyond 64 bits, and numbers with a fraction or an exponent, are doubles;
of members of one name the last counts."""

_ERROR_DATA: Final[Mapping[type[RpcError], Mapping[str, Any]]] = {
    MethodNotFound: {"method": str},
    InvalidParams: {"path": str},
    Busy: {"holders": tuple[HolderView, ...], "waiting": int, "retry_after_ms": int},
    FillFailed: {"error": str, "retry_after_ms": int},
    Deadlock: {"cycle": tuple[str, ...]},
    LimitReached: {"limit": str, "max": int},
    Overloaded: {"retry_after_ms": int},
    Unavailable: {"outcome": Outcome, "retry_after_ms": int},
    Draining: {"reconnect_after_ms": int},
}
"""What `error.data` holds. For the errors not named here, nothing."""

_NOT_OF_A_METHOD: Final = (ParseError, MethodNotFound)
_ONLY_OF: Final[Mapping[type[RpcError], frozenset[str]]] = {
    Busy: frozenset(
        {
            *("lease.acquire", "lease.acquire_all", "lease.resume"),
            *("cache.get", "cache.set", "cache.begin_write", "writes.put"),
        }
    ),
    Lost: frozenset({"lease.renew", "lease.resume"}),
    FillFailed: frozenset({"cache.get"}),
    Deadlock: frozenset({"cache.get"}),
}


def document() -> Json:
    """The whole OpenRPC document."""
    outgoing = _Outgoing()
    methods = [_method(name, *classes, outgoing) for name, classes in METHODS.items()]
    notifications = [_notification(name, cls, outgoing) for cls, name in NOTIFICATIONS.items()]
    error_data = {
        error.name: outgoing.members(_ERROR_DATA.get(error, {})) for error in CODES.values()
    }
    return {
        "openrpc": "1.3.2",
        "info": {
            "title": "leasekeeper",
            "version": "1",
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "methods": methods,
        "components": {
            "schemas": dict(sorted(outgoing.schemas.items())),
            "errors": {error.name: _error(error) for error in CODES.values()},
        },
        "x-error-data": error_data,
        "x-notifications": notifications,
    }


def render() -> bytes:
    """The document as it stands in the file."""
    return orjson.dumps(document(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def params_schema(method: str) -> Json:
    """One JSON Schema for all the parameters of a method, as an object."""
    descriptors = _descriptors(METHODS[method][0], _incoming)
    return {
        "type": "object",
        "properties": {each["name"]: each["schema"] for each in descriptors},
        "required": [each["name"] for each in descriptors if each["required"]],
        "additionalProperties": False,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes or checks the file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m leasekeeper.wire.schema", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it differs")
    parser.add_argument("path", nargs="?", type=Path, default=PATH, help=f"instead of {PATH}")
    options = parser.parse_args(arguments)
    if not options.check:
        options.path.write_bytes(render())
    elif not options.path.is_file() or options.path.read_bytes() != render():
        print(f"{options.path} differs from the message classes: {REGENERATE}", file=sys.stderr)
        return 1
    return 0


# --- The parts of the document ----------------------------------------------------------------


def _method(name: str, params: type, results: Sequence[type], outgoing: "_Outgoing") -> Json:
    return {
        "name": name,
        "summary": _doc(params),
        "paramStructure": "by-name",
        "params": _descriptors(params, _incoming),
        "result": _result(results, outgoing),
        "errors": [{"$ref": f"#/components/errors/{error.name}"} for error in _errors_of(name)],
    }


def _result(forms: Sequence[type], outgoing: "_Outgoing") -> Json:
    several = len(forms) > 1
    schemas = [outgoing.form(form) for form in forms]
    return {
        "name": " or ".join(form.__name__ for form in forms),
        "description": "One of these; `state` says which." if several else _doc(forms[0]),
        "schema": {"oneOf": schemas} if several else schemas[0],
    }


def _notification(name: str, cls: type, outgoing: "_Outgoing") -> Json:
    return {
        "name": name,
        "summary": _doc(cls),
        "paramStructure": "by-name",
        "params": _descriptors(cls, outgoing.form, all_present=True),
    }


def _error(error: type[RpcError]) -> Json:
    return {"code": error.code, "message": f"{error.name}: {_doc(error)}"}


def _errors_of(method: str) -> list[type[RpcError]]:
    return [
        error
        for error in CODES.values()
        if error not in _NOT_OF_A_METHOD and method in _ONLY_OF.get(error, METHODS)
    ]


def _descriptors(
    cls: type, form: Callable[[Any], Json], *, all_present: bool = False
) -> list[Json]:
    """OpenRPC content descriptors. A default that stands for "absent" is not shown."""
    descriptors = []
    for each in attrs.fields(cls):
        required = all_present or each.default is attrs.NOTHING
        schema = form(each.type)
        if not required and each.default not in (None, ORIGINAL_WAIT):
            is_list = isinstance(each.default, tuple)
            schema = schema | {"default": [*each.default] if is_list else each.default}
        descriptor = {"name": each.name, "required": required, "schema": schema}
        descriptors.append(descriptor | _description(cls, each.name))
    return descriptors


def _description(cls: type, member: str) -> Json:
    doc = _FIELD_DOCS.get((cls.__name__, member))
    return {"description": doc} if doc else {}


def _doc(cls: type) -> str:
    return inspect.getdoc(cls) or ""


# --- Types to schemas -------------------------------------------------------------------------

_PRIMITIVES: Final[Mapping[object, str]] = {str: "string", int: "integer", bool: "boolean"}


def _incoming(form: Any) -> Json:  # noqa: ANN401 # a type form
    """What a peer may send: optional means absent, never null, unless `Null` says so."""
    if form == RequestId:
        return {"type": ["string", "number", "null"]}
    if get_origin(form) is Annotated:
        base, *constraints = get_args(form)
        schema = _incoming(base)
        for constraint in constraints:
            schema = _constrain(schema, constraint)
        return schema
    if get_origin(form) in (Union, UnionType):
        return _incoming(_unless_none(form))
    return _plain(form, _incoming)


@define
class _Outgoing:
    """What the server sends.

    Every field is there, and null where its type includes None; unless it is `Absent` then.
    """

    schemas: dict[str, Json] = field(factory=dict)
    """The classes met so far, for `#/components/schemas`."""

    def form(self, form: Any) -> Json:  # noqa: ANN401 # a type form
        if get_origin(form) in (Union, UnionType):
            return _constrain(self.form(_unless_none(form)), Null())
        if form is JsonValue or not attrs.has(form):
            return _plain(form, self.form)
        if form.__name__ not in self.schemas:
            schema = self.members({each.name: each.type for each in attrs.fields(form)})
            for name, member in schema["properties"].items():
                member |= _description(form, name)
            self.schemas[form.__name__] = {"description": _doc(form)} | schema
        return {"$ref": f"#/components/schemas/{form.__name__}"}

    def members(self, forms: Mapping[str, Any]) -> Json:
        properties = {}
        required = []
        for name, form in forms.items():
            if Absent() in get_args(form):
                properties[name] = self.form(_unless_none(get_args(form)[0]))
            else:
                properties[name] = self.form(form)
                required.append(name)
        return {"type": "object", "properties": properties, "required": required}


def _plain(form: Any, inner: Callable[[Any], Json]) -> Json:  # noqa: ANN401 # a type form
    match get_origin(form), get_args(form):
        case origin, (item, _) if origin is tuple:
            return {"type": "array", "items": inner(item)}
        case origin, (_, value) if origin is Mapping:
            return {"type": "object", "additionalProperties": inner(value)}
        case origin, members if origin is Literal:
            return {"type": "string", "enum": [member.value for member in members]}
    if form is JsonValue:
        return {}
    if issubclass(form, Enum):
        return {"type": "string", "enum": [member.value for member in form]}
    return {"type": _PRIMITIVES[form]}


def _unless_none(form: Any) -> Any:  # noqa: ANN401 # a type form
    (inner,) = (each for each in get_args(form) if each is not NoneType)
    return inner


def _constrain(schema: Json, constraint: Text | Range | Items | Null) -> Json:
    match constraint:
        case Text(minimum=minimum, maximum=maximum, pattern=None):
            return schema | {"minLength": minimum, "maxLength": maximum}
        case Text(minimum=minimum, maximum=maximum, pattern=pattern):
            bounds = {"minLength": minimum, "maxLength": maximum}
            return schema | bounds | {"pattern": f"^(?:{pattern})$"}
        case Range(minimum=minimum, maximum=maximum):
            return schema | {"minimum": minimum, "maximum": maximum}
        case Items(minimum=minimum, maximum=maximum):
            return schema | {"minItems": minimum, "maxItems": maximum}
        case Null():
            return schema | {"type": [schema["type"], "null"]}
        case _:
            assert_never(constraint)


def _read_field_docs() -> dict[tuple[str, str], str]:
    """The string below a field is its documentation; only the source has it."""
    docs: dict[tuple[str, str], str] = {}
    for module in iter_modules(messages.__path__, f"{messages.__name__}."):
        for cls in ast.parse(inspect.getsource(import_module(module.name))).body:
            if isinstance(cls, ast.ClassDef):
                docs |= {(cls.name, name): doc for name, doc in _docs_below(cls.body)}
    return docs


def _docs_below(body: Sequence[ast.stmt]) -> Iterator[tuple[str, str]]:
    for above, below in pairwise(body):
        match above, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str() as text)),
            ):
                yield name, inspect.cleandoc(text)


_FIELD_DOCS: Final = _read_field_docs()


if __name__ == "__main__":
    sys.exit(main())
