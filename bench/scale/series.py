"""The series: what grows, how far, and what is started for each point."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final

from attrs import frozen

from bench.observed import Store
from bench.pinning import Cores, pin
from bench.processes import (
    KINDS,
    SERVE,
    Kind,
    NotStarted,
    Running,
    Server,
    running,
    running_server,
)
from bench.redises import running_redis
from bench.scale.population import THERE
from tests.redis_groups import running_cluster

Start = Callable[[Kind, int, Cores], AbstractContextManager[Running]]
"""Servers for a point of a series, until the block ends."""

MANY_CONNECTIONS: Final = ("--connections", "1000000")


@contextlib.contextmanager
def populated(what: str, count: int, server: Server, core: int | None) -> Iterator[None]:
    """A server with so many names or connections, until the block ends.

    Raises:
        NotStarted: they did not come, or did not stay; the process has said why.
    """
    command = [sys.executable, "-m", "bench.scale.population", what, str(count)]
    command += ["--port", str(server.port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if core is not None:
                pin(process.pid, core)
            assert process.stdout is not None
            if process.stdout.readline().strip() != THERE:
                raise NotStarted(f"{count:,} {what}: the population ended before all was there")
            yield
            if process.poll() is not None:
                raise NotStarted(f"{count:,} {what}: the population ended early")
        finally:
            process.kill()


@contextlib.contextmanager
def beside_names(kind: Kind, count: int, cores: Cores) -> Iterator[Running]:
    """A server, and so many names held by others."""
    with (
        running(kind, SERVE, cores) as started,
        populated("names", count, started.servers[0], cores.load),
    ):
        yield started


@contextlib.contextmanager
def beside_connections(kind: Kind, count: int, cores: Cores) -> Iterator[Running]:
    """A server, and so many idle connections."""
    with (
        running(kind, SERVE, cores, MANY_CONNECTIONS) as started,
        populated("connections", count, started.servers[0], cores.load),
    ):
        yield started


def for_waiters(kind: Kind, _: int, cores: Cores) -> AbstractContextManager[Running]:
    """A server; the load brings the waiters."""
    return running(kind, SERVE, cores)


@contextlib.contextmanager
def on_one_redis(kind: Kind, count: int, cores: Cores) -> Iterator[Running]:
    """So many servers."""
    with contextlib.ExitStack() as stack:
        store, _ = stack.enter_context(running_redis(cores.redis))
        servers = tuple(
            started_server(stack, store.url, cores.servers[number % len(cores.servers)])
            for number in range(count)
        )
        yield Running(kind, servers, store)


@contextlib.contextmanager
def on_a_cluster(kind: Kind, masters: int, cores: Cores) -> Iterator[Running]:
    """A server, and a Redis Cluster of so many masters."""
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(running_cluster(masters))
        pids = tuple(node.process.pid for node in cluster.nodes)
        if cores.redis is not None:
            for pid in pids:
                pin(pid, cores.redis)
        server = started_server(stack, cluster.url, cores.servers[0])
        yield Running(kind, (server,), Store(cluster.url, pids))


def started_server(stack: contextlib.ExitStack, store_url: str, core: int | None) -> Server:
    """One of our servers."""
    return stack.enter_context(running_server([*SERVE, "--store", store_url], core))


@frozen
class Series:
    """A number that grows, and what is done meanwhile."""

    title: str
    number: str
    """What the number counts."""
    sizes: tuple[int, ...]
    start: Start
    stores: tuple[str, ...] = ("memory", "redis")
    shape: str = "S1"
    operation: str = "lock cycle"
    windows: int = 1
    """So many times as long as others is each measured, in as many times fewer rounds."""

    def options(self, number: int) -> list[str]:
        """What the load is told of the number."""
        return ["--waiters", str(number)] if self.shape == "S2" else []


DECADES: Final = (10, 100, 1_000, 10_000, 100_000)

SERIES: Final = {
    "names": Series("Names held by others", "names", DECADES, beside_names),
    "connections": Series(
        "Idle connections with a session", "connections", DECADES[:-1], beside_connections
    ),
    "waiters": Series(
        "Waiters on one name",
        "waiters",
        (1, *DECADES[:-1]),
        for_waiters,
        shape="S2",
        operation="hand-off",
        windows=2,
    ),
    "servers": Series(
        "Servers over one Redis", "servers", (1, 2, 3, 4), on_one_redis, stores=("redis",)
    ),
    "cluster": Series(
        "Masters of a Redis Cluster", "masters", (1, 3), on_a_cluster, stores=("redis",)
    ),
}
KIND_OF: Final = {"memory": KINDS["leasekeeper"], "redis": KINDS["redis"]}
