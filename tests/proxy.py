"""A bad line to Redis: a TCP proxy that delays, swallows, cuts and refuses on command.

In a Trio test it is a task. For other tests it is a process of its own that reads what to do from
its standard input, a line each, and ends with it::

    python -m tests.proxy PORT_OF_REDIS
"""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from enum import StrEnum
from typing import Final

import attrs
import trio

from tests.processes import ServerFailed, first_line
from tests.redises import HOST, free_port

CHUNK: Final = 65536
GREETING: Final = "proxying on port "
DONE: Final = "done\n"


class Way(StrEnum):
    """The two directions of a line."""

    TO_REDIS = "to-redis"
    TO_CLIENT = "to-client"


@attrs.define(eq=False)
class Flow:
    """What happens to the bytes of one direction, on every connection."""

    is_open: trio.Event
    dropping: bool = False


def open_flows() -> dict[Way, Flow]:
    """Both directions, untroubled."""
    flows = {way: Flow(trio.Event()) for way in Way}
    for flow in flows.values():
        flow.is_open.set()
    return flows


@attrs.define(eq=False)
class Proxy:
    """Connections to `port` are connections to Redis, as well as the test lets them.

    Its methods take effect at once on all connections, present and future, and add up until
    `heal`. It does not know what is in the bytes: where it dropped some, that connection stays
    out of step until it is cut.
    """

    upstream_port: int
    port: int = attrs.field(factory=free_port)
    _delay_ms: int = 0
    _flows: dict[Way, Flow] = attrs.field(factory=open_flows, init=False)
    _connections: set[trio.CancelScope] = attrs.field(factory=set, init=False)
    _listener: trio.socket.SocketType | None = attrs.field(default=None, init=False)
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)

    @property
    def url(self) -> str:
        """What a server is given as its store."""
        return f"redis://{HOST}:{self.port}"

    @property
    def connections(self) -> int:
        """How many clients are connected through it."""
        return len(self._connections)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listens and forwards until cancelled; started when it listens.

        Raises:
            OSError: If somebody else listens on the port.
        """
        async with trio.open_nursery() as self._nursery:
            try:
                self._listen()
                task_status.started()
                await trio.sleep_forever()
            finally:
                self.refuse()

    def delay(self, ms: int) -> None:
        """Whatever passes, in either direction, does so at least that much later."""
        self._delay_ms = ms

    def cut(self) -> None:
        """Closes all connections; new ones are welcome."""
        for connection in self._connections:
            connection.cancel()

    def refuse(self) -> None:
        """Nobody listens any more; present connections stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def one_way(self, way: Way) -> None:
        """Only this direction flows; in the other, bytes and ends are under way until `heal`."""
        (other,) = {*Way} - {way}
        self._hold(other)

    def half_open(self) -> None:
        """Connections stay, and are accepted, but nothing flows until `heal`."""
        for way in Way:
            self._hold(way)

    def drop_replies(self) -> None:
        """What Redis says is thrown away, not kept; Redis is told everything."""
        self._flows[Way.TO_CLIENT].dropping = True

    def heal(self) -> None:
        """All is well again: what was held arrives, what was dropped does not."""
        self._delay_ms = 0
        for flow in self._flows.values():
            flow.dropping = False
            flow.is_open.set()
        if self._listener is None:
            self._listen()

    def _hold(self, way: Way) -> None:
        if self._flows[way].is_open.is_set():
            self._flows[way].is_open = trio.Event()

    def _listen(self) -> None:
        assert self._nursery is not None, "it does not run"
        # A socket of the standard library, for Trio's would have to be awaited.
        listener = trio.socket.from_stdlib_socket(socket.create_server((HOST, self.port)))
        self._listener = listener
        self._nursery.start_soon(self._accept, listener, self._nursery)

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        with contextlib.suppress(trio.ClosedResourceError):
            while True:
                client, _ = await listener.accept()
                connection = trio.CancelScope()
                self._connections.add(connection)
                nursery.start_soon(self._connect, trio.SocketStream(client), connection)

    async def _connect(self, client: trio.SocketStream, connection: trio.CancelScope) -> None:
        try:
            with connection, contextlib.suppress(OSError):
                async with client:
                    upstream = await trio.open_tcp_stream(HOST, self.upstream_port)
                    async with upstream, trio.open_nursery() as nursery:
                        nursery.start_soon(self._pump, client, upstream, Way.TO_REDIS, connection)
                        nursery.start_soon(self._pump, upstream, client, Way.TO_CLIENT, connection)
        finally:
            self._connections.discard(connection)

    async def _pump(
        self,
        source: trio.SocketStream,
        sink: trio.SocketStream,
        way: Way,
        connection: trio.CancelScope,
    ) -> None:
        flow = self._flows[way]
        chunk = b"?"
        while chunk:
            try:
                chunk = await source.receive_some(CHUNK)
            except trio.BrokenResourceError:
                chunk = b""
            await trio.sleep(self._delay_ms / 1000)
            await flow.is_open.wait()
            try:
                if not chunk:
                    await sink.send_eof()
                elif not flow.dropping:
                    await sink.send_all(chunk)
            except trio.BrokenResourceError:
                connection.cancel()


@contextlib.asynccontextmanager
async def open_proxy(upstream_port: int) -> AsyncIterator[Proxy]:
    """A proxy that runs for as long as the block, for Trio tests."""
    proxy = Proxy(upstream_port)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.run)
        yield proxy
        nursery.cancel_scope.cancel()


@attrs.frozen
class RunningProxy:
    """A proxy in a process of its own. Its methods are those of `Proxy`."""

    process: "subprocess.Popen[bytes]"
    port: int

    @property
    def url(self) -> str:
        """What a server is given as its store."""
        return f"redis://{HOST}:{self.port}"

    def delay(self, ms: int) -> None:
        self._tell(f"delay {ms}")

    def cut(self) -> None:
        self._tell("cut")

    def refuse(self) -> None:
        self._tell("refuse")

    def one_way(self, way: Way) -> None:
        self._tell(f"one-way {way}")

    def half_open(self) -> None:
        self._tell("half-open")

    def drop_replies(self) -> None:
        self._tell("drop-replies")

    def heal(self) -> None:
        self._tell("heal")

    def _tell(self, line: str) -> None:
        """Returns when it is so."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{line}\n".encode())
        self.process.stdin.flush()
        said = first_line(self.process.stdout)
        if said != DONE:
            raise ServerFailed(f"the proxy answered {line!r} with {said!r}")


@contextlib.contextmanager
def running_proxy(upstream_port: int) -> Iterator[RunningProxy]:
    """A proxy in a process of its own, killed on the way out.

    Raises:
        ServerFailed: If it does not listen in time.
    """
    command = (sys.executable, "-m", "tests.proxy", str(upstream_port))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            line = first_line(process.stdout)
            if not line.startswith(GREETING):
                raise ServerFailed(f"{' '.join(command)} said {line!r}")
            yield RunningProxy(process, int(line.removeprefix(GREETING)))
        finally:
            process.kill()


def obey(proxy: Proxy, line: str) -> None:
    """Does what a line of control says.

    Raises:
        ValueError: If it says nothing that a proxy can do.
    """
    match line.split():
        case ["delay", ms]:
            proxy.delay(int(ms))
        case ["cut"]:
            proxy.cut()
        case ["refuse"]:
            proxy.refuse()
        case ["one-way", way]:
            proxy.one_way(Way(way))
        case ["half-open"]:
            proxy.half_open()
        case ["drop-replies"]:
            proxy.drop_replies()
        case ["heal"]:
            proxy.heal()
        case _:
            raise ValueError(f"no such control: {line!r}")


async def main(upstream_port: int) -> None:
    """Proxies until the end of the standard input."""
    async with open_proxy(upstream_port) as proxy:
        print(f"{GREETING}{proxy.port}", flush=True)
        control = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
        said = b""
        async with control:
            async for chunk in control:
                *lines, said = (said + chunk).split(b"\n")
                for line in lines:
                    obey(proxy, line.decode())
                    print(DONE, end="", flush=True)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
