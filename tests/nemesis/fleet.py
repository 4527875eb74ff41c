"""The processes of a run: servers, clients, the lines between them, and the resource."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from attrs import define, evolve, field, frozen

from tests.nemesis import client as program
from tests.nemesis import resource
from tests.nemesis.client import Job
from tests.nemesis.stores import Store, running_store
from tests.processes import GREETING, LEASEKEEPER, ServerFailed, clean_environment, first_line, stop
from tests.proxy import RunningProxy, running_proxy
from tests.redises import HOST, dying_with_us, free_port

START_S: Final = 60.0
DRAIN_S: Final = 40.0
"""A server waits 5 s for holders, closes connections over 10 s, and waits as long for the last."""


@frozen(kw_only=True)
class Shape:
    """How large a run is, and what goes on in it."""

    topology: str
    seed: int
    servers: int = 3
    clients: int = 8
    names: int = 3
    keys: int = 4
    lockers: int = 3
    unfenced: bool = False
    admin: bool = False
    """Whether servers tell their metrics."""
    options: tuple[str, ...] = ()
    """Further ones of every server."""


START_AGAIN_S: Final = 0.5


@define(eq=False)
class Process:
    """A process that can be paused, killed and started again. Its errors go to a file."""

    name: str
    command: list[str]
    log: Path
    greeting: str
    listens: bool = True
    """Whether it is given a pipe as its standard input."""
    popen: "subprocess.Popen[bytes] | None" = None
    said: str = ""
    expected_dead: bool = False
    problem: str | None = None
    """What it should not have done."""

    def launch(self) -> None:
        """Starts it, and does not wait."""
        assert not self.alive, f"{self.name} runs already"
        with self.log.open("ab") as log:
            self.popen = subprocess.Popen(
                [*dying_with_us(), *self.command],
                stdin=subprocess.PIPE if self.listens else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=clean_environment(),
            )
        self.expected_dead = False

    def await_greeting(self) -> None:
        """Waits until it says that it is there.

        Raises:
            ServerFailed: It does not, or something else.
        """
        self.said = self.hear(START_S)
        if not self.said.startswith(self.greeting):
            errors = self.log.read_text(errors="replace")[-2000:]
            raise ServerFailed(f"{self.name} said {self.said!r}, and then:\n{errors}")

    def start(self) -> None:
        """Starts it, and waits until it is there.

        A server that finds no store ends at once, as is specified, and whoever supervises it starts
        it again.

        Raises:
            ServerFailed: It does not come.
        """
        until = time.monotonic() + START_S
        while True:
            self.launch()
            try:
                self.await_greeting()
            except ServerFailed:
                if not self.ends_within(START_AGAIN_S) or time.monotonic() > until:
                    raise
            else:
                return

    def ends_within(self, seconds: float) -> bool:
        """Whether its process is gone, after so long at most; it is if it was never there."""
        if self.popen is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(seconds)
        return not self.alive

    def hear(self, within_s: float) -> str:
        """The next line that it says."""
        assert self.popen is not None
        assert self.popen.stdout is not None
        return first_line(self.popen.stdout, within_s)

    def tell(self, line: str) -> None:
        """A line into its standard input, if it is still there."""
        assert self.popen is not None
        assert self.popen.stdin is not None
        with contextlib.suppress(OSError):
            self.popen.stdin.write(f"{line}\n".encode())
            self.popen.stdin.flush()

    @property
    def alive(self) -> bool:
        """Whether its process exists, be it paused."""
        return self.popen is not None and self.popen.poll() is None

    def pause(self) -> None:
        """SIGSTOP; it has stopped when this returns, or is dead."""
        assert self.popen is not None
        self.popen.send_signal(signal.SIGSTOP)
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self.popen.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        if self.popen is not None:
            self.popen.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        self.expected_dead = True
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait()
            self._close()

    def drain(self) -> None:
        """SIGTERM, and SIGKILL if it takes far too long."""
        assert self.popen is not None
        self.expected_dead = True
        self.popen.terminate()
        try:
            self.popen.wait(DRAIN_S)
        except subprocess.TimeoutExpired:
            self.problem = f"{self.name} did not end within {DRAIN_S} s of SIGTERM"
            self.popen.kill()
        self.popen.wait()
        self._close()

    def stop(self) -> None:
        """Ends it, whatever state it is in."""
        if self.popen is not None:
            if self.popen.poll() is None:
                stop(self.popen)
            self._close()

    def _close(self) -> None:
        assert self.popen is not None
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@define(eq=False)
class Server:
    """A server, and the bad lines to and from it."""

    process: Process
    port: int
    admin_port: int | None
    to_clients: RunningProxy
    to_redis: RunningProxy | None
    """None where servers find out by themselves where their Redis is."""

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"ws://{HOST}:{self.to_clients.port}"

    def lines(self) -> list[RunningProxy]:
        """The proxies."""
        return [self.to_clients, *([self.to_redis] if self.to_redis is not None else [])]

    def mend(self) -> None:
        """Whatever was done to it is undone."""
        for line in self.lines():
            line.heal()
        if self.process.alive:
            self.process.resume()
        else:
            self.process.start()


@define(eq=False)
class Client:
    """A client, in one life after another, each under a name of its own."""

    job: Job
    directory: Path
    lives: int = 0
    process: Process = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.live()

    @property
    def name(self) -> str:
        """Of its present life."""
        return self.process.name

    def live(self) -> None:
        """Launches the next life."""
        self.lives += 1
        name = f"{self.job.process}.{self.lives}"
        job = evolve(self.job, process=name)
        command = [sys.executable, "-m", program.__name__, job.dumps()]
        self.process = Process(name, command, self.directory / f"{name}.log", program.READY)
        self.process.launch()

    def stop(self) -> None:
        """Ends the present life."""
        self.process.stop()


@define(eq=False)
class Fleet:
    """Everything that runs."""

    shape: Shape
    directory: Path
    store: Store
    servers: list[Server]
    clients: list[Client]
    resource: Process
    resource_port: int

    def ask(self, do: str) -> dict[str, Any]:
        """A question to the resource."""
        return resource.ask(self.resource_port, do)

    def urls(self) -> list[str]:
        """Of all servers, as clients reach them."""
        return [server.url for server in self.servers]

    def mend(self) -> None:
        """Undoes all that may have been done, to whatever: nothing is stopped, dead or cut off."""
        self.store.mend()
        for server in self.servers:
            server.mend()
        for client in self.clients:
            if client.process.alive:
                client.process.resume()
            elif client.process.expected_dead:
                client.live()
                client.process.await_greeting()

    def problems(self) -> list[str]:
        """Of processes: above all, of those that ended without being told or forced to."""
        processes = [server.process for server in self.servers]
        processes += [client.process for client in self.clients]
        late = [each.problem for each in processes if each.problem is not None]
        dead = [each for each in processes if not each.alive and not each.expected_dead]
        return late + [f"{each.name} ended by itself" for each in dead]

    def stop_clients(self, within_s: float) -> list[str]:
        """Has them finish what they have begun; returns whoever does not."""
        for client in self.clients:
            client.process.tell(program.STOP)
        deadline = time.monotonic() + within_s
        return [
            client.name
            for client in self.clients
            if not client.process.hear(max(0.1, deadline - time.monotonic())).startswith(
                program.STOPPED
            )
        ]


@contextlib.contextmanager
def running_fleet(shape: Shape, directory: Path) -> Iterator[Fleet]:
    """Starts everything, and stops everything, whatever happens."""
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(running_store(shape.topology))
        command = [sys.executable, "-m", resource.__name__, str(directory)]
        if shape.unfenced:
            command.append("unfenced")
        log = directory / "resource.log"
        table = Process("resource", command, log, resource.GREETING)
        stack.callback(table.stop)
        table.start()
        port = int(table.said.removeprefix(resource.GREETING))
        count = 1 if shape.topology == "embedded" else shape.servers
        servers = [make_server(n, shape, store, directory, stack) for n in range(count)]
        for server in servers:
            server.process.await_greeting()
        fleet = Fleet(shape, directory, store, servers, [], table, port)
        for number in range(shape.clients):
            client = Client(job_of(number, fleet), directory)
            stack.callback(client.stop)
            fleet.clients.append(client)
        for client in fleet.clients:
            client.process.await_greeting()
        yield fleet


def make_server(
    number: int, shape: Shape, store: Store, directory: Path, stack: contextlib.ExitStack
) -> Server:
    """A server that was launched, with proxies around it; it may not be there yet."""
    to_redis: RunningProxy | None = None
    url = store.url
    if store.single is not None:
        to_redis = stack.enter_context(running_proxy(store.single.port))
        url = to_redis.url
    port = free_port()
    command = [*LEASEKEEPER, "serve", "--listen", f"{HOST}:{port}", "--store", url]
    command += ["--log-level", "info", *shape.options]
    if shape.topology == "embedded":
        command.append("--allow-volatile-writes")
    admin_port: int | None = None
    if shape.admin:
        admin_port = free_port()
        command += ["--admin", f"{HOST}:{admin_port}"]
    name = f"server{number}"
    process = Process(name, command, directory / f"{name}.log", GREETING, listens=False)
    stack.callback(process.stop)
    process.launch()
    to_clients = stack.enter_context(running_proxy(port))
    return Server(process, port, admin_port, to_clients, to_redis)


def job_of(number: int, fleet: Fleet) -> Job:
    """What the client of this number does; each has another server as its first."""
    shape, urls = fleet.shape, fleet.urls()
    first = number % len(urls)
    return Job(
        process=f"client{number}",
        directory=str(fleet.directory),
        urls=[*urls[first:], *urls[:first]],
        resource_port=fleet.resource_port,
        seed=str(shape.seed),
        backend="trio" if number % 2 == 0 else "asyncio",
        names=[f"name/{each}" for each in range(shape.names)],
        lockers=shape.lockers,
        careless=1.0 if shape.unfenced else 0.5,
        keys=[f"row/{each}" for each in range(shape.keys)],
        queue="rows" if shape.keys else None,
        writes=number < 3,
    )
