"""Where a server listens: on sockets of its own, or on those that a supervisor gave it.

Several processes serve one port with SO_REUSEPORT: each has a socket of its own there, and the
kernel deals new connections out to those that listen (evenly on Linux; macOS prefers one of them).
A socket file is bound once; its listening socket is then shared.
"""

import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
import trio
from attrs import define

from leasekeeper.errors import ConfigurationError
from leasekeeper.server.config import Address, ServerConfig, UnixAddress

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

_BACKLOG: Final = 1024
_OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


async def listen(config: ServerConfig) -> tuple[list[trio.SocketListener], dict[Path, int]]:
    """Listens as it is told, and says which socket files it made, with their inodes.

    Raises:
        ConfigurationError: one of the addresses cannot be had; it listens on none of them.
    """
    if config.inherited:
        return [_inherited(each) for each in config.inherited], {}
    listeners = await listen_all(config.listen)
    return listeners, _socket_files(listeners)


@define(eq=False)
class Places:
    """Addresses that belong to a supervisor, for its workers to listen on.

    A port is kept by a socket that is bound and does not listen, so it stays ours, with its number,
    while workers come and go. A socket file is listened on from the beginning.

    What it does not do: accept.
    """

    sockets: list[socket.socket]
    files: dict[Path, int]

    @property
    def urls(self) -> list[str]:
        """In the order in which they were asked for."""
        return [url(each) for each in self.sockets]

    def for_worker(self) -> list[socket.socket]:
        """Sockets for one more worker to listen on; the caller closes them.

        Raises:
            OSError: there are no more descriptors, or somebody else has got hold of the port.
        """
        made: list[socket.socket] = []
        try:
            for each in self.sockets:
                made.append(_another(each))
        except OSError:
            for each in made:
                each.close()
            raise
        return made

    def close(self) -> None:
        """Gives them back; workers keep what they have."""
        remove(self.files)
        for each in self.sockets:
            each.close()


async def reserve(addresses: Sequence[Address]) -> Places:
    """Takes addresses that nobody else listens on.

    Raises:
        ConfigurationError: one of them cannot be had.
    """
    # Listening comes first, as if for one process: a socket with SO_REUSEPORT would not notice
    # another server of this user on the port, and would share it with that one.
    listeners = await listen_all(addresses)
    files = _socket_files(listeners)
    places = Places([socket.socket(fileno=each.socket.detach()) for each in listeners], files)
    for index, each in enumerate(places.sockets):
        # Of its copies, too: they share this flag, and an `accept` that blocks would stop a worker.
        each.setblocking(False)
        if each.family != socket.AF_UNIX:
            name = each.getsockname()
            each.close()
            try:
                places.sockets[index] = _bound(each.family, name)
            except OSError as error:
                places.close()
                problem = f"cannot share port {name[1]}: {error.strerror or error}"
                raise ConfigurationError(f"{problem}; choose another --listen") from error
    return places


def _another(sock: socket.socket) -> socket.socket:
    return sock.dup() if sock.family == socket.AF_UNIX else _bound(sock.family, sock.getsockname())


def _bound(family: int, name: tuple[object, ...]) -> socket.socket:
    """A socket that shares its port with others that were made in this way."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(name)
    except OSError:
        sock.close()
        raise
    return sock


def _inherited(descriptor: int) -> trio.SocketListener:
    os.set_inheritable(descriptor, False)
    sock = socket.socket(fileno=descriptor)
    sock.listen(_BACKLOG)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def listen_all(
    addresses: Sequence[Address], option: str = "--listen"
) -> list[trio.SocketListener]:
    """Listens on all of these, which `option` named.

    Raises:
        ConfigurationError: one of them cannot be had; it listens on none of them.
    """
    listeners: list[trio.SocketListener] = []
    for address in addresses:
        try:
            listeners += await _listen(address)
        except OSError as error:
            remove(_socket_files(listeners))
            for listener in listeners:
                await listener.aclose()
            problem = f"cannot listen on {address}: {error.strerror or error}"
            raise ConfigurationError(f"{problem}; choose another {option}") from error
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
    names = [each.socket.getsockname() for each in listeners]
    paths = [Path(name) for name in names if isinstance(name, str)]
    return {path: path.stat().st_ino for path in paths}


def remove(files: dict[Path, int]) -> None:
    """Removes socket files, unless another server has put its own there."""
    for path, inode in files.items():
        with suppress(FileNotFoundError):
            if path.stat().st_ino == inode:
                path.unlink()


async def accept_from(
    listener: trio.SocketListener,
    serve: Callable[[trio.SocketStream], Awaitable[None]],
    nursery: trio.Nursery,
) -> None:
    """Has each connection served by a task of its own, until the listener is closed.

    With no file descriptor free it tries again.
    """
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
            nursery.start_soon(serve, stream)


def url(sock: socket.socket | trio.socket.SocketType, scheme: str = "ws") -> str:
    """What clients connect to."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return f"{scheme}+unix://{name}"
    host, port = name[0], name[1]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
