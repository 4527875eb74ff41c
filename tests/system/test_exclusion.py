"""Twenty processes at once on one counter: the oldest test of a lock (L1)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import RunningServer, running_server
from tests.system.counting import KINDS, PROCESSES, count_with_clients, count_with_command_lines

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    """One server for all of them."""
    with running_server() as running:
        yield running


def test_the_command_line_counts_to_twenty(server: RunningServer, tmp_path: Path) -> None:
    """`leasekeeper lock counter -- ./increment`, with a read-sleep-write."""
    assert count_with_command_lines(tmp_path, [server.url]) == PROCESSES


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_client_counts_to_twenty(
    server: RunningServer, tmp_path: Path, kind: str
) -> None:
    """Ours on three kinds of event loop, and ten lines on two other libraries."""
    assert count_with_clients(tmp_path, [server.url], kind) == PROCESSES
