"""When there were faults, dropped connections and deaths, and what they excuse."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Final

from attrs import define, field, frozen

from leasekeeper.verify.history import History, HistoryError
from leasekeeper.verify.vocabulary import NEVER, Dropped, FaultSaid, Heal

KILL_CLIENT: Final = "kill_client"
"""The kind of fault that ends a process; without an end, for good."""
ABOUT_US: Final = 1_000_000
"""A process may tell of a lost connection so much before or after the loss."""


@frozen
class Fault:
    """Something that was broken on purpose."""

    kind: str
    target: str
    line: int
    began: int
    ended: int
    """NEVER: nothing says when."""
    excuses: frozenset[str]


@frozen
class Spans:
    """Stretches of time, to be asked which of them touches another."""

    _begins: Sequence[int]
    _ends: Sequence[int]
    """The latest end of a span and all that began before it."""

    @classmethod
    def of(cls, spans: Iterable[tuple[int, int]]) -> "Spans":
        """Of pairs of a begin and an end, in any order."""
        ordered = sorted(spans)
        return cls([begin for begin, _ in ordered], list(accumulate((e for _, e in ordered), max)))

    def touch(self, begin: int, end: int) -> bool:
        """Whether one of them has a moment with this stretch in common."""
        before = bisect_right(self._begins, end)
        return before > 0 and self._ends[before - 1] >= begin


@define
class Faults:
    """The faults of a history.

    A fault excuses what it says it may break, if it began or ended within the stretch in which it
    must have happened. It does not know which checks ask it what.
    """

    history: History
    all: Sequence[Fault] = field(init=False)
    """In order of their begins."""
    healed: int | None = field(init=False)
    """When the last heal was."""
    _spans: Spans = field(init=False)
    _moments: dict[str, list[tuple[int, Fault]]] = field(init=False)
    _drops: dict[str, Spans] = field(init=False)

    def __attrs_post_init__(self) -> None:
        heals = sorted(heal.at for heal in self.history.of(Heal))
        self.healed = heals[-1] if heals else None
        self.all = _paired(self.history.of(FaultSaid))
        self._spans = Spans.of((each.began, _over(each, heals)) for each in self.all)
        self._moments = defaultdict(list)
        for fault in self.all:
            for check in fault.excuses:
                self._moments[check].append((fault.began, fault))
                if fault.ended != NEVER:
                    self._moments[check].append((fault.ended, fault))
        for moments in self._moments.values():
            moments.sort(key=_first)
        drops = defaultdict(list)
        for dropped in self.history.of(Dropped):
            drops[dropped.process].append((dropped.at - ABOUT_US, dropped.at + ABOUT_US))
        self._drops = {process: Spans.of(spans) for process, spans in drops.items()}

    def overlap(self, begin: int, end: int) -> bool:
        """Whether there was any fault at a moment of this stretch."""
        return self._spans.touch(begin, end)

    def dropped(self, process: str, begin: int, end: int) -> bool:
        """Whether the process may have lost its connection within this stretch."""
        drops = self._drops.get(process)
        return drops is not None and drops.touch(begin, end)

    def killed(self, process: str, since: int) -> bool:
        """Whether what the process had begun at `since` may have died with it."""
        return any(
            fault.kind == KILL_CLIENT and fault.target == process and fault.ended >= since
            for fault in self.all
        )

    def excuse(self, check: str, begin: int, end: int) -> Fault | None:
        """A fault that may break this, and began or ended within this stretch."""
        moments = self._moments.get(check, [])
        first = bisect_left(moments, begin, key=_first)
        return moments[first][1] if first < len(moments) and moments[first][0] <= end else None

    def before(self, check: str, at: int) -> int:
        """How many excuses the check has before this moment."""
        return bisect_left(self._moments.get(check, []), at, key=_first)

    def until(self, check: str, at: int) -> int:
        """How many excuses the check has until this moment. If `before` its begin and `until` its
        end there are as many, a stretch has no excuse."""
        return bisect_right(self._moments.get(check, []), at, key=_first)


def _first(moment: tuple[int, Fault]) -> int:
    return moment[0]


def _over(fault: Fault, heals: Sequence[int]) -> int:
    """When it must be over: what has no end lasts until all are healed. A death is a moment."""
    if fault.ended != NEVER:
        return fault.ended
    if fault.kind == KILL_CLIENT:
        return fault.began
    healed = bisect_left(heals, fault.began)
    return heals[healed] if healed < len(heals) else NEVER


def _paired(said: Iterable[FaultSaid]) -> Sequence[Fault]:
    """An end is that of the last fault of its kind and target that has none yet."""
    faults = []
    open_: dict[tuple[str, str], list[FaultSaid]] = defaultdict(list)
    for each in sorted(said, key=lambda each: (each.at, each.line)):
        same = open_[each.fault, each.target]
        if each.phase == "begin":
            same.append(each)
        elif same:
            faults.append(_fault(same.pop(), each.at))
        else:
            raise HistoryError(each.line, f"no {each.fault!r} of {each.target!r} has begun")
    faults += [_fault(each, NEVER) for same in open_.values() for each in same]
    return sorted(faults, key=lambda fault: (fault.began, fault.line))


def _fault(said: FaultSaid, ended: int) -> Fault:
    return Fault(said.fault, said.target, said.line, said.at, ended, frozenset(said.excuses))
