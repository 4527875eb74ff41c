"""Places: addresses that a supervisor keeps, and workers listen on."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from leasekeeper.errors import ConfigurationError
from leasekeeper.server.config import ServerConfig, TcpAddress, UnixAddress
from leasekeeper.server.listening import Places, listen, reserve

ANY_PORT = TcpAddress("127.0.0.1", 0)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose name is short enough for socket files."""
    with TemporaryDirectory(prefix="lk") as name:
        yield Path(name)


@contextmanager
def worker(places: Places) -> Iterator[list[socket.socket]]:
    """What one more worker gets."""
    sockets = places.for_worker()
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()


async def test_every_worker_gets_a_socket_at_the_same_port() -> None:
    with closing(await reserve([ANY_PORT])) as places:
        (url,) = places.urls
        with worker(places) as (first,), worker(places) as (second,):
            assert first.getsockname() == second.getsockname()
            assert url == "ws://127.0.0.1:{1}".format(*first.getsockname())
            first.listen()
            second.listen()


async def test_a_port_that_is_kept_is_not_listened_on() -> None:
    """Else connections would wait for nobody."""
    with closing(await reserve([ANY_PORT])) as places, socket.socket() as client:
        assert client.connect_ex(places.sockets[0].getsockname()) != 0


async def test_a_port_that_others_listen_on_is_refused() -> None:
    with closing(await reserve([ANY_PORT])) as places, worker(places) as (sock,):
        sock.listen()
        with pytest.raises(ConfigurationError, match="cannot listen"):
            await reserve([TcpAddress("127.0.0.1", sock.getsockname()[1])])


async def test_a_port_that_was_given_back_can_be_had() -> None:
    with closing(await reserve([ANY_PORT])) as places:
        port = places.sockets[0].getsockname()[1]
    with closing(await reserve([TcpAddress("127.0.0.1", port)])):
        pass


async def test_workers_share_the_socket_of_a_file(place: Path) -> None:
    path = place / "lk.sock"
    with closing(await reserve([UnixAddress(path)])) as places:
        inode = path.stat().st_ino
        with worker(places) as (first,), worker(places) as (second,):
            assert first.getsockname() == second.getsockname() == str(path)
        assert path.stat().st_ino == inode
    assert not path.exists()


async def test_another_worker_does_not_make_a_shared_socket_block_the_first(place: Path) -> None:
    """The flag is one for all: whoever wakes up too late for a connection would be stuck."""
    path = place / "lk.sock"
    with closing(await reserve([UnixAddress(path)])) as places, worker(places) as (first,):
        assert not os.get_blocking(first.fileno())
        with worker(places) as (second,):
            assert not os.get_blocking(second.fileno())
            assert not os.get_blocking(first.fileno())


async def test_a_worker_does_not_remove_the_file(place: Path) -> None:
    path = place / "lk.sock"
    with closing(await reserve([UnixAddress(path)])) as places:
        (sock,) = places.for_worker()
        listeners, files = await listen(ServerConfig(inherited=(sock.detach(),)))
        assert files == {}
        for each in listeners:
            await each.aclose()


async def test_a_place_that_cannot_be_had_gives_the_others_back(place: Path) -> None:
    path = place / "lk.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=str(port)):
            await reserve([UnixAddress(path), TcpAddress("127.0.0.1", port)])
    assert not path.exists()
