"""What every process of a run writes down, a line each, and how it becomes one history.

A line is on its way to the file before the next step is taken, so that a process that is killed has
lost nothing that it wrote. All times are of CLOCK_MONOTONIC, which is one for the whole machine.
"""

import json
import os
import time
from collections.abc import Iterator
from heapq import merge
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen

Line = dict[str, Any]

RECOVERY_US: Final = 20_000_000
"""How long after everything is mended somebody may still wait."""
SUFFIX: Final = ".lines"
HISTORY: Final = "history.jsonl"


def now_us() -> int:
    """The one clock."""
    return time.monotonic_ns() // 1000


@define(eq=False)
class Scribe:
    """Writes the lines of one process. Any thread may."""

    process: str
    _file: int
    _numbers: "count[int]" = field(factory=lambda: count(1), init=False)

    @classmethod
    def of(cls, directory: Path, process: str) -> "Scribe":
        """The scribe of a process, with a file of its own."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        return cls(process, os.open(directory / f"{process}{SUFFIX}", flags, 0o644))

    def write(self, kind: str, members: Line) -> None:
        """One line, with one system call."""
        line = {"type": kind, "at": now_us(), "process": self.process, **members}
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def event(self, op: str, **members: object) -> None:
        """Something that happened."""
        self.write("event", {"op": op, **members})

    def begin(self, op: str, **members: object) -> "Operation":
        """Something that is about to be asked for."""
        operation = Operation(self, str(next(self._numbers)), op)
        self.write("begin", {"id": operation.id, "op": op, **members})
        return operation


@frozen
class Operation:
    """One request; what became of it is said once, or never."""

    scribe: Scribe
    id: str
    op: str

    def ok(self, **members: object) -> None:
        """It was done."""
        self._end("ok", members)

    def fail(self, **members: object) -> None:
        """It was not done."""
        self._end("fail", members)

    def unknown(self, **members: object) -> None:
        """It may have been done."""
        self._end("unknown", members)

    def _end(self, how: str, members: Line) -> None:
        self.scribe.write(how, {"id": self.id, "op": self.op, **members})


def lines_of(path: Path) -> Iterator[Line]:
    """The lines of one file. The last may be half a line, if its process was killed just then."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)


def all_lines(directory: Path) -> Iterator[Line]:
    """What all processes have written so far, in the order of time but for what threads did."""
    files = [lines_of(path) for path in sorted(directory.glob(f"*{SUFFIX}"))]
    return merge(*files, key=lambda line: int(line["at"]))


def gather(directory: Path, *, unfenced: bool) -> Path:
    """Makes one history of it all; returns where it is."""
    header = {
        "type": "history",
        "version": 1,
        "clock_error_us": 0,
        "recovery_us": RECOVERY_US,
        "unfenced": unfenced,
    }
    path = directory / HISTORY
    with path.open("w") as file:
        for line in chain([header], all_lines(directory)):
            file.write(json.dumps(line) + "\n")
    return path
