"""The command group, its configuration file, and its logs."""

import logging
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import structlog

from leasekeeper.cli.serve import serve
from leasekeeper.errors import ConfigurationError
from leasekeeper.version import VERSION


class _Group(click.Group):
    """Ends with exit code 2 and one line where the configuration cannot work."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            raise click.UsageError(str(error)) from error


def _read_config(ctx: click.Context, _: click.Parameter, path: Path | None) -> None:
    """Makes the file's tables the defaults of the commands they are named after."""
    if path is None:
        return
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.UsageError(f"cannot read the configuration {path}: {error}") from error
    assert isinstance(ctx.command, click.Group)
    shared = {key: value for key, value in tables.items() if not isinstance(value, dict)}
    defaults: dict[str, dict[str, Any]] = {}
    for name, command in ctx.command.commands.items():
        known = {param.name for param in command.params}
        table = _underscored(shared | tables.get(name, {}))
        unknown = sorted(table.keys() - known - _underscored(shared).keys())
        if unknown:
            raise click.UsageError(f"{path}: [{name}] has no setting {unknown[0]!r}")
        defaults[name] = {key: value for key, value in table.items() if key in known}
    for name in tables:
        if name not in shared and name not in ctx.command.commands:
            raise click.UsageError(f"{path}: there is no command for the table [{name}]")
    ctx.default_map = defaults


def _underscored(table: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in table.items()}


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


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(VERSION, prog_name="leasekeeper")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="LEASEKEEPER_CONFIG",
    is_eager=True,
    expose_value=False,
    callback=_read_config,
    help="A TOML file: one table per command, one key per option. Flags win over LEASEKEEPER_* "
    "variables, and those over the file.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="LEASEKEEPER_LOG_LEVEL",
    help="What is worth a line on standard error.",
)
def main(log_level: str) -> None:
    """A lock and lease server: fenced leases, FIFO waiting, and holders who know when they lost.

    Start a server with `leasekeeper serve`, and put a lock around a command with
    `leasekeeper lock NAME -- COMMAND`.
    """
    _log_to_stderr(log_level)


main.add_command(serve)
