"""A command that runs only while its lease is held.

The command gets a process group of its own, and no shell. It is told with SIGTERM in time before
the lease's deadline, and is gone, with everything in its group, before it. On Linux it also gets
SIGTERM when this process itself is killed.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import trio
from attrs import define, field

COMMAND_NOT_FOUND: Final = 127
COMMAND_NOT_EXECUTABLE: Final = 126

_PR_SET_PDEATHSIG: Final = 1
_KILL_AHEAD_S: Final = 0.25


class CannotRun(Exception):
    """The command cannot be started. `code` is what a shell would exit with."""

    def __init__(self, code: int, problem: str) -> None:
        super().__init__(problem)
        self.code: Final = code


@define(eq=False)
class Child:
    """A running command. `exited` is set once it has ended; `code` is then what a shell shows."""

    process: subprocess.Popen[bytes]
    exited: trio.Event = field(factory=trio.Event)

    @property
    def code(self) -> int:
        """Its exit code, or 128 and the number of the signal that ended it."""
        code = self.process.returncode
        return code if code >= 0 else 128 - code

    async def watch(self) -> None:
        """Sets `exited` when the command has ended."""
        await trio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)
        self.exited.set()

    def signal(self, number: signal.Signals) -> None:
        """Signals the whole group, if there is still one."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)

    async def stop(self, within_s: float) -> None:
        """SIGTERM now, SIGKILL after `within_s` at the latest, to the whole group.

        Cancellation:
            Shielded; it takes no longer than it says.
        """
        with trio.CancelScope(shield=True):
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)  # a stopped process hears nothing but this and SIGKILL
            with trio.move_on_after(max(0.0, within_s)):
                await self.exited.wait()
            self.signal(signal.SIGKILL)
            await self.exited.wait()


def kill_ahead_s(span_s: float) -> float:
    """How long before its deadline a command is killed, of a lease good for so long; seconds."""
    return min(_KILL_AHEAD_S, span_s / 20)


def start(command: Sequence[str], environment: dict[str, str], stdout: int | None = None) -> Child:
    """Starts the command in a process group of its own, in the terminal's foreground.

    Its standard output is `stdout` (as `subprocess` has it), or this program's own.

    Raises:
        CannotRun: there is no such command, or it may not be run.
    """
    parent, prctl = os.getpid(), ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    try:
        # From this very thread: the death signal is bound to the thread that forks.
        process = subprocess.Popen(
            list(command),
            env=os.environ | environment,
            stdout=stdout,
            process_group=0,
            preexec_fn=partial(_die_with, parent, prctl) if prctl else None,
        )
    except FileNotFoundError as error:
        raise CannotRun(COMMAND_NOT_FOUND, f"{command[0]}: no such command") from error
    except OSError as error:
        raise CannotRun(COMMAND_NOT_EXECUTABLE, f"{command[0]}: {error.strerror}") from error
    _give_terminal(process.pid)
    return Child(process)


def take_terminal() -> None:
    """This process is in the terminal's foreground again."""
    _give_terminal(os.getpgrp())


def _die_with(parent: int, prctl: Callable[[int, int], int]) -> None:
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


def _give_terminal(group: int) -> None:
    """A background group that reads the terminal is stopped, so the command's comes forward."""
    if not sys.stdin or not sys.stdin.isatty():
        return
    before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        with suppress(OSError):
            os.tcsetpgrp(sys.stdin.fileno(), group)
    finally:
        signal.signal(signal.SIGTTOU, before)
