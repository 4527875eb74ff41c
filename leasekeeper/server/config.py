"""What a server is told: addresses, and the bounds of connections."""

from ipaddress import ip_address
from pathlib import Path
from typing import Final

from attrs import Factory, field, frozen

from leasekeeper.errors import ConfigurationError
from leasekeeper.service.limits import Limits, bound

PORT_MAX: Final = 65535


@frozen
class TcpAddress:
    """Where to listen; port 0 picks a free one."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen
class UnixAddress:
    """A socket file. Whoever may write to it may connect."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """`HOST:PORT`, `[V6]:PORT` or `unix:PATH`.

    Raises:
        ConfigurationError: it is neither.
    """
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path:
            raise ConfigurationError("--listen unix:PATH needs a path")
        return UnixAddress(Path(path).absolute())
    if (address := _tcp_address(text)) is None:
        raise ConfigurationError(f"--listen {text}: expected HOST:PORT or unix:PATH")
    return address


def parse_admin_address(text: str) -> TcpAddress:
    """`HOST:PORT` or `[V6]:PORT`.

    Raises:
        ConfigurationError: it is neither.
    """
    if (address := _tcp_address(text)) is None:
        raise ConfigurationError(f"--admin {text}: expected HOST:PORT")
    return address


def _tcp_address(text: str) -> TcpAddress | None:
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or "/" in host or not port.isdecimal() or int(port) > PORT_MAX:
        return None
    return TcpAddress(host, int(port))


@frozen
class WireLimits:
    """Bounds and deadlines of connections. Times are in milliseconds, sizes in bytes."""

    connections: int = bound(10_000, "connections at once")
    handshakes: int = bound(256, "connections at once that have not finished their handshake")
    message_bytes: int = bound(2 * 1024 * 1024, "size of one message from a client")
    fragments: int = bound(64, "fragments of one message from a client")
    control_frames_per_second: int = bound(
        100, "pings, pongs and closes a client may send on average; twice as many in a burst"
    )
    outbox_bytes: int = bound(
        4 * 1024 * 1024, "what may wait to be read by a client before it is closed with 4001"
    )
    outbox_values_bytes: int = bound(
        64 * 1024 * 1024, "cached values that a client asked for and that wait for room in it"
    )
    requests_outstanding: int = bound(2_000, "unanswered requests of one connection")

    handshake_ms: int = bound(5_000, "for the HTTP upgrade and, where one is wanted, the token")
    ping_ms: int = bound(25_000, "between pings on a connection with nothing due")
    pong_ms: int = bound(8_000, "for the answer to a ping")
    write_ms: int = bound(10_000, "for one write to a client")
    close_ms: int = bound(5_000, "for the closing handshake")
    drain_grace_ms: int = bound(5_000, "how long holders may finish after SIGTERM")
    drain_spread_ms: int = bound(
        10_000, "over how long connections are then closed, if they can go elsewhere"
    )


@frozen
class ServerConfig:
    """Everything `serve` needs to know."""

    listen: tuple[Address, ...] = (TcpAddress("127.0.0.1", 7420),)
    limits: Limits = Factory(Limits)
    wire: WireLimits = Factory(WireLimits)
    token: str | None = field(default=None, repr=False)
    allow_unauthenticated: bool = False
    allowed_origins: frozenset[str] = frozenset()
    inherited: tuple[int, ...] = ()
    """Descriptors of bound sockets that this process was started with, for those of `listen`."""

    def check(self) -> None:
        """Refuses what is not safe.

        Raises:
            ConfigurationError: it listens beyond this machine, and anybody could use it.
        """
        if self.token is not None or self.allow_unauthenticated:
            return
        for address in self.listen:
            if isinstance(address, TcpAddress) and not address.is_loopback:
                raise ConfigurationError(
                    f"{address.host} can be reached from other machines: set LEASEKEEPER_TOKEN "
                    "or --token-file, or pass --allow-unauthenticated"
                )
