"""`serve --workers N`: several processes on the same addresses, with one Redis behind them."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory

import pytest
import trio
from attrs import define

from tests.cli.running import WITHIN_S, alive, eventually
from tests.harness import dial
from tests.processes import GREETING, LEASEKEEPER, first_line, started
from tests.redises import RunningRedis, free_port, running_redis

pytestmark = pytest.mark.system

CANARY = "canary-77"
CONNECTIONS = 20
"""The kernel chooses by a hash: that all of these come to the same of two is one in 500,000."""


@define
class Workers:
    """A supervisor that is ready, with the URLs of its addresses."""

    process: Popen[bytes]
    urls: list[str]

    @property
    def pids(self) -> list[int]:
        """Those of the workers that live."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(pid) for task in tasks for pid in task.read_text().split() if alive(int(pid))]

    def ended(self) -> tuple[int, str, str]:
        """Its exit code, and what it still said."""
        output, complaints = self.process.communicate(timeout=WITHIN_S)
        return self.process.returncode, output.decode(), complaints.decode()


@pytest.fixture(scope="module")
def redis() -> Iterator[RunningRedis]:
    """A Redis with a password that must not show."""
    with running_redis(password=CANARY) as running:
        yield running


@contextmanager
def working(redis: RunningRedis, *listen: str, options: Sequence[str] = ()) -> Iterator[Workers]:
    """Two workers on these addresses."""
    addresses = [each for address in listen for each in ("--listen", address)]
    command = [*LEASEKEEPER, "serve", "--workers", "2", *addresses, *options]
    with started(command, LEASEKEEPER_STORE=redis.url) as process:
        assert process.stdout is not None
        lines = [first_line(process.stdout) for _ in listen]
        if not all(line.startswith(GREETING) for line in lines):
            raise AssertionError(process.communicate(timeout=WITHIN_S))
        yield Workers(process, [line.removeprefix(GREETING).strip() for line in lines])


async def servers_at(url: str) -> set[str]:
    """Which servers a number of connections come to."""
    async with trio.open_nursery() as peers:
        names = set()
        for _ in range(CONNECTIONS):
            peer = await dial(url, peers)
            names.add((await peer.call("session.open"))["server"])
            await peer.close()
    return names


async def test_they_share_a_port_and_the_leases(redis: RunningRedis) -> None:
    with working(redis, "127.0.0.1:0") as workers:
        (url,) = workers.urls
        assert len(await servers_at(url)) == 2
        async with trio.open_nursery() as peers:
            connected = [await dial(url, peers) for _ in range(CONNECTIONS)]
            grant = await connected[0].call("lease.acquire", name="shared")
            for peer in connected:
                state = await peer.call("lease.inspect", name="shared")
                assert [each["fence"] for each in state["holders"]] == [grant["fence"]]
            for peer in connected:
                await peer.close()
        workers.process.terminate()
        code, output, _ = workers.ended()
        assert (code, output) == (0, "")


async def test_one_that_was_killed_is_replaced(redis: RunningRedis) -> None:
    with working(redis, "127.0.0.1:0") as workers:
        (url,) = workers.urls
        before = workers.pids
        names = await servers_at(url)
        os.kill(before[0], signal.SIGKILL)
        eventually(lambda: not alive(before[0]))
        with trio.fail_after(WITHIN_S):
            while len(now := await servers_at(url)) < 2:
                pass
        assert len(now & names) == 1
        assert len(set(workers.pids) & set(before)) == 1
        workers.process.terminate()
        assert workers.ended()[0] == 0


async def test_it_serves_a_socket_file(redis: RunningRedis) -> None:
    """All workers listen on one socket, so any of them may be the one that serves."""
    with TemporaryDirectory(prefix="lk") as place:
        path = Path(place) / "lk.sock"
        with working(redis, "127.0.0.1:0", f"unix:{path}") as workers:
            url = f"ws+unix://{path}"
            assert workers.urls[1] == url
            assert await servers_at(url)
            os.kill(workers.pids[0], signal.SIGKILL)
            assert await servers_at(url)
            workers.process.terminate()
            assert workers.ended()[0] == 0
            assert not path.exists()


async def test_a_group_that_is_signalled_as_a_whole_drains(redis: RunningRedis) -> None:
    """As systemd does it: the workers hear of it twice, and yet holders may finish."""
    async with trio.open_nursery() as peers:
        options = ("--drain-grace-ms", "1500", "--drain-spread-ms", "100")
        with working(redis, "127.0.0.1:0", options=options) as workers:
            peer = await dial(workers.urls[0], peers)
            grant = await peer.call("lease.acquire", name="held")
            for pid in (*workers.pids, workers.process.pid):
                os.kill(pid, signal.SIGTERM)
            await peer.notification("server.draining")
            await trio.sleep(0.5)
            await peer.call("lease.release", name="held", lease=grant["lease"])
            assert await peer.closed() == 4000
            assert workers.ended()[0] == 0


async def test_a_killed_supervisor_leaves_no_process(redis: RunningRedis) -> None:
    with working(redis, "127.0.0.1:0") as workers:
        pids = workers.pids
        assert len(pids) == 2
        workers.process.kill()
        eventually(lambda: not any(map(alive, pids)))


def test_nothing_shows_the_password(redis: RunningRedis) -> None:
    with working(redis, "127.0.0.1:0") as workers:
        for pid in workers.pids:
            assert CANARY not in Path(f"/proc/{pid}/cmdline").read_text()
        workers.process.terminate()
        code, output, complaints = workers.ended()
        assert code == 0
        assert CANARY not in output + complaints


def test_a_port_of_other_workers_is_refused(redis: RunningRedis) -> None:
    """With SO_REUSEPORT alone, two servers of one user would share it without a word."""
    with working(redis, "127.0.0.1:0") as workers:
        address = workers.urls[0].removeprefix("ws://")
        said = refused(redis.url, "--listen", address)
        assert f"cannot listen on {address}" in said


def test_a_redis_that_is_not_there_is_said_once() -> None:
    url = f"redis://:{CANARY}@127.0.0.1:{free_port()}"
    assert CANARY not in refused(url, "--listen", "127.0.0.1:0")


def refused(store: str, *options: str) -> str:
    """The one line with which workers that cannot work are refused."""
    command = [*LEASEKEEPER, "serve", "--workers", "2", *options]
    with started(command, LEASEKEEPER_STORE=store) as process:
        output, complaints = process.communicate(timeout=WITHIN_S)
    assert (process.returncode, output) == (2, b"")
    (line,) = complaints.decode().splitlines()
    return line
