"""Servers and clients as processes of their own, for tests: on free ports, and gone at the end."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Final

import attrs

LEASEKEEPER: Final = (sys.executable, "-m", "leasekeeper.cli")
GREETING: Final = "leasekeeper listening on "
START_S: Final = 120.0
"""For processes that start while a machine does a hundred other things. No promise is about it."""
STOP_S: Final = 15.0


class ServerFailed(AssertionError):
    """The server did not start, or died: what it said on standard error."""


@attrs.frozen
class RunningServer:
    """A server that accepts connections."""

    process: subprocess.Popen[bytes]
    url: str

    @property
    def address(self) -> str:
        """HOST:PORT, for `--listen` of its successor."""
        return self.url.removeprefix("ws://")

    def drain(self) -> None:
        """Asks it to end in good order."""
        self.process.send_signal(signal.SIGTERM)


@contextlib.contextmanager
def running_server(
    token: str | None = None,
    listen: str = "127.0.0.1:0",
    options: Sequence[str] = (),
    store: str = "memory",
) -> Iterator[RunningServer]:
    """A server, by default on a free port, stopped on the way out, by force if it must be.

    Args:
        token: That clients must show.
        listen: Where.
        options: Further ones.
        store: `memory`, or the URL of a Redis.

    Raises:
        ServerFailed: If it does not say in time that it listens.
    """
    env = clean_environment()
    if token is not None:
        env["LEASEKEEPER_TOKEN"] = token
    command = (*LEASEKEEPER, "serve", "--listen", listen, "--store", store, *options)
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, env=env) as process,
    ):
        try:
            assert process.stdout is not None
            line = first_line(process.stdout)
            if not line.startswith(GREETING):
                ended = last_words(process)
                log.seek(0)
                said = log.read()[-4000:].decode(errors="replace")
                raise ServerFailed(f"{' '.join(command)} said {line!r}, {ended}, and:\n{said}")
            yield RunningServer(process, line.removeprefix(GREETING).strip())
        finally:
            stop(process)


def clean_environment() -> dict[str, str]:
    """This process's environment, without what would configure leasekeeper.

    What hangs shows its stack when it is aborted: see `last_words`.
    """
    ours = {k: v for k, v in os.environ.items() if not k.startswith("LEASEKEEPER_")}
    return ours | {"PYTHONFAULTHANDLER": "1"}


def last_words(process: "subprocess.Popen[bytes]") -> str:
    """How a process ended, which is made to say on standard error where it hangs if it has not."""
    if process.poll() is not None:
        return f"ended with {process.returncode}"
    process.send_signal(signal.SIGABRT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_S)
    return "was still running"


def first_line(stream: IO[bytes], within_s: float = START_S) -> str:
    """The next line of a pipe; less of it at its end, or when the time is over."""
    deadline = time.monotonic() + within_s
    text = b""
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([stream], [], [], max(0.0, deadline - time.monotonic()))
        byte = os.read(stream.fileno(), 1) if ready else b""
        if not byte:
            break
        text += byte
    return text.decode(errors="replace")


def stop(process: "subprocess.Popen[bytes]") -> None:
    """SIGTERM, and SIGKILL if that does not help; a stopped process is continued."""
    process.send_signal(signal.SIGCONT)
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def started(command: Sequence[str | Path], **env: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A process whose standard output and error are pipes, gone at the end."""
    with subprocess.Popen(
        [str(each) for each in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=clean_environment() | env,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
