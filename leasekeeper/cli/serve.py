"""`leasekeeper serve`."""

import os
import pickle
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs
import click
import trio
from click.core import ParameterSource

from leasekeeper.cli.job import MEMORY, Job, StoreOptions, log_to_stderr, run
from leasekeeper.cli.supervisor import Supervisor
from leasekeeper.errors import ConfigurationError
from leasekeeper.server.app import Server
from leasekeeper.server.config import (
    PORT_MAX,
    ServerConfig,
    WireLimits,
    parse_address,
    parse_admin_address,
)
from leasekeeper.server.listening import reserve
from leasekeeper.service.limits import Limits

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
    "url",
    default=MEMORY,
    show_default=False,  # it would show what a file says, and there may be a password in it
    envvar="LEASEKEEPER_STORE",
    metavar="memory|URL",
    help="Where leases live. `memory`, the default, is this process: nothing else to install, and "
    "a restart loses every lease (fences still rise). A URL is a Redis that any number of servers "
    "share: redis://HOST:PORT/DB, rediss:// with TLS, unix:///PATH, "
    "redis+sentinel://HOST:PORT,HOST:PORT/MASTER, redis+cluster://HOST:PORT,HOST:PORT (a cluster "
    "behind redis:// is noticed, too). Before the host may stand USER:PASSWORD@; `ps` shows "
    "everybody what is on the command line, but not LEASEKEEPER_STORE.",
)
@click.option(
    "--prefix",
    default="lk",
    show_default=True,
    envvar="LEASEKEEPER_PREFIX",
    help="What every key in Redis begins with. Servers with different prefixes share nothing.",
)
@click.option(
    "--fence-memory-ms",
    type=click.IntRange(1),
    default=3_600_000,
    show_default=True,
    envvar="LEASEKEEPER_FENCE_MEMORY_MS",
    help="How long Redis keeps a name's last fence after the name's last use.",
)
@click.option(
    "--replicas",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    envvar="LEASEKEEPER_REPLICAS",
    help="A grant is told only when so many replicas of Redis have it: fewer grants are lost when "
    "a replica takes over, and each takes longer.",
)
@click.option(
    "--replicas-ms",
    type=click.IntRange(1),
    default=1_000,
    show_default=True,
    envvar="LEASEKEEPER_REPLICAS_MS",
    help="How long the replicas may take; after that the grant is given back.",
)
@click.option(
    "--restart-hold-ms",
    type=click.IntRange(0),
    default=3_600_000,
    show_default=True,
    envvar="LEASEKEEPER_RESTART_HOLD_MS",
    help="For how long at most nothing is granted after Redis has lost data, so that holders of "
    "forgotten leases can finish. 0 grants at once.",
)
@click.option(
    "--allow-volatile-writes",
    is_flag=True,
    envvar="LEASEKEEPER_ALLOW_VOLATILE_WRITES",
    help="Accept writes.put although the store may lose the write: it is `memory`, or a Redis "
    "without AOF.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    envvar="LEASEKEEPER_WORKERS",
    help="Processes that serve the same addresses, each on a core of its own; one that dies is "
    "replaced. More than one share a Redis.",
)
@click.option(
    "--admin",
    metavar="HOST:PORT",
    envvar="LEASEKEEPER_ADMIN",
    help="Serve /metrics for Prometheus, /health and /health/live over HTTP there; the default is "
    "nowhere. Anybody who can connect may read them: they tell numbers, and no names. Port 0 picks "
    "a free one, and the log says which. Worker N of several has port PORT + N, from 0 on.",
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
@click.option(
    "--help-bounds",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_help_bounds,
    help="List the bounds that can be set (sizes, counts, times), and exit.",
)
@_bound_options
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    listen: tuple[str, ...],
    token_file: Path | None,
    allow_unauthenticated: bool,
    allow_origin: tuple[str, ...],
    log_level: str,
    workers: int,
    admin: str | None,
    **others: Any,  # noqa: ANN401 # one for each field of Limits, WireLimits and StoreOptions
) -> None:
    """Run a server.

    Prints one line for each address once it accepts connections:
    `leasekeeper listening on ws://HOST:PORT`. Everything else it says is log, on standard error.

    SIGTERM drains it: clients are told, holders may finish, and it exits with 0. A configuration
    that cannot work ends it with 2 and one line that says what to do.
    """
    log_to_stderr(log_level)
    limits, wire, store = (
        cls(**{each.name: others[each.name] for each in attrs.fields(cls)})
        for cls in (*_BOUNDS, StoreOptions)
    )
    assert isinstance(limits, Limits)
    assert isinstance(wire, WireLimits)
    assert isinstance(store, StoreOptions)
    config = ServerConfig(
        listen=tuple(parse_address(each) for each in listen),
        limits=limits,
        wire=wire,
        token=_token(token_file),
        allow_unauthenticated=allow_unauthenticated,
        allowed_origins=frozenset(allow_origin),
    )
    job = Job(config, store, log_level, parse_admin_address(admin) if admin else None)
    job.check()
    if job.admin and job.admin.port + workers - 1 > PORT_MAX:
        raise ConfigurationError(f"--admin {admin}: there are no {workers} ports from there on")
    if not store.is_shared:
        _refuse_what_only_a_shared_store_has(ctx, workers)
    if workers == 1:
        job.run(_serve_alone)
    else:
        ctx.exit(run(_supervise, job, workers))


def _refuse_what_only_a_shared_store_has(ctx: click.Context, workers: int) -> None:
    if workers > 1:
        raise ConfigurationError(
            "--workers: the store `memory` belongs to one process; share a Redis with "
            "--store redis://HOST:PORT"
        )
    for name in ("replicas", "replicas_ms", "restart_hold_ms"):
        if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise ConfigurationError(
                f"{_flag(name)} has no effect on the store `memory`: leave it out, or use "
                "--store redis://HOST:PORT"
            )


async def _serve_alone(server: Server) -> None:
    async with trio.open_nursery() as nursery:
        _announce(await nursery.start(server.run))


async def _supervise(job: Job, workers: int) -> int:
    places = await reserve(job.config.listen)

    def job_with(index: int, sockets: Sequence[int]) -> bytes:
        config = attrs.evolve(job.config, inherited=tuple(sockets))
        admin = job.admin
        if admin is not None and admin.port:  # each worker is asked for itself
            admin = attrs.evolve(admin, port=admin.port + index)
        return pickle.dumps(attrs.evolve(job, config=config, admin=admin))

    try:
        return await Supervisor(
            # The very modules that are running here, whatever lies in the current directory.
            command=(sys.executable, "-P", "-m", "leasekeeper.cli.worker"),
            environment={"PYTHONPATH": os.pathsep.join(sys.path)},
            count=workers,
            places=places,
            job=job_with,
            on_ready=lambda: _announce(places.urls),
        ).run()
    finally:
        places.close()


def _announce(urls: Iterable[str]) -> None:
    for url in urls:
        print(f"leasekeeper listening on {url}", flush=True)


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
