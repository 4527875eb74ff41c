"""A supervisor: one process that keeps a number of others at work on the same addresses.

    supervisor ── job ──────────> stdin   worker    the end of it: drain
               <─ "ready" ─────── stdout            anything: it accepts connections
               ── sockets ──────> by inheritance, bound to the same addresses

The pipe to a worker's standard input is the one thing that tells it to drain, and the kernel closes
it, too, when the supervisor is killed: no worker outlives it for long. A signal would not do. A
service manager signals a whole group, so the workers would have one already, and the second one
ends a server at once.
"""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from signal import SIGINT, SIGTERM
from typing import Final

import structlog
import trio
from attrs import define, field

from leasekeeper.server.listening import Places

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

CANNOT_WORK: Final = 2
"""What a worker exits with that has said on standard error why its configuration cannot work."""

_PAUSE_MIN_S: Final = 0.1
_PAUSE_MAX_S: Final = 5.0
_STABLE_S: Final = 10.0


@define(eq=False)
class Supervisor:
    """Runs `count` workers, each on a core of its own, and starts another when one has ended.

    The first one is started alone: what is wrong with all of them is said once. Until all have been
    ready, a worker that ends is the end of all; after that it is replaced, in a crash loop after
    pauses that double from 0.1 to 5 seconds.

    What it does not do: look after workers that live and do not answer, or limit how long a worker
    drains.
    """

    command: Sequence[str]
    count: int
    places: Places
    job: Callable[[int, Sequence[int]], bytes]
    """What a worker reads first, given its number, from 0 on, which those after it in its place
    have as well, and the descriptors of the sockets it inherits."""
    environment: Mapping[str, str]
    on_ready: Callable[[], None]
    """Called when all workers have become ready for the first time."""
    _ready: dict[int, trio.Event] = field(factory=dict, init=False)
    """For each worker, whether the process that is now at work accepts connections."""
    _serving: bool = field(default=False, init=False)
    _stopping: trio.Event = field(factory=trio.Event, init=False)
    _all: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _code: int = field(default=0, init=False)

    async def run(self) -> int:
        """Supervises until SIGTERM or SIGINT, and drains; a second signal ends all at once.

        Returns:
            The exit code: 0 after a drain in which every worker ended well, 2 if the first worker
            says that it cannot work, else 1.

        Cancellation:
            Kills the workers.
        """
        with trio.open_signal_receiver(SIGTERM, SIGINT) as signals, self._all:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, signals)
                async with trio.open_nursery() as keeping:
                    await self._start(keeping)
                    self._serving = True
                    self.on_ready()
                nursery.cancel_scope.cancel()
        return self._code

    async def _start(self, nursery: trio.Nursery) -> None:
        for batch in (range(1), range(1, self.count)):
            for index in batch:
                self._ready[index] = trio.Event()
                nursery.start_soon(self._keep, index)
            for index in batch:
                await self._ready[index].wait()

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        await anext(signals)
        if not self._serving:
            self._all.cancel()  # nobody has been told of them yet
            return
        _log.info("draining", workers=self.count)
        self.places.close()
        self._stopping.set()
        await anext(signals)
        self._code = 1
        self._all.cancel()

    async def _keep(self, index: int) -> None:
        pause_s = _PAUSE_MIN_S
        while True:
            since = trio.current_time()
            code = await self._live(index)
            if self._stopping.is_set():
                if code != 0 and self._ready[index].is_set():
                    _log.warning("worker did not drain", worker=index, code=code)
                    self._code = 1
                return
            if not self._serving:
                self._give_up(index, code)
                return
            if trio.current_time() - since >= _STABLE_S:
                pause_s = _PAUSE_MIN_S
            _log.warning(
                "worker ended", worker=index, code=code, another_in_ms=round(1000 * pause_s)
            )
            with trio.move_on_after(pause_s):
                await self._stopping.wait()
                return
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)
            self._ready[index] = trio.Event()

    def _give_up(self, index: int, code: int) -> None:
        if code == CANNOT_WORK:
            self._code = CANNOT_WORK
        else:
            _log.error("worker ended before all were ready", worker=index, code=code)
            self._code = self._code or 1
        self._all.cancel()

    async def _live(self, index: int) -> int:
        """One process, from its start to its end; its exit code, or a signal's number, negated.

        Cancellation:
            Kills it.
        """
        ready = self._ready[index]
        try:
            process, job = await self._spawn(index)
        except OSError as error:
            _log.error("cannot start a worker", worker=index, error=error.strerror)
            return 1
        try:
            _pin(process.pid, index)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_hand_over, process, job)
                nursery.start_soon(_notice, process, ready)
                nursery.start_soon(self._end, process, ready)
                code = await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                process.kill()
                await process.wait()
                for pipe in (process.stdin, process.stdout):
                    assert pipe is not None
                    await pipe.aclose()
        return code

    async def _spawn(self, index: int) -> tuple[trio.Process, bytes]:
        sockets = self.places.for_worker()
        try:
            descriptors = [each.fileno() for each in sockets]
            job = self.job(index, descriptors)
            process = await trio.lowlevel.open_process(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **self.environment},
                pass_fds=descriptors,
                # Ctrl-C is for the supervisor alone.
                start_new_session=True,
            )
        finally:
            for each in sockets:
                each.close()
        return process, job

    async def _end(self, process: trio.Process, ready: trio.Event) -> None:
        """Lets the worker drain, when the time has come."""
        await self._stopping.wait()
        if ready.is_set():
            assert process.stdin is not None
            await process.stdin.aclose()
        else:
            process.kill()


async def _hand_over(process: trio.Process, job: bytes) -> None:
    assert process.stdin is not None
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await process.stdin.send_all(job)


async def _notice(process: trio.Process, ready: trio.Event) -> None:
    """Reads to the end, or a worker that says more than this would come to a halt."""
    assert process.stdout is not None
    async for _ in process.stdout:
        ready.set()


def _pin(pid: int, index: int) -> None:
    """Gives a worker a core, where the system lets us: they would else crowd on some."""
    if sys.platform == "linux":
        with suppress(OSError):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(pid, {cores[index % len(cores)]})
