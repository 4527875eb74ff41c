"""A Redis of its own for each server under load: nothing on disk, and gone at the end."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import redis

from bench.observed import Store
from bench.pinning import pin

HOST: Final = "127.0.0.1"
START_S: Final = 10.0
STOP_S: Final = 15


class NoRedis(Exception):
    """No redis-server starts; the message is what to do about it, or what it said."""


def free_port() -> int:
    """A port that nobody listens on, a moment ago."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        port: int = taken.getsockname()[1]
    return port


@contextlib.contextmanager
def running_redis(core: int | None) -> Iterator[tuple[Store, str]]:
    """A Redis, until the block ends, and the URL of its socket in the file system.

    Raises:
        NoRedis: see there.
    """
    if shutil.which("redis-server") is None:
        raise NoRedis("no redis-server on PATH: apt-get install redis-server, or --store memory")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="leasekeeper-bench-") as directory:
        path = Path(directory) / "redis.sock"
        log = Path(directory) / "redis.log"
        command = ["redis-server", "--bind", HOST, "--port", str(port), "--unixsocket", str(path)]
        command += ["--dir", directory, "--logfile", str(log), "--save", "", "--appendonly", "no"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            try:
                if core is not None:
                    pin(process.pid, core)
                url = f"redis://{HOST}:{port}"
                wait_for(url, process, log)
                yield Store(url, (process.pid,)), f"unix://{path}"
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_S)
                process.kill()


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Returns when this very process answers.

    Raises:
        NoRedis: it ended, or says nothing.
    """
    deadline = time.monotonic() + START_S
    with redis.Redis.from_url(url) as client:
        while True:
            with contextlib.suppress(redis.ConnectionError):
                if client.info("server")["process_id"] == process.pid:
                    return
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoRedis(f"redis-server did not start: {log.read_text()[-2000:]}")
            time.sleep(0.02)
