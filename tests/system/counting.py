"""Twenty processes at once on one number in a file, which only exclusion protects."""

import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.processes import LEASEKEEPER, started

PROCESSES: Final = 20
KINDS: Final = ("trio", "asyncio", "sync", "raw", "foreign")
"""Of clients, as in `worker.py`."""
WITHIN_S: Final = 120


def count_with_command_lines(directory: Path, urls: Sequence[str]) -> int:
    """With `leasekeeper lock`, the servers in turn; returns what the file says at the end."""
    script = directory / "increment"

    def command(url: str, counter: Path) -> list[str | Path]:
        return [*LEASEKEEPER, "lock", "--url", url, "counter", "--", script]

    counter = directory / "counter"
    script.write_text(f"#!/bin/sh\nn=$(cat {counter})\nsleep 0.02\necho $((n + 1)) > {counter}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return _count(counter, urls, command)


def count_with_clients(directory: Path, urls: Sequence[str], kind: str) -> int:
    """With clients of this kind, the servers in turn; returns what the file says at the end."""

    def command(url: str, counter: Path) -> list[str | Path]:
        return [sys.executable, "-m", "tests.system.worker", kind, url, "increment", counter]

    return _count(directory / "counter", urls, command)


def _count(
    counter: Path, urls: Sequence[str], command: Callable[[str, Path], list[str | Path]]
) -> int:
    """Starts all of them at once, and waits for all."""
    counter.write_text("0")
    with ExitStack() as stack:
        processes = [
            stack.enter_context(started(command(urls[number % len(urls)], counter)))
            for number in range(PROCESSES)
        ]
        for process in processes:
            _, said = process.communicate(timeout=WITHIN_S)
            assert process.returncode == 0, said.decode()
    return int(counter.read_text())
