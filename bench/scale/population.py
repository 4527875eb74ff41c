"""The process that keeps something there while others are measured: held names, or connections.

`python -m bench.scale.population names 100000 --port 7420` says so in a line when all is there, and
answers the server's pings until it is ended.
"""

import argparse
from typing import Final

from bench.holding import LASTING_MS, Fleet, Size
from bench.idle import Crowd
from bench.load import LEASES_EACH
from bench.shapes import Target

THERE: Final = "all is there"
FOREVER_S: Final = 86_400.0
"""Longer than any run."""


def names(target: Target, count: int) -> None:
    """Holds names, a thousand on each connection, with leases that need no renewal."""
    size = Size(count, -(-count // LEASES_EACH), LASTING_MS, heartbeats=False)
    fleet = Fleet(target, size)
    fleet.take_all(size)
    print(THERE, flush=True)
    fleet.hold(FOREVER_S)


def connections(target: Target, count: int) -> None:
    """Keeps connections, each with a session."""
    crowd = Crowd(target)
    crowd.grow(count)
    print(THERE, flush=True)
    while True:
        crowd.attend(None)


def main() -> None:
    """Keeps what the command line asks for."""
    parser = argparse.ArgumentParser(description="Keep names or connections on a server.")
    parser.add_argument("what", choices=["names", "connections"])
    parser.add_argument("count", type=int)
    parser.add_argument("--port", type=int, required=True)
    asked = parser.parse_args()
    target = Target("127.0.0.1", asked.port, "leasekeeper")
    {"names": names, "connections": connections}[asked.what](target, asked.count)


if __name__ == "__main__":
    main()
