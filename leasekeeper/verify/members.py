"""The members that each kind of line has, and taking them out of a line, strictly."""

from collections.abc import Callable, Collection, Mapping
from enum import Enum
from types import NoneType
from typing import Final

from attrs import frozen

from leasekeeper.verify import vocabulary as v


class Wrong(Exception):
    """A line is not as it must be; the message says what was expected."""


class _Missing(Enum):
    """No default: its type is that of no value in JSON."""

    MISSING = "nothing"


_MISSING: Final = _Missing.MISSING


@frozen
class Member:
    """One member of a line: what it may be, and what it is if it is absent."""

    name: str
    types: Collection[type]
    expected: str
    default: object = _MISSING
    only: Collection[object] | None = None
    """No other values than these."""
    each: type | None = None
    """What a list is made of."""

    def check(self, value: object) -> None:
        """Types are compared exactly: `true` is no integer.

        Raises:
            Wrong: it may not be this.
        """
        if type(value) not in self.types:
            raise Wrong(f'"{self.name}" must be {self.expected}, not {_shown(value)}')
        if self.only is not None and value not in self.only:
            raise Wrong(f'"{self.name}" must be {self.expected}, not {_shown(value)}')
        if self.each is not None and isinstance(value, list):
            for one in value:
                if type(one) is not self.each:
                    raise Wrong(f'"{self.name}" must be {self.expected}, but has {_shown(one)}')


Members = tuple[Member, ...]


def take(said: Mapping[str, object], members: Members) -> dict[str, object]:
    """The values of these members; others are nobody's business.

    Raises:
        Wrong: one is missing, or may not be what it is.
    """
    taken = {}
    for member in members:
        value = said.get(member.name, member.default)
        simple = member.only is None and member.each is None
        if not (simple and type(value) in member.types) and (
            value is not member.default or value is _MISSING
        ):
            member.check(value)
        taken[member.name] = value
    return taken


def _shown(value: object) -> str:
    if value is _MISSING:
        return "missing"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    kinds = {str: "a string", int: "an integer", float: "a fraction", list: "a list"}
    text = repr(value)
    return text if len(text) <= 40 else kinds.get(type(value), "an object")


# --- The tables -------------------------------------------------------------------------------


def _text(name: str) -> Member:
    return Member(name, {str}, "a string")


def _integer(name: str) -> Member:
    return Member(name, {int}, "an integer")


def _integer_or_null(name: str) -> Member:
    return Member(name, {int, NoneType}, "an integer or null", None)


def _flag(name: str, default: bool) -> Member:
    return Member(name, {bool}, "true or false", default)


def _one_of(name: str, *values: str, default: object = _MISSING) -> Member:
    expected = " or ".join(f'"{each}"' for each in values)
    return Member(name, {str}, expected, default, only=values)


def _texts(name: str, default: object = _MISSING) -> Member:
    return Member(name, {list}, "a list of strings", default, each=str)


TYPE: Final = _one_of("type", "begin", "ok", "fail", "unknown", "event")
HEADER: Final = (
    Member("version", {int}, "1", only=(1,)),
    Member("clock_error_us", {int}, "an integer", 0),
    Member("recovery_us", {int}, "an integer", 20_000_000),
    _flag("unfenced", default=False),
)
FIRST: Final = _one_of("type", "history")
WHERE: Final = (_integer("at"), _text("process"))
ID: Final = Member("id", {str, int}, "a string or an integer")


@frozen
class Shape:
    """The members of an operation's begin, and what its ok adds."""

    make: Callable[..., v.Operation]
    begin: Members
    ok: Members = ()


OPERATIONS: Final[Mapping[str, Shape]] = {
    "acquire": Shape(
        v.Acquire,
        begin=(
            _text("name"),
            _text("lease"),
            _one_of("mode", "exclusive", "shared", default="exclusive"),
            _integer_or_null("limit"),
            _integer_or_null("wait_ms"),
        ),
        ok=(_integer("fence"), _integer("until")),
    ),
    "release": Shape(v.Release, begin=(_text("name"), _text("lease"))),
    "write": Shape(
        v.Write,
        begin=(
            _text("resource"),
            _text("name"),
            _text("lease"),
            _integer("fence"),
            _text("value"),
        ),
    ),
    "load": Shape(
        v.Load,
        begin=(
            _text("key"),
            _integer("fence"),
            _integer_or_null("until"),
            _flag("shared", default=True),
        ),
        ok=(_integer("version"),),
    ),
    "read": Shape(
        v.Read,
        begin=(_text("key"),),
        ok=(
            Member("version", {int, NoneType}, "an integer or null"),
            _flag("stale", default=False),
            _flag("own", default=False),
        ),
    ),
    "change": Shape(
        v.Change, begin=(_text("key"), _integer("version"), _texts("tags", default=None))
    ),
    "invalidate": Shape(
        v.Invalidate, begin=(_texts("keys", default=()), _texts("tags", default=()))
    ),
    "put": Shape(
        v.Put, begin=(_text("queue"), _text("key"), _text("value")), ok=(_integer("seq"),)
    ),
}

FAILED: Final = (Member("code", {int, str, NoneType}, "an integer or a string", None),)


@frozen
class Kind:
    """The members of an event."""

    make: Callable[..., v.Event]
    members: Members = ()


_LEASE: Final = (_text("name"), _text("lease"))
_REASON: Final = Member("reason", {str, NoneType}, "a string or null", None)

EVENTS: Final[Mapping[str, Kind]] = {
    "held": Kind(v.Held, (*_LEASE, _integer("fence"), _integer("until"))),
    "lost": Kind(v.Lost, (*_LEASE, _integer("fence"), _REASON)),
    "queued": Kind(v.Queued, _LEASE),
    "dropped": Kind(v.Dropped),
    "applied": Kind(
        v.Applied, (_text("resource"), _integer("index"), _integer("fence"), _text("value"))
    ),
    "final": Kind(v.FinalValues, (_text("resource"), _texts("values"))),
    "stored": Kind(
        v.Stored,
        (_text("queue"), _text("key"), _text("value"), _integer("seq"), _integer("fence")),
    ),
    "stored_final": Kind(v.StoredFinal, (_text("queue"), _text("key"), _text("value"))),
    "tagged": Kind(v.Tagged, (_text("key"), _texts("tags"))),
    "fault": Kind(
        v.FaultSaid,
        (
            _text("fault"),
            _text("target"),
            _one_of("phase", "begin", "end"),
            _texts("excuses", default=()),
        ),
    ),
    "heal": Kind(v.Heal),
}

OPERATION: Final = _one_of("op", *OPERATIONS)
EVENT: Final = _one_of("op", *EVENTS)
