"""`serve` allows itself as many open files as its connections need."""

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.processes import GREETING, LEASEKEEPER, first_line, started

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.system


@contextmanager
def serving(soft: int, hard: int, *options: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A server that was started with these limits, and listens."""
    limits = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'
    serve = [*LEASEKEEPER, "serve", "--listen", "127.0.0.1:0", *options]
    with started(["sh", "-c", limits, "sh", *serve]) as process:
        assert process.stdout is not None
        assert first_line(process.stdout).startswith(GREETING)
        yield process


def test_the_soft_limit_is_raised_as_far_as_the_connections_need() -> None:
    with serving(128, 1000, "--connections", "500", "--handshakes", "50") as process:
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (650, 1000)


def test_a_limit_that_is_high_enough_stays() -> None:
    with serving(900, 1000, "--connections", "500", "--handshakes", "50") as process:
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (900, 1000)


def test_a_hard_limit_that_is_too_low_is_told_with_what_to_do() -> None:
    with serving(128, 300, "--connections", "500", "--handshakes", "50") as process:
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (300, 300)
        assert process.stderr is not None
        said = json.loads(first_line(process.stderr))
    assert said["event"] == "too few open files are allowed"
    assert (said["open_files"], said["connections"]) == (300, 500)
    assert "ulimit -Hn 650" in said["advice"]
