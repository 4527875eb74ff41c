"""A database that writes reach from a queue: SQLite, shared by the processes of a test.

With `fenced`, it refuses a write whose fence is not above all it has of the key: that is what the
fence is for. Every write that it takes is in its history.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from attrs import frozen

_SCHEMA: Final = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS rows (key TEXT PRIMARY KEY, value INTEGER, fence INTEGER);
CREATE TABLE IF NOT EXISTS history (
    at INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT, value INTEGER, seq INTEGER, fence INTEGER
);
CREATE TABLE IF NOT EXISTS refused (key TEXT, fence INTEGER);
"""
_PUT: Final = """
INSERT INTO rows VALUES (?, ?, ?)
ON CONFLICT (key) DO UPDATE SET value = excluded.value, fence = excluded.fence
"""
_FENCED: Final = " WHERE excluded.fence > rows.fence"


@frozen
class Row:
    """A write to carry out."""

    key: str
    value: int
    seq: int
    fence: int


@frozen
class Ledger:
    """The database at a path. It outlives any process, and need not outlive its machine."""

    path: Path
    fenced: bool = True

    def create(self) -> None:
        """Makes its tables."""
        with self._open() as database:
            database.executescript(_SCHEMA)

    def write(self, rows: Iterable[Row]) -> None:
        """Carries writes out: all of them together, or none if the process dies."""
        with self._open() as database:
            for row in rows:
                statement = _PUT + (_FENCED if self.fenced else "")
                taken = database.execute(statement, (row.key, row.value, row.fence)).rowcount
                if taken:
                    database.execute(
                        "INSERT INTO history (key, value, seq, fence) VALUES (?, ?, ?, ?)",
                        (row.key, row.value, row.seq, row.fence),
                    )
                else:
                    database.execute("INSERT INTO refused VALUES (?, ?)", (row.key, row.fence))

    @property
    def rows(self) -> dict[str, int]:
        """The value of each key."""
        with self._open() as database:
            return dict(database.execute("SELECT key, value FROM rows"))

    @property
    def refused(self) -> int:
        """How many writes had too low a fence."""
        with self._open() as database:
            [(count,)] = database.execute("SELECT count(*) FROM refused")
            return int(count)

    @property
    def taken(self) -> int:
        """How many writes it took."""
        with self._open() as database:
            [(count,)] = database.execute("SELECT count(*) FROM history")
            return int(count)

    def complaints(self, latest: Mapping[str, int]) -> list[str]:
        """What is wrong with it, if the last acknowledged value of each key is this one.

        Of each key, fences rise, and values are written in the order in which they were put.
        """
        rows = self.rows
        found = [
            f"{key} is {rows.get(key)}, not {value}"
            for key, value in latest.items()
            if rows.get(key) != value
        ]
        last: dict[str, Row] = {}
        with self._open() as database:
            for key, value, seq, fence in database.execute(
                "SELECT key, value, seq, fence FROM history ORDER BY at"
            ):
                before, last[key] = last.get(key), Row(key, value, seq, fence)
                if before and fence <= before.fence:
                    found.append(f"{key}: fence {fence} after {before.fence}")
                if before and (seq < before.seq or value < before.value):
                    found.append(f"{key}: value {value} after {before.value}")
        return found

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection; what was done in it is committed at the end."""
        database = sqlite3.connect(self.path, timeout=30)
        try:
            database.execute("PRAGMA synchronous = OFF")  # processes are killed, and no machine
            with database:
                yield database
        finally:
            database.close()
