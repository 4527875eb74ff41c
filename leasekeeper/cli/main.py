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
    "cache": "leasekeeper.cli.cache:cache",
    "ls": "leasekeeper.cli.look:ls",
    "show": "leasekeeper.cli.look:show",
    "break": "leasekeeper.cli.look:break_",
    "watch": "leasekeeper.cli.look:watch",
    "doctor": "leasekeeper.cli.doctor:doctor",
    "verify": "leasekeeper.cli.verify:verify",
}
"""Imported only when they are run: `lock` stands in front of other people's commands."""


class _CannotWork(click.ClickException):
    """A configuration that cannot work: exit code 2 and one line."""

    exit_code = 2


class _Group(click.Group):
    """Ends with exit code 2 and one line where the configuration cannot work."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ConfigurationError as error:
            raise _CannotWork(str(error)) from error

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
        raise _CannotWork(f"cannot read the configuration {path}: {error}") from error
    assert isinstance(ctx.command, click.Group)
    shared = {key: value for key, value in tables.items() if not isinstance(value, dict)}
    commands = {name: ctx.command.get_command(ctx, name) for name in _COMMANDS}
    for name in tables.keys() - shared.keys() - _COMMANDS.keys():
        raise _CannotWork(f"{path}: there is no command for the table [{name}]")
    for key in shared:
        if not any(_flag_name(key) in _options(each) for each in commands.values()):
            raise _CannotWork(f"{path}: no command has a setting {key!r}")
    ctx.default_map = {
        name: _defaults(f"{path}: [{name}]", command, tables.get(name, {}), shared)
        for name, command in commands.items()
    }


def _options(command: click.Command | None) -> dict[str, click.Option]:
    """The options of a command that a file may set, by the name of their flag."""
    assert command is not None
    return {
        flag.removeprefix("--"): param
        for param in command.params
        if isinstance(param, click.Option) and param.expose_value
        for flag in param.opts
    }


def _defaults(
    where: str, command: click.Command | None, table: dict[str, Any], shared: dict[str, Any]
) -> dict[str, Any]:
    """A table's settings, under the names of the parameters they are for.

    That of a group of commands has a table for each of them.
    """
    if isinstance(command, click.Group):
        for name, value in table.items():
            if name not in command.commands or not isinstance(value, dict):
                raise _CannotWork(f"{where} has no table {name!r}")
        return {
            name: _defaults(f"{where[:-1]}.{name}]", each, table.get(name, {}), shared)
            for name, each in command.commands.items()
        }
    options = _options(command)
    common = {key: value for key, value in shared.items() if _flag_name(key) in options}
    defaults = {}
    for key, value in (common | table).items():
        option = options.get(_flag_name(key))
        if option is None or option.name is None:
            raise _CannotWork(f"{where} has no setting {key!r}")
        default = _as_flags(value, option)
        if default is None:
            kind = type(value).__name__  # not the value itself: a URL may have a password
            raise _CannotWork(f"{where} {key}: a {kind} is no value for --{_flag_name(key)}")
        defaults[option.name] = default
    return defaults


def _flag_name(key: str) -> str:
    return key.replace("_", "-")


def _as_flags(value: object, option: click.Option) -> object:
    """The value as the flag would have it: `true` is no number; None if it cannot be one."""
    if option.is_flag:
        return value if isinstance(value, bool) else None
    if isinstance(value, bool | dict) or isinstance(value, list) != option.multiple:
        return [str(value)] if option.multiple and isinstance(value, str) else None
    return [str(each) for each in value] if isinstance(value, list) else str(value)


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
    help="A TOML file: one table per command, such as [serve], with one key per option. Flags win "
    "over LEASEKEEPER_* variables, and those over the file.",
)
def main() -> None:
    """A lock and lease server: fenced leases, FIFO waiting, and holders who know when they lost.

    Start a server with `leasekeeper serve`, and put a lock around a command with
    `leasekeeper lock NAME -- COMMAND`.
    """
