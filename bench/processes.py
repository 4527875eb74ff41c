"""The servers under load: started on a free port, pinned to a core, stopped at the end."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from bench.load import pin
from bench.shapes import Figures

LISTENING: Final = re.compile(r"listening on \w+://(?P<host>[^:/]+):(?P<port>\d+)")
STOP_S: Final = 15


class NotStarted(Exception):
    """A server did not come up; the message is what it had to say."""


@frozen
class Server:
    """A running server."""

    kind: str
    """`leasekeeper`, `lines` or `websocket`."""
    host: str
    port: int
    pid: int


@frozen
class Cores:
    """Which core is whose; None where processes cannot be pinned, or there is only one core."""

    server: int | None
    load: int | None

    @classmethod
    def available(cls) -> "Cores":
        """The first core for the servers, the second for the load."""
        if hasattr(os, "sched_getaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            if len(cores) >= 2:
                return cls(server=cores[0], load=cores[1])
        return cls(server=None, load=None)


SERVE: Final = (
    str(Path(sys.executable).with_name("leasekeeper")),
    *("serve", "--listen", "127.0.0.1:0"),
)
"""How to start ours on a free port."""


def echo(kind: str) -> list[str]:
    """How to start a yardstick on a free port."""
    return [sys.executable, "-m", "bench.echo", kind]


@contextlib.contextmanager
def running(kind: str, command: Sequence[str], core: int | None) -> Iterator[Server]:
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
            yield Server(kind, match["host"], int(match["port"]), process.pid)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S)
            process.kill()


def measure(shape: str, server: Server, core: int | None, seconds: float) -> Figures:
    """Runs one load process against a server, and returns its figures."""
    command = [sys.executable, "-m", "bench.load", shape, "--target", server.kind]
    command += ["--host", server.host, "--port", str(server.port)]
    command += ["--server-pid", str(server.pid), "--seconds", str(seconds)]
    if core is not None:
        command += ["--core", str(core)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: Figures = json.loads(done.stdout)
    return figures
