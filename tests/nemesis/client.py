"""A client in a process of its own: `python -m tests.nemesis.client JOB`, which is JSON.

It works until a line `stop` comes in, finishes what it has begun, says `stopped`, and ends with its
standard input. What happens to it is in its file of lines, not in what it says.
"""

import json
import logging
import random
import sys
from pathlib import Path
from typing import Any, Final

import anyio
from anyio import to_thread
from anyio.abc import TaskGroup
from attrs import asdict, frozen
from leasekeeper_client import ConnectionFailed, Keeper, connect

from tests.nemesis.caching import CacheUser, Putter, Writer
from tests.nemesis.history import Scribe
from tests.nemesis.locks import Locker

READY: Final = "ready"
STOP: Final = "stop"
STOPPED: Final = "stopped"
CONNECT_S: Final = 60.0
LOOK_S: Final = 0.01


@frozen(kw_only=True)
class Job:
    """What a client is to do."""

    process: str
    directory: str
    urls: list[str]
    resource_port: int
    seed: str
    backend: str = "trio"
    names: list[str]
    lockers: int = 3
    careless: float = 0.5
    keys: list[str]
    queue: str | None = None
    """Of writes that are queued; None where the store is not trusted with them."""
    writes: bool = False
    """Whether it carries out what is queued."""

    def dumps(self) -> str:
        """As the client is told it."""
        return json.dumps(asdict(self))


async def say_when_dropped(keeper: Keeper, scribe: Scribe) -> None:
    """Writes down every end of a connection, also of one that is at once replaced."""
    session = keeper._engine.session
    known = session.connection
    while True:
        await anyio.sleep(LOOK_S)
        present = session.connection
        if known is not None and (present is not known or not known.alive):
            scribe.event("dropped")
            known = None
        elif present is not None and present.alive:
            known = present


async def work(job: Job, keeper: Keeper, scribe: Scribe, helpers: TaskGroup) -> None:
    """Everything, until told to stop, and until what was begun is at its end."""
    stopping = anyio.Event()

    def chance(what: str) -> random.Random:
        return random.Random(f"{job.seed} {job.process} {what}")

    async with anyio.create_task_group() as workers:
        for number in range(job.lockers):
            locker = Locker(
                keeper=keeper,
                scribe=scribe,
                tasks=helpers,
                resource_port=job.resource_port,
                names=tuple(job.names),
                number=number,
                random=chance(f"locker {number}"),
                careless=job.careless,
            )
            workers.start_soon(locker.run, stopping)
        if job.keys:
            keys = tuple(job.keys)
            user = CacheUser(keeper, scribe, job.resource_port, keys, chance("cache"))
            workers.start_soon(user.read_on, stopping)
            workers.start_soon(user.read_on, stopping)
            workers.start_soon(user.change_on, stopping)
        if job.queue is not None:
            workers.start_soon(Putter(keeper, scribe, job.queue, chance("put")).run, stopping)
            if job.writes:
                helpers.start_soon(Writer(keeper, job.resource_port, job.queue).run)
        print(READY, flush=True)
        await command()
        stopping.set()


async def command() -> str:
    """The next line of the standard input, empty at its end."""
    return await to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)


async def main(job: Job) -> None:
    """Connects, works, and waits for its end."""
    scribe = Scribe.of(Path(job.directory), job.process)
    async with (
        connect(job.urls, client=job.process, connect_timeout=CONNECT_S) as keeper,
        anyio.create_task_group() as helpers,
    ):
        helpers.start_soon(say_when_dropped, keeper, scribe)
        await work(job, keeper, scribe, helpers)
        print(STOPPED, flush=True)
        while await command():
            pass
        helpers.cancel_scope.cancel()


def run(told: dict[str, Any]) -> None:
    """Runs until the end; whoever never got a connection has nothing to say."""
    job = Job(**told)
    logging.basicConfig(level=logging.WARNING)
    try:
        anyio.run(main, job, backend=job.backend)
    except* ConnectionFailed as failures:
        raise SystemExit(f"{job.process}: {failures.exceptions}") from None


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
