"""`leasekeeper serve`."""

import logging
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import click
import structlog
import trio

from leasekeeper.errors import ConfigurationError
from leasekeeper.server.app import Server
from leasekeeper.server.config import ServerConfig, WireLimits, parse_address
from leasekeeper.service.keeper import Keeper
from leasekeeper.service.limits import Limits
from leasekeeper.store.api import Store
from leasekeeper.store.memory import MemoryStore

F = TypeVar("F", bound=Callable[..., object])

_BOUNDS: Final[tuple[type[Limits], type[WireLimits]]] = (Limits, WireLimits)


def _fields() -> Iterable["attrs.Attribute[Any]"]:
    return (each for cls in _BOUNDS for each in attrs.fields(cls))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _bound_options(command: F) -> F:
    """One hidden option for each bound; `--help-bounds` lists them."""
    for each in _fields():
        command = click.option(
            _flag(each.name),
            type=click.FloatRange(0, 1) if each.type is float else click.IntRange(1),
            default=each.default,
            envvar=f"LEASEKEEPER_{each.name.upper()}",
            hidden=True,
        )(command)
    return command


def _help_bounds(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    click.echo("Bounds of the server: each a flag, a LEASEKEEPER_* variable, or a key of [serve].")
    formatter = click.HelpFormatter(width=100)
    formatter.write_dl(
        [
            (f"{_flag(each.name)} {each.default}", str(each.metadata["meaning"]))
            for each in _fields()
        ]
    )
    click.echo(formatter.getvalue())
    ctx.exit()


@click.command()
@click.option(
    "--listen",
    multiple=True,
    default=["127.0.0.1:7420"],
    show_default=True,
    envvar="LEASEKEEPER_LISTEN",
    metavar="HOST:PORT|unix:PATH",
    help="Where to listen; may be given several times. Port 0 picks a free port.",
)
@click.option(
    "--store",
    default="memory",
    show_default=True,
    envvar="LEASEKEEPER_STORE",
    metavar="memory",
    help="Where leases live. `memory` is this process: nothing else to install, and a restart "
    "loses every lease (fences still rise).",
)
@click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="LEASEKEEPER_TOKEN_FILE",
    help="A file with the token that clients must show. LEASEKEEPER_TOKEN holds one itself.",
)
@click.option(
    "--allow-unauthenticated",
    is_flag=True,
    envvar="LEASEKEEPER_ALLOW_UNAUTHENTICATED",
    help="Listen beyond this machine without a token. Anybody who can connect can then break "
    "any lease.",
)
@click.option(
    "--allow-origin",
    multiple=True,
    envvar="LEASEKEEPER_ALLOW_ORIGIN",
    metavar="ORIGIN",
    help="A web site whose pages may connect, such as https://app.example. Others are refused.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="LEASEKEEPER_LOG_LEVEL",
    help="What is worth a line on standard error.",
)
@click.option("--prefix", default="lk", envvar="LEASEKEEPER_PREFIX", hidden=True)
@click.option(
    "--fence-memory-ms",
    type=click.IntRange(1),
    default=3_600_000,
    envvar="LEASEKEEPER_FENCE_MEMORY_MS",
    hidden=True,
)
@click.option(
    "--workers", type=click.IntRange(1), default=1, envvar="LEASEKEEPER_WORKERS", hidden=True
)
@click.option(
    "--help-bounds",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_help_bounds,
    help="List the bounds that can be set (sizes, counts, times), and exit.",
)
@_bound_options
def serve(
    listen: tuple[str, ...],
    store: str,
    token_file: Path | None,
    allow_unauthenticated: bool,
    allow_origin: tuple[str, ...],
    log_level: str,
    prefix: str,
    fence_memory_ms: int,
    workers: int,
    **bounds: Any,  # noqa: ANN401 # one for each field of Limits and WireLimits
) -> None:
    """Run a server.

    Prints one line for each address once it accepts connections:
    `leasekeeper listening on ws://HOST:PORT`. Everything else it says is log, on standard error.

    SIGTERM drains it: clients are told, holders may finish, and it exits with 0. A configuration
    that cannot work ends it with 2 and one line that says what to do.
    """
    _log_to_stderr(log_level)
    del prefix, fence_memory_ms  # the layout of a shared store; the embedded one has neither
    limits, wire = (
        cls(**{each.name: bounds[each.name] for each in attrs.fields(cls)}) for cls in _BOUNDS
    )
    assert isinstance(limits, Limits)
    assert isinstance(wire, WireLimits)
    config = ServerConfig(
        listen=tuple(parse_address(each) for each in listen),
        limits=limits,
        wire=wire,
        token=_token(token_file),
        allow_unauthenticated=allow_unauthenticated,
        allowed_origins=frozenset(allow_origin),
    )
    config.check()
    embedded = _store(store, workers, limits)
    try:
        trio.run(_run, config, embedded)
    except BaseExceptionGroup as group:
        wrong, other = group.split(ConfigurationError)
        if wrong is None or other is not None:
            raise
        raise _first(wrong) from None


def _first(group: BaseExceptionGroup[ConfigurationError]) -> ConfigurationError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


async def _run(config: ServerConfig, store: Store) -> None:
    server = Server(config, Keeper(store, config.limits))
    async with trio.open_nursery() as nursery:
        for url in await nursery.start(server.run):
            print(f"leasekeeper listening on {url}", flush=True)


def _store(url: str, workers: int, limits: Limits) -> Store:
    if url != "memory":
        raise ConfigurationError(f"--store {url.partition(':')[0]}: this version has only memory")
    if workers != 1:
        raise ConfigurationError("--workers: the store `memory` belongs to one process")
    return MemoryStore(waiting_max=limits.waiters_per_name)


def _token(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("LEASEKEEPER_TOKEN") or None
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(f"--token-file {path}: {error.strerror}") from error
    if not token:
        raise ConfigurationError(f"--token-file {path}: the file is empty")
    return token


def _log_to_stderr(level: str) -> None:
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
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
