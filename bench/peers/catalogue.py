"""Which peers there are, on which shapes they are measured, and whether they are installed."""

import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

from attrs import field, frozen

HERE: Final = Path(__file__).parent
LIVE_MUTEX: Final = HERE / "node_modules" / "live-mutex"
ZOOKEEPER_JAR: Final = Path("/usr/share/java/zookeeper.jar")
"""Where Debian has it."""
GO: Final = HERE / "go"
GO_LOCKS: Final = GO / "build" / "locks"
JAVA: Final = HERE / "java"
JAVA_LOCKS: Final = JAVA / "build" / "locks.jar"

PYTHON: Final = "uv sync --inexact --group bench"
REDIS: Final = "apt-get install redis-server"
BUILD_GO: Final = "go build -C bench/peers/go -o build/locks ."
BUILD_JAVA: Final = "mvn -q -f bench/peers/java package"
LOCKS: Final = ("P1", "P2", "P3")
CACHE: Final = ("P4",)


def version_of(distribution: str) -> Callable[[], str]:
    """That of a Python package."""
    return lambda: importlib.metadata.version(distribution)


def go_version(module: str) -> Callable[[], str]:
    """That of a Go module, as `go.mod` wants it."""

    def wanted() -> str:
        match = re.search(
            rf"^\t{re.escape(module)} v(\S+)", (GO / "go.mod").read_text(), re.MULTILINE
        )
        return match[1] if match else "?"

    return wanted


def redisson_version() -> str:
    """That of the client, as `pom.xml` wants it."""
    match = re.search(r"<redisson\.version>(.+?)<", (JAVA / "pom.xml").read_text())
    return match[1] if match else "?"


def etcd_version() -> str:
    """That of the server."""
    said = subprocess.run(["etcd", "--version"], capture_output=True, text=True, check=True).stdout
    return said.partition("\n")[0].rpartition(" ")[2]


def live_mutex_version() -> str:
    """That of client and server."""
    return str(json.loads((LIVE_MUTEX / "package.json").read_text())["version"])


def zookeeper_version() -> str:
    """That of the server, as its file is named beside the one without a version."""
    named = (path.name for path in ZOOKEEPER_JAR.parent.glob("zookeeper-*.jar"))
    found = [
        match[1] for name in named if (match := re.fullmatch(r"zookeeper-([\d.]+)\.jar", name))
    ]
    return found[0] if found else "?"


@frozen
class Peer:
    """What ours is measured beside."""

    title: str
    shapes: Sequence[str]
    server: str
    """What it talks to: `redis`, `etcd`, `zookeeper` or `live-mutex`."""
    version: Callable[[], str]
    load: Sequence[str] = ()
    """What makes the load, if not `bench.peers.load`; the shape and its options come after it."""
    modules: Sequence[str] = ()
    """What Python must be able to import."""
    programs: Sequence[str] = ()
    files: Sequence[Path] = ()
    installed_by: Sequence[str] = field(default=(PYTHON,))

    def missing(self) -> list[str]:
        """What is not installed."""
        return [
            *(f"Python's {name}" for name in self.modules if not importlib.util.find_spec(name)),
            *(name for name in self.programs if shutil.which(name) is None),
            *(str(path) for path in self.files if not path.exists()),
        ]


PEERS: Final = {
    "redis-py": Peer(
        "redis-py, asyncio Lock",
        LOCKS,
        server="redis",
        version=version_of("redis"),
        programs=["redis-server"],
        installed_by=[REDIS],
    ),
    "python-redis-lock": Peer(
        "python-redis-lock, threads",
        LOCKS,
        server="redis",
        version=version_of("python-redis-lock"),
        modules=["redis_lock"],
        programs=["redis-server"],
        installed_by=[REDIS, PYTHON],
    ),
    "redsync": Peer(
        "redsync, Go",
        LOCKS,
        server="redis",
        version=go_version("github.com/go-redsync/redsync/v4"),
        load=[str(GO_LOCKS), "redsync"],
        programs=["redis-server"],
        files=[GO_LOCKS],
        installed_by=[REDIS, BUILD_GO],
    ),
    "rueidislock": Peer(
        "rueidislock, Go",
        LOCKS,
        server="redis",
        version=go_version("github.com/redis/rueidis"),
        load=[str(GO_LOCKS), "rueidislock"],
        programs=["redis-server"],
        files=[GO_LOCKS],
        installed_by=[REDIS, BUILD_GO],
    ),
    "redisson": Peer(
        "Redisson's Lock, Java",
        LOCKS,
        server="redis",
        version=redisson_version,
        load=["java", "-jar", str(JAVA_LOCKS), "redisson"],
        programs=["redis-server", "java"],
        files=[JAVA_LOCKS],
        installed_by=[REDIS, BUILD_JAVA],
    ),
    "redisson-fair": Peer(
        "Redisson's FairLock, Java",
        LOCKS,
        server="redis",
        version=redisson_version,
        load=["java", "-jar", str(JAVA_LOCKS), "redisson-fair"],
        programs=["redis-server", "java"],
        files=[JAVA_LOCKS],
        installed_by=[REDIS, BUILD_JAVA],
    ),
    "live-mutex": Peer(
        "live-mutex",
        LOCKS,
        server="live-mutex",
        version=live_mutex_version,
        load=["node", str(HERE / "live_mutex.mjs")],
        programs=["node"],
        files=[LIVE_MUTEX],
        installed_by=["npm install --prefix bench/peers --ignore-scripts --no-package-lock"],
    ),
    "etcd": Peer(
        "etcd, lock service over gRPC",
        LOCKS,
        server="etcd",
        version=etcd_version,
        modules=["grpc"],
        programs=["etcd"],
        installed_by=["apt-get install etcd-server", PYTHON],
    ),
    "zookeeper": Peer(
        "ZooKeeper, kazoo's Lock, threads",
        LOCKS,
        server="zookeeper",
        version=zookeeper_version,
        modules=["kazoo"],
        programs=["java"],
        files=[ZOOKEEPER_JAR],
        installed_by=["apt-get install zookeeper", PYTHON],
    ),
    "dogpile": Peer(
        "dogpile.cache on Redis, threads",
        CACHE,
        server="redis",
        version=version_of("dogpile.cache"),
        modules=["dogpile"],
        programs=["redis-server"],
        installed_by=[REDIS, PYTHON],
    ),
    "aiocache": Peer(
        "aiocache on Redis",
        CACHE,
        server="redis",
        version=version_of("aiocache"),
        modules=["aiocache"],
        programs=["redis-server"],
        installed_by=[REDIS, PYTHON],
    ),
    "cashews": Peer(
        "cashews on Redis",
        CACHE,
        server="redis",
        version=version_of("cashews"),
        modules=["cashews"],
        programs=["redis-server"],
        installed_by=[REDIS, PYTHON],
    ),
}


def installed(names: Iterable[str]) -> list[str]:
    """Those that can be measured; what the others lack is said aloud."""
    kept = []
    for name in names:
        peer = PEERS[name]
        if missing := peer.missing():
            how = "; ".join(peer.installed_by)
            print(f"NOT MEASURED: {name} lacks {', '.join(missing)}: {how}", file=sys.stderr)
        else:
            kept.append(name)
    return kept
