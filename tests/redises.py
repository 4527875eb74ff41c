"""Private Redis servers for tests: on free ports of 127.0.0.1, and gone at the end."""

import contextlib
import functools
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias, cast

import attrs
import hiredis
from redis.exceptions import ResponseError

from tests.processes import START_S, clean_environment

Word: TypeAlias = str | bytes | float
Reply: TypeAlias = "int | str | list[Reply] | None"

HOST: Final = "127.0.0.1"
REPLY_S: Final = 10.0
POLL_S: Final = 0.02
ATTEMPTS: Final = 5

# Below the ports that the kernel deals out to connections: no client's own end can take the port
# of a server that a test has stopped for a while. Nodes of a cluster listen 10000 above it, too.
PORTS: Final = range(12000, 22000)
BUS: Final = 10000

INT64: Final = struct.Struct("=q")  # The file that skew.c maps has two: an offset, a frozen time.


class RedisFailed(AssertionError):
    """A Redis did not start, or did not come to the state that was waited for, and what it said."""


class PortTaken(RedisFailed):
    """Somebody else listens on the port."""


def until(condition: Callable[[], bool], what: str, within_s: float = START_S) -> None:
    """Waits for something that another process does; looks often at first, then less.

    A lost connection means not yet: sentinels disconnect everybody from a Redis whose role they
    change.

    Raises:
        RedisFailed: If it is not so in time.
    """
    deadline = time.monotonic() + within_s
    pause_s = POLL_S / 20
    while True:
        with contextlib.suppress(ConnectionError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise RedisFailed(f"waited {within_s} s in vain: {what}")
        time.sleep(pause_s)
        pause_s = min(1.3 * pause_s, POLL_S)


def free_port() -> int:
    """A port that nobody listens on, nor 10000 above it; how long that is true, nobody knows."""
    while True:
        port = secrets.choice(PORTS)
        with contextlib.suppress(OSError), socket.socket() as first, socket.socket() as second:
            for each, number in ((first, port), (second, port + BUS)):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                each.bind((HOST, number))
            return port


@attrs.define(eq=False)
class RunningRedis:
    """A Redis that a test may ask, stop, start again, and lie to about the time.

    It does not notice that a test has changed its configuration: after `CONFIG SET requirepass`,
    `cli` is locked out like everybody else.
    """

    port: int
    directory: Path
    password: str | None
    _arguments: tuple[str, ...]
    _environment: dict[str, str]
    _process: "subprocess.Popen[bytes] | None" = None

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The present process, or the last one."""
        assert self._process is not None, "it was never started"
        return self._process

    @property
    def alive(self) -> bool:
        """Whether its process exists, be it paused."""
        return self._process is not None and self._process.poll() is None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """What a server is given as its store."""
        return f"redis://{self._credentials}{self.address}"

    @property
    def unix_url(self) -> str:
        """The same through its socket in the file system, if it was started with one."""
        return f"unix://{self._credentials}{self.directory / 'redis.sock'}"

    @property
    def _credentials(self) -> str:
        return "" if self.password is None else f":{self.password}@"

    def cli(self, *args: Word) -> Reply:
        """The reply to one command, on a connection of its own: strings as text, RESP2 shapes.

        Raises:
            ResponseError: If Redis answers with an error.
            OSError: If it is not there, or says nothing for ten seconds.
        """
        return self.pipeline(args)[0]

    def pipeline(self, *commands: Sequence[Word]) -> list[Reply]:
        """The replies to several commands on one connection; raises as `cli` does.

        WAIT is about the earlier commands of its own connection, and MULTI about the later ones.
        """
        reader = hiredis.Reader(
            replyError=ResponseError, encoding="utf-8", errors="backslashreplace"
        )
        with socket.create_connection((HOST, self.port), REPLY_S) as connection:
            if self.password is not None:
                connection.sendall(packed(("AUTH", self.password)))
                read_reply(connection, reader)
            connection.sendall(b"".join(map(packed, commands)))
            return [read_reply(connection, reader) for _ in commands]

    def info(self, section: str = "everything") -> dict[str, str]:
        """What INFO says, by its names."""
        said = self.cli("INFO", section)
        assert isinstance(said, str)
        pairs = (line.partition(":") for line in said.splitlines() if ":" in line)
        return {name: value for name, _, value in pairs}

    def time_ms(self) -> int:
        """Its wall clock."""
        said = self.cli("TIME")
        assert isinstance(said, list)
        seconds, micros = (int(str(each)) for each in said)
        return seconds * 1000 + micros // 1000

    def start(self) -> None:
        """Starts it, and waits until it answers.

        Raises:
            PortTaken: If somebody else listens there.
            RedisFailed: If it ends at once for another reason, or says nothing.
        """
        assert not self.alive, "it runs already"
        path = self.directory / "redis.log"
        with path.open("ab") as log:
            self._process = subprocess.Popen(
                [*dying_with_us(), *self._arguments, "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                process_group=0,
            )
            said_before = log.tell()

        def answers() -> bool:
            if not self.alive:
                said = path.read_bytes()[said_before:].decode(errors="replace")
                kind = PortTaken if "Address already in use" in said else RedisFailed
                raise kind(f"{' '.join(self._arguments)} said:\n{said[-4000:]}")
            return self._answers()

        until(answers, f"the Redis at {self.address} answers, with no password but {self.password}")

    def _answers(self) -> bool:
        # Somebody else may have the port, a Redis or not, so the one that answers has to be ours.
        try:
            info = self.info()
            return info["process_id"] == str(self.process.pid) and info.get("loading") != "1"
        except (OSError, ResponseError, hiredis.HiredisError):
            return False

    def kill(self) -> None:
        """SIGKILL, also to a child that writes a snapshot; nothing if it is dead already."""
        if self.alive:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def restart(self) -> None:
        """Kills it, and starts it again with what it left in its directory."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP; it has stopped when this returns."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def step_clock(self, ms: int) -> None:
        """Moves its wall clock forwards, or backwards if negative; only if started skewed."""
        (offset_ms,) = INT64.unpack_from((self.directory / "offset").read_bytes())
        self._tell_the_clock(0, offset_ms + ms)

    def freeze_clock(self, us: int) -> None:
        """Its wall clock shows this, in microseconds since 1970, until it is told another time."""
        self._tell_the_clock(INT64.size, us)

    def _tell_the_clock(self, at: int, value: int) -> None:
        # In place, for the process has mapped this very file; eight bytes arrive together.
        with (self.directory / "offset").open("r+b", buffering=0) as file:
            file.seek(at)
            file.write(INT64.pack(value))


def packed(args: Sequence[Word]) -> bytes:
    """A command as it goes over the wire."""
    words = [each if isinstance(each, bytes) else str(each).encode() for each in args]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


def read_reply(connection: socket.socket, reader: hiredis.Reader) -> Reply:
    """One reply; an error is raised."""
    reply: object
    while (reply := reader.gets()) is False:
        received = connection.recv(65536)
        if not received:
            raise ConnectionResetError("Redis closed the connection")
        reader.feed(received)
    if isinstance(reply, Exception):
        raise reply
    return cast("Reply", reply)


def dying_with_us() -> tuple[str, ...]:
    """A prefix of a command: the kernel kills it even if no `finally` of ours can.

    The kernel watches the thread that starts it, so only the main thread's end is ours. Where
    there is no setpriv (it is Linux's), a killed test run leaves its Redis behind.
    """
    if threading.current_thread() is threading.main_thread() and shutil.which("setpriv"):
        return ("setpriv", "--pdeathsig", "KILL")
    return ()


@contextlib.contextmanager
def running_redis(
    *,
    options: Sequence[str] = (),
    config: str = "",
    port: int | None = None,
    directory: Path | None = None,
    password: str | None = None,
    skewed: bool = False,
    unix_socket: bool = False,
) -> Iterator[RunningRedis]:
    """A redis-server without persistence, killed on the way out.

    Args:
        options: As on its command line: `("--maxmemory", "1mb")`. They win over our own.
        config: The content of its configuration file, which Redis itself may rewrite.
        port: Instead of a free one.
        directory: Instead of a temporary one; it is kept.
        password: For its default user, and towards its master.
        skewed: Whether `step_clock` and `freeze_clock` work. Needs a C compiler.
        unix_socket: Whether `unix_url` works.

    Raises:
        RedisFailed: If there is no redis-server, or it does not answer in time.
    """
    if shutil.which("redis-server") is None:
        raise RedisFailed("no redis-server on PATH: `./dev test` or apt-get install redis-server")
    with contextlib.ExitStack() as stack:
        if directory is None:
            temporary = tempfile.TemporaryDirectory(prefix="leasekeeper-redis-")
            directory = Path(stack.enter_context(temporary))
        file = directory / "redis.conf"
        file.write_text(config)
        arguments = ["redis-server", str(file), "--bind", HOST, "--dir", str(directory)]
        arguments += ["--save", "", "--appendonly", "no"]
        if unix_socket:
            arguments += ["--unixsocket", str(directory / "redis.sock")]
        if password is not None:
            arguments += ["--requirepass", password, "--masterauth", password]
        environment = clean_environment() | (skewing(directory) if skewed else {})
        redis = RunningRedis(
            port or free_port(), directory, password, (*arguments, *options), environment
        )
        stack.callback(redis.kill)
        start_somewhere(redis, ATTEMPTS if port is None else 1)
        yield redis


def start_somewhere(redis: RunningRedis, attempts: int) -> None:
    """Starts it, on another port if somebody was quicker to take this one."""
    for attempt in range(1, attempts + 1):
        try:
            return redis.start()
        except PortTaken:
            if attempt == attempts:
                raise
            redis.port = free_port()


def skewing(directory: Path) -> dict[str, str]:
    """What the environment of a process needs for a clock that a file in the directory shifts."""
    library, offset = directory / "skew.so", directory / "offset"
    library.write_bytes(skew_library())
    offset.write_bytes(2 * INT64.pack(0))
    return {"LD_PRELOAD": str(library), "CLOCK_OFFSET_FILE": str(offset)}


@functools.cache
def skew_library() -> bytes:
    """The compiled `skew.c`.

    Raises:
        RedisFailed: If it cannot be compiled.
    """
    if sys.platform != "linux":
        raise RedisFailed("tests of clock steps need Linux, and its LD_PRELOAD")
    if shutil.which("cc") is None:
        raise RedisFailed(
            "no C compiler, which tests of clock steps need: apt-get install gcc libc6-dev"
        )
    with tempfile.TemporaryDirectory() as directory:
        library = Path(directory) / "skew.so"
        source = Path(__file__).with_name("skew.c")
        compiled = subprocess.run(
            ["cc", "-shared", "-fPIC", "-O2", "-o", library, source],
            capture_output=True,
            text=True,
            check=False,
        )
        if compiled.returncode != 0:
            raise RedisFailed(
                f"{source} does not compile (apt-get install gcc libc6-dev):\n{compiled.stderr}"
            )
        return library.read_bytes()
