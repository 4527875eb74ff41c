"""Where Redis is and how to speak with it, read from a URL.

No text, repr or error from here shows a password, nor the pieces into which a URL falls when the
special characters of its password are not percent-encoded.
"""

import re
import ssl
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from attrs import evolve, field, frozen
from redis.connection import parse_url as parse_basic_url

from leasekeeper.errors import ConfigurationError

_REDIS_PORT: Final = 6379
_SENTINEL_PORT: Final = 26379
_LOCALHOST: Final = "localhost"


class Topology(StrEnum):
    """What stands behind the URL."""

    SINGLE = "single"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@frozen
class Address:
    """Where one node listens: a host and a port, or the path of a socket."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@frozen
class Settings:
    """All that the connections need to know.

    `addresses` are the node, the sentinels, or some nodes of the cluster. `patience_ms` is how
    long a call waits for a connection, or for a Redis that says "not now".
    """

    topology: Topology
    addresses: tuple[Address, ...]
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    db: int = 0
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    master_name: str = ""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    pool_max: int = 20
    pool_min: int = 5
    dial_ms: int = 5000
    read_ms: int = 3000
    write_ms: int = 3000
    patience_ms: int = 2000

    def for_sentinels(self) -> "Settings":
        """The same, as the sentinels want to be spoken to."""
        return evolve(self, username=self.sentinel_username, password=self.sentinel_password, db=0)


_FORMS: Final[Mapping[str, tuple[Topology, str]]] = {
    "redis": (Topology.SINGLE, "redis"),
    "rediss": (Topology.SINGLE, "rediss"),
    "unix": (Topology.SINGLE, "unix"),
    "redis+sentinel": (Topology.SENTINEL, "redis"),
    "rediss+sentinel": (Topology.SENTINEL, "rediss"),
    "redis+cluster": (Topology.CLUSTER, "redis"),
    "rediss+cluster": (Topology.CLUSTER, "rediss"),
}
"""By scheme: what it is, and the basic scheme that redis-py reads."""

_NUMBERS: Final = ("pool_max", "pool_min", "dial_ms", "read_ms", "write_ms", "patience_ms")
_TLS: Final = (
    "ssl_ca_certs",
    "ssl_ca_path",
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_password",
    "ssl_cert_reqs",
    "ssl_check_hostname",
)
_OTHERS: Final = ("db", "username", "password", "sentinel_username", "sentinel_password")
_CERT_REQS: Final = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}


def parse_url(url: str) -> Settings:
    """Reads redis://, rediss:// and unix://, and the +sentinel and +cluster forms of the first two.

    Raises:
        ConfigurationError: it is none of them; one line that says what to do.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in _FORMS:
        raise ConfigurationError(f"a Redis URL begins with one of {', '.join(_FORMS)} and ://")
    if "#" in rest:
        raise ConfigurationError("a # in a Redis URL is written %23")
    topology, basic_scheme = _FORMS[scheme]
    rest, _, query = rest.partition("?")
    if basic_scheme == "unix":
        return _settings(topology, (), "", _given(f"unix://{rest}?{query}"))
    netloc, _, path = rest.partition("/")
    credentials, at, hosts = netloc.rpartition("@")
    names = [each for each in path.split("/") if each]
    master_name = ""
    if topology is Topology.SENTINEL:
        if not names:
            raise ConfigurationError(f"the Redis URL names no master: {scheme}://HOST:PORT/MASTER")
        master_name = names.pop(0)
    if len(names) > 1 or not all(name.isdecimal() for name in names):
        raise ConfigurationError("the database of a Redis URL is a number: HOST:PORT/NUMBER")
    given = _given(f"{basic_scheme}://{credentials}{at}/{''.join(names)}?{query}")
    return _settings(topology, _addresses(hosts, topology), master_name, given)


def _given(basic_url: str) -> dict[str, object]:
    """What a URL of the basic form says, without its hosts, by the names that redis-py gives it."""
    try:
        given: dict[str, object] = parse_basic_url(basic_url)  # type: ignore[no-untyped-call] # redis-py
    except ValueError:
        # Whatever text comes with it may show a part of the password.
        raise ConfigurationError(
            "the Redis URL cannot be read: percent-encode what is special in its password, "
            "and check its parameters"
        ) from None
    is_tls = basic_url.startswith("rediss")
    known = (*_NUMBERS, *_OTHERS, *(_TLS if is_tls else ()))
    for name in given:
        if name not in (*known, "path", "connection_class"):
            shown = name if re.fullmatch("[a-z_]{1,30}", name) else "that"
            raise ConfigurationError(
                f"the Redis URL has no parameter {shown} here: it may have {', '.join(known)}"
            )
    return given


def _addresses(hosts: str, topology: Topology) -> tuple[Address, ...]:
    default_port = _SENTINEL_PORT if topology is Topology.SENTINEL else _REDIS_PORT
    several = hosts.split(",")
    if topology is Topology.SINGLE and len(several) > 1:
        raise ConfigurationError(
            "redis:// is one Redis; for several, use redis+sentinel:// or redis+cluster://"
        )
    return tuple(_address(each, default_port) for each in several)


def _address(text: str, default_port: int) -> Address:
    matched = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:/@]*))(?::(\d{1,5}))?", text)
    if matched is None or not int(matched[3] or default_port) < 65536:
        raise ConfigurationError(
            "the hosts of a Redis URL are HOST:PORT, separated by commas; what is special in a "
            "password is percent-encoded"
        )
    return Address(matched[1] or matched[2] or _LOCALHOST, int(matched[3] or default_port))


def _settings(
    topology: Topology,
    addresses: tuple[Address, ...],
    master_name: str,
    given: dict[str, object],
) -> Settings:
    numbers = {name: _number(name, given[name]) for name in _NUMBERS if name in given}
    db = given.get("db", 0)
    assert isinstance(db, int)
    settings = Settings(
        topology=topology,
        addresses=addresses or (Address(path=_path(given)),),
        username=_text(given, "username"),
        password=_text(given, "password"),
        db=db,
        tls=_tls(given) if "SSL" in str(given.get("connection_class")) else None,
        master_name=master_name,
        sentinel_username=_text(given, "sentinel_username"),
        sentinel_password=_text(given, "sentinel_password"),
        **numbers,
    )
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    if settings.db < 0:
        raise ConfigurationError("the database of a Redis URL is a number from 0")
    if settings.db and settings.topology is Topology.CLUSTER:
        raise ConfigurationError("a Redis Cluster has only database 0: leave it out of the URL")
    if settings.pool_min > settings.pool_max:
        raise ConfigurationError("pool_min of the Redis URL is greater than pool_max")
    if settings.username is not None and settings.password is None:
        raise ConfigurationError("the Redis URL has a user name, and no password: USER:PASSWORD@")


def _path(given: dict[str, object]) -> str:
    path = _text(given, "path")
    if path is None:
        raise ConfigurationError("a Redis URL with unix:// names a socket: unix:///PATH")
    return path


def _text(given: dict[str, object], name: str) -> str | None:
    value = given.get(name)
    return None if value is None else str(value)


def _number(name: str, value: object) -> int:
    text = str(value)
    if not re.fullmatch(r"[1-9]\d{0,7}", text):
        raise ConfigurationError(f"{name} of the Redis URL is a whole number from 1")
    return int(text)


def _tls(given: dict[str, object]) -> ssl.SSLContext:
    """By redis-py's names: a certificate is required, and has to be the host's, unless they say."""
    certificates = _CERT_REQS.get(_text(given, "ssl_cert_reqs") or "required")
    if certificates is None:
        raise ConfigurationError(
            f"ssl_cert_reqs of the Redis URL is one of {', '.join(_CERT_REQS)}"
        )
    try:
        context = ssl.create_default_context(
            cafile=_text(given, "ssl_ca_certs"), capath=_text(given, "ssl_ca_path")
        )
        certfile = _text(given, "ssl_certfile")
        if certfile is not None:
            # A callable, or OpenSSL would ask at the terminal for a password that is missing.
            password = _text(given, "ssl_password") or ""
            context.load_cert_chain(certfile, _text(given, "ssl_keyfile"), lambda: password)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            "the ssl_ files of the Redis URL cannot be used "
            f"({getattr(error, 'strerror', None) or type(error).__name__}): check that they are "
            "there, readable and in PEM"
        ) from None
    is_checked = given.get("ssl_check_hostname", True) is not False
    context.check_hostname = is_checked and certificates is not ssl.CERT_NONE
    context.verify_mode = certificates
    return context
