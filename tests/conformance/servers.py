"""Servers of ours, as processes of their own: started when first needed, stopped at the end."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO, Final

import attrs

from tests.conformance.vectors import Json

COMMAND: Final = (
    *(sys.executable, "-m", "leasekeeper.cli", "serve"),
    *("--listen", "127.0.0.1:0", "--store", "memory"),
)
GREETING: Final = "leasekeeper listening on "
START_S: Final = 20.0
STOP_S: Final = 10.0


class ServerFailed(AssertionError):
    """The server did not start, or died: what it said on standard error."""


@attrs.frozen
class RunningServer:
    """A server that accepts connections."""

    process: subprocess.Popen[bytes]
    url: str

    def drain(self) -> None:
        self.process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def running_server(token: str | None = None) -> Iterator[RunningServer]:
    """A server on a free port, stopped on the way out, by force if it must be.

    Raises:
        ServerFailed: If it does not say in time that it listens.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith("LEASEKEEPER_")}
    if token is not None:
        env["LEASEKEEPER_TOKEN"] = token
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=log, env=env) as process,
    ):
        try:
            assert process.stdout is not None
            line = _first_line(process.stdout)
            if not line.startswith(GREETING):
                log.seek(0)
                said = log.read()[-4000:].decode(errors="replace")
                raise ServerFailed(f"{' '.join(COMMAND)} said {line!r}, and then:\n{said}")
            yield RunningServer(process, line.removeprefix(GREETING).strip())
        finally:
            _stop(process)


def _first_line(stream: IO[bytes]) -> str:
    """What comes before the first line feed, the end, or START_S."""
    deadline = time.monotonic() + START_S
    text = b""
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        byte = os.read(stream.fileno(), 1) if ready else b""
        if not byte:
            break
        text += byte
    return text.decode(errors="replace")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@attrs.define
class Servers:
    """One shared server for each token, started when it is first asked for.

    A start that failed is remembered, so that a missing server fails every test at once rather
    than slowly.
    """

    _stack: contextlib.ExitStack
    _shared: dict[str | None, RunningServer | ServerFailed] = attrs.field(factory=dict)

    @contextlib.contextmanager
    def given(self, given: dict[str, Json]) -> Iterator[RunningServer]:
        """The server that a scenario asks for."""
        token = given.get("token")
        assert token is None or isinstance(token, str)
        if given.get("private"):
            with running_server(token) as server:
                yield server
        else:
            yield self._get(token)

    def _get(self, token: str | None) -> RunningServer:
        if token not in self._shared:
            try:
                self._shared[token] = self._stack.enter_context(running_server(token))
            except ServerFailed as failure:
                self._shared[token] = failure
        server = self._shared[token]
        if isinstance(server, ServerFailed):
            raise server
        return server
