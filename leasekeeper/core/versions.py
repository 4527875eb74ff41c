"""The clock of cached keys: one rising number for all that happens to them.

Fills and invalidations draw from it, so "granted before it was invalidated" is a comparison. A tag
is such a number, too, and not a set of keys: to invalidate it costs the same however many values
have it, and reaches those that are still being loaded. What may have been lost is made up for by a
floor: nothing older is believed.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Final, TypeVar

from attrs import define, field

from leasekeeper.core.lock import Now
from leasekeeper.messages import Mark

T = TypeVar("T")

TAG_RECORDS_MAX: Final = 100_000
"""So many tags are remembered of each kind of invalidation; past it the floor rises."""
_PRUNED_AT_ONCE: Final = 100


@define
class Versions:
    """The clock of the keys that share it: what was invalidated when.

    It does not know keys or values.
    """

    seq: int = 0
    floor: int = 0
    life_ms: int = 0
    """Nothing that was granted matters any more after so long."""
    records_max: int = TAG_RECORDS_MAX
    _hard: dict[str, int] = field(factory=dict, repr=False)
    _soft: dict[str, int] = field(factory=dict, repr=False)
    _intents: dict[str, dict[str, int]] = field(factory=dict, repr=False)
    """For each tag the writes that are open, or were, and until when."""

    # Invariant: _hard and _soft are in the order of their numbers.

    def next(self, now: Now) -> int:
        """A number above all before it."""
        self.seq = max(self.seq + 1, now.us)
        return self.seq

    def matters(self, ms: int) -> None:
        """Something granted may matter for so long after its grant."""
        self.life_ms = max(self.life_ms, ms)

    def distrust(self, now: Now) -> None:
        """Something may have been lost: nothing older than now is believed."""
        self.floor = self.next(now)

    def mark(self, tags: Iterable[str], mark: Mark, now: Now) -> None:
        """Invalidates what has one of these tags, and every fill that will turn out to."""
        records = self._hard if mark is Mark.HARD else self._soft
        for tag in tags:
            records.pop(tag, None)
            records[tag] = self.next(now)
        self._prune(now)

    def open(self, tags: Iterable[str], write: str, until_ms: int, now: Now) -> None:
        """A write-through of what has these tags begins. A repeat may only make it longer."""
        tags = tuple(tags)
        begun = {tag for tag in tags if self._intents.get(tag, {}).get(write, 0) > now.ms}
        self.mark((tag for tag in tags if tag not in begun), Mark.HARD, now)
        for tag in tags:
            writes = self._intents.setdefault(tag, {})
            if tag not in begun:  # the mark makes up for those that are over
                for other in [each for each, end_ms in writes.items() if end_ms <= now.ms]:
                    del writes[other]
            writes[write] = max(until_ms, writes.get(write, 0))

    def close(self, tags: Iterable[str], write: str, now: Now) -> None:
        """The write-through is over, one way or the other."""
        tags = tuple(tags)
        for tag in tags:
            writes = self._intents.get(tag, {})
            writes.pop(write, None)
            if not writes:
                self._intents.pop(tag, None)
        self.mark(tags, Mark.HARD, now)

    def is_open(self, tags: Iterable[str], now: Now) -> bool:
        """Whether a write-through of one of these tags is under way."""
        return any(
            now.ms < until_ms for tag in tags for until_ms in self._intents.get(tag, {}).values()
        )

    def voids(
        self, tags: Iterable[str], fence: int, granted_ms: int, write: str | None = None
    ) -> bool:
        """Whether what was granted then, and has these tags, may be too old; not for `write`."""
        return fence < self.floor or any(
            self._hard.get(tag, 0) > fence
            or any(
                granted_ms < until_ms
                for other, until_ms in self._intents.get(tag, {}).items()
                if other != write
            )
            for tag in tags
        )

    def softened(self, tags: Iterable[str], fence: int) -> int | None:
        """The first soft invalidation of these tags after that; None: there was none."""
        later = [soft for tag in tags if (soft := self._soft.get(tag, 0)) > fence]
        return min(later, default=None)

    @property
    def records(self) -> int:
        """How many tags are remembered."""
        return len(self._hard) + len(self._soft)

    def _prune(self, now: Now) -> None:
        """Forgets what cannot matter any more, a bounded number at a time; or what is too much.

        The floor rises with it. Else the clock could step forward and back, and what has been
        forgotten would matter again.
        """
        # A write-through that ended without a word has changed what it was about by now.
        ends = ((max(each.values()), tag) for tag, each in _first(self._intents, _PRUNED_AT_ONCE))
        for _, tag in sorted(end for end in ends if end[0] <= now.ms):
            del self._intents[tag]
            self._hard.pop(tag, None)
            self._hard[tag] = self.next(now)
        before = now.us - 1000 * self.life_ms
        for records in (self._hard, self._soft):
            for tag, seq in _first(records, _PRUNED_AT_ONCE):
                if seq >= before and len(records) <= self.records_max:
                    break
                del records[tag]
                self.floor = max(self.floor, seq)


def _first(records: Mapping[str, T], count: int) -> Iterator[tuple[str, T]]:
    yield from list(islice(records.items(), count))
