"""What the peers talk to: started privately on a free port of 127.0.0.1, and gone at the end.

Each is pinned from its first instruction on, so that all of its threads are, and it sizes its pools
for one core as ours would.
"""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from attrs import frozen

from bench.peers.catalogue import HERE, LIVE_MUTEX, ZOOKEEPER_JAR
from bench.redises import HOST, free_port, running_redis

START_S: Final = 30.0
STOP_S: Final = 15
PORT_MAX: Final = 49151
"""The highest that live-mutex takes."""


class PeerNotStarted(Exception):
    """What a peer talks to did not come up; the message is what it had to say."""


@frozen
class PeerServer:
    """It runs."""

    port: int
    pid: int


@contextlib.contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """Processes that are started meanwhile stay on that core."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def low_port() -> int:
    """A free port that every peer accepts."""
    while (port := free_port()) > PORT_MAX:
        pass
    return port


@contextlib.contextmanager
def running_peer_server(name: str, core: int | None) -> Iterator[PeerServer]:
    """What a peer talks to, until the block ends.

    Raises:
        PeerNotStarted, NoRedis: see there.
    """
    if name == "redis":
        with running_redis(core) as (store, _):
            port = urlsplit(store.url).port
            assert port is not None
            yield PeerServer(port, store.pids[0])
        return
    with tempfile.TemporaryDirectory(prefix="leasekeeper-bench-") as directory:
        port = low_port()
        command, environment = COMMANDS[name](Path(directory), port)
        with running_process(command, environment, core, port) as pid:
            yield PeerServer(port, pid)


def etcd(directory: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """One member, which writes to disk before it answers: there is no etcd that does not."""
    clients, peers = f"http://{HOST}:{port}", f"http://{HOST}:{low_port()}"
    command = ["etcd", "--name", "bench", "--data-dir", str(directory / "data")]
    command += ["--listen-client-urls", clients, "--advertise-client-urls", clients]
    command += ["--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers]
    command += ["--initial-cluster", f"bench={peers}", "--log-level", "error"]
    return command, {}


def zookeeper(directory: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """One server, which writes to disk before it answers, as it does by default."""
    settings = directory / "zoo.cfg"
    settings.write_text(
        f"tickTime=2000\ndataDir={directory}\nclientPort={port}\nclientPortAddress={HOST}\n"
        "maxClientCnxns=0\nadmin.enableServer=false\n"
    )
    main = "org.apache.zookeeper.server.ZooKeeperServerMain"
    return ["java", "-Xmx512m", "-cp", str(ZOOKEEPER_JAR), main, str(settings)], {}


def live_mutex(_: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """Its broker, over TCP."""
    where = {"live_mutex_host": HOST, "live_mutex_port": str(port)}
    return ["node", str(LIVE_MUTEX / "dist" / "lm-start-server.js")], where


COMMANDS: Final = {"etcd": etcd, "zookeeper": zookeeper, "live-mutex": live_mutex}


@contextlib.contextmanager
def running_process(
    command: Sequence[str], environment: Mapping[str, str], core: int | None, port: int
) -> Iterator[int]:
    """A process that listens on a port, until the block ends.

    Raises:
        PeerNotStarted: it does not.
    """
    with tempfile.TemporaryFile("w+") as log:
        with on_core(core):
            process = subprocess.Popen(
                command, env={**os.environ, **environment}, cwd=HERE, stdout=log, stderr=log
            )
        try:
            deadline = time.monotonic() + START_S
            while not listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise PeerNotStarted(f"{' '.join(command)}: {log.read()[-2000:]}")
                time.sleep(0.05)
            yield process.pid
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    """Whether somebody does."""
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True
