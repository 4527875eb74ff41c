"""`python -m bench.where [P1] ...`: where a server's time goes, in microseconds per operation.

py-spy looks at the running server 400 times a second. A sample belongs to the part of the server
whose function is at the top of the stack; the standard library's belong to whoever called them. So
a system call is with the line that makes it: those of sockets and epoll have rows of their own.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from bench.observed import Figures
from bench.pinning import Cores
from bench.processes import KINDS, SERVE, Running, measure, running

SHAPES: Final = ("P1", "P2", "P3", "P7")
SAMPLES_PER_S: Final = 400
BEGIN_S: Final = 2.5
"""Until the load has connected and warmed up."""

PARTS: Final = (
    (
        "reading and writing sockets",
        ("leasekeeper/server/transport.py:send_now", "trio/_socket.py"),
    ),
    ("epoll", ("trio/_core/_io_epoll.py", "selectors.py")),
    ("WebSocket frames", ("leasekeeper/server/frames.py", "leasekeeper/server/transport.py")),
    ("JSON and its checks (orjson, cattrs)", ("leasekeeper/wire/", "<cattrs", "cattrs/")),
    ("connection and outbox", ("leasekeeper/server/",)),
    ("service", ("leasekeeper/service/", "leasekeeper/store/alarms.py", "prometheus_client/")),
    ("rules (core)", ("leasekeeper/core/",)),
    ("embedded store", ("leasekeeper/store/memory", "sortedcontainers/")),
    ("Redis: store and protocol", ("leasekeeper/store/redis/", "leasekeeper/resp/", "redis/")),
    ("scheduling (Trio)", ("trio/", "outcome/")),
)
"""What a part's functions are found by; the first that fits."""


def part_of(stack: str) -> str:
    """The part of the server that the top of a stack, `function (file:line);...`, belongs to."""
    for call in reversed(stack.split(";")):
        function, _, place = call.partition(" (")
        path = place.rpartition(":")[0].replace("\\", "/")
        where = f"{path}:{function.rpartition('.')[2]}"
        for part, prefixes in PARTS:
            if any(prefix in where for prefix in prefixes):
                return part
    return "other"


def shares_of(samples: str) -> dict[str, float]:
    """The share of each part, from what py-spy writes with `--format raw`."""
    counted: Counter[str] = Counter()
    for line in samples.splitlines():
        stack, _, count = line.rpartition(" ")
        counted[part_of(stack)] += int(count)
    total = counted.total()
    return {part: count / total for part, count in counted.items()}


def watch(shape: str, started: Running, core: int | None, seconds: float) -> tuple[Figures, str]:
    """Runs the load, and looks at the first server meanwhile."""
    figures: list[Figures] = []
    options = ("--seconds", str(seconds))
    load = threading.Thread(
        target=lambda: figures.append(measure(shape, started, core, options)), daemon=True
    )
    load.start()
    load.join(BEGIN_S)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples"
        subprocess.run(
            [
                *("py-spy", "record", "--pid", str(started.servers[0].pid)),
                *("--duration", str(int(seconds - BEGIN_S)), "--rate", str(SAMPLES_PER_S)),
                *("--format", "raw", "--output", str(path)),
            ],
            check=True,
            capture_output=True,
        )
        load.join()
        return figures[0], path.read_text()


def table(measured: dict[tuple[str, str], dict[str, float]]) -> str:
    """Microseconds per operation: a row for each part, a column for each shape and server."""
    heads = [
        f"{shape}, {KINDS[kind].title.removeprefix('leasekeeper').strip(', ')}"
        for shape, kind in measured
    ]
    lines = [f"| µs per operation | {' | '.join(heads)} |", "|---" + "|---:" * len(heads) + "|"]
    for part in [*(part for part, _ in PARTS), "other"]:
        costs = [parts.get(part, 0.0) for parts in measured.values()]
        lines.append(f"| {part} | {' | '.join(f'{each:.1f}' for each in costs)} |")
    sums = [sum(parts.values()) for parts in measured.values()]
    lines.append(f"| **all** | {' | '.join(f'**{each:.0f}**' for each in sums)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.where")
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"of {' '.join(SHAPES)}")
    parser.add_argument("--store", choices=["memory", "redis"], action="append")
    parser.add_argument("--seconds", type=float, default=8.0, help="per shape and server")
    asked = parser.parse_args(arguments)
    if shutil.which("py-spy") is None:
        print("py-spy is not here: pip install py-spy", file=sys.stderr)
        return 69
    kinds = {"memory": "leasekeeper", "redis": "redis"}
    cores = Cores.available()
    measured: dict[tuple[str, str], dict[str, float]] = {}
    for shape in asked.shapes or SHAPES:
        for store in asked.store or kinds:
            print(f"{shape}, {store}", file=sys.stderr)
            with running(KINDS[kinds[store]], SERVE, cores) as started:
                figures, samples = watch(shape, started, cores.load, asked.seconds)
            each_us = 1e6 * figures["server_cpu"] / figures["rate"]
            shares = shares_of(samples)
            measured[shape, kinds[store]] = {part: s * each_us for part, s in shares.items()}
    print(table(measured))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
