"""JSON text to messages and back. The only importer of cattrs, and strict.

cattrs coerces by default (None becomes "None", True becomes 1), so every primitive has a hook here
that wants the very type, and every failure becomes an error with the path of the field.
"""

import re
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import cattrs
import orjson
from attrs import field, frozen
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError

from leasekeeper.errors import (
    InvalidParams,
    InvalidRequest,
    LimitReached,
    MethodNotFound,
    ParseError,
    RpcError,
)
from leasekeeper.messages import (
    METHODS,
    NOTIFICATIONS,
    Items,
    Liveness,
    Mode,
    Notification,
    Null,
    OnDrop,
    Params,
    Range,
    RequestId,
    Result,
    Text,
)

BATCH_REQUESTS_MAX: Final = 1000


@frozen
class Request:
    """A request or, with `answered` false, a notification, which never gets an answer.

    `params` is the error instead, where the request cannot be carried out.
    """

    params: Params | RpcError = field(repr=False)
    id: RequestId = None
    answered: bool = True


@frozen
class Frame:
    """What one text frame asks for. A batch wants its answers in one array."""

    requests: tuple[Request, ...]
    batch: bool


def decode_frame(text: str | bytes) -> Frame:
    """The requests of one frame, each with its own error where it has one. Never raises."""
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return Frame((Request(ParseError(f"this frame is not JSON: {error.msg}")),), batch=False)
    if not isinstance(message, list):
        return Frame((_decode_request(message),), batch=False)
    if not message:
        return Frame((Request(InvalidRequest("a batch holds at least one request")),), batch=False)
    if len(message) > BATCH_REQUESTS_MAX:
        return Frame((Request(LimitReached("batch_requests", BATCH_REQUESTS_MAX)),), batch=False)
    return Frame(tuple(_decode_request(each) for each in message), batch=True)


def encode_result(request: RequestId, result: Result) -> bytes:
    """The answer to a request that succeeded."""
    return orjson.dumps({"jsonrpc": "2.0", "id": request, "result": _unstructure(result)})


def encode_error(request: RequestId, error: RpcError) -> bytes:
    """The answer to a request that failed."""
    body = {"code": error.code, "message": str(error), "data": _unstructure(dict(error.data))}
    return orjson.dumps({"jsonrpc": "2.0", "id": request, "error": body})


def encode_notification(notification: Notification) -> bytes:
    """A message that no request asked for."""
    method = NOTIFICATIONS[type(notification)]
    return orjson.dumps({"jsonrpc": "2.0", "method": method, "params": _unstructure(notification)})


def join(messages: list[bytes]) -> bytes:
    """One array of messages already encoded."""
    return b"[" + b",".join(messages) + b"]"


def decode_params(method: str, params: object) -> Params:
    """The parameters of one method.

    Raises:
        MethodNotFound: there is no such method.
        InvalidParams: with the path of the first bad field, `$` being the parameters.
    """
    if method not in METHODS:
        raise MethodNotFound(method)
    if type(params) is not dict:
        raise InvalidParams("$", "expected an object with the parameters by name")
    cls = METHODS[method][0]
    try:
        decoded: Params = _QUICK.structure(params, cls)
    except Exception:  # the quick converter's errors carry no path: ask the thorough one
        raise _explain(params, cls) from None
    _check_together(decoded)
    return decoded


def _decode_request(message: object) -> Request:
    if type(message) is not dict:
        return Request(InvalidRequest("expected an object"))
    request_id = message.get("id")
    if type(request_id) not in (str, int, float, type(None)):
        return Request(InvalidRequest("an id is a string, a number or null"))
    answered = "id" in message
    method = message.get("method")
    if message.get("jsonrpc") != "2.0" or type(method) is not str:
        error = InvalidRequest('expected "jsonrpc": "2.0" and a method')
        return Request(error)  # JSON-RPC: what is no request has no id
    try:
        params = decode_params(method, message.get("params", {}))
    except RpcError as problem:
        return Request(problem, request_id, answered)
    return Request(params, request_id, answered)


def _check_together(params: Params) -> None:
    """What no single field can say."""
    mode, limit = getattr(params, "mode", None), getattr(params, "limit", None)
    if mode == "exclusive" and limit is not None:
        raise InvalidParams("$.limit", "only a shared lease has a limit")
    names = getattr(params, "names", ())
    if len(set(names)) != len(names):
        raise InvalidParams("$.names", "the same name twice")


# --- The strict converters --------------------------------------------------------------------

Hook = Callable[[Any, Any], Any]

_JSON_NAMES: Final[Mapping[type, str]] = {
    str: "a string",
    int: "an integer",
    bool: "true or false",
}


def _exactly(cls: type) -> Hook:
    def structure(value: object, _: object) -> object:
        if type(value) is not cls:
            raise ValueError(f"expected {_JSON_NAMES[cls]}")
        return value

    return structure


def _enum_hook(cls: type[Enum]) -> Hook:
    members = {member.value: member for member in cls}

    def structure(value: object, _: object) -> Enum:
        if type(value) is not str or value not in members:
            raise ValueError("expected one of " + ", ".join(members))
        return members[value]

    return structure


def _structure_id(value: object, _: object) -> object:
    if type(value) not in (str, int, float, type(None)):
        raise ValueError("expected a string, a number or null")
    return value


def _list_hook(converter: cattrs.Converter, cls: Any) -> Hook:  # noqa: ANN401 # a type form
    item_type = get_args(cls)[0]
    structure_item = converter.get_structure_hook(item_type)

    def structure(value: object, _: object) -> tuple[object, ...]:
        if type(value) is not list:
            raise ValueError("expected a list")
        items = []
        for index, item in enumerate(value):
            try:
                items.append(structure_item(item, item_type))
            except ValueError as problem:
                raise _At(f"[{index}]", problem) from None
        return tuple(items)

    return structure


def _optional_hook(converter: cattrs.Converter, cls: Any) -> Hook:  # noqa: ANN401 # a type form
    """An optional field may be absent; if it is there, it is not null."""
    (inner,) = (each for each in get_args(cls) if each is not NoneType)
    structure_inner = converter.get_structure_hook(inner)
    return lambda value, _: structure_inner(value, inner)


def _annotated_hook(converter: cattrs.Converter, cls: Any) -> Hook:  # noqa: ANN401 # a type form
    base, *constraints = get_args(cls)
    structure_base = converter.get_structure_hook(base)
    nullable = Null() in constraints
    checks = [_CHECKS[type(each)](each) for each in constraints if each != Null()]

    def structure(value: object, _: object) -> object:
        if value is None and nullable:
            return None
        structured = structure_base(value, base)
        for check in checks:
            check(structured)
        return structured

    return structure


def _text_check(text: Text) -> Callable[[str], None]:
    pattern = re.compile(text.pattern) if text.pattern else None

    def check(value: str) -> None:
        if not text.minimum <= len(value) <= text.maximum:
            raise ValueError(f"expected {text.minimum} to {text.maximum} characters")
        if pattern and not pattern.fullmatch(value):
            raise ValueError(f"expected only {text.pattern}")

    return check


def _range_check(bounds: Range) -> Callable[[int], None]:
    def check(value: int) -> None:
        if not bounds.minimum <= value <= bounds.maximum:
            raise ValueError(f"expected {bounds.minimum} to {bounds.maximum}")

    return check


def _items_check(items: Items) -> Callable[[tuple[object, ...]], None]:
    def check(value: tuple[object, ...]) -> None:
        if not items.minimum <= len(value) <= items.maximum:
            raise ValueError(f"expected {items.minimum} to {items.maximum} items")

    return check


_CHECKS: Final[Mapping[type, Callable[[Any], Callable[[Any], None]]]] = {
    Text: _text_check,
    Range: _range_check,
    Items: _items_check,
}


class _At(ValueError):
    """A problem further down the path."""

    def __init__(self, where: str, problem: ValueError) -> None:
        super().__init__(str(problem))
        self.where = where + getattr(problem, "where", "")


def _make_converter(*, detailed: bool) -> cattrs.Converter:
    """A strict converter. The detailed one is slower, and its errors carry the path."""
    converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=detailed)
    for primitive in _JSON_NAMES:
        converter.register_structure_hook(primitive, _exactly(primitive))
    for enum in (Mode, Liveness, OnDrop):  # by class, or the hook of `str` would take them
        converter.register_structure_hook(enum, _enum_hook(enum))
    converter.register_structure_hook_factory(_has_origin(tuple), partial(_list_hook, converter))
    converter.register_structure_hook_factory(
        _has_origin(Union, UnionType), partial(_optional_hook, converter)
    )
    converter.register_structure_hook_factory(
        _has_origin(Annotated), partial(_annotated_hook, converter)
    )
    converter.register_structure_hook_func(lambda cls: cls == RequestId, _structure_id)
    return converter


def _has_origin(*origins: object) -> Callable[[Any], bool]:
    return lambda cls: get_origin(cls) in origins


_QUICK: Final = _make_converter(detailed=False)
_THOROUGH: Final = _make_converter(detailed=True)
_unstructure: Final[Callable[[object], object]] = _QUICK.unstructure


def _explain(params: dict[str, object], cls: type) -> InvalidParams:
    """The first problem of these parameters, with its path."""
    try:
        _THOROUGH.structure(params, cls)
    except ClassValidationError as group:
        return _first_problem(group)
    raise AssertionError("the quick converter refused what the thorough one takes")


def _first_problem(group: ClassValidationError) -> InvalidParams:
    with_notes, without = group.group_exceptions()
    for problem, note in with_notes:
        if isinstance(problem, KeyError):
            return InvalidParams(f"$.{note.name}", "is missing")
        return InvalidParams(f"$.{note.name}{getattr(problem, 'where', '')}", str(problem))
    for problem in without:
        if isinstance(problem, ForbiddenExtraKeysError):
            return InvalidParams(f"$.{min(problem.extra_fields)}"[:300], "is no such parameter")
    raise AssertionError(f"an unforeseen problem: {group!r}")
