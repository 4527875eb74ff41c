"""Twenty processes at once on one counter, through several servers over one Redis (L1)."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes import running_server
from tests.redis_groups import Redises
from tests.system.counting import PROCESSES, count_with_clients, count_with_command_lines

pytestmark = pytest.mark.system


def several_servers(store: str) -> Iterator[list[str]]:
    """The URLs of three servers."""
    with ExitStack() as stack:
        yield [stack.enter_context(running_server(store=store)).url for _ in range(3)]


@pytest.fixture(scope="module")
def on_redis(redises: Redises) -> Iterator[list[str]]:
    """Over one Redis."""
    yield from several_servers(redises.single().url)


@pytest.fixture(scope="module")
def on_cluster(redises: Redises) -> Iterator[list[str]]:
    """Over a cluster of three."""
    yield from several_servers(redises.cluster().url)


def test_the_command_line_counts_to_twenty(on_redis: list[str], tmp_path: Path) -> None:
    assert count_with_command_lines(tmp_path, on_redis) == PROCESSES


@pytest.mark.parametrize("kind", ["trio", "raw"])
def test_clients_count_to_twenty(on_redis: list[str], tmp_path: Path, kind: str) -> None:
    assert count_with_clients(tmp_path, on_redis, kind) == PROCESSES


def test_clients_count_to_twenty_on_a_cluster(on_cluster: list[str], tmp_path: Path) -> None:
    assert count_with_clients(tmp_path, on_cluster, "sync") == PROCESSES
