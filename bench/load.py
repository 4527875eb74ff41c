"""The process that makes the load: one shape, its targets, one stretch of time; figures as JSON.

`python -m bench.load P2 --target leasekeeper --port 7420 --core 1` prints one line of
them. It is a process of its own so that it shares neither core nor interpreter with the server.
"""

import argparse
import json
from collections.abc import Callable
from typing import Final

from attrs import frozen

from bench.herd import one_load_for_all
from bench.hits import hits_each, hits_together
from bench.holding import LASTING_MS, Size, held_and_renewed, held_in_memory
from bench.idle import idle_connections
from bench.line import hand_offs, hand_offs_between
from bench.names import many_names
from bench.observed import Figures, Observed, Store
from bench.pinning import pin
from bench.scale.loads import cycles, long_line
from bench.shapes import Target, Window, one_connection, one_request_each
from bench.tags import tagged_values

LEASES_EACH: Final = 1_000
"""On a connection: as many as a session may hold."""


@frozen
class Load:
    """What a shape is given."""

    targets: tuple[Target, ...]
    observed: Observed
    window: Window
    leases: int
    connections: int
    """0: as many as the shape has by default."""
    ttl_ms: int
    names: int
    tagged: int
    cycles: int
    waiters: int
    callers: int

    def size(self, *, heartbeats: bool) -> Size:
        """That of P5."""
        return Size(self.leases, self._connections, self.ttl_ms, heartbeats)

    @property
    def lasting(self) -> Size:
        """That of P6l."""
        return Size(self.leases, self._connections, LASTING_MS, heartbeats=False)

    @property
    def _connections(self) -> int:
        return self.connections or -(-self.leases // LEASES_EACH)


def alone(load: Load) -> Target:
    """The one target."""
    [target] = load.targets
    return target


SHAPES: Final[dict[str, Callable[[Load], Figures]]] = {
    "P1": lambda load: one_connection(alone(load), load.window, workers_count=50),
    "P2": lambda load: one_request_each(alone(load), load.window, connections=50),
    "P3": lambda load: hand_offs(alone(load), load.window, waiters_count=20),
    "P3b": lambda load: hand_offs_between(load.targets, load.window, waiters_count=20),
    "P4": lambda load: one_load_for_all(load.targets, load.observed, 10, load.callers),
    "P5": lambda load: held_and_renewed(alone(load), load.observed, load.size(heartbeats=False)),
    "P5h": lambda load: held_and_renewed(alone(load), load.observed, load.size(heartbeats=True)),
    "P6": lambda load: idle_connections(alone(load), load.observed, load.connections or 10_000),
    "P6l": lambda load: held_in_memory(alone(load), load.observed, load.lasting),
    "P7": lambda load: hits_together(alone(load), load.window, load.observed, values_count=50),
    "P7c": lambda load: hits_each(alone(load), load.window, connections=50),
    "M1": lambda load: many_names(alone(load), load.observed, 50, load.names),
    "T1": lambda load: tagged_values(alone(load), load.observed, load.tagged, load.cycles),
    "S1": lambda load: cycles(load.targets, load.window, load.observed, workers_count=50),
    "S2": lambda load: long_line(alone(load), load.window, load.observed, load.waiters),
}
WINDOWED: Final = {"P1", "P2", "P3", "P3b", "P7", "P7c"}
"""Those that last as long as they are told."""


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make load on servers, and print figures.")
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument(
        "--target", choices=["leasekeeper", "lines", "websocket", "redis"], required=True
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, action="append", required=True)
    parser.add_argument("--server-pid", type=int, action="append", default=[])
    parser.add_argument("--redis-url", help="to ask the Redis behind the servers for its memory")
    parser.add_argument("--redis-pid", type=int, action="append", default=[])
    parser.add_argument("--core", type=int)
    parser.add_argument("--warm-up", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--waiters", type=int, default=1, help="of S2")
    add_sizes(parser)
    return parser.parse_args()


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """How big the shapes are that do not last as long as they are told."""
    parser.add_argument("--callers", type=int, default=10_000, help="of P4, up to 10,000")
    parser.add_argument("--leases", type=int, default=100_000, help="of P5, P5h and P6l")
    parser.add_argument(
        "--connections",
        type=int,
        default=0,
        help="of P5, P5h and P6l, by default one for 1,000 leases; of P6, by default 10,000",
    )
    parser.add_argument("--ttl-ms", type=int, default=30_000, help="of P5 and P5h")
    parser.add_argument("--names", type=int, default=1_000_000, help="of M1")
    parser.add_argument("--tagged", type=int, default=100_000, help="values of one tag, of T1")
    parser.add_argument("--cycles", type=int, default=1_000_000, help="values that expire, of T1")


def main() -> None:
    """Makes the load that the command line asks for."""
    asked = options()
    if asked.core is not None:
        pin(0, asked.core)
    store = Store(asked.redis_url, tuple(asked.redis_pid)) if asked.redis_url else None
    observed = Observed(asked.server_pid, store)
    load = Load(
        targets=tuple(Target(asked.host, port, asked.target) for port in asked.port),
        observed=observed,
        window=Window(asked.warm_up, asked.seconds, on_begin=observed.begin),
        leases=asked.leases,
        connections=asked.connections,
        ttl_ms=asked.ttl_ms,
        names=asked.names,
        tagged=asked.tagged,
        cycles=asked.cycles,
        waiters=asked.waiters,
        callers=asked.callers,
    )
    figures = SHAPES[asked.shape](load)
    print(json.dumps(figures | observed.shares() if asked.shape in WINDOWED else figures))


if __name__ == "__main__":
    main()
