"""The process that makes load on a peer: one shape, one stretch of time; figures as JSON.

`python -m bench.peers.load P1 --peer redis-py --port 6379 --server-pid 4711 --seconds 3`. It has
the core that whoever starts it gives it. What it prints is what `bench.load` prints of ours.
"""

import argparse
import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Final

from attrs import frozen

from bench.observed import Figures, Observed
from bench.peers import tasks, threads
from bench.peers.adapters import HOLD_S, IN_TASKS, IN_THREADS
from bench.peers.herd import CACHES, one_load_for_all
from bench.shapes import NAMES, Window


@frozen
class Shape:
    """What the workers of a shape are given."""

    names: tuple[str, ...]
    apart: bool = True
    """Whether each has a connection of its own."""
    contested: bool = False
    """Whether all want the same lock, and hand-offs are timed."""
    counts_for_each: int = 1
    """What one cycle counts for."""


SHAPES: Final = {
    "P1": Shape(tuple(f"{NAMES}/{place}" for place in range(50)), apart=False),
    # A cycle is two messages, however many a peer makes of them.
    "P2": Shape(tuple(f"{NAMES}/{place}" for place in range(50)), counts_for_each=2),
    "P3": Shape((f"{NAMES}/contested",) * 20, contested=True),
}


async def in_tasks(
    peer: str, port: int, shape: Shape, window_opens: Callable[[], Window]
) -> Figures:
    """The shape on a peer of asyncio."""
    async with IN_TASKS[peer](port, shape.names, shape.apart) as locks:
        if shape.contested:
            return await tasks.hand_offs(locks, window_opens(), HOLD_S.get(peer, 0.0))
        return await tasks.cycles(locks, window_opens())


def in_threads(peer: str, port: int, shape: Shape, window_opens: Callable[[], Window]) -> Figures:
    """The shape on a peer that blocks."""
    with IN_THREADS[peer](port, shape.names, shape.apart) as locks:
        if shape.contested:
            return threads.hand_offs(locks, window_opens(), HOLD_S.get(peer, 0.0))
        return threads.cycles(locks, window_opens())


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make load on a peer, and print figures.")
    parser.add_argument("shape", choices=[*SHAPES, "P4"])
    parser.add_argument("--peer", choices=[*IN_TASKS, *IN_THREADS, *CACHES], required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--server-pid", type=int, required=True)
    parser.add_argument("--warm-up", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=3.0)
    return parser.parse_args()


def main() -> None:
    """Makes the load that the command line asks for."""
    asked = options()
    observed = Observed([asked.server_pid], None)
    if asked.shape == "P4":
        print(json.dumps(one_load_for_all(asked.peer, asked.port, observed)))
        return
    shape = SHAPES[asked.shape]
    # The warm-up begins when all are connected, which takes some peers longer than it lasts.
    window_opens = partial(Window, asked.warm_up, asked.seconds, on_begin=observed.begin)
    if asked.peer in IN_TASKS:
        figures = asyncio.run(in_tasks(asked.peer, asked.port, shape, window_opens))
    else:
        figures = in_threads(asked.peer, asked.port, shape, window_opens)
    figures |= observed.shares()
    figures["rate"] *= shape.counts_for_each
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
