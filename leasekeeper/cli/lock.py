"""`leasekeeper lock NAME -- COMMAND`."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import click
import trio
from attrs import define, frozen
from leasekeeper_client import Busy, Lease, LeaseLost

from leasekeeper.cli import child as children
from leasekeeper.cli.child import CannotRun, Child
from leasekeeper.cli.client import Reach, complain, connected, plain, reach, run, server_options

BUSY: Final = 75
"""EX_TEMPFAIL of sysexits.h: the wait was over before it could be had."""
LOST: Final = 76
"""The lease was lost, and the command was stopped."""

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOOK_S: Final = 0.5


@frozen
class Task:
    """What to run, and under which lease. Times are seconds."""

    name: str
    command: tuple[str, ...]
    ttl: float
    wait: float | None
    shared: bool
    limit: int | None
    label: str | None
    kill_after: float


@click.command()
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")
@server_options
@click.option(
    "--ttl",
    type=click.FloatRange(0.1, 3600),
    default=30.0,
    show_default=True,
    envvar="LEASEKEEPER_TTL",
    metavar="S",
    help="Seconds the lease lasts after the last sign of life of this program. It is renewed "
    "for as long as COMMAND runs.",
)
@click.option(
    "--wait",
    type=click.FloatRange(0),
    envvar="LEASEKEEPER_WAIT",
    metavar="S",
    help="Seconds to wait for the lease; 0 tries once. Without it: for ever.",
)
@click.option(
    "--shared", is_flag=True, help="Hold the lease together with others who take it shared."
)
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Hold it together with at most N - 1 others. It implies --shared.",
)
@click.option("--label", metavar="TEXT", help="Shown to others. Without it: the command's name.")
@click.option(
    "--kill-after",
    type=click.FloatRange(0),
    default=5.0,
    show_default=True,
    metavar="S",
    help="After a loss, seconds from SIGTERM to SIGKILL; less if the lease's deadline is nearer.",
)
def lock(
    name: str,
    command: tuple[str, ...],
    urls: tuple[str, ...],
    token_file: Path | None,
    ttl: float,
    wait: float | None,
    shared: bool,
    limit: int | None,
    label: str | None,
    kill_after: float,
) -> None:
    """Run COMMAND while holding the lease NAME.

    COMMAND is run without a shell, in a process group of its own, with LEASEKEEPER_FENCE (the
    fencing token of this grant) and LEASEKEEPER_NAME in its environment. If the lease is lost it
    gets SIGTERM, and SIGKILL before anybody else may rely on the lease.

    \b
    Exit codes:
      COMMAND's own; 128 + N if signal N ended it
      75   busy: the wait was over
      76   lost: the lease was lost, and COMMAND was stopped
      69   no server could be reached, or it cannot serve now
      70   the server answered with another error
      77   the server wants a token, or another one
      126  COMMAND cannot be executed
      127  COMMAND was not found
    """
    task = Task(
        name=name,
        command=command,
        ttl=ttl,
        wait=wait,
        shared=shared or limit is not None,
        limit=limit,
        label=label if label is not None else Path(command[0]).name,
        kill_after=kill_after,
    )
    where = reach(urls, token_file)
    run(lambda: _lock(where, task))


async def _lock(where: Reach, task: Task) -> int:
    """Takes the lease, runs the command, and says with which code to exit."""
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            # Outside of the lease's context, so that they live to see the command end.
            run_ = _Run(nursery, task)
            nursery.start_soon(run_.forward, signals)
            code = await run_.under_lease(where)
            nursery.cancel_scope.cancel()
    return code if run_.interrupted_by is None else 128 + run_.interrupted_by


class _TooLate(Exception):
    """The lease was not renewed while there was still time to stop the command."""


@define(eq=False)
class _Run:
    """One run of the command. It does not renew or release; the client does."""

    nursery: trio.Nursery
    task: Task
    child: Child | None = None
    interrupted_by: int | None = None
    relied_until: float = 0.0
    """Until when the lease was last known to hold, in seconds of Trio's clock."""
    span: float = 0.0
    """The longest that it was ever known to hold: while all is well it goes on for two thirds."""

    @property
    def ahead(self) -> float:
        """How long before the lease's deadline the command is told to stop."""
        return self.kill_ahead + min(self.task.kill_after, self.span / 4)

    @property
    def kill_ahead(self) -> float:
        """How long before the lease's deadline it is killed."""
        return children.kill_ahead_s(self.span)

    async def forward(self, signals: AsyncIterator[int]) -> None:
        """Passes signals on to the command; before it runs, they end the wait."""
        async for number in signals:
            if self.child is not None:
                self.child.signal(signal.Signals(number))
            else:
                self.interrupted_by = number
                self.nursery.cancel_scope.cancel()

    async def under_lease(self, where: Reach) -> int:
        """Runs the command under the lease; returns this program's exit code."""
        task = self.task
        try:
            async with (
                connected(where) as keeper,
                keeper.lease(
                    task.name,
                    ttl=task.ttl,
                    wait=task.wait,
                    shared=task.shared,
                    limit=task.limit,
                    label=task.label,
                ) as lease,
            ):
                return await self._run_child(lease)
        except Busy as busy:
            holders = ", ".join(plain(h.label or h.client) or "?" for h in busy.holders)
            return complain(BUSY, f"{task.name} is busy: held by {holders or 'others'}")
        except (LeaseLost, _TooLate) as lost:
            return complain(LOST, f"{lost}; the command was stopped")
        except CannotRun as problem:
            return complain(problem.code, str(problem))

    async def _run_child(self, lease: Lease) -> int:
        environment = {
            "LEASEKEEPER_FENCE": str(lease.fence),
            "LEASEKEEPER_NAME": self.task.name,
        }
        self.child = child = children.start(self.task.command, environment)
        self.nursery.start_soon(child.watch)
        try:
            await self._until_exit_or_too_late(child, lease)
            if not child.exited.is_set():
                raise _TooLate(f"the lease on {self.task.name!r} could not be renewed in time")
            return child.code
        finally:
            if not child.exited.is_set():
                left = self.relied_until - trio.current_time() - self.kill_ahead
                await child.stop(min(self.task.kill_after, left))
            children.take_terminal()

    async def _until_exit_or_too_late(self, child: Child, lease: Lease) -> None:
        """Until the command has ended, or the lease was not renewed in time."""
        while not child.exited.is_set():
            remaining = lease.remaining
            if remaining:
                self.relied_until = trio.current_time() + remaining
                self.span = max(self.span, remaining)
            if remaining <= self.ahead:
                return
            with trio.move_on_after(min(_LOOK_S, remaining - self.ahead)):
                await child.exited.wait()
