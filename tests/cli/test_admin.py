"""`serve --admin`: where it listens, and what it shows of a server, alone or with workers."""

import json
import os
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from subprocess import Popen
from typing import Any

import pytest
import trio
from attrs import define
from prometheus_client.parser import text_string_to_metric_families

from tests.cli.running import WITHIN_S, eventually, leasekeeper
from tests.cli.test_workers import Workers
from tests.harness import dial
from tests.processes import GREETING, LEASEKEEPER, first_line, started
from tests.redis_groups import Redises
from tests.redises import free_port, running_redis

pytestmark = pytest.mark.system


@define
class Serving:
    """A server that listens, and where its admin servers do."""

    process: Popen[bytes]
    url: str
    admins: list[str]

    def ended(self) -> tuple[int, str]:
        """Its exit code after a drain, and what else it printed."""
        self.process.terminate()
        output, _ = self.process.communicate(timeout=WITHIN_S)
        return self.process.returncode, output.decode()


@contextmanager
def serving(*options: str, store: str = "memory", workers: int = 1) -> Iterator[Serving]:
    """A server with these options, once each of its workers has said where its admin listens."""
    command = [*LEASEKEEPER, "serve", "--listen", "127.0.0.1:0", "--workers", str(workers)]
    with started([*command, *options], LEASEKEEPER_STORE=store) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said: list[dict[str, Any]] = []
        while sum(line["event"] == "admin listening" for line in said) < workers:
            line = first_line(process.stderr)
            assert line.startswith("{"), f"{line!r} after {said}"
            said.append(json.loads(line))
        greeting = first_line(process.stdout)
        assert greeting.startswith(GREETING)
        admins = [line["url"] for line in said if line["event"] == "admin listening"]
        yield Serving(process, greeting.removeprefix(GREETING).strip(), admins)


def fetched(url: str) -> tuple[int, str]:
    """The status and the body of a page."""
    try:
        with urllib.request.urlopen(url, timeout=WITHIN_S) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def health_at(url: str) -> dict[str, Any]:
    health: dict[str, Any] = json.loads(fetched(f"{url}/health")[1])
    return health


def sample(admin: str, name: str, **labels: str) -> float:
    """One sample of what is scraped there."""
    status, text = fetched(f"{admin}/metrics")
    assert status == 200
    [value] = [
        each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
        if each.name == name and each.labels == labels
    ]
    return value


# --- Alone ----------------------------------------------------------------------------------------


async def test_a_server_shows_its_metrics_and_its_health() -> None:
    with serving("--admin", "127.0.0.1:0") as server:
        (admin,) = server.admins
        async with trio.open_nursery() as peers:
            peer = await dial(server.url, peers)
            await peer.call("lease.acquire", name="canary")
            assert sample(admin, "lease_grants_total", mode="exclusive") == 1
            assert sample(admin, "leases_held") == sample(admin, "connections") == 1
            assert "canary" not in fetched(f"{admin}/metrics")[1]
            assert fetched(f"{admin}/health/live")[0] == 200
            health = health_at(admin)
            assert (health["status"], health["store"]["kind"]) == ("ok", "memory")
            await peer.close()
        assert server.ended() == (0, "")


async def test_it_says_that_it_drains_while_it_does() -> None:
    options = ("--drain-grace-ms", "60000")
    with serving("--admin", "127.0.0.1:0", *options) as server:
        (admin,) = server.admins
        async with trio.open_nursery() as peers:
            peer = await dial(server.url, peers)
            grant = await peer.call("lease.acquire", name="n")
            server.process.terminate()
            await peer.notification("server.draining")
            status, text = fetched(f"{admin}/health")
            assert (status, json.loads(text)["status"]) == (503, "draining")
            await peer.call("lease.release", name="n", lease=grant["lease"])
            assert await peer.closed() == 4000
        assert server.process.wait(WITHIN_S) == 0


async def test_the_operations_of_redis_and_its_loss_show(redises: Redises) -> None:
    with running_redis() as redis, serving("--admin", "127.0.0.1:0", store=redis.url) as server:
        (admin,) = server.admins
        async with trio.open_nursery() as peers:
            peer = await dial(server.url, peers)
            await peer.call("lease.acquire", name="n")
            name = "redis_operation_duration_seconds_count"
            assert sample(admin, name, operation="acquire") >= 1
            assert health_at(admin)["store"] == {"kind": "redis", "reachable": True}
            redis.kill()
            eventually(lambda: fetched(f"{admin}/health")[0] == 503)
            redis.start()
            eventually(lambda: bool(health_at(admin)["grants"]["paused"]))
            await peer.close()


def test_without_the_option_there_is_none() -> None:
    said = leasekeeper("serve", "--help").output
    assert "--admin HOST:PORT" in said
    with started([*LEASEKEEPER, "serve", "--listen", "127.0.0.1:0"]) as process:
        assert process.stdout is not None
        assert first_line(process.stdout).startswith(GREETING)
        process.terminate()
        _, complaints = process.communicate(timeout=WITHIN_S)
        assert b"admin" not in complaints


# --- Workers --------------------------------------------------------------------------------------


def ports(count: int) -> int:
    """The first of so many free ports in a row."""
    while True:
        first = free_port()
        try:
            for port in range(first + 1, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first


def test_each_worker_has_a_port_which_is_that_of_its_successor(redises: Redises) -> None:
    first = ports(2)
    store = redises.single().url
    with serving("--admin", f"127.0.0.1:{first}", store=store, workers=2) as server:
        admins = [f"http://127.0.0.1:{port}" for port in (first, first + 1)]
        assert sorted(server.admins) == admins
        before = {health_at(admin)["server"] for admin in admins}
        assert len(before) == 2
        for pid in Workers(server.process, []).pids:
            os.kill(pid, signal.SIGKILL)

        def are_replaced() -> bool:
            try:
                now = {health_at(admin)["server"] for admin in admins}
            except OSError:
                return False
            return len(now) == 2 and now.isdisjoint(before)

        eventually(are_replaced)
        assert server.ended() == (0, "")


def test_workers_pick_free_ports_if_told_so(redises: Redises) -> None:
    with serving("--admin", "127.0.0.1:0", store=redises.single().url, workers=2) as server:
        assert len(set(server.admins)) == 2


# --- What cannot work -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("admin", "options", "complaint"),
    [
        ("9420", (), "--admin 9420: expected HOST:PORT"),
        ("127.0.0.1:99999", (), "--admin 127.0.0.1:99999: expected HOST:PORT"),
        ("unix:/tmp/admin.sock", (), "--admin unix:/tmp/admin.sock: expected HOST:PORT"),
        (
            "127.0.0.1:65535",
            ("--workers", "2", "--store", "redis://127.0.0.1:1"),
            "--admin 127.0.0.1:65535: there are no 2 ports from there on",
        ),
    ],
)
def test_an_address_that_is_none_is_refused(
    admin: str, options: Sequence[str], complaint: str
) -> None:
    said = leasekeeper("serve", "--admin", admin, *options)
    assert (said.exit_code, said.output) == (2, f"Error: {complaint}\n")


def test_a_port_that_is_taken_is_refused_before_anything_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [*LEASEKEEPER, "serve", "--listen", "127.0.0.1:0", "--admin", address]
        with started(command) as process:
            output, complaints = process.communicate(timeout=WITHIN_S)
    assert (process.returncode, output) == (2, b"")
    (line,) = complaints.decode().splitlines()
    assert line.startswith(f"Error: cannot listen on {address}")
    assert line.endswith("choose another --admin")
