"""Holders that die, freeze, or lose their server (L2, L3, L8)."""

import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import leasekeeper_client.sync as keepers
import pytest
from leasekeeper_client import LeaseLost

from tests.processes import RunningServer, first_line, running_server, started
from tests.redis_groups import Redises
from tests.system.worker import TTL_S

WITHIN_S = 60
GRACE_S = 2.0
EVERYWHERE = [
    ("memory", "trio"),
    ("memory", "asyncio"),
    ("memory", "sync"),
    ("redis", "trio"),
]

pytestmark = pytest.mark.system


@pytest.fixture
def store(request: pytest.FixtureRequest, redises: Redises) -> str:
    """`memory`, or the URL of a Redis."""
    return redises.single().url if request.param == "redis" else "memory"


@pytest.fixture
def server(store: str) -> Iterator[RunningServer]:
    """A server with a short grace."""
    grace = ["--grace-ms", str(int(GRACE_S * 1000))]
    with running_server(options=grace, store=store) as running:
        yield running


def holder_command(kind: str, url: str, path: Path) -> list[str | Path]:
    """A process that takes the lease `held` and works under it."""
    return [sys.executable, "-m", "tests.system.worker", kind, url, "hold", path]


def fence_of(process: Popen[bytes]) -> int:
    """Waits until the process holds, and returns its fence."""
    assert process.stdout is not None
    said = first_line(process.stdout).split()
    assert said[:1] == ["held"], said
    return int(said[1])


@pytest.mark.parametrize(("store", "kind"), EVERYWHERE, indirect=["store"])
def test_a_killed_holder_is_followed_within_the_grace(
    server: RunningServer, tmp_path: Path, kind: str
) -> None:
    """L8: SIGKILL; its TTL would have been shorter or longer, whichever ends first counts."""
    with (
        started(holder_command(kind, server.url, tmp_path / "result")) as holder,
        keepers.connect(server.url) as keeper,
    ):
        fence = fence_of(holder)
        holder.kill()
        killed_at = time.monotonic()
        with keeper.lease("held", wait=WITHIN_S) as lease:
            assert time.monotonic() - killed_at <= GRACE_S + 1.0
            assert lease.fence > fence


@pytest.mark.parametrize(("store", "kind"), EVERYWHERE, indirect=["store"])
def test_a_frozen_holder_knows_that_it_lost(
    server: RunningServer, tmp_path: Path, kind: str
) -> None:
    """L3, L8: stopped for three TTLs and continued, it does not complete its body."""
    with (
        started(holder_command(kind, server.url, tmp_path / "result")) as holder,
        keepers.connect(server.url) as keeper,
    ):
        fence = fence_of(holder)
        holder.send_signal(signal.SIGSTOP)
        stopped_at = time.monotonic()
        with keeper.lease("held", wait=WITHIN_S) as lease:
            assert lease.fence > fence
            time.sleep(max(0.0, stopped_at + 3 * TTL_S - time.monotonic()))
            holder.send_signal(signal.SIGCONT)
            assert holder.stdout is not None
            assert first_line(holder.stdout).split() == ["lost", "LeaseLost"]
        holder.wait(WITHIN_S)
    assert not (tmp_path / "result").exists()


def test_a_server_restarted_under_clients_loses_no_order() -> None:
    """L2: fences still rise; clients reconnect by themselves, and holders are told."""
    with running_server() as server, keepers.connect(server.url) as keeper:
        with keeper.lease("n") as lease:
            first = lease.fence
        with pytest.raises(LeaseLost), keeper.lease("m") as lease:  # noqa: PT012 # the body is it
            server.drain()
            assert lease.lost_event.wait(WITHIN_S)
            assert server.process.wait(WITHIN_S) == 0
            lease.ensure()
        with (
            running_server(listen=server.address),
            keeper.lease("n", wait=WITHIN_S) as lease,
        ):
            assert lease.fence > first


def test_a_server_killed_under_clients_loses_no_order() -> None:
    """L2: the same without a goodbye."""
    with running_server() as server, keepers.connect(server.url) as keeper:
        with keeper.lease("n") as lease:
            first = lease.fence
        server.process.kill()
        server.process.wait(WITHIN_S)
        with (
            running_server(listen=server.address),
            keeper.lease("n", wait=WITHIN_S) as lease,
        ):
            assert lease.fence > first
