"""`leasekeeper cache run`, `get` and `invalidate`."""

import base64
import binascii
import json
import logging
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click
import trio
from attrs import define, field, frozen
from leasekeeper_client import Busy, FillFailed, Private, current_load

from leasekeeper.cli import child as children
from leasekeeper.cli.child import CannotRun, Child
from leasekeeper.cli.client import Reach, complain, connected, plain, reach, run, server_options
from leasekeeper.cli.lock import BUSY, LOST

FAILED_ELSEWHERE: Final = 74
"""EX_IOERR of sysexits.h: somebody else ran the command, and it failed."""
NOTHING: Final = 1
"""`get`: there is no value."""

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PRIVATE_S: Final = 60.0
"""For so long at most, everybody runs a command himself whose output is too long."""
_READ_BYTES: Final = 65536
_ttl = click.option(
    "--ttl",
    type=click.FloatRange(0, 30 * 24 * 3600, min_open=True),
    required=True,
    metavar="S",
    help="Seconds for which the output is fresh.",
)
_stale = click.option(
    "--stale",
    type=click.FloatRange(0, 30 * 24 * 3600),
    default=0.0,
    show_default=True,
    metavar="S",
    help="Seconds after that for which it is still printed, at once, while one of those who ask "
    "runs COMMAND anew.",
)
_tags = click.option(
    "--tag", "tags", multiple=True, metavar="TAG", help="Invalidated together; several are allowed."
)


@click.group()
def cache() -> None:
    """Run a command once for the whole fleet, and cache its output."""


@frozen
class Task:
    """What to run, and how its output is cached. Times are seconds."""

    key: str
    command: tuple[str, ...]
    ttl: float
    stale: float
    tags: tuple[str, ...]
    wait: float | None
    fill: float
    kill_after: float


@cache.command("run")
@click.argument("key")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@server_options
@_ttl
@_stale
@_tags
@click.option(
    "--wait",
    type=click.FloatRange(0),
    metavar="S",
    help="Seconds to wait while somebody else runs it; 0: not at all. Without it: for ever.",
)
@click.option(
    "--fill",
    type=click.FloatRange(0.1, 600),
    default=60.0,
    show_default=True,
    metavar="S",
    help="Seconds that COMMAND may take. After that it is stopped, and somebody else runs it.",
)
@click.option(
    "--kill-after",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    metavar="S",
    help="When it is stopped, seconds from SIGTERM to SIGKILL.",
)
def run_(
    key: str,
    command: tuple[str, ...],
    urls: tuple[str, ...],
    token_file: Path | None,
    ttl: float,
    stale: float,
    tags: tuple[str, ...],
    wait: float | None,
    fill: float,
    kill_after: float,
) -> None:
    """Print what COMMAND prints, which is run once for all who ask for KEY.

    One of those who ask, on whatever machine, runs it; the others wait for its standard output.
    Only if it exits with 0 is that cached. COMMAND is run without a shell, in a process group of
    its own, with LEASEKEEPER_KEY and LEASEKEEPER_FENCE in its environment, and is stopped when
    --fill is over or the server is lost. Output longer than the server takes (1 MiB) is printed,
    and not cached.

    \b
    Exit codes:
      0    the output was printed
      COMMAND's own where it was run here; 128 + N if signal N ended it
      74   somebody else ran COMMAND, and it failed; nobody tries again yet
      75   busy: the wait was over
      76   lost: COMMAND was stopped in the middle of an output too long to be cached
      69   no server could be reached, or it cannot serve now
      70   the server answered with another error
      77   the server wants a token, or another one
      126  COMMAND cannot be executed
      127  COMMAND was not found
    """
    task = Task(key, command, ttl, stale, tags, wait, fill, kill_after)
    where = reach(urls, token_file)
    with _quietly():
        run(lambda: _run(where, task))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the client's warnings: what there is to say of a failed refresh is said here."""
    logger = logging.getLogger("leasekeeper_client")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


async def _run(where: Reach, task: Task) -> int:
    """Prints the output, running the command if need be; says with which code to exit."""
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            run_once = _Run(nursery, task)
            nursery.start_soon(run_once.forward, signals)
            run_once.code = await run_once.once(where)
            nursery.cancel_scope.cancel()
    return run_once.code


class _Failed(Exception):
    """The command has failed. `code` is what a shell would show."""

    def __init__(self, command: str, code: int) -> None:
        super().__init__(f"{command} exited with {code}")
        self.code: Final = code


@define
class _Output:
    """What a command prints: kept while it can be cached, else printed as it comes."""

    limit: int
    background: bool
    """Whether somebody has been given the former output instead, so that nothing is printed."""
    kept: bytearray = field(factory=bytearray)
    too_long: bool = False

    @property
    def printed(self) -> bool:
        """Whether some of it has been printed already."""
        return self.too_long and not self.background

    def add(self, data: bytes) -> None:
        """It has printed more."""
        if not self.too_long:
            self.kept += data
            if len(self.kept) <= self.limit:
                return
            self.too_long = True
            data = bytes(self.kept)
            self.kept.clear()
        if not self.background:
            _print(data)


@define(eq=False)
class _Run:
    """One `cache run`. It does not know who else asks; the server does."""

    nursery: trio.Nursery
    task: Task
    code: int = 0
    child: Child | None = None
    interrupted_by: int | None = None
    limit: int = 0
    """Longer output cannot be cached."""
    output: _Output | None = None
    """What the command has printed here, if it was run here."""

    async def forward(self, signals: AsyncIterator[int]) -> None:
        """Passes signals on to the command; before it runs, they end the wait."""
        async for number in signals:
            self.interrupted_by = number
            if self.child is not None and not self.child.exited.is_set():
                self.child.signal(signal.Signals(number))
            else:
                self._leave(128 + number)

    async def once(self, where: Reach) -> int:
        """Prints the output; returns this program's exit code."""
        task = self.task
        try:
            async with connected(where) as keeper:
                self.limit = keeper.cache.value_bytes
                value = await keeper.cache.get_or_fill(
                    task.key,
                    self.load,
                    ttl=task.ttl,
                    stale=task.stale,
                    tags=task.tags,
                    wait=task.wait,
                    fill=task.fill,
                )
                if self.output is None or not self.output.printed:
                    _print(output_of(value))
                await keeper.cache.settled()
        except Busy:
            return complain(BUSY, f"{task.key} is busy: somebody else still runs it")
        except FillFailed as failed:
            again = f"; tried again in {failed.retry_after:.1f} s" if failed.retry_after else ""
            return complain(FAILED_ELSEWHERE, f"{task.key}: {plain(failed.error)}{again}")
        except _Failed as failed:
            return failed.code
        except CannotRun as problem:
            return complain(problem.code, str(problem))
        return 0

    async def load(self) -> object:
        """Runs the command, and returns its output as it is cached.

        Raises:
            CannotRun: it cannot be started.
            _Failed: it has not exited with 0. What it has printed is printed.

        Cancellation:
            Stops the command.
        """
        load, command = current_load(), self.task.command
        environment = {"LEASEKEEPER_FENCE": str(load.fence), "LEASEKEEPER_KEY": load.key}
        self.child = child = children.start(command, environment, stdout=subprocess.PIPE)
        self.output = output = _Output(self.limit, load.background)
        try:
            await self._read(child, output)
        except BaseException:
            if output.printed and not self.nursery.cancel_scope.cancel_called:
                # Whatever comes now cannot be told from what is printed already.
                self._leave(complain(LOST, f"{load.key} was lost; the command was stopped"))
            raise
        finally:
            children.take_terminal()
        if self.interrupted_by is not None:
            self._leave(child.code)
            await trio.sleep_forever()  # until that has come round to here: others are to run it
        if child.code:
            failed = _Failed(Path(command[0]).name, child.code)
            if load.background:
                complain(0, f"{load.key}: {failed}; what was printed is the former output")
            else:
                _print(bytes(output.kept))
            raise failed
        if output.too_long:
            return Private(None, for_=min(self.task.ttl, _PRIVATE_S))
        return value_of(bytes(output.kept))

    async def _read(self, child: Child, output: _Output) -> None:
        """Until it has exited, and its output is at its end.

        Cancellation:
            Stops the command.
        """
        self.nursery.start_soon(child.watch)  # it lives to see the command end
        assert child.process.stdout is not None
        try:
            with child.process.stdout as pipe:
                async with trio.lowlevel.FdStream(os.dup(pipe.fileno())) as stream:
                    async for data in stream:
                        output.add(bytes(data))
            await child.exited.wait()
        finally:
            if not child.exited.is_set():
                await child.stop(self.task.kill_after)

    def _leave(self, code: int) -> None:
        """Ends the program with this code; the client gives up what is being loaded."""
        self.code = code
        self.nursery.cancel_scope.cancel()


# --- Looking and invalidating -----------------------------------------------------------------


@cache.command("get")
@click.argument("key")
@server_options
@click.option("--default", metavar="TEXT", help="Printed if there is no value.")
def get(key: str, urls: tuple[str, ...], token_file: Path | None, default: str | None) -> None:
    """Print the value of KEY, fresh or stale. Nobody loads it, and nobody waits.

    What `leasekeeper cache run` has cached is printed as it was, other values as JSON. Exits with 1
    if there is none, and no --default.
    """

    async def look() -> int:
        nothing = object()
        async with connected(reach(urls, token_file)) as keeper:
            value = await keeper.cache.get(key, nothing)
        if value is not nothing:
            _print(output_of(value))
        elif default is not None:
            click.echo(default)
        else:
            return NOTHING
        return 0

    run(look)


@cache.command("invalidate")
@click.argument("keys", nargs=-1, metavar="[KEY]...")
@server_options
@click.option(
    "--tag", "tags", multiple=True, metavar="TAG", help="All values with TAG; several are allowed."
)
@click.option("--soft", is_flag=True, help="They are only stale from now on.")
def invalidate(
    keys: tuple[str, ...],
    urls: tuple[str, ...],
    token_file: Path | None,
    tags: tuple[str, ...],
    soft: bool,
) -> None:
    """Make values invalid, by KEY and by tag.

    When it exits with 0, nobody who asks after that gets one of them, on whatever server.
    """
    if not keys and not tags:
        raise click.UsageError("name a KEY or a --tag")

    async def put_out() -> None:
        async with connected(reach(urls, token_file)) as keeper:
            await keeper.cache.invalidate(*keys, tags=tags, soft=soft)

    run(put_out)


# --- How output is cached ---------------------------------------------------------------------


def value_of(output: bytes) -> dict[str, str]:
    """The cached form of a command's output."""
    try:
        return {"stdout": output.decode()}
    except UnicodeDecodeError:
        return {"stdout": base64.b64encode(output).decode(), "encoding": "base64"}


def output_of(value: object) -> bytes:
    """The output that a cached value stands for; JSON, if somebody else has cached it."""
    match value:
        case {"stdout": str(text), **rest} if not rest:
            return text.encode()
        case {"stdout": str(text), "encoding": "base64", **rest} if not rest:
            try:
                return base64.b64decode(text, validate=True)
            except binascii.Error:
                pass
    return json.dumps(value).encode() + b"\n"


def _print(output: bytes) -> None:
    """Bytes as they are, at once."""
    click.echo(output, nl=False)
