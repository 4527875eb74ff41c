"""The command group and its configuration file."""

import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from leasekeeper.errors import ConfigurationError
from leasekeeper.version import VERSION

_COMMANDS: Final = {
    "serve": "leasekeeper.cli.serve:serve",
    "lock": "leasekeeper.cli.lock:lock",
    "ls": "leasekeeper.cli.look:ls",
    "show": "leasekeeper.cli.look:show",
    "break": "leasekeeper.cli.look:break_",
    "watch": "leasekeeper.cli.look:watch",
}
"""Imported only when they are run: `lock` stands in front of other people's commands."""


class _Group(click.Group):
    """Ends with exit code 2 and one line where the configuration cannot work."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            raise click.UsageError(str(error)) from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command


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
    for name in ctx.command.list_commands(ctx):
        command = ctx.command.get_command(ctx, name)
        assert command is not None
        known = {param.name for param in command.params}
        table = _underscored(shared | tables.get(name, {}))
        unknown = sorted(table.keys() - known - _underscored(shared).keys())
        if unknown:
            raise click.UsageError(f"{path}: [{name}] has no setting {unknown[0]!r}")
        defaults[name] = {key: value for key, value in table.items() if key in known}
    for name in tables:
        if name not in shared and name not in _COMMANDS:
            raise click.UsageError(f"{path}: there is no command for the table [{name}]")
    ctx.default_map = defaults


def _underscored(table: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("-", "_"): value for key, value in table.items()}


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
def main() -> None:
    """A lock and lease server: fenced leases, FIFO waiting, and holders who know when they lost.

    Start a server with `leasekeeper serve`, and put a lock around a command with
    `leasekeeper lock NAME -- COMMAND`.
    """
