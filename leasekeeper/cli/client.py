"""What the commands that are clients have in common: how to reach a server, and how to fail."""

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NoReturn, TypeVar

import click
import trio
from attrs import frozen
from leasekeeper_client import (
    ConnectionFailed,
    Draining,
    Forbidden,
    Keeper,
    KeeperError,
    Overloaded,
    Unauthenticated,
    Unavailable,
    connect,
)

F = TypeVar("F", bound=Callable[..., object])

UNAVAILABLE: Final = 69
"""EX_UNAVAILABLE of sysexits.h: no server could be reached, or it cannot serve now."""
FAILED: Final = 70
"""EX_SOFTWARE of sysexits.h: the server answered with an error that has no code of its own."""
REFUSED: Final = 77
"""EX_NOPERM of sysexits.h: the server wants a token, or another one."""
_CONNECT_S: Final = 5.0
_DEFAULT_URL: Final = "ws://127.0.0.1:7420"


@frozen
class Reach:
    """Where the servers are, and the token they want."""

    urls: tuple[str, ...]
    token: str | None


def server_options(command: F) -> F:
    """`--url` and `--token-file`."""
    command = click.option(
        "--url",
        "urls",
        multiple=True,
        default=[_DEFAULT_URL],
        show_default=True,
        envvar="LEASEKEEPER_URL",
        metavar="URL",
        help="A server: ws://, wss:// or ws+unix:///PATH. Give several to have a choice.",
    )(command)
    return click.option(
        "--token-file",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="LEASEKEEPER_TOKEN_FILE",
        help="A file with the server's token. LEASEKEEPER_TOKEN holds one itself.",
    )(command)


def reach(urls: tuple[str, ...], token_file: Path | None) -> Reach:
    """What the options say."""
    token = os.environ.get("LEASEKEEPER_TOKEN") or None
    if token_file is not None:
        try:
            token = token_file.read_text().strip()
        except OSError as error:
            raise click.UsageError(f"--token-file {token_file}: {error.strerror}") from error
    return Reach(urls, token)


@asynccontextmanager
async def connected(where: Reach) -> AsyncIterator[Keeper]:
    """A connection to one of the servers, under this machine's and process' name."""
    name = f"leasekeeper@{socket.gethostname()}:{os.getpid()}"
    async with connect(
        list(where.urls), client=name, token=where.token, connect_timeout=_CONNECT_S
    ) as keeper:
        yield keeper


def run(main: Callable[[], Awaitable[int | None]]) -> NoReturn:
    """Runs it, and exits with its code, or with one of ours for what went wrong."""

    async def entry() -> int:
        return await main() or 0

    try:
        code = trio.run(entry)
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as raised:
        error = _first(raised)
        if isinstance(error, ValueError):
            raise click.UsageError(str(error)) from None
        if isinstance(error, KeeperError):
            code = complain(_code_of(error), str(error))
        elif isinstance(error, KeyboardInterrupt):
            code = 128 + signal.SIGINT
        else:
            raise
    sys.exit(code)


def _code_of(error: KeeperError) -> int:
    if isinstance(error, Unauthenticated | Forbidden):
        return REFUSED
    if isinstance(error, ConnectionFailed | Unavailable | Draining | Overloaded):
        return UNAVAILABLE
    return FAILED


def complain(code: int, problem: str) -> int:
    """One line on standard error; returns the exit code."""
    click.echo(f"leasekeeper: {problem}", err=True)
    return code


def plain(text: str | None) -> str:
    """Text that others chose, safe for a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text or "")


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
