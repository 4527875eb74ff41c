"""What a cache is filled from: rows with versions, and what was announced of them (L11)."""

from collections import Counter
from typing import Final

from attrs import define, field

from tests.simulation.laws import Violation

KEYS: Final = ("k1", "k2")
TAGS: Final = ("t1", "t2")


@define(eq=False)
class Database:
    """A row for each key and each tag. Every write makes a new version."""

    counts: Counter[str]
    rows: dict[str, int] = field(factory=lambda: dict.fromkeys((*KEYS, *TAGS), 0))
    announced: dict[str, int] = field(factory=lambda: dict.fromkeys((*KEYS, *TAGS), 0))
    """The last versions whose invalidation was confirmed."""

    def write(self, row: str) -> int:
        """Changes a row."""
        self.counts["writes"] += 1
        self.rows[row] += 1
        return self.rows[row]

    def announce(self, row: str, version: int) -> None:
        """The cache has confirmed that all before this is invalid."""
        self.announced[row] = max(self.announced[row], version)

    def read(self, rows: tuple[str, ...]) -> list[int]:
        """What a load makes of these."""
        self.counts["loads"] += 1
        return [self.rows[row] for row in rows]

    def floor(self, rows: tuple[str, ...]) -> list[int]:
        """What a read that begins now may not be older than."""
        return [self.announced[row] for row in rows]

    def judge(self, key: str, got: object, floor: list[int]) -> None:
        """A read is over."""
        self.counts["reads"] += 1
        assert isinstance(got, list)
        if any(version < least for version, least in zip(got, floor, strict=True)):
            raise Violation("L11", f"{key}: {got} was read, and {floor} announced before")
