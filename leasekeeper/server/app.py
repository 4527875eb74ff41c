"""The server: listeners, connections, and an orderly end.

One nursery holds it all: the service, the listeners, and under them one task and one nursery for
each connection, which contains every failure of that connection (law L13).
"""

import errno
import os
import random
import signal
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import structlog
import trio
from attrs import define, field

from leasekeeper.errors import CloseCode, ConfigurationError
from leasekeeper.server.config import Address, ServerConfig, UnixAddress
from leasekeeper.server.connection import Connection, token_fits
from leasekeeper.server.transport import HandshakeFailed, accept
from leasekeeper.service.keeper import Keeper

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

_BACKLOG: Final = 1024
_DRAIN_CHECK_S: Final = 0.02


@define(eq=False)
class Server:
    """Serves one keeper on any number of listeners."""

    config: ServerConfig
    keeper: Keeper
    connections: set[Connection] = field(factory=set, init=False)
    _handshakes: int = field(default=0, init=False)
    _all_gone: trio.Event = field(factory=trio.Event, init=False)
    _accepting: trio.CancelScope = field(factory=trio.CancelScope, init=False)

    async def run(
        self, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serves until SIGTERM or SIGINT, and drains; a second signal ends it at once.

        Reports the URLs it listens on once it accepts connections.

        Raises:
            ConfigurationError: it cannot listen there.
        """
        self.config.check()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.keeper.run)
                listeners = await _listen_all(self.config.listen)
                files = _socket_files(listeners)
                try:
                    nursery.start_soon(self._accept, listeners)
                    task_status.started([_url(listener) for listener in listeners])
                    await anext(signals)
                    nursery.start_soon(_end_at_once, signals, nursery.cancel_scope)
                    await self.drain()
                finally:
                    _remove(files)
                nursery.cancel_scope.cancel()

    async def drain(self) -> None:
        """Tells clients, stops accepting, lets holders finish, closes what is left with 4000."""
        self._accepting.cancel()
        outlives = self.keeper.store.outlives_process
        grace_ms = self.config.wire.drain_grace_ms
        _log.info("draining", connections=len(self.connections))
        self.keeper.drain(lambda: random.randrange(grace_ms // 10, grace_ms + 1))
        with trio.move_on_after(grace_ms / 1000):
            while self.connections and (outlives or self.keeper.holding):  # noqa: ASYNC110
                # Leases end in many ways; for these few seconds a look now and then is simplest.
                await trio.sleep(_DRAIN_CHECK_S)
        if not outlives:
            self.keeper.leases.lose_all()
        spread_s = self.config.wire.drain_spread_ms / 1000 if outlives else 0.0
        left = list(self.connections)
        self._all_gone = trio.Event()
        if not left:
            return
        for connection in left:
            connection.close_soon(CloseCode.DRAINING, "this server is going away")
            await trio.sleep(spread_s / len(left))
        with trio.move_on_after(2 * self.config.wire.close_ms / 1000):
            await self._all_gone.wait()

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serves one fresh byte stream to its end, closes it, and lets no failure of it out.

        Cancellation:
            The peer is dropped.
        """
        try:
            async with trio.open_nursery() as nursery:
                await self._serve(stream, nursery)
                nursery.cancel_scope.cancel()
        except* HandshakeFailed as refused:
            _log.debug("handshake failed", why=str(refused.exceptions[0]))
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            _log.debug("connection broken")
        except* Exception:
            _log.warning("connection failed", exc_info=True)
        finally:
            await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.abc.Stream, nursery: trio.Nursery) -> None:
        if self._handshakes >= self.config.wire.handshakes:
            raise HandshakeFailed("too many handshakes at once")
        self._handshakes += 1
        try:
            socket = await accept(nursery, stream, self.config.wire, admit=self._admit)
            if self._accepting.cancel_called:
                await socket.close(CloseCode.DRAINING, "this server is going away")
                return
            if len(self.connections) >= self.config.wire.connections:
                await socket.close(CloseCode.LIMIT, "too many connections")
                return
        finally:
            self._handshakes -= 1
        scheme, _, token = socket.headers.get("authorization", "").partition(" ")
        authenticated = token_fits(self.config, token if scheme.lower() == "bearer" else None)
        connection = Connection(socket, self.keeper, self.config, authenticated=authenticated)
        socket.tell_of_violations(
            lambda code: connection.close_soon(code, "a bound of the protocol was broken")
        )
        self.connections.add(connection)
        try:
            await connection.run()
        finally:
            self.connections.discard(connection)
            if not self.connections:
                self._all_gone.set()

    def _admit(self, headers: dict[str, str]) -> int | None:
        """An HTTP status that refuses the client, or None. A page of another site is refused."""
        origin = headers.get("origin")
        listed = origin is None or origin in self.config.allowed_origins
        return None if listed or _is_ours(origin, headers["host"]) else 403

    async def _accept(self, listeners: list[trio.SocketListener]) -> None:
        async with trio.open_nursery() as nursery:
            with self._accepting:
                for listener in listeners:
                    nursery.start_soon(self._accept_from, listener, nursery)
                await trio.sleep_forever()
            for listener in listeners:
                await listener.aclose()

    async def _accept_from(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        """Accepts until the listener is closed; with no file descriptor free it tries again."""
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if error.errno not in _OUT_OF_RESOURCES:
                    raise
                _log.warning("cannot accept now", error=os.strerror(error.errno))
                await trio.sleep(0.1)
            else:
                nursery.start_soon(self.serve_stream, stream)


_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


def _is_ours(origin: str | None, host: str) -> bool:
    """A page that this very address served. No name: a foreign name server can make up any."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name != "localhost":
            ip_address(name)
    except ValueError:
        return False
    return origin in {f"http://{host}", f"https://{host}"}


async def _end_at_once(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    await anext(signals)
    scope.cancel()


async def _listen_all(addresses: tuple[Address, ...]) -> list[trio.SocketListener]:
    """Listens on all of them, or on none.

    Raises:
        ConfigurationError: one of them cannot be had.
    """
    listeners: list[trio.SocketListener] = []
    for address in addresses:
        try:
            listeners += await _listen(address)
        except OSError as error:
            _remove(_socket_files(listeners))
            for listener in listeners:
                await listener.aclose()
            problem = f"cannot listen on {address}: {error.strerror or error}"
            raise ConfigurationError(f"{problem}; choose another --listen") from error
    return listeners


async def _listen(address: Address) -> list[trio.SocketListener]:
    if isinstance(address, UnixAddress):
        return [_listen_unix(address)]
    listeners = await trio.open_tcp_listeners(address.port, host=address.host, backlog=_BACKLOG)
    for spare in listeners[1:] if address.port == 0 else ():
        await spare.aclose()  # it has picked another free port
    return listeners[:1] if address.port == 0 else listeners


def _listen_unix(address: UnixAddress) -> trio.SocketListener:
    """A socket file for this user and group. A file that nobody listens on any more is replaced."""
    path = str(address.path)
    if address.path.exists() and stat.S_ISSOCK(address.path.stat().st_mode):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            if probe.connect_ex(path) == errno.ECONNREFUSED:
                address.path.unlink()
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(path)
        address.path.chmod(0o660)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def _socket_files(listeners: list[trio.SocketListener]) -> dict[Path, int]:
    """The socket files that these made, with their inodes."""
    names = [each.socket.getsockname() for each in listeners]
    paths = [Path(name) for name in names if isinstance(name, str)]
    return {path: path.stat().st_ino for path in paths}


def _remove(files: dict[Path, int]) -> None:
    """Unless another server has put its own there."""
    for path, inode in files.items():
        with suppress(FileNotFoundError):
            if path.stat().st_ino == inode:
                path.unlink()


def _url(listener: trio.SocketListener) -> str:
    name = listener.socket.getsockname()
    if listener.socket.family == socket.AF_UNIX:
        return f"ws+unix://{name}"
    host, port = name[0], name[1]
    return f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"
