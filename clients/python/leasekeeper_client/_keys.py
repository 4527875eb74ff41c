"""Keys that are made of a call's arguments, such that no two calls have one key by accident.

What is filled in is quoted: everything but letters, digits, `.`, `_` and `-` becomes `+` and two
hexadecimal digits for each byte of its UTF-8. So a value never contains `:`, `/` or `@`, and two
values with one of these between them cannot run into each other.
"""

from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from inspect import signature
from string import Formatter
from typing import Final, ParamSpec
from uuid import UUID

from leasekeeper_client._plan import check_name

P = ParamSpec("P")

PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
SEPARATORS: Final = frozenset(":/@")
_TEXTS: Final = (str, int, float, Decimal, UUID, date, datetime, time, timedelta)
"""Types whose text says all about their value. The text of others may be an address in memory."""


def quote(text: str) -> str:
    """Return text with everything quoted that could be taken for the rest of a key."""
    return "".join(
        chr(byte) if byte in PLAIN else f"+{byte:02X}"
        for byte in text.encode(errors="surrogatepass")
    )


class _Quoting(Formatter):
    """`str.format`, which quotes what it fills in."""

    def format_field(self, value: object, format_spec: str) -> str:
        """Return a value as it stands in the key.

        Raises:
            TypeError: The text of such a value does not say which one it is.
        """
        if isinstance(value, Enum):
            value = value.value
        if value is not None and not isinstance(value, _TEXTS):
            raise TypeError(
                f"a {type(value).__name__} cannot be part of a key; name one of its attributes, "
                "as in {order.id}"
            )
        return quote(format(value, format_spec) if format_spec else str(value))


class KeyMaker:
    """What makes keys and tags for the calls of one function.

    Args:
        function: The function.
        template: That of the key: a format string over the function's parameters.
        tags: Those of the tags.

    Raises:
        ValueError: A template names what is no parameter, or could make one key of two calls.
    """

    def __init__(
        self, function: Callable[..., object], template: str, tags: Iterable[str] = ()
    ) -> None:
        self._shape = signature(function)
        self._formatter = _Quoting()
        self._template = template
        self._tags = tuple(tags)
        for each in (template, *self._tags):
            _check_template(each, set(self._shape.parameters))

    def make(self, args: tuple[object, ...], kwargs: dict[str, object]) -> tuple[str, list[str]]:
        """Return the key and the tags of a call.

        Raises:
            TypeError: The function cannot be called so, or an argument cannot be part of a key.
            ValueError: The key is longer than 255 characters, or empty.
        """
        bound = self._shape.bind(*args, **kwargs)
        bound.apply_defaults()
        return self._fill(self._template, bound.arguments), [
            self._fill(tag, bound.arguments) for tag in self._tags
        ]

    def _fill(self, template: str, arguments: dict[str, object]) -> str:
        name = self._formatter.vformat(template, (), arguments)
        check_name(name)
        return name


def _check_template(template: str, parameters: set[str]) -> None:
    fields = list(Formatter().parse(template))
    for index, (literal, name, spec, _) in enumerate(fields):
        if name is None:
            continue
        if name.split(".")[0].split("[")[0] not in parameters or "{" in (spec or ""):
            raise ValueError(f"{template!r} names {name!r}, which is no parameter")
        if index and not SEPARATORS.intersection(literal):
            raise ValueError(
                f"{template!r} needs one of : / @ between two fields, or they could run together"
            )
