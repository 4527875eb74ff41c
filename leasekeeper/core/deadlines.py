"""Deadlines of many keys, so that one task can wait for the earliest.

A key's deadline moves far more often than it is reached: a lease is renewed, or released, long
before it expires. So keys lie in buckets of time, where a move costs two set operations, and only
the buckets are kept in a heap.
"""

from collections.abc import Hashable
from heapq import heappop, heappush
from typing import Final, Generic, TypeVar

from attrs import define, field

K = TypeVar("K", bound=Hashable)

_EMPTY_SPARE: Final = 64


@define
class Deadlines(Generic[K]):
    """At most one deadline per key, in milliseconds of the caller's clock.

    A key comes due up to `grain_ms` after its deadline, never before it. It does not sleep and
    knows no clock.
    """

    grain_ms: int = 10
    _bucket_of: dict[K, int] = field(factory=dict, init=False)
    _buckets: dict[int, set[K]] = field(factory=dict, init=False)
    _heap: list[int] = field(factory=list, init=False)
    _empty: int = field(default=0, init=False)
    """How many buckets are, at most."""

    # Invariants: a bucket number is in the heap exactly once while it is a key of _buckets; an
    # emptied bucket stays until its time, so that its number is not pushed twice, or until half of
    # them are empty.

    def __len__(self) -> int:
        return len(self._bucket_of)

    def __contains__(self, key: K) -> bool:
        return key in self._bucket_of

    def set(self, key: K, at_ms: int) -> None:
        """Gives the key this deadline instead of any other."""
        number = -(-at_ms // self.grain_ms)
        if self._bucket_of.get(key) == number:
            return
        self.discard(key)
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = set()
            heappush(self._heap, number)
        bucket.add(key)
        self._bucket_of[key] = number

    def discard(self, key: K) -> None:
        """Takes the key's deadline away, if it has one."""
        number = self._bucket_of.pop(key, None)
        if number is not None:
            bucket = self._buckets[number]
            bucket.discard(key)
            if not bucket:
                self._empty += 1
                if self._empty > _EMPTY_SPARE and 2 * self._empty > len(self._buckets):
                    self._sweep()

    def next_ms(self) -> int | None:
        """When the earliest key comes due; None if there is none."""
        while self._heap and not self._buckets[self._heap[0]]:
            del self._buckets[heappop(self._heap)]
        return self._heap[0] * self.grain_ms if self._heap else None

    def _sweep(self) -> None:
        """Or they would pile up until the time of deadlines that are far off, and moved often."""
        self._buckets = {number: keys for number, keys in self._buckets.items() if keys}
        self._heap = sorted(self._buckets)
        self._empty = 0

    def pop_due(self, now_ms: int) -> list[K]:
        """Takes out every key whose time has come."""
        due: list[K] = []
        while self._heap and self._heap[0] * self.grain_ms <= now_ms:
            for key in self._buckets.pop(heappop(self._heap)):
                del self._bucket_of[key]
                due.append(key)
        return due
