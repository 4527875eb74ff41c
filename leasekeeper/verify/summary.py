"""What a history is about: its operations, its faults, and how long nothing was answered."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from attrs import define, field, frozen

from leasekeeper.errors import Draining, InternalError, Overloaded, Unavailable
from leasekeeper.verify.faults import KILL_CLIENT, Fault, Faults
from leasekeeper.verify.history import Header, History
from leasekeeper.verify.vocabulary import (
    NEVER,
    Acquire,
    Held,
    Invalidate,
    Operation,
    Outcome,
    Put,
    Queued,
    Read,
    Release,
)

OUTAGES: Final = frozenset(
    (None, 0, Unavailable.code, Draining.code, Overloaded.code, InternalError.code)
)
"""Codes of a service that does not serve, and none at all; all others are answers."""

_ASKS_THE_SERVICE: Final = (Acquire, Release, Read, Invalidate, Put)
"""The others are between a process and a resource or a database of its own."""


@frozen
class Stretch:
    """A stretch of time."""

    begin: int
    end: int

    @property
    def us(self) -> int:
        """How long it is."""
        return self.end - self.begin


@frozen
class Recovery:
    """A fault, and when things went on after it."""

    fault: Fault
    recovered_us: int | None
    """From its end until an operation succeeded: one of its target's, if that is a process that
    asked for anything. None: nothing says when it ended, or nothing succeeded after."""


@frozen
class Summary:
    """A history in a few figures. It does not say what is right."""

    header: Header
    lines: int
    processes: int
    begin: int
    end: int
    operations: Mapping[str, Mapping[Outcome, int]]
    """How many there are of each kind, by their outcome."""
    faults: Sequence[Recovery]
    unavailable: Stretch | None
    """The longest stretch in which something was asked, and nothing was answered."""
    healed: int | None
    recovered_us: int | None
    """From the last heal until the service did something for somebody."""
    settled_us: int | None
    """From the last heal until all that was under way then had an end, as far as they have one."""


def summarise(history: History, faults: Faults) -> Summary:
    """Counts, and looks for the gaps."""
    operations = history.operations()
    asked = [each for each in operations if isinstance(each, _ASKS_THE_SERVICE)]
    counts: dict[str, dict[Outcome, int]] = {}
    for each in operations:
        of_kind = counts.setdefault(each.op, dict.fromkeys(Outcome, 0))
        of_kind[each.outcome] += 1
    healed = faults.healed
    successes = _Successes(asked)
    return Summary(
        header=history.header,
        lines=history.lines,
        processes=len(history.processes),
        begin=history.first_at,
        end=history.last_at,
        operations=counts,
        faults=[Recovery(each, _recovery(each, successes)) for each in faults.all],
        unavailable=_longest(history, faults, asked),
        healed=healed,
        recovered_us=None if healed is None else successes.after(healed),
        settled_us=None if healed is None else _settled(asked, healed),
    )


# --- Recovery ---------------------------------------------------------------------------------


@define
class _Successes:
    """When operations succeeded."""

    operations: Sequence[Operation]
    _all: list[int] = field(init=False)
    _by_process: dict[str, list[int]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._by_process = defaultdict(list)
        for each in self.operations:
            some = self._by_process[each.process]
            if each.ok:
                some.append(each.ended)
        for some in self._by_process.values():
            some.sort()
        self._all = sorted(at for some in self._by_process.values() for at in some)

    def after(self, moment: int, process: str | None = None) -> int | None:
        """How long it took from then until the next: of this process, if it asked for anything."""
        some = self._all if process is None else self._by_process.get(process, self._all)
        first = bisect_left(some, moment)
        return some[first] - moment if first < len(some) else None


def _recovery(fault: Fault, successes: _Successes) -> int | None:
    return None if fault.ended == NEVER else successes.after(fault.ended, fault.target)


def _settled(operations: Sequence[Operation], healed: int) -> int | None:
    ends = [each.ended for each in operations if each.began <= healed <= each.ended < NEVER]
    return max(ends) - healed if ends else None


# --- Unavailability ---------------------------------------------------------------------------

_BEGINS, _STOPS, _ANSWERED = range(3)
"""What comes first of what happens in one moment."""


def _longest(history: History, faults: Faults, operations: Sequence[Operation]) -> Stretch | None:
    """The longest stretch in which at first something was pending, and that no answer ended.

    It goes on while all that was asked fails, also when nothing is pending between two attempts.
    """
    pending = 0
    since: int | None = None
    stopped = 0
    longest: Stretch | None = None
    for at, what in sorted(_moments(history, faults, operations)):
        if what == _BEGINS:
            pending += 1
            since = at if since is None else since
        elif what == _STOPS:
            pending -= 1
            stopped = at
        else:
            longest = _longer(longest, since, at)
            since = at if pending else None
    return _longer(longest, since, stopped)


def _longer(longest: Stretch | None, since: int | None, until: int) -> Stretch | None:
    if since is None or (longest is not None and until - since <= longest.us):
        return longest
    return Stretch(since, until)


def _moments(
    history: History, faults: Faults, operations: Sequence[Operation]
) -> Iterator[tuple[int, int]]:
    queued: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for event in history.of(Queued):
        queued[event.process, event.name, event.lease].append(event.at)
        yield event.at, _ANSWERED
    for moments in queued.values():
        moments.sort()
    for held in history.of(Held):
        yield held.at, _ANSWERED
    for each in operations:
        yield each.began, _BEGINS
        stops = _stops(each, faults, history.last_at)
        if isinstance(each, Acquire):
            waits = queued.get((each.process, each.name, each.lease), [])
            first = bisect_left(waits, each.began)
            stops = min([stops, *waits[first : first + 1]])
        yield stops, _STOPS
        if each.ok or (each.outcome is Outcome.FAIL and each.code not in OUTAGES):
            yield each.ended, _ANSWERED


def _stops(operation: Operation, faults: Faults, last_at: int) -> int:
    """When it is pending no more: at its end, or that of its process, or of the history."""
    if operation.ended != NEVER:
        return operation.ended
    deaths = (
        fault.began
        for fault in faults.all
        if fault.kind == KILL_CLIENT
        and fault.target == operation.process
        and fault.began >= operation.began
    )
    return min(deaths, default=last_at)
