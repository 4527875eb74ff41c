"""The JSON edge: text to objects, and members read with their types checked.

Nothing behind this module handles values of unknown type.
"""

import json
import math
from collections.abc import Mapping
from typing import Final, TypeAlias

JsonObject: TypeAlias = Mapping[str, object]


_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


class Malformed(ValueError):
    """A message of the server is not what the protocol says."""


def encode(value: object) -> str:
    """Return compact JSON in ASCII, so that characters are bytes."""
    return _ENCODER.encode(value)


def decode(text: str) -> object:
    """Return the value of a JSON text.

    Raises:
        Malformed: It is no JSON, or nested too deep to be read.
    """
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise Malformed("not JSON") from exc
    return value


def as_object(value: object) -> JsonObject:
    """Return the value if it is a JSON object.

    Raises:
        Malformed: It is something else.
    """
    if not isinstance(value, dict):
        raise Malformed(f"expected an object, not {type(value).__name__}")
    return value


def as_list(value: object) -> list[object]:
    """Return the value if it is a JSON array.

    Raises:
        Malformed: It is something else.
    """
    if not isinstance(value, list):
        raise Malformed(f"expected an array, not {type(value).__name__}")
    return value


def integer(obj: JsonObject, key: str) -> int:
    """Return an integer member.

    Raises:
        Malformed: It is missing or no integer.
    """
    value = obj.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Malformed(f"{key}: expected an integer")
    return value


def text(obj: JsonObject, key: str) -> str:
    """Return a string member.

    Raises:
        Malformed: It is missing or no string.
    """
    value = obj.get(key)
    if not isinstance(value, str):
        raise Malformed(f"{key}: expected a string")
    return value


def seconds(obj: JsonObject, key_ms: str) -> float:
    """Return a member of milliseconds as seconds.

    Raises:
        Malformed: It is missing or no integer.
    """
    return integer(obj, key_ms) / 1000


def integer_or(obj: JsonObject, key: str, default: int) -> int:
    """Return an integer member, or the default when it is missing or no integer."""
    value = obj.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def text_or(obj: JsonObject, key: str, default: str) -> str:
    """Return a string member, or the default when it is missing or no string."""
    value = obj.get(key)
    return value if isinstance(value, str) else default


def text_or_none(obj: JsonObject, key: str) -> str | None:
    """Return a string member, or None when it is missing or no string."""
    value = obj.get(key)
    return value if isinstance(value, str) else None


def seconds_or(obj: JsonObject, key_ms: str, default: float) -> float:
    """Return a member of milliseconds as seconds, or the default when there is none."""
    value = obj.get(key_ms)
    if not isinstance(value, int) or isinstance(value, bool):
        return default
    return value / 1000


def milliseconds(span: float) -> int:
    """Return seconds as whole milliseconds, rounded up, so that a short span is never none."""
    return math.ceil(round(span * 1000, 6))
