"""What one server process does, and the store it does it with."""

import gc
import logging
import re
import resource
import sys
from collections.abc import Awaitable, Callable
from secrets import token_hex
from typing import TYPE_CHECKING, Final, TypeVar, TypeVarTuple

import structlog
import trio
from attrs import field, frozen

from leasekeeper.admin.app import Admin
from leasekeeper.errors import ConfigurationError
from leasekeeper.server.app import Server
from leasekeeper.server.config import ServerConfig, TcpAddress, WireLimits
from leasekeeper.service.keeper import Keeper
from leasekeeper.service.metrics import Metrics
from leasekeeper.store.api import Store
from leasekeeper.store.memory import MemoryStore

if TYPE_CHECKING:
    from leasekeeper.resp.settings import Settings

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MEMORY: Final = "memory"

_OTHER_FILES: Final = 100
"""Open besides the connections of clients."""
_PREFIX: Final = re.compile(r"[A-Za-z0-9._:-]{1,50}")


@frozen
class StoreOptions:
    """Which store. All but `url` and the last are for a shared one. Times are in milliseconds."""

    url: str = field(default=MEMORY, repr=False)
    """It may contain a password."""
    prefix: str = "lk"
    fence_memory_ms: int = 3_600_000
    replicas: int = 0
    replicas_ms: int = 1_000
    restart_hold_ms: int = 3_600_000
    allow_volatile_writes: bool = False

    @property
    def is_shared(self) -> bool:
        """Whether several processes can have it."""
        return self.url != MEMORY

    def check(self) -> None:
        """Finds what can be found wrong without asking the store.

        Raises:
            ConfigurationError: no store can be had with these.
        """
        if not _PREFIX.fullmatch(self.prefix):
            raise ConfigurationError(
                "--prefix: one to fifty letters, digits, dots, colons, dashes and underscores"
            )
        if self.is_shared:
            self._settings()

    def open(self, server: str, waiting_max: int, metrics: Metrics) -> Store:
        """The store, not yet running, for the server of this name."""
        if not self.is_shared:
            return MemoryStore(waiting_max, allow_volatile_writes=self.allow_volatile_writes)
        # Only here: with the embedded store, a server starts without the code for Redis.
        from leasekeeper.store.redis.store import Options, RedisStore

        options = Options(
            prefix=self.prefix,
            fence_memory_ms=self.fence_memory_ms,
            replicas=self.replicas,
            replicas_ms=self.replicas_ms,
            restart_hold_ms=self.restart_hold_ms,
            waiting_max=waiting_max,
            allow_volatile_writes=self.allow_volatile_writes,
        )
        return RedisStore(self._settings(), server, options, metrics.observe_redis)

    def _settings(self) -> "Settings":
        from leasekeeper.resp.settings import parse_url

        try:
            return parse_url(self.url)
        except ConfigurationError as error:
            raise ConfigurationError(f"--store: {error}") from error


@frozen
class Job:
    """All that a server process is told. A supervisor sends it to its workers, pickled."""

    config: ServerConfig
    store: StoreOptions
    log_level: str
    admin: TcpAddress | None = None
    """Where it shows its metrics and its health; None: nowhere."""

    def check(self) -> None:
        """Finds what can be found wrong without beginning.

        Raises:
            ConfigurationError: it cannot work.
        """
        self.config.check()
        self.store.check()

    def run(self, serve: Callable[[Server], Awaitable[None]]) -> None:
        """Makes the server, and has it served.

        Raises:
            ConfigurationError: it cannot work.
        """
        _collect_seldom()
        _allow_open_files(self.config.wire)
        server = token_hex(4)
        metrics = Metrics()
        store = self.store.open(server, self.config.limits.waiters_per_name, metrics)

        async def main(config: ServerConfig, store: Store) -> None:
            keeper = Keeper(store, config.limits, server, metrics)
            await _serve(serve, Server(config, keeper), self.admin)

        run(main, self.config, store)


async def _serve(
    serve: Callable[[Server], Awaitable[None]], server: Server, admin: TcpAddress | None
) -> None:
    """The admin server is there first and ends last: it says why the other is not there yet."""
    if admin is None:
        await serve(server)
        return
    async with trio.open_nursery() as nursery:
        await nursery.start(Admin(server).run, admin)
        await serve(server)
        nursery.cancel_scope.cancel()


def _allow_open_files(wire: WireLimits) -> None:
    """Raises the soft limit of open files, if it must be, as far as the hard one lets it."""
    wanted = wire.connections + wire.handshakes + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < wanted:
        _log.warning(
            "too few open files are allowed",
            connections=wire.connections,
            open_files=most,
            advice=f"ulimit -Hn {wanted} before it starts, or LimitNOFILE={wanted} for systemd",
        )


def _collect_seldom() -> None:
    """Sets the garbage collector for a process with many lasting objects and few cycles.

    Its full collections go over every lease: at 20,000 of them it took half of the CPU that
    renewals take, in pauses of a quarter of a second. What a request leaves is freed by counts.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 1_000)


def run(main: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
    """`trio.run`, which lets a configuration that cannot work out of all exception groups.

    Raises:
        ConfigurationError: a task found it.
    """
    try:
        return trio.run(main, *args)
    except BaseExceptionGroup as group:
        wrong, other = group.split(ConfigurationError)
        if wrong is None or other is not None:
            raise
        raise _first(wrong) from None


def _first(group: BaseExceptionGroup[ConfigurationError]) -> ConfigurationError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def log_to_stderr(level: str) -> None:
    """One JSON object a line, so that no name or label can forge a line."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        # A logger that is kept from its first use on cannot be told to be quiet, or listened to.
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
