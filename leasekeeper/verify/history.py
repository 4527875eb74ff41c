"""Reading a history: lines of JSON in, typed operations and events out, or the line at fault."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple, TypeVar, cast

import orjson
from attrs import define, field, frozen

from leasekeeper.errors import LeasekeeperError
from leasekeeper.verify import members
from leasekeeper.verify.members import Wrong, take
from leasekeeper.verify.vocabulary import Event, FaultSaid, Operation, Outcome

T = TypeVar("T", bound=Operation | Event)

CHECKS: Final = (
    "fences",
    "exclusion",
    "resource",
    "fifo",
    "stuck",
    "updates",
    "loads",
    "stale",
    "writes",
)
"""The names of the checks, in the order in which they are told."""


class HistoryError(LeasekeeperError):
    """This is no history; the message says which line is wrong, and what was expected there."""

    def __init__(self, line: int, text: str) -> None:
        super().__init__(f"line {line}: {text}")


@frozen
class Header:
    """What the first line says of the others."""

    clock_error_us: int
    """How far apart the readings of two processes may be."""
    recovery_us: int
    """How long after the last heal whoever waits may still wait."""
    unfenced: bool
    """The resource did not look at fences."""


@define
class History:
    """All that was said, by kind; nothing of it is in any order."""

    header: Header
    lines: int = 0
    first_at: int = 0
    last_at: int = 0
    processes: set[str] = field(factory=set)
    _said: dict[type, list[Operation | Event]] = field(factory=dict)

    def of(self, kind: type[T]) -> Sequence[T]:
        """All operations, or events, of this class."""
        return cast("Sequence[T]", self._said.get(kind, ()))

    def operations(self) -> Sequence[Operation]:
        """All of them, of whatever class."""
        kinds = [kind for kind in self._said if issubclass(kind, Operation)]
        return cast("Sequence[Operation]", [each for kind in kinds for each in self._said[kind]])

    def add(self, said: Operation | Event) -> None:
        """Takes in one more."""
        self._said.setdefault(type(said), []).append(said)


def read(lines: Iterable[bytes]) -> History:
    """Reads a history. Lines without anything on them are passed over.

    Raises:
        HistoryError: a line is not as `spec/history.md` has it.
    """
    reader: _Reader | None = None
    number = 0
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            said = _object(text)
            if reader is None:
                reader = _Reader(History(_header(said)))
            else:
                reader.take(said, number)
        except Wrong as wrong:
            raise HistoryError(number, str(wrong)) from None
    if reader is None:
        raise HistoryError(number or 1, 'a history begins with a line of type "history"')
    return reader.finish(number)


def _object(text: bytes) -> Mapping[str, object]:
    try:
        said: object = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise Wrong(f"this is not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(said, dict):
        raise Wrong("a line must be a JSON object")
    return said


def _header(said: Mapping[str, object]) -> Header:
    try:
        take(said, (members.FIRST,))
    except Wrong:
        raise Wrong('a history begins with a line of type "history"') from None
    taken = take(said, members.HEADER)
    clock_error_us, recovery_us = taken["clock_error_us"], taken["recovery_us"]
    assert isinstance(clock_error_us, int)
    assert isinstance(recovery_us, int)
    if min(clock_error_us, recovery_us) < 0:
        raise Wrong('"clock_error_us" and "recovery_us" must not be negative')
    return Header(clock_error_us, recovery_us, unfenced=taken["unfenced"] is True)


# --- Lines ------------------------------------------------------------------------------------


class _Begin(NamedTuple):
    op: str
    line: int
    at: int
    values: dict[str, object]


class _End(NamedTuple):
    op: str
    line: int
    at: int
    outcome: Outcome
    values: dict[str, object]


_Key = tuple[str, str | int]
_OUTCOMES: Final = {each.value: each for each in Outcome}


@define
class _Reader:
    """Puts begins and ends together, in whatever order they come.

    It does not judge what they say.
    """

    history: History
    _begun: dict[_Key, _Begin | None] = field(factory=dict)
    """None: its end is there, too."""
    _early: dict[_Key, _End] = field(factory=dict)
    """Ends whose begins are still to come."""
    _first_at: int | None = None

    def take(self, said: Mapping[str, object], line: int) -> None:
        """One line but the first."""
        kind = said.get("type")
        if kind == "history":
            raise Wrong('only the first line may be of type "history"')
        members.TYPE.check(kind)
        at, process = said.get("at"), said.get("process")
        if type(at) is not int or type(process) is not str:
            take(said, members.WHERE)
            raise AssertionError
        self._meet(at, process)
        op = said.get("op")
        if kind == "event":
            self._event(op, said, process, line, at)
        else:
            self._operation(kind, op, said, process, line, at)

    def _meet(self, at: int, process: str) -> None:
        history = self.history
        if self._first_at is None:
            self._first_at = history.first_at = history.last_at = at
        elif at > history.last_at:
            history.last_at = at
        elif at < history.first_at:
            history.first_at = at
        history.processes.add(process)

    def _event(
        self, op: object, said: Mapping[str, object], process: str, line: int, at: int
    ) -> None:
        kind = members.EVENTS.get(op) if isinstance(op, str) else None
        if kind is None:
            members.EVENT.check(op)
            raise AssertionError
        event = kind.make(process=process, line=line, at=at, **take(said, kind.members))
        if isinstance(event, FaultSaid):
            for name in event.excuses:
                if name not in CHECKS:
                    raise Wrong(f'"excuses": there is no check {name!r}')
        self.history.add(event)

    def _operation(
        self, kind: object, op: object, said: Mapping[str, object], process: str, line: int, at: int
    ) -> None:
        shape = members.OPERATIONS.get(op) if isinstance(op, str) else None
        if shape is None or not isinstance(op, str) or not isinstance(kind, str):
            members.OPERATION.check(op)
            raise AssertionError
        id_ = said.get("id")
        members.ID.check(id_)
        assert isinstance(id_, str | int)
        key = (process, id_)
        if kind == "begin":
            self._begins(key, _Begin(op, line, at, take(said, shape.begin)))
            return
        outcome = _OUTCOMES[kind]
        adds = shape.ok if outcome is Outcome.OK else members.FAILED if kind == "fail" else ()
        self._ends(key, _End(op, line, at, outcome, take(said, adds)))

    def _begins(self, key: _Key, begin: _Begin) -> None:
        if key in self._begun:
            raise Wrong(f"process {key[0]!r} has begun an operation with id {key[1]!r} before")
        end = self._early.pop(key, None)
        if end is None:
            self._begun[key] = begin
        else:
            self._join(key, begin, end)

    def _ends(self, key: _Key, end: _End) -> None:
        if key in self._early or self._begun.get(key, end) is None:
            raise Wrong(f"the operation {key[1]!r} of process {key[0]!r} has ended before")
        begin = self._begun.get(key)
        if begin is None:
            self._early[key] = end
        else:
            self._join(key, begin, end)

    def _join(self, key: _Key, begin: _Begin, end: _End) -> None:
        if begin.op != end.op:
            raise Wrong(
                f"the operation {key[1]!r} of process {key[0]!r} is {begin.op!r} in line "
                f"{begin.line}, and {end.op!r} in line {end.line}"
            )
        if end.at < begin.at:
            raise Wrong(
                f"the operation {key[1]!r} of process {key[0]!r} begins (line {begin.line}) "
                f"after its end (line {end.line})"
            )
        self._begun[key] = None
        operation = members.OPERATIONS[begin.op].make(
            process=key[0],
            id=key[1],
            line=begin.line,
            began=begin.at,
            ended=end.at,
            end_line=end.line,
            outcome=end.outcome,
            **begin.values,
            **end.values,
        )
        self.history.add(operation)

    def finish(self, lines: int) -> History:
        """All lines are read: what has no end is unknown."""
        for key, end in self._early.items():
            raise HistoryError(end.line, f"nothing says that {key[1]!r} of {key[0]!r} has begun")
        for key, begin in self._begun.items():
            if begin is not None:
                operation = members.OPERATIONS[begin.op].make(
                    process=key[0], id=key[1], line=begin.line, began=begin.at, **begin.values
                )
                self.history.add(operation)
        self.history.lines = lines
        return self.history
