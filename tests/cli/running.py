"""Running `leasekeeper`: in this process where that will do, else in one of its own."""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from click.testing import CliRunner, Result

from leasekeeper.cli import main
from tests.processes import LEASEKEEPER, RunningServer, started

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from subprocess import Popen

WITHIN_S = 20.0

SLEEP = (sys.executable, "-c", "import time; print('running', flush=True); time.sleep(60)")
"""A command that says when it runs, and can be told to stop."""


def leasekeeper(*arguments: str | Path, **env: str) -> Result:
    """Runs it in this process."""
    return CliRunner().invoke(main, [str(each) for each in arguments], env=env)


def against(server: RunningServer, *arguments: str | Path) -> Result:
    """Runs it in this process, as a client of the server."""
    return leasekeeper(*arguments, LEASEKEEPER_URL=server.url)


def locking(
    server: RunningServer, *arguments: str | Path
) -> "AbstractContextManager[Popen[bytes]]":
    """`leasekeeper lock` in a process of its own."""
    return started([*LEASEKEEPER, "lock", *arguments], LEASEKEEPER_URL=server.url)


def locked(server: RunningServer, *arguments: str | Path) -> tuple[int, str, str]:
    """Runs `leasekeeper lock` to its end: its exit code, output and complaints."""
    with locking(server, *arguments) as process:
        output, complaints = process.communicate(timeout=WITHIN_S)
        return process.returncode, output.decode(), complaints.decode()


def eventually(true: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    """Waits until it is true."""
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether the process still runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        return True
    return state not in "ZX"


def python(program: str) -> Sequence[str]:
    """A command that runs the program."""
    return (sys.executable, "-c", program)
