"""JSON text to messages and back. The only importer of cattrs, and strict.

cattrs coerces by default (None becomes "None", True becomes 1), so every primitive has a hook here
that wants the very type, and every failure becomes an error with the path of the field.

A cached value (`Json`) is written anew once, when it comes in, and copied as it is when it goes
out. So what is read is the value that was given, as orjson understands it, not its text:

- white space between tokens is gone; a string is in UTF-8, escaped only where JSON demands it;
- an integer of 64 bits (-2**63 to 2**64 - 1) is kept exactly, but -0 is 0; a larger one becomes
  the nearest double, like 1.8446744073709552e+19;
- a number with a fraction or an exponent is the nearest double, in its shortest form: 1e2 is 100.0;
- of members of one name the last counts, at the place of the first; the order is kept otherwise.

Not JSON at all for orjson, so that the whole frame is refused: a number beyond the largest double,
an escaped half of a surrogate pair, more than 1024 levels.
"""

import re
from collections.abc import Callable, Mapping
from enum import Enum
from functools import partial
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

import attrs
import cattrs
import orjson
from attrs import AttrsInstance, define, field, frozen
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError
from cattrs.gen import make_dict_unstructure_fn, override

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
    Absent,
    CacheCommitWrite,
    CacheFail,
    CacheFill,
    CacheGet,
    CacheInvalidate,
    Items,
    Json,
    LeaseAcquire,
    LeaseAcquireAll,
    Liveness,
    Mark,
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
VALUE_LEVELS_MAX: Final = 254
"""How deep the lists and objects of a cached value may be nested: what orjson can write."""


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
    """The answer to a request that succeeded. A result that many get is encoded once."""
    text = _last.text_of(result)
    return b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (orjson.dumps(request), text)


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


@define
class _Last:
    """The result that was encoded last: thousands may have waited for one cached value."""

    _result: object = None
    _text: bytes = b""

    def text_of(self, result: Result) -> bytes:
        """Its JSON. Results are frozen, so the same one has the same text."""
        if result is not self._result:
            self._text = orjson.dumps(_unstructure(result))
            self._result = result
        return self._text


_last: Final = _Last()


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
    check = _TOGETHER.get(cls)
    if check is not None:
        check(decoded)
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


# --- What no single field can say -------------------------------------------------------------


def _acquire(params: LeaseAcquire | LeaseAcquireAll) -> None:
    if params.limit is not None and params.mode is Mode.EXCLUSIVE:
        raise InvalidParams("$.limit", "only a shared lease has a limit")


def _acquire_all(params: LeaseAcquireAll) -> None:
    _acquire(params)
    if len(set(params.names)) != len(params.names):
        raise InvalidParams("$.names", "the same name twice")


def _get(params: CacheGet) -> None:
    if params.within_key is None and params.within_fill is not None:
        raise InvalidParams("$.within_key", "is missing: it goes with within_fill")
    if params.within_key is not None and params.within_fill is None:
        raise InvalidParams("$.within_fill", "is missing: it goes with within_key")


def _fill(params: CacheFill) -> None:
    if params.value is None and not params.not_modified:
        raise InvalidParams("$.value", "is missing: only not_modified goes without a value")
    if params.value is not None and params.not_modified:
        raise InvalidParams("$.value", "does not go with not_modified")


def _fail(params: CacheFail) -> None:
    if params.private_ms is not None and params.not_found:
        raise InvalidParams("$.private_ms", "does not go with not_found")
    if params.promote and (params.not_found or params.private_ms is not None):
        raise InvalidParams("$.promote", "does not go with not_found or private_ms")
    if params.not_found and params.ttl_ms is None:
        raise InvalidParams("$.ttl_ms", "is missing: it goes with not_found")
    if params.ttl_ms is not None and not params.not_found:
        raise InvalidParams("$.ttl_ms", "only not_found has a TTL")
    if params.tags and not params.not_found:
        raise InvalidParams("$.tags", "only not_found has tags")


def _invalidate(params: CacheInvalidate) -> None:
    if not params.keys and not params.tags:
        raise InvalidParams("$.keys", "is missing: expected at least one key or tag")


def _commit_write(params: CacheCommitWrite) -> None:
    if params.value is not None:
        if params.ttl_ms is None:
            raise InvalidParams("$.ttl_ms", "is missing: it goes with a value")
    elif params.ttl_ms is not None:
        raise InvalidParams("$.value", "is missing: it goes with ttl_ms")
    elif params.stale_ms:
        raise InvalidParams("$.stale_ms", "only a value may be stale")
    elif params.etag is not None:
        raise InvalidParams("$.etag", "only a value has an etag")


_TOGETHER: Final[Mapping[type, Callable[[Any], None]]] = {
    LeaseAcquire: _acquire,
    LeaseAcquireAll: _acquire_all,
    CacheGet: _get,
    CacheFill: _fill,
    CacheFail: _fail,
    CacheInvalidate: _invalidate,
    CacheCommitWrite: _commit_write,
}
"""A member that has its default cannot be told from one that is absent, and does no harm."""

# --- The strict converters --------------------------------------------------------------------

Hook = Callable[[Any, Any], Any]
Encoder = Callable[[Any], dict[str, Any]]

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


def _structure_json(value: object, _: object) -> Json:
    try:
        return Json(orjson.dumps(value))
    except orjson.JSONEncodeError:  # its depth is all that orjson may read and not write
        raise ValueError(f"nested deeper than {VALUE_LEVELS_MAX} levels") from None


def _unstructure_json(value: Json) -> orjson.Fragment:
    return orjson.Fragment(value.text)


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
    for enum in (Mode, Liveness, OnDrop, Mark):  # by class, or the hook of `str` would take them
        converter.register_structure_hook(enum, _enum_hook(enum))
    converter.register_structure_hook_factory(_has_origin(tuple), partial(_list_hook, converter))
    converter.register_structure_hook_factory(
        _has_origin(Union, UnionType), partial(_optional_hook, converter)
    )
    converter.register_structure_hook_factory(
        _has_origin(Annotated), partial(_annotated_hook, converter)
    )
    converter.register_structure_hook_func(lambda cls: cls == RequestId, _structure_id)
    converter.register_structure_hook(Json, _structure_json)
    converter.register_unstructure_hook(Json, _unstructure_json)
    converter.register_unstructure_hook_factory(_may_lack, partial(_lacking_hook, converter))
    return converter


def _may_lack(cls: Any) -> bool:  # noqa: ANN401 # a type form
    return attrs.has(cls) and any(map(_is_absent_if_none, attrs.fields(cls)))


def _is_absent_if_none(member: "attrs.Attribute[object]") -> bool:
    return Absent() in get_args(member.type)


def _lacking_hook(converter: cattrs.Converter, cls: type[AttrsInstance]) -> Encoder:
    """Leaves out the `Absent` members of a result that are None, which is their default."""
    lacking: dict[str, Any] = {
        each.name: override(omit_if_default=True)
        for each in attrs.fields(cls)
        if _is_absent_if_none(each)
    }
    return make_dict_unstructure_fn(cls, converter, **lacking)


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
