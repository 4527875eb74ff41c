"""Addresses, and what a server refuses to be told."""

from pathlib import Path

import pytest

from leasekeeper.errors import ConfigurationError
from leasekeeper.server.config import ServerConfig, TcpAddress, UnixAddress, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:7420", TcpAddress("127.0.0.1", 7420)),
        ("127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("localhost:65535", TcpAddress("localhost", 65535)),
        ("[::1]:7420", TcpAddress("::1", 7420)),
        ("unix:/run/lk.sock", UnixAddress(Path("/run/lk.sock"))),
        ("unix:lk.sock", UnixAddress(Path.cwd() / "lk.sock")),
        ("unix:/a:1", UnixAddress(Path("/a:1"))),
    ],
)
def test_an_address_is_understood(text: str, address: TcpAddress | UnixAddress) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "7420",
        ":7420",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:port",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1: 1",
        "127.0.0.1:\u00b2",
        "unix:",
        "[]:7420",
        "ws://127.0.0.1:7420",
    ],
)
def test_an_address_that_is_none_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--listen"):
        parse_address(text)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_needs_no_token(host: str) -> None:
    ServerConfig(listen=(TcpAddress(host, 7420),)).check()


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "lk.example", "127.0.0.1.nip.example", "127.evil.example"]
)
def test_beyond_this_machine_a_token_is_wanted(host: str) -> None:
    listen = (TcpAddress("127.0.0.1", 7420), TcpAddress(host, 7420))
    with pytest.raises(ConfigurationError, match="--token-file"):
        ServerConfig(listen=listen).check()
    ServerConfig(listen=listen, token="t").check()
    ServerConfig(listen=listen, allow_unauthenticated=True).check()


def test_a_socket_file_needs_no_token() -> None:
    ServerConfig(listen=(UnixAddress(Path("/run/lk.sock")),)).check()


def test_the_token_is_in_no_repr() -> None:
    assert "canary" not in repr(ServerConfig(token="canary"))
