"""The process that makes the load: one shape, one target, one stretch of time; figures as JSON.

`python -m bench.load P2 --target leasekeeper --port 7420 --core 1` prints one line of
them. It is a process of its own so that it shares neither core nor interpreter with the server.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from bench.shapes import Figures, Target, Window, hand_offs, one_connection, one_request_each

SHAPES: Final[dict[str, Callable[[Target, Window], Figures]]] = {
    "P1": lambda target, window: one_connection(target, window, workers_count=50),
    "P2": lambda target, window: one_request_each(target, window, connections=50),
    "P3": lambda target, window: hand_offs(target, window, waiters_count=20),
}


def pin(pid: int, core: int) -> None:
    """Keeps a process on one core, where the system can (Linux)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, {core})


def server_cpu_s(pid: int) -> float:
    """The CPU time another process has used so far; not a number where there is no /proc."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return float("nan")
    return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


class Busy:
    """How busy the load and the server are. A load at 1.0 measures itself, not the server."""

    def __init__(self, server_pid: int) -> None:
        self._server_pid = server_pid
        self.begin()

    def begin(self) -> None:
        """From here on."""
        self._wall = time.monotonic()
        self._load = time.process_time()
        self._server = server_cpu_s(self._server_pid)

    def shares(self) -> Figures:
        """CPU time per wall time since the beginning."""
        wall = time.monotonic() - self._wall
        return {
            "load_cpu": (time.process_time() - self._load) / wall,
            "server_cpu": (server_cpu_s(self._server_pid) - self._server) / wall,
        }


def main() -> None:
    """Makes the load that the command line asks for."""
    parser = argparse.ArgumentParser(description="Make load on a server, and print figures.")
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("--target", choices=["leasekeeper", "lines", "websocket"], required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--server-pid", type=int, default=0)
    parser.add_argument("--core", type=int)
    parser.add_argument("--warm-up", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    if options.core is not None:
        pin(0, options.core)
    busy = Busy(options.server_pid)
    window = Window(options.warm_up, options.seconds, on_begin=busy.begin)
    figures = SHAPES[options.shape](Target(options.host, options.port, options.target), window)
    print(json.dumps(figures | busy.shares()))


if __name__ == "__main__":
    main()
