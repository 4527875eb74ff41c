"""`fifo` and `stuck`: who waits is granted in turn (L4), and is granted at last (L5)."""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from attrs import define, field, frozen

from leasekeeper.verify.faults import Faults
from leasekeeper.verify.history import History
from leasekeeper.verify.leases import Ends, turns_of
from leasekeeper.verify.result import Result, begun, ended, told
from leasekeeper.verify.vocabulary import NEVER, Acquire, Queued

FIFO: Final = "fifo"
STUCK: Final = "stuck"


@frozen
class _Wait:
    """An acquire that knew from then on that it waited, and was granted."""

    acquire: Acquire
    queued: Queued


def check_fifo(history: History, faults: Faults) -> Result:
    """Looks for waiters that were passed by one who came later.

    It does not look at shared leases, nor at waits that a fault or a lost connection touched.
    """
    result = Result(FIFO, "waits")
    names: dict[str, list[Acquire]] = defaultdict(list)
    for acquire in history.of(Acquire):
        names[acquire.name].append(acquire)
    waits: dict[str, list[_Wait]] = defaultdict(list)
    for wait in _waits(history, faults):
        waits[wait.acquire.name].append(wait)
        result.looked_at += 1
    ends = Ends(history)
    for name, some in waits.items():
        asked = _asked(names[name], ends)
        _passed(some, asked, history.header.clock_error_us, faults, result)
    return result


def _asked(acquires: Iterable[Acquire], ends: Ends) -> list[tuple[int, Acquire]]:
    """Those that were granted, and when their leases were asked for: a repeat passes nobody."""
    return [
        (turn[0].began, each)
        for turn in turns_of(acquires, ends)
        for each in turn
        if each.ok and each.exclusive
    ]


def _waits(history: History, faults: Faults) -> Iterator[_Wait]:
    queued: dict[tuple[str, str, str], list[Queued]] = defaultdict(list)
    for each in history.of(Queued):
        queued[each.process, each.name, each.lease].append(each)
    for events in queued.values():
        events.sort(key=_at)
    for acquire in history.of(Acquire):
        if not acquire.ok or not acquire.exclusive:
            continue
        events = queued.get((acquire.process, acquire.name, acquire.lease), [])
        first = bisect_left(events, acquire.began, key=_at)
        if first == len(events) or events[first].at > acquire.ended:
            continue
        touched = faults.overlap(acquire.began, acquire.ended) or faults.dropped(
            acquire.process, acquire.began, acquire.ended
        )
        if not touched:
            yield _Wait(acquire, events[first])


def _at(queued: Queued) -> int:
    return queued.at


@define
class _Lowest:
    """The lowest fence among those that have ended by a moment: a Fenwick tree of minima."""

    ends: Sequence[int]
    """All moments that will be asked for or put in, in order."""
    _tree: list[Acquire | None] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tree = [None] * (len(self.ends) + 1)

    def put(self, acquire: Acquire) -> None:
        """One more."""
        at = bisect_left(self.ends, acquire.ended) + 1
        while at < len(self._tree):
            there = self._tree[at]
            if there is None or acquire.fence < there.fence:
                self._tree[at] = acquire
            at += at & -at

    def until(self, moment: int) -> Acquire | None:
        """The one among those that have ended by then."""
        lowest: Acquire | None = None
        at = bisect_right(self.ends, moment)
        while at:
            there = self._tree[at]
            if there is not None and (lowest is None or there.fence < lowest.fence):
                lowest = there
            at -= at & -at
        return lowest


def _passed(
    waits: list[_Wait],
    asked: list[tuple[int, Acquire]],
    clock_error_us: int,
    faults: Faults,
    result: Result,
) -> None:
    """From the last wait to the first: those who began after it was queued are in the tree."""
    lowest = _Lowest(sorted(each.ended for _, each in asked))
    late = sorted(asked, key=lambda each: each[0])
    for wait in sorted(waits, key=lambda each: each.queued.at, reverse=True):
        while late and late[-1][0] > wait.queued.at + clock_error_us:
            lowest.put(late.pop()[1])
        other = lowest.until(wait.acquire.ended)
        if other is not None and other.fence < wait.acquire.fence:
            name, acquire = wait.acquire.name, wait.acquire
            result.wrong(
                f"{name}: a waiter was passed by one who came later",
                told(wait.queued, f"waits for {name} ({acquire.lease})"),
                begun(other, f"asks for {name} ({other.lease})"),
                ended(other, f"was granted it, fence {other.fence}"),
                ended(acquire, f"was granted it, fence {acquire.fence}"),
                excuse=faults.excuse(FIFO, acquire.began, acquire.ended),
            )


def check_stuck(history: History, faults: Faults) -> Result:
    """Looks for waits that the last heal did not bring to an end.

    It does not look at processes that were killed, nor at histories that were never healed or end
    too soon after.
    """
    result = Result(STUCK, "waits after the last heal")
    healed = faults.healed
    if healed is None:
        return result
    recovery_us = history.header.recovery_us
    for acquire in history.of(Acquire):
        if acquire.began > healed and acquire.wait_ms is not None:
            continue  # it has a time of its own
        by = max(acquire.began, healed) + recovery_us
        if acquire.ended < healed or (acquire.ended == NEVER and by > history.last_at):
            continue
        result.looked_at += 1
        late = acquire.ended == NEVER if acquire.began > healed else acquire.ended > by
        if late and not faults.killed(acquire.process, acquire.began):
            never = acquire.ended == NEVER
            what = "has no end" if never else "ended late"
            result.wrong(
                f"{acquire.name}: a wait {what}, {recovery_us / 1e6:g} s after the last heal",
                begun(acquire, f"asks for {acquire.name} ({acquire.lease})"),
                *(() if never else (ended(acquire, f"has the answer {acquire.outcome}"),)),
                excuse=faults.excuse(STUCK, acquire.began, history.last_at),
            )
    return result
