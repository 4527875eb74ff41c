"""`just bench [P1] [P2] ... [--peers] [--store both] [--rounds 5] [--seconds 3] [--json FILE]`."""

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from attrs import frozen

from bench.descriptors import connections_max
from bench.drawing import require_matplotlib
from bench.load import add_sizes
from bench.peers.catalogue import PEERS, installed
from bench.pinning import Cores
from bench.plots import write_plots
from bench.processes import KINDS, SERVE, LoadFailed, NotStarted, Running, measure, running
from bench.redises import NoRedis
from bench.report import Rounds, busy_table, head, machine, table
from bench.rows import rows_of

SHORT: Final = {
    "P1": ("leasekeeper", "redis", "redis-unix", "websocket"),
    "P2": ("leasekeeper", "redis", "lines", "websocket"),
    "P3": ("leasekeeper", "redis", "redis-unix"),
    "P3b": ("redis-two",),
    "P4": ("leasekeeper", "redis-two"),
    "P7": ("leasekeeper", "redis", "get", "bare"),
    "P7c": ("leasekeeper", "redis", "get", "bare"),
}
"""What each shape is measured against, in the order within a round."""
LONG: Final = {
    "P5": ("redis",),
    "P5h": ("redis",),
    "P6": ("leasekeeper", "redis"),
    "P6l": ("leasekeeper", "redis"),
    "M1": ("leasekeeper", "redis"),
    "T1": ("leasekeeper", "redis"),
}
"""Those that take minutes: only when they are named, once, with servers of their own."""

OPTIONS: Final = {
    ("P6", "leasekeeper"): ("--connections", "1000000"),
    ("P6", "redis"): ("--connections", "1000000"),
    ("M1", "redis"): ("--fence-memory-ms", "1000"),
    ("T1", "redis"): ("--fence-memory-ms", "1000"),
}
"""What a server is started with for a long shape."""
STORES: Final = ("memory", "redis")

DESCRIPTION: Final = """
Measure the load shapes.

P1   50 workers over one connection, each with a lock of its own
P2   50 connections, one request each at a time
P3   20 waiters on one lock
P3b  the same, spread over two servers of one Redis
P4   10,000 callers of one missing key: one of them loads it for all
P5   100,000 leases held and renewed, kept alive by pongs: some two minutes
P5h  the same, kept alive by heartbeats
P6   10,000 idle connections: some ten seconds for each store
P6l  100,000 leases held, and the memory they take: a minute or two for each store
P7   50 workers over one connection, each with a cached value of its own
P7c  50 connections, each with a cached value of its own
M1   a million names, each used once: some minutes for each store
T1   100,000 values of one tag, invalidated at once; a million with tags that expire: some minutes
"""


@frozen
class Plan:
    """What is to be measured."""

    short: dict[str, tuple[str, ...]]
    long: dict[str, tuple[str, ...]]
    rounds: int
    seconds: float
    warm_up: float | None
    """None: as long as each load thinks right; Redisson wants twenty times as long as others."""
    serve: Sequence[str]
    sizes: Sequence[str]


@frozen
class Outputs:
    """Where the figures go, beside the terminal."""

    json: Path
    markdown: Path | None
    plots: Path | None


def parser_of_options() -> argparse.ArgumentParser:
    """What the command line may say."""
    parser = argparse.ArgumentParser(
        prog="just bench",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "shapes", nargs="*", metavar="SHAPE", help=f"by default {' '.join(SHORT)}: seven minutes"
    )
    parser.add_argument(
        "--peers",
        nargs="*",
        choices=list(PEERS),
        metavar="PEER",
        help=f"beside other people's locks and caches, in the same rounds: {', '.join(PEERS)}; "
        "by default those that are installed. To be named after the shapes",
    )
    parser.add_argument("--store", choices=[*STORES, "both"], default="both")
    parser.add_argument("--rounds", type=int, default=5, help="of the short shapes")
    parser.add_argument("--seconds", type=float, default=3.0, help="per shape, server and round")
    parser.add_argument("--warm-up", type=float, help="seconds before each of these")
    parser.add_argument(
        "--server",
        type=shlex.split,
        default=SERVE,
        metavar="COMMAND",
        help="measure another build: a command that prints the listening line",
    )
    add_sizes(parser)
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        default=Path(__file__).parent / "results" / "last.json",
        help="default: bench/results/last.json",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="what is printed, too")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="as SVG, with matplotlib")
    return parser


def parse() -> tuple[Plan, Outputs]:
    """The command line: what to measure, and where to write it."""
    parser = parser_of_options()
    asked = parser.parse_args()
    unknown = set(asked.shapes) - set(SHORT) - set(LONG)
    if unknown:
        parser.error(
            f"unknown shape {', '.join(sorted(unknown))}; there are {', '.join([*SHORT, *LONG])}"
        )
    if asked.plots is not None:
        require_matplotlib(parser)
    stores = STORES if asked.store == "both" else (asked.store,)
    wanted = asked.shapes or SHORT
    peers = [] if asked.peers is None else installed(asked.peers or PEERS)
    plan = Plan(
        short=with_peers(kinds_of(SHORT, wanted, stores), peers),
        long=kinds_of(LONG, wanted, stores),
        rounds=asked.rounds,
        seconds=asked.seconds,
        warm_up=asked.warm_up,
        serve=asked.server,
        sizes=sizes_of(asked),
    )
    if not plan.short and not plan.long:
        parser.error(f"{', '.join(wanted)} is not for --store {asked.store}")
    return plan, Outputs(asked.json, asked.markdown, asked.plots)


def kinds_of(
    shapes: dict[str, tuple[str, ...]],
    wanted: Sequence[str] | dict[str, tuple[str, ...]],
    stores: Sequence[str],
) -> dict[str, tuple[str, ...]]:
    """The wanted shapes that some server of ours has a store for, with the yardsticks."""
    possible = {
        name
        for name, kind in KINDS.items()
        if kind.store in {None, *stores} and ("redis" in stores or not kind.needs_redis)
    }
    kept = {
        shape: tuple(kind for kind in kinds if kind in possible)
        for shape, kinds in shapes.items()
        if shape in wanted
    }
    return {
        shape: kinds
        for shape, kinds in kept.items()
        if any(KINDS[kind].store is not None for kind in kinds)
    }


def with_peers(
    shapes: dict[str, tuple[str, ...]], peers: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """The shapes with the peers that know what they ask for, at the end of each round."""
    return {
        shape: (*kinds, *(name for name in peers if shape in PEERS[name].shapes))
        for shape, kinds in shapes.items()
    }


def sizes_of(asked: argparse.Namespace) -> list[str]:
    """How big the shapes are, as options of the load."""
    names = ("callers", "leases", "connections", "ttl_ms", "names", "tagged", "cycles")
    return [
        word
        for name in names
        for word in (f"--{name.replace('_', '-')}", str(getattr(asked, name)))
    ]


def measure_short(plan: Plan, cores: Cores) -> dict[str, Rounds]:
    """Every shape on every server, interleaved: a slow minute of the machine hits all alike."""
    kinds = dict.fromkeys(kind for kinds in plan.short.values() for kind in kinds)
    measured: dict[str, Rounds] = {
        shape: {kind: [] for kind in kinds} for shape, kinds in plan.short.items()
    }
    window = ["--seconds", str(plan.seconds)]
    if plan.warm_up is not None:
        window += ["--warm-up", str(plan.warm_up)]
    with ExitStack() as stack:
        started = started_of(kinds, plan, cores, stack)
        for round_number in range(1, plan.rounds + 1):
            for shape, kind in pairs(plan.short):
                if kind not in started or kind not in measured[shape]:
                    measured[shape].pop(kind, None)
                    continue
                print(f"round {round_number}: {shape}, {kind}", file=sys.stderr)
                options = window if KINDS[kind].peer else (*window, *plan.sizes)
                try:
                    figures = measure(shape, started[kind], cores.load, options)
                except LoadFailed as problem:
                    without_peer(kind, problem)
                    del measured[shape][kind]
                else:
                    measured[shape][kind].append(figures)
    return measured


def started_of(
    kinds: Iterable[str], plan: Plan, cores: Cores, stack: ExitStack
) -> dict[str, Running]:
    """The servers, without those of peers that do not start."""
    started = {}
    for kind in kinds:
        try:
            started[kind] = stack.enter_context(running(KINDS[kind], plan.serve, cores))
        except NotStarted as problem:
            without_peer(kind, problem)
    return started


def without_peer(kind: str, problem: Exception) -> None:
    """A peer that fails is left out, and the rest goes on; ours and the yardsticks end the run."""
    if KINDS[kind].peer is None:
        raise problem
    print(f"NOT MEASURED: {kind}: {problem}", file=sys.stderr)


def measure_long(plan: Plan, cores: Cores) -> dict[str, Rounds]:
    """Every long shape once, on servers that nothing else has used."""
    measured: dict[str, Rounds] = {}
    for shape, kind in pairs(plan.long):
        print(f"{shape}, {kind}", file=sys.stderr)
        options = OPTIONS.get((shape, kind), ())
        with running(KINDS[kind], plan.serve, cores, options) as started:
            figures = measure(shape, started, cores.load, plan.sizes)
        measured.setdefault(shape, {})[kind] = [figures]
    return measured


def pairs(shapes: dict[str, tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """Each shape with each of its servers."""
    return ((shape, kind) for shape, kinds in shapes.items() for kind in kinds)


def main() -> int:
    """Measures, prints the tables, writes the files. Exit 1: a law was broken, or a failure."""
    plan, outputs = parse()
    connections_max()
    where, cores = machine(), Cores.available()
    try:
        measured = measure_short(plan, cores) | measure_long(plan, cores)
    except (NotStarted, NoRedis, LoadFailed) as problem:
        print(problem, file=sys.stderr)
        return 1
    rows = [row for shape, rounds in measured.items() for row in rows_of(shape, rounds)]
    rounds = f"{plan.rounds} rounds of {plan.seconds:g} s; " if plan.short else ""
    versions = {
        kind: PEERS[kind].version()
        for kind in dict.fromkeys(kind for rounds in measured.values() for kind in rounds)
        if kind in PEERS
    }
    report = "\n\n".join(
        [head(rounds + cores.told, where, versions), table(rows), busy_table(measured)]
    )
    print(report)
    outputs.json.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "machine": where,
        "versions": versions,
        "seconds": plan.seconds,
        "rounds": measured,
    }
    outputs.json.write_text(json.dumps(document, indent=1) + "\n")
    if outputs.markdown is not None:
        outputs.markdown.parent.mkdir(parents=True, exist_ok=True)
        outputs.markdown.write_text(report + "\n")
    if outputs.plots is not None:
        write_plots(outputs.plots, measured)
    return int(any(row.breaks_a_law for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
