"""`loads` and `stale`: one filler at a time (L10), and nothing older than an invalidation (L11)."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Final

from attrs import define, field, frozen

from leasekeeper.verify.faults import Faults, Spans
from leasekeeper.verify.history import History
from leasekeeper.verify.result import Result, begun, ended
from leasekeeper.verify.vocabulary import (
    NEVER,
    Change,
    Invalidate,
    Load,
    Operation,
    Outcome,
    Read,
    Tagged,
)

LOADS: Final = "loads"
STALE: Final = "stale"


@frozen
class _Tags:
    """The tags of keys.

    A cached value has those of the time of its load, which nobody knows here.
    """

    always: Mapping[str, Mapping[str, int]]
    """By key, what every word on its tags names, and since when."""
    ever: Mapping[str, frozenset[str]]
    """By key, what any word on its tags names."""

    @classmethod
    def of(cls, history: History) -> "_Tags":
        """What all changes and events say together."""
        said = [(each.at, each.key, each.tags) for each in history.of(Tagged)]
        said += [
            (each.began, each.key, each.tags)
            for each in history.of(Change)
            if each.tags is not None
        ]
        always: dict[str, dict[str, int]] = {}
        ever: dict[str, frozenset[str]] = defaultdict(frozenset)
        for at, key, tags in sorted(said, key=lambda each: each[0]):
            before = always.setdefault(key, dict.fromkeys(tags, at))
            always[key] = {tag: since for tag, since in before.items() if tag in tags}
            ever[key] |= frozenset(tags)
        return cls(always, dict(ever))


# --- loads ------------------------------------------------------------------------------------


def check_loads(history: History, faults: Faults) -> Result:
    """Looks for a load that began while another of the same key was under way.

    It does not look at loads that failed, were of unknown outcome, or were touched by a fault or
    a lost connection: others may begin during those.
    """
    result = Result(LOADS, "loads")
    voids = _Voids.of(history)
    asks = _Asks.of(history)
    keys: dict[str, list[Load]] = defaultdict(list)
    for load in history.of(Load):
        if load.shared:
            keys[load.key].append(load)
            result.looked_at += 1
    for some in keys.values():
        under_way: list[Load] = []
        for load in sorted(some, key=lambda each: each.began):
            # The last to begin is the first to ask: the less time, the fewer excuses.
            now = load.began + history.header.clock_error_us
            while under_way and (
                _over(under_way[-1]) <= now or _touched(under_way[-1], asks, faults)
            ):
                under_way.pop()
            if under_way:
                _overlap(under_way[-1], load, asks, voids, faults, result)
            if load.ok:
                under_way.append(load)
    return result


def _over(load: Load) -> int:
    """When it, or the time that it was given, is over."""
    return load.ended if load.until is None else min(load.ended, load.until)


def _touched(load: Load, asks: "_Asks", faults: Faults) -> bool:
    asked = asks.since(load)
    return faults.overlap(asked, load.ended) or faults.dropped(load.process, asked, load.ended)


def _overlap(
    earlier: Load,
    later: Load,
    asks: "_Asks",
    voids: "_Voids",
    faults: Faults,
    result: Result,
) -> None:
    asked = asks.since(earlier)
    if voids.touch(later.key, asked, later.began):
        return
    overlap_us = min(earlier.ended, later.ended) - later.began
    lasts = "" if later.ended == NEVER else f", for {overlap_us} us at least"
    result.wrong(
        f"{later.key}: two load it at once{lasts}",
        begun(earlier, f"begins to load {earlier.key}, fence {earlier.fence}"),
        begun(later, f"begins to load {later.key}, fence {later.fence}"),
        ended(earlier, f"has loaded version {earlier.version}"),
        excuse=faults.excuse(LOADS, asked, later.began),
    )


@frozen
class _Asks:
    """When fills may have been granted: within a read of the same key by the same process."""

    _reads: Mapping[tuple[str, str], tuple[Sequence[Read], Sequence[int]]]
    """In order of their begins, and the latest end of each and all before it."""

    @classmethod
    def of(cls, history: History) -> "_Asks":
        """Of all reads."""
        reads: dict[tuple[str, str], list[Read]] = defaultdict(list)
        for read in history.of(Read):
            reads[read.process, read.key].append(read)
        ordered = {}
        for key, some in reads.items():
            some.sort(key=_began)
            ordered[key] = (some, list(accumulate((each.ended for each in some), max)))
        return cls(ordered)

    def since(self, load: Load) -> int:
        """The begin of the first read that was under way when the load began, or of the load."""
        reads, ends = self._reads.get((load.process, load.key), ((), ()))
        since = load.began
        at = bisect_right(reads, load.began, key=_began)
        while at > 0 and ends[at - 1] >= load.began:
            at -= 1
            if reads[at].ended >= load.began:
                since = reads[at].began
        return since


def _began(operation: Operation) -> int:
    return operation.began


@frozen
class _Voids:
    """When invalidations and changes of each key were under way."""

    _keys: Mapping[str, Spans]
    _by_tag: Mapping[str, Spans]
    _any_tag: Spans
    _tags: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, history: History) -> "_Voids":
        """Of all, whatever came of them: what is unknown may take effect for a while yet."""
        keys: dict[str, list[tuple[int, int]]] = defaultdict(list)
        by_tag: dict[str, list[tuple[int, int]]] = defaultdict(list)
        late_us = history.header.recovery_us
        for change in history.of(Change):
            keys[change.key].append(_under_way(change, late_us))
        for invalidate in history.of(Invalidate):
            span = _under_way(invalidate, late_us)
            for key in invalidate.keys:
                keys[key].append(span)
            for tag in invalidate.tags:
                by_tag[tag].append(span)
        return cls(
            {key: Spans.of(spans) for key, spans in keys.items()},
            {tag: Spans.of(spans) for tag, spans in by_tag.items()},
            Spans.of(span for spans in by_tag.values() for span in spans),
            _Tags.of(history).ever,
        )

    def touch(self, key: str, begin: int, end: int) -> bool:
        """Whether one was under way in this stretch. A key of unknown tags may have any."""
        tags = self._tags.get(key)
        spans = [self._keys.get(key)]
        spans += [self._any_tag] if tags is None else map(self._by_tag.get, tags)
        return any(each is not None and each.touch(begin, end) for each in spans)


def _under_way(operation: Operation, late_us: int) -> tuple[int, int]:
    if operation.ended == NEVER:
        return operation.began, operation.began + late_us
    unknown = operation.outcome is Outcome.UNKNOWN
    return operation.began, operation.ended + (late_us if unknown else 0)


# --- stale ------------------------------------------------------------------------------------


def check_stale(history: History, faults: Faults) -> Result:
    """Looks for reads of what was invalidated before they began.

    It does not look at reads that the server called stale, nor at those that found nothing.
    """
    result = Result(STALE, "reads")
    forgets = _Forgets.of(history)
    changes = _Changes.of(history)
    clock_error_us = history.header.clock_error_us
    for read in history.of(Read):
        if not read.ok or read.stale or read.version is None:
            continue
        invalidate = forgets.newest(read.key, read.began - clock_error_us)
        if invalidate is None:
            continue
        result.looked_at += 1
        change = changes.newest(read.key, invalidate.began - clock_error_us)
        if change is not None and read.version < change.version:
            what = ", ".join((*invalidate.keys, *(f"#{tag}" for tag in invalidate.tags)))
            result.wrong(
                f"{read.key}: version {read.version} was read after {change.version}",
                ended(change, f"has changed {read.key} to version {change.version}"),
                begun(invalidate, f"invalidates {what}"),
                ended(invalidate, "has invalidated it"),
                begun(read, f"reads {read.key}"),
                ended(read, f"has version {read.version}"),
                excuse=faults.excuse(STALE, changes.made(read, history.first_at), read.ended),
            )
    return result


@define
class _Newest:
    """Invalidations, to be asked which of those that had ended by then began last."""

    _all: list[Invalidate] = field(factory=list)
    _began_last: list[Invalidate] = field(factory=list)

    def add(self, invalidate: Invalidate) -> None:
        """One more; all are added before anything is asked."""
        self._all.append(invalidate)

    def ended_by(self, moment: int) -> Invalidate | None:
        """The one that began last."""
        if not self._began_last:
            self._all.sort(key=_ended)
            self._began_last = list(accumulate(self._all, _later))
        before = bisect_right(self._all, moment, key=_ended)
        return self._began_last[before - 1] if before else None


def _ended(operation: Operation) -> int:
    return operation.ended


def _later(one: Invalidate, other: Invalidate) -> Invalidate:
    return other if other.began > one.began else one


@frozen
class _Forgets:
    """The acknowledged invalidations of keys and tags."""

    _keys: Mapping[str, _Newest]
    _by_tag: Mapping[str, _Newest]
    _tags: Mapping[str, Mapping[str, int]]
    """By key, and since when."""

    @classmethod
    def of(cls, history: History) -> "_Forgets":
        """Of all that were acknowledged."""
        keys: dict[str, _Newest] = defaultdict(_Newest)
        by_tag: dict[str, _Newest] = defaultdict(_Newest)
        for invalidate in history.of(Invalidate):
            if invalidate.ok:
                for key in invalidate.keys:
                    keys[key].add(invalidate)
                for tag in invalidate.tags:
                    by_tag[tag].add(invalidate)
        return cls(dict(keys), dict(by_tag), _Tags.of(history).always)

    def newest(self, key: str, moment: int) -> Invalidate | None:
        """Of those that concern the key and had ended by then, the one that began last."""
        by_key = self._keys.get(key)
        newest = None if by_key is None else by_key.ended_by(moment)
        for tag, since in self._tags.get(key, {}).items():
            by_tag = self._by_tag.get(tag)
            other = None if by_tag is None else by_tag.ended_by(moment)
            if other is not None and other.began >= since:
                newest = other if newest is None else _later(newest, other)
        return newest


@frozen
class _Changes:
    """The committed changes of each key."""

    _keys: Mapping[str, tuple[Sequence[Change], Sequence[Change]]]
    """In order of their ends, and the newest version of each and all before it."""
    _made: Mapping[tuple[str, int], Change]
    """All, whatever came of them."""

    @classmethod
    def of(cls, history: History) -> "_Changes":
        """Of all changes."""
        keys: dict[str, list[Change]] = defaultdict(list)
        made = {}
        for change in history.of(Change):
            made[change.key, change.version] = change
            if change.ok:
                keys[change.key].append(change)
        ordered = {}
        for key, some in keys.items():
            some.sort(key=_ended)
            ordered[key] = (some, list(accumulate(some, _newer)))
        return cls(ordered, made)

    def newest(self, key: str, moment: int) -> Change | None:
        """The one with the greatest version that had ended by then."""
        some, newest = self._keys.get(key, ((), ()))
        before = bisect_right(some, moment, key=_ended)
        return newest[before - 1] if before else None

    def made(self, read: Read, otherwise: int) -> int:
        """Since when there can have been what was read."""
        change = None if read.version is None else self._made.get((read.key, read.version))
        return otherwise if change is None else change.began


def _newer(one: Change, other: Change) -> Change:
    return other if other.version > one.version else one
