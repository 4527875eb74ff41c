"""Twenty processes at once on one counter: the oldest test of a lock (L1)."""

import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes import LEASEKEEPER, RunningServer, running_server, started

PROCESSES = 20
WITHIN_S = 120

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """One server for all of them."""
    with running_server() as running:
        yield running


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    """A file that says 0."""
    path = tmp_path / "counter"
    path.write_text("0")
    return path


def all_succeed(command: list[str | Path], **env: str) -> None:
    """Starts it twenty times at once, and waits for all."""
    with ExitStack() as stack:
        processes = [stack.enter_context(started(command, **env)) for _ in range(PROCESSES)]
        for process in processes:
            _, said = process.communicate(timeout=WITHIN_S)
            assert process.returncode == 0, said.decode()


def test_the_command_line_counts_to_twenty(
    server: RunningServer, counter: Path, tmp_path: Path
) -> None:
    """`leasekeeper lock counter -- ./increment`, with a read-sleep-write."""
    script = tmp_path / "increment"
    script.write_text(f"#!/bin/sh\nn=$(cat {counter})\nsleep 0.02\necho $((n + 1)) > {counter}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    all_succeed([*LEASEKEEPER, "lock", "counter", "--", script], LEASEKEEPER_URL=server.url)
    assert int(counter.read_text()) == PROCESSES


@pytest.mark.parametrize("kind", ["trio", "asyncio", "sync", "raw", "foreign"])
def test_every_kind_of_client_counts_to_twenty(
    server: RunningServer, counter: Path, kind: str
) -> None:
    """Ours on three kinds of event loop, and ten lines on two other libraries."""
    all_succeed(
        [sys.executable, "-m", "tests.system.worker", kind, server.url, "increment", counter]
    )
    assert int(counter.read_text()) == PROCESSES
