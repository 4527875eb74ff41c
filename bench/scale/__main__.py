"""`just scale [WHICH...] [--store both] [--json FILE] [--markdown FILE] [--plots DIR]`."""

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from attrs import asdict

from bench.descriptors import at_most
from bench.drawing import require_matplotlib
from bench.pinning import Cores
from bench.processes import LoadFailed, NotStarted, measure
from bench.redises import NoRedis
from bench.report import head, machine
from bench.scale.curves import write_curves
from bench.scale.report import Measured, Point, table
from bench.scale.series import KIND_OF, SERIES
from tests.redises import RedisFailed

STORES: Final = ("memory", "redis")

DESCRIPTION: Final = "What an operation costs as the number of something grows.\n\n" + "\n".join(
    f"{name:<12} {series.title}: {', '.join(f'{size:,}' for size in series.sizes)}"
    for name, series in SERIES.items()
)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="just scale",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "which", nargs="*", metavar="WHICH", help="by default all: some nine minutes"
    )
    parser.add_argument("--store", choices=[*STORES, "both"], default="both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="per point and round; waiters have longer and fewer",
    )
    parser.add_argument("--up-to", type=int, metavar="N", help="leave out what is larger")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure of every round")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="what is printed, too")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="as SVG, with matplotlib")
    asked = parser.parse_args()
    if unknown := set(asked.which) - set(SERIES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(SERIES)}")
    if asked.plots is not None:
        require_matplotlib(parser)
    return asked


def points_of(name: str, up_to: int | None) -> list[Point]:
    """The sizes of a series that are wanted, and that this machine lets us have."""
    sizes = [size for size in SERIES[name].sizes if up_to is None or size <= up_to]
    if name == "connections" and sizes:
        most = at_most(sizes[-1])
        sizes = sorted({min(size, most) for size in sizes})
    return [Point(size) for size in sizes]


def measure_all(asked: argparse.Namespace, cores: Cores) -> list[Measured]:
    """Every series that is wanted, over every store that it is for."""
    stores = STORES if asked.store == "both" else (asked.store,)
    return [
        measured_over(name, store, points, asked, cores)
        for name, series in SERIES.items()
        if name in (asked.which or SERIES)
        for store in stores
        if store in series.stores
        if (points := points_of(name, asked.up_to))
    ]


def measured_over(
    name: str, store: str, points: list[Point], asked: argparse.Namespace, cores: Cores
) -> Measured:
    """All points of a series are there all the time, and idle while another is measured."""
    series = SERIES[name]
    seconds = ("--seconds", str(asked.seconds * series.windows))
    with ExitStack() as stack:
        started = []
        for point in points:
            print(f"{name}, {store}: {point.n:,}", file=sys.stderr)
            started.append(stack.enter_context(series.start(KIND_OF[store], point.n, cores)))
        for number in range(1, -(-asked.rounds // series.windows) + 1):
            print(f"{name}, {store}: round {number}", file=sys.stderr)
            for point, running in zip(points, started, strict=True):
                options = [*seconds, *series.options(point.n)]
                point.rounds.append(measure(series.shape, running, cores.load, options))
    return Measured(name, store, points)


def main() -> int:
    """Measures, prints the table, writes the files. Exit 1: a failure, or the queue's order."""
    asked = parse()
    where, cores = machine(), Cores.available()
    try:
        measured = measure_all(asked, cores)
    except (NotStarted, NoRedis, RedisFailed, LoadFailed) as problem:
        print(problem, file=sys.stderr)
        return 1
    how = f"{asked.rounds} rounds of {asked.seconds:g} s, for waiters longer and fewer; "
    report = f"{head(how + cores.told, where, {})}\n\n{table(measured)}"
    print(report)
    if asked.json is not None:
        document = {"machine": where, "seconds": asked.seconds, "series": [*map(asdict, measured)]}
        asked.json.write_text(json.dumps(document, indent=1) + "\n")
    if asked.markdown is not None:
        asked.markdown.write_text(report + "\n")
    if asked.plots is not None:
        write_curves(asked.plots, measured)
    return int(any(out_of_order(each) for each in measured))


def out_of_order(measured: Measured) -> bool:
    """Whether waiters were not granted in the order in which they came: a bug, not slowness."""
    figures = (figures for point in measured.points for figures in point.rounds)
    return any(each.get("out_of_order", 0) > 0 for each in figures)


if __name__ == "__main__":
    raise SystemExit(main())
