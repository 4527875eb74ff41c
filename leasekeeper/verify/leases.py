"""Which acquires ask for the same lease: the same id, as long as it has not been given back."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from attrs import define, field

from leasekeeper.verify.history import History
from leasekeeper.verify.vocabulary import NEVER, Acquire, Lost, Outcome, Release

_Lease = tuple[str, str]
"""A name, and the id of a lease of it."""


@define
class Ends:
    """What is known of the ends of leases."""

    history: History
    _released: dict[_Lease, tuple[Sequence[int], Sequence[int]]] = field(init=False)
    """When acknowledged releases began, and the first end of each and all after it."""
    _over: dict[_Lease, list[int]] = field(init=False)
    """When releases began, acknowledged or not, and losses were told."""

    def __attrs_post_init__(self) -> None:
        released: dict[_Lease, list[tuple[int, int]]] = defaultdict(list)
        self._over = defaultdict(list)
        for release in self.history.of(Release):
            self._over[release.name, release.lease].append(release.began)
            if release.ok:
                released[release.name, release.lease].append((release.began, release.ended))
        for lost in self.history.of(Lost):
            self._over[lost.name, lost.lease].append(lost.at)
        for moments in self._over.values():
            moments.sort()
        self._released = {}
        for lease, spans in released.items():
            spans.sort()
            ends = list(accumulate((end for _, end in reversed(spans)), min))[::-1]
            self._released[lease] = ([begin for begin, _ in spans], ends)

    def surely(self, name: str, lease: str, after: int, before: int) -> bool:
        """Whether a release, begun after the one moment, was acknowledged before the other."""
        begins, ends = self._released.get((name, lease), ((), ()))
        first = bisect_left(begins, after)
        return first < len(begins) and ends[first] <= before

    def perhaps(self, first: Acquire, second: Acquire) -> bool:
        """Whether the lease of the first may have been over when that of the second was granted."""
        over = self._over.get((first.name, first.lease), [])
        at = bisect_left(over, first.began)
        ended = at < len(over) and over[at] <= second.ended
        return ended or second.ended >= first.until


def turns_of(acquires: Iterable[Acquire], ends: Ends) -> Iterator[Sequence[Acquire]]:
    """The acquires of each lease, parted where it was given back: what comes then is new."""
    leases = defaultdict(list)
    for acquire in acquires:
        leases[acquire.lease].append(acquire)
    for some in leases.values():
        some.sort(key=lambda each: each.began)
        turn: list[Acquire] = []
        settled = 0
        for acquire in some:
            if turn and ends.surely(acquire.name, acquire.lease, settled, acquire.began):
                yield turn
                turn = []
            turn.append(acquire)
            # A request of unknown outcome may be granted later than a release was answered.
            unknown = acquire.outcome is Outcome.UNKNOWN
            settled = NEVER if unknown else max(settled, acquire.ended)
        yield turn
