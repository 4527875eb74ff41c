"""`exclusion`: who believes to hold a name holds it alone, or with as many as its limit allows.

Laws L1 and L3: what counts is what the holders believe, by their own clocks.
"""

from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from typing import Final

from attrs import define, field, frozen

from leasekeeper.verify.faults import Faults
from leasekeeper.verify.history import History
from leasekeeper.verify.result import Evidence, Result, ended, told
from leasekeeper.verify.vocabulary import Acquire, Held, Lost, Release

CHECK: Final = "exclusion"


def check(history: History, faults: Faults) -> Result:
    """Looks at all beliefs in each name in the order of their begins.

    It does not say who was right, nor does it know what the server believes.
    """
    result = Result(CHECK, "beliefs")
    names: dict[str, list[Belief]] = defaultdict(list)
    for belief in beliefs(history):
        names[belief.lease.name].append(belief)
        result.looked_at += 1
    for some in names.values():
        some.sort(key=lambda each: each.begin)
        sweep = _Sweep(history.header.clock_error_us, faults, result)
        for belief in some:
            sweep.step(belief)
    return result


# --- Beliefs ----------------------------------------------------------------------------------


@frozen
class _Stretch:
    """A stretch of time in which one process believes that it holds a lease."""

    begin: int
    end: int
    asked: int
    """When it asked for the lease: a fault since then may have ended the lease."""
    shown: Evidence


@frozen
class Belief:
    """A stretch of time in which a lease is believed to be held, by whatever processes."""

    lease: Acquire
    """The first request for it, which says what it is."""
    begin: int
    end: int
    asked: int
    shown: tuple[Evidence, ...]
    """The lines that it rests on: its first and its last."""


@frozen
class _Says:
    """A process holds a lease, from now on until then."""

    at: int
    until: int
    asked: int | None
    """For a grant: what has ended the lease since then has ended this, too."""
    shown: Evidence


@define
class _Told:
    """What one process said of one lease."""

    says: list[_Says] = field(factory=list)
    ends: list[int] = field(factory=list)


_Lease = tuple[str, str]
"""A name, and the id of a lease of it."""


def beliefs(history: History) -> Iterator[Belief]:
    """Those of all leases; of one lease no two overlap."""
    first: dict[_Lease, Acquire] = {}
    for acquire in history.of(Acquire):
        lease = (acquire.name, acquire.lease)
        if lease not in first or acquire.began < first[lease].began:
            first[lease] = acquire
    stretches: dict[_Lease, list[_Stretch]] = defaultdict(list)
    for (_, name, id_), told_of in _told(history).items():
        # What nobody asked for has no mode, so nothing can be said of it.
        if (name, id_) in first:
            stretches[name, id_] += _stretches(told_of, first[name, id_].began)
    for lease, some in stretches.items():
        yield from _joined(some, first[lease])


def _told(history: History) -> Mapping[tuple[str, str, str], _Told]:
    told_by: dict[tuple[str, str, str], _Told] = defaultdict(_Told)
    for acquire in history.of(Acquire):
        if acquire.ok:
            shown = ended(
                acquire, f"was granted {acquire.name} ({acquire.lease}), fence {acquire.fence}"
            )
            says = _Says(acquire.ended, acquire.until, acquire.began, shown)
            told_by[acquire.process, acquire.name, acquire.lease].says.append(says)
    for held in history.of(Held):
        shown = told(held, f"holds {held.name} ({held.lease}), fence {held.fence}")
        says = _Says(held.at, held.until, None, shown)
        told_by[held.process, held.name, held.lease].says.append(says)
    for release in history.of(Release):
        told_by[release.process, release.name, release.lease].ends.append(release.began)
    for lost in history.of(Lost):
        told_by[lost.process, lost.name, lost.lease].ends.append(lost.at)
    return told_by


def _stretches(told_of: _Told, first_asked: int) -> Iterator[_Stretch]:
    """What is said last holds: until it says, or something else is said, or the lease ends."""
    says = sorted(told_of.says, key=lambda each: each.at)
    ends = sorted(told_of.ends)
    asked: int | None = None
    for at, now in enumerate(says):
        if now.asked is not None:
            asked = now.asked
        since = -1 if asked is None else bisect_left(ends, asked)
        next_end = bisect_right(ends, now.at)
        if since < next_end and next_end > 0:
            continue  # it has ended before: a renewal that comes late brings nothing back
        end = now.until
        if at + 1 < len(says):
            end = min(end, says[at + 1].at)
        if next_end < len(ends):
            end = min(end, ends[next_end])
        if end > now.at:
            yield _Stretch(now.at, end, first_asked if asked is None else asked, now.shown)


def _joined(stretches: Iterable[_Stretch], lease: Acquire) -> Iterator[Belief]:
    """Those that touch are one."""
    some: list[_Stretch] = []
    end = 0
    for stretch in sorted(stretches, key=lambda each: each.begin):
        if some and stretch.begin > end:
            yield _belief(some, end, lease)
            some = []
        end = max(end, stretch.end) if some else stretch.end
        some.append(stretch)
    if some:
        yield _belief(some, end, lease)


def _belief(some: list[_Stretch], end: int, lease: Acquire) -> Belief:
    last = max(some, key=lambda each: each.end)
    shown = (some[0].shown,) if last is some[0] else (some[0].shown, last.shown)
    return Belief(lease, some[0].begin, end, min(each.asked for each in some), shown)


# --- Overlaps ---------------------------------------------------------------------------------


@define
class _Group:
    """Beliefs of one mode that have not ended yet."""

    live: dict[int, Belief] = field(factory=dict)
    limits: Counter[int] = field(factory=Counter)
    """Of the shared ones that have a limit."""

    def any(self) -> Belief | None:
        """The one that began first."""
        return next(iter(self.live.values()), None)

    def add(self, key: int, belief: Belief) -> None:
        """It has begun."""
        self.live[key] = belief
        if belief.lease.limit is not None:
            self.limits[belief.lease.limit] += 1

    def remove(self, key: int) -> None:
        """It has ended."""
        limit = self.live.pop(key).lease.limit
        if limit is not None:
            self.limits[limit] -= 1
            if not self.limits[limit]:
                del self.limits[limit]


@define
class _Sweep:
    """Goes over the beliefs in one name in the order of their begins.

    Invariant: those that are live last longer than the clocks' error from the last begin on. So
    each of them overlaps with what begins now, if that lasts so long itself.
    """

    clock_error_us: int
    faults: Faults
    result: Result
    _groups: dict[tuple[bool, bool], _Group] = field(factory=lambda: defaultdict(_Group))
    """By whether they have an excuse, and whether they are exclusive."""
    _ends: list[tuple[int, int, tuple[bool, bool]]] = field(factory=list)
    _count: int = 0

    def step(self, belief: Belief) -> None:
        """The next belief begins."""
        if belief.end - belief.begin <= self.clock_error_us:
            return
        while self._ends and self._ends[0][0] <= belief.begin + self.clock_error_us:
            _, key, group = heappop(self._ends)
            self._groups[group].remove(key)
        self._judge(belief)
        self._count += 1
        excused = self.faults.excuse(CHECK, belief.asked, belief.end) is not None
        group = (excused, belief.lease.exclusive)
        self._groups[group].add(self._count, belief)
        heappush(self._ends, (belief.end, self._count, group))

    def _judge(self, belief: Belief) -> None:
        """Against those without an excuse first, so that one with an excuse hides none of them."""
        for among in ([False], [True, False]):
            other = self._in_the_way(belief, [self._groups[each, True] for each in among])
            if other is None:
                shared = [self._groups[each, False] for each in among]
                if belief.lease.exclusive:
                    other = self._in_the_way(belief, shared)
                else:
                    other = self._too_many(belief, shared)
            if other is not None:
                return

    def _in_the_way(self, belief: Belief, groups: Iterable[_Group]) -> Belief | None:
        other = next((each.any() for each in groups if each.live), None)
        if other is not None:
            overlap_us = min(belief.end, other.end) - belief.begin
            self._overlap(other, belief, f"two hold it for {overlap_us} us")
        return other

    def _too_many(self, belief: Belief, groups: Iterable[_Group]) -> Belief | None:
        groups = list(groups)
        holders = 1 + sum(len(each.live) for each in groups)
        limits = [limit for each in groups for limit in each.limits]
        if belief.lease.limit is not None:
            limits.append(belief.lease.limit)
        if not limits or holders <= min(limits):
            return None
        other = next((each.any() for each in groups if each.live), None) or belief
        self._overlap(other, belief, f"{holders} hold it, and the limit is {min(limits)}")
        return other

    def _overlap(self, older: Belief, newer: Belief, what: str) -> None:
        self.result.wrong(
            f"{newer.lease.name}: {what}",
            *older.shown,
            *newer.shown,
            excuse=self.faults.excuse(CHECK, older.asked, older.end),
        )
