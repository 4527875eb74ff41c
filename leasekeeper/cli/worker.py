"""`python -m leasekeeper.cli.worker`: one of the processes of `leasekeeper serve --workers N`.

It gets its job as a pickle on standard input, says "ready" on standard output when it accepts
connections, and drains when standard input ends: its supervisor wants it to, or is dead. Signals
mean to it what they mean to a server that serves alone.
"""

import os
import pickle
import signal
import sys
from contextlib import suppress

import click
import trio

from leasekeeper.cli.job import Job, log_to_stderr
from leasekeeper.errors import ConfigurationError
from leasekeeper.server.app import Server


def main() -> None:
    """Works until it is told, or has to, stop."""
    # The server has handlers of its own while it serves. A signal that comes when its end has begun
    # already, as when a whole group is told, must not make a good end look like a bad one.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    job = pickle.load(sys.stdin.buffer)  # from our own supervisor, through a pipe of its own
    assert isinstance(job, Job)
    log_to_stderr(job.log_level)
    try:
        job.run(_work)
    except ConfigurationError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


async def _work(server: Server) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_at_end_of_input, server)
        async with trio.open_nursery() as serving:
            await serving.start(server.run)
            with suppress(BrokenPipeError):  # then the input has ended, too
                os.write(sys.stdout.fileno(), b"ready\n")
        nursery.cancel_scope.cancel()


async def _stop_at_end_of_input(server: Server) -> None:
    # Nothing follows the job, so what can be read next is the end.
    await trio.lowlevel.wait_readable(sys.stdin.fileno())
    server.stop()


if __name__ == "__main__":
    main()
