"""`just bench [P1] [P2] [P3] [--rounds 5] [--seconds 3] [--json FILE]`."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from bench.processes import SERVE, Cores, Server, echo, measure, running
from bench.report import Rounds, busy_table, machine, rows_of, table

SERVERS: Final = {
    "P1": ("leasekeeper", "websocket"),
    "P2": ("leasekeeper", "lines", "websocket"),
    "P3": ("leasekeeper",),
}
"""What each shape is measured against, in the order within a round."""


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="just bench", description="Measure the load shapes on the embedded store."
    )
    parser.add_argument("shapes", nargs="*", metavar="P1|P2|P3", help="all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="per shape, server and round")
    parser.add_argument(
        "--server",
        type=shlex.split,
        default=SERVE,
        metavar="COMMAND",
        help="measure another build: a command that prints the listening line",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="default: bench/results/last.json"
    )
    parsed = parser.parse_args()
    unknown = set(parsed.shapes) - set(SERVERS)
    if unknown:
        parser.error(f"unknown shape {', '.join(sorted(unknown))}; there are {', '.join(SERVERS)}")
    parsed.shapes = parsed.shapes or list(SERVERS)
    parsed.json = parsed.json or Path(__file__).parent / "results" / "last.json"
    return parsed


def measure_all(
    shapes: list[str], rounds: int, seconds: float, serve: Sequence[str]
) -> dict[str, Rounds]:
    """Every shape on every server, interleaved: a slow minute of the machine hits all alike."""
    cores = Cores.available()
    kinds = dict.fromkeys(kind for shape in shapes for kind in SERVERS[shape])
    measured: dict[str, Rounds] = {shape: {kind: [] for kind in SERVERS[shape]} for shape in shapes}
    with ExitStack() as stack:
        servers: dict[str, Server] = {}
        for kind in kinds:
            command = serve if kind == "leasekeeper" else echo(kind)
            servers[kind] = stack.enter_context(running(kind, command, cores.server))
        for round_number in range(1, rounds + 1):
            for shape in shapes:
                for kind in SERVERS[shape]:
                    print(f"round {round_number}: {shape}, {kind}", file=sys.stderr)
                    figures = measure(shape, servers[kind], cores.load, seconds)
                    measured[shape][kind].append(figures)
    return measured


def main() -> int:
    """Measures, prints the tables, writes the file. Exit 1: grants came out of order."""
    parsed = options()
    where = machine()
    measured = measure_all(parsed.shapes, parsed.rounds, parsed.seconds, parsed.server)
    rows = [row for shape in parsed.shapes for row in rows_of(shape, measured[shape])]
    print(f"{parsed.rounds} rounds of {parsed.seconds:g} s; embedded store; server and load on")
    print(f"a core each. {where['cpu']}; {where['python']}; {where['system']};")
    print(f"load average before: {where['load_average']}.\n")
    if float(where["load_average"]) > 1:
        print("**Other programs were busy: compare costs, not figures.**\n")
    print(table(rows), busy_table(measured), sep="\n\n")
    parsed.json.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": where, "seconds": parsed.seconds, "rounds": measured}
    parsed.json.write_text(json.dumps(document, indent=1) + "\n")
    return int(any(row.what == "grants out of order" and not row.met for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
