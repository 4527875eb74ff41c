"""The servers under load: started on a free port, pinned to a core, stopped at the end."""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from attrs import frozen

from bench.observed import Figures, Store
from bench.peers.catalogue import PEERS
from bench.peers.servers import PeerNotStarted, on_core, running_peer_server
from bench.pinning import Cores, pin
from bench.redises import HOST, running_redis

LISTENING: Final = re.compile(r"listening on \w+://(?P<host>[^:/]+):(?P<port>\d+)")
STOP_S: Final = 15
PEER_LOAD_S: Final = 120
"""Beyond the longest `--seconds` that makes sense."""


class NotStarted(Exception):
    """A server did not come up; the message is what it had to say."""


class LoadFailed(Exception):
    """The server did not do what a shape is entitled to. The load has said what."""


@frozen
class Kind:
    """What a shape is measured against."""

    title: str
    target: str = "leasekeeper"
    """What the load talks to: `leasekeeper`, `redis`, `lines` or `websocket`."""
    store: str | None = None
    """`memory` or `redis`; a yardstick has none."""
    yardstick: str | None = None
    """The module that runs instead of ours, `bench.echo` or `bench.getter`; or `redis` itself."""
    servers: int = 1
    by_socket_file: bool = False
    """Whether the server reaches Redis by its Unix socket."""
    peer: str | None = None
    """Its name in the catalogue, if it is somebody else's."""

    @property
    def needs_redis(self) -> bool:
        """Whether there is a Redis in it."""
        return self.store == "redis" or self.yardstick in {"bench.getter", "redis"}


KINDS: Final = {
    "leasekeeper": Kind("leasekeeper, embedded store", store="memory"),
    "redis": Kind("leasekeeper on Redis", store="redis"),
    "redis-unix": Kind("leasekeeper on Redis, Unix socket", store="redis", by_socket_file=True),
    "redis-two": Kind("two leasekeepers on one Redis", store="redis", servers=2),
    "lines": Kind("raw Trio TCP echo", target="lines", yardstick="bench.echo"),
    "websocket": Kind("WebSocket echo", target="websocket", yardstick="bench.echo"),
    "get": Kind("GET of Redis in the same server", yardstick="bench.getter"),
    "bare": Kind("bare GET of Redis", target="redis", yardstick="redis"),
    **{name: Kind(peer.title, target=name, peer=name) for name, peer in PEERS.items()},
}


@frozen
class Server:
    """A running server."""

    host: str
    port: int
    pid: int


@frozen
class Running:
    """The servers of a kind, and their Redis."""

    kind: Kind
    servers: tuple[Server, ...]
    store: Store | None


SERVE: Final = (
    str(Path(sys.executable).with_name("leasekeeper")),
    *("serve", "--listen", "127.0.0.1:0"),
)
"""How to start ours on a free port."""


@contextlib.contextmanager
def running(
    kind: Kind, serve: Sequence[str], cores: Cores, options: Sequence[str] = ()
) -> Iterator[Running]:
    """The servers of a kind, until the block ends; ours are started with these options.

    Raises:
        NotStarted, NoRedis: see there.
    """
    if kind.peer is not None:
        with running_peer(kind, kind.peer, cores) as running_one:
            yield running_one
        return
    with contextlib.ExitStack() as stack:
        store: Store | None = None
        store_url = ""
        if kind.needs_redis:
            # Where Redis is the server, it has a server's core.
            core = cores.servers[0] if kind.yardstick == "redis" else cores.redis
            store, socket_url = stack.enter_context(running_redis(core))
            store_url = socket_url if kind.by_socket_file else store.url
        if kind.yardstick == "redis":
            assert store is not None
            port = urlsplit(store.url).port
            assert port is not None
            yield Running(kind, (Server(HOST, port, store.pids[0]),), None)
            return
        command = command_of(kind, [*serve, *options], store_url)
        servers = tuple(
            stack.enter_context(running_server(command, core))
            for core in cores.servers[: kind.servers]
        )
        yield Running(kind, servers, store)


@contextlib.contextmanager
def running_peer(kind: Kind, name: str, cores: Cores) -> Iterator[Running]:
    """What a peer talks to, on the core that ours would have.

    Raises:
        NotStarted, NoRedis: see there.
    """
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(running_peer_server(PEERS[name].server, cores.servers[0]))
        except PeerNotStarted as problem:
            raise NotStarted(str(problem)) from problem
        yield Running(kind, (Server(HOST, server.port, server.pid),), None)


def command_of(kind: Kind, serve: Sequence[str], store_url: str) -> list[str]:
    """What starts a server."""
    if kind.yardstick is not None:
        about = store_url if kind.needs_redis else kind.target
        return [sys.executable, "-m", kind.yardstick, about]
    return [*serve, "--store", store_url] if kind.needs_redis else list(serve)


@contextlib.contextmanager
def running_server(command: Sequence[str], core: int | None) -> Iterator[Server]:
    """A server, until the block ends.

    Raises:
        NotStarted: when it exits, or says something else, instead of the line that names its port.
    """
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            if core is not None:
                pin(process.pid, core)
            assert process.stdout is not None
            line = process.stdout.readline()
            match = LISTENING.search(line)
            if match is None:
                log.seek(0)
                raise NotStarted(f"{' '.join(command)}: {line}{log.read()}")
            yield Server(match["host"], int(match["port"]), process.pid)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()


def measure(shape: str, running: Running, core: int | None, options: Sequence[str]) -> Figures:
    """Runs one load process against servers, and returns its figures.

    Raises:
        LoadFailed: see there.
    """
    if running.kind.peer is not None:
        return measure_peer(shape, running.kind.peer, running.servers[0], core, options)
    command = [sys.executable, "-m", "bench.load", shape, "--target", running.kind.target]
    command += ["--host", running.servers[0].host]
    for server in running.servers:
        command += ["--port", str(server.port), "--server-pid", str(server.pid)]
    if running.store is not None:
        command += ["--redis-url", running.store.url]
        command += [word for pid in running.store.pids for word in ("--redis-pid", str(pid))]
    if core is not None:
        command += ["--core", str(core)]
    done = subprocess.run([*command, *options], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise LoadFailed(f"{shape} on {running.kind.title}: the load found what it says above")
    figures: Figures = json.loads(done.stdout)
    return figures


def measure_peer(
    shape: str, peer: str, server: Server, core: int | None, options: Sequence[str]
) -> Figures:
    """The same for a peer.

    Raises:
        LoadFailed: it failed under the load, or the load has not ended after a long time.
    """
    load = PEERS[peer].load or [sys.executable, "-m", "bench.peers.load", "--peer", peer]
    command = [*load, shape, "--port", str(server.port), "--server-pid", str(server.pid), *options]
    with on_core(core):
        try:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=False, timeout=PEER_LOAD_S
            )
        except subprocess.TimeoutExpired as problem:
            raise LoadFailed(f"{shape} on {peer}: no end after {PEER_LOAD_S} s") from problem
    if done.returncode:
        raise LoadFailed(f"{shape} on {peer}: the load found what it says above")
    figures: Figures = json.loads(done.stdout)
    return figures
