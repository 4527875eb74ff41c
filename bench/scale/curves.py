"""What operations cost against how many there are of something, as SVG: one file a series.

`python -m bench.scale.curves FILE DIR` draws an earlier run again.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from bench.drawing import INK, MUTED, OURS, draw_again, plot, steps_of_1_2_5
from bench.scale.report import REDIS, SERVER, Measure, Measured, Point, slope_text
from bench.scale.series import SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT_IN: Final = 5.5
EMBEDDED: Final = "#c0662f"
MARGIN: Final = 2.5
"""So many times more and less than what was measured is shown: 1, 2 and 5 are no further apart."""

BESIDE: Final = 1.2
"""The same to the left and right of the sizes."""


@frozen
class Look:
    """What tells curves apart, also without colour."""

    colour: str
    marker: str
    line: str


@frozen
class Curve:
    """One cost of a series over one store."""

    label: str
    look: Look
    points: Sequence[Point]
    measure: Measure


def curves_of(measured: Sequence[Measured]) -> Iterator[Curve]:
    """The costs of a series that can be drawn."""
    for each in measured:
        costs = [(SERVER, "server, embedded store", Look(EMBEDDED, "s", "-"))]
        if each.store == "redis":
            costs = [
                (SERVER, "servers, on Redis", Look(OURS, "o", "--")),
                (REDIS, "Redis", Look(MUTED, "^", ":")),
            ]
        for measure, label, look in costs:
            if all(min(point.values(measure)) > 0 for point in each.points):
                slope = slope_text(each.slope(measure))
                yield Curve(f"{label}: slope {slope}", look, each.points, measure)


def draw_curve(axes: "Axes", curve: Curve) -> None:
    """A line through the medians, and the spread at each of them."""
    medians = [point.median(curve.measure) for point in curve.points]
    spread = [
        [each - min(point.values(curve.measure)), max(point.values(curve.measure)) - each]
        for each, point in zip(medians, curve.points, strict=True)
    ]
    axes.errorbar(
        [point.n for point in curve.points],
        medians,
        yerr=list(zip(*spread, strict=True)),
        label=curve.label,
        color=curve.look.colour,
        marker=curve.look.marker,
        linestyle=curve.look.line,
        ecolor=INK,
        elinewidth=1,
        capsize=2,
    )


def draw_series(path: Path, series: str, curves: Sequence[Curve]) -> None:
    """Both axes are logarithmic."""
    about = SERIES[series]
    sizes = sorted({point.n for curve in curves for point in curve.points})
    costs = [
        value for curve in curves for point in curve.points for value in point.values(curve.measure)
    ]
    note = "lower is better; point: median, line: least to most over the rounds"
    with plot(path, about.title, note, HEIGHT_IN) as axes:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(sizes[0] / BESIDE, BESIDE * sizes[-1])
        for curve in curves:
            draw_curve(axes, curve)
        axes.set_ylim(min(costs) / MARGIN, MARGIN * max(costs))
        steps_of_1_2_5(axes.yaxis)
        steps_of_1_2_5(axes.xaxis)
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.grid(axis="y")
        axes.set_xlabel(f"{about.number}, logarithmic")
        axes.set_ylabel(f"CPU time for each {about.operation}, µs, logarithmic")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0, frameon=False)


def write_curves(directory: Path, measured: Sequence[Measured]) -> None:
    """A file for each series that was measured."""
    directory.mkdir(parents=True, exist_ok=True)
    for series in dict.fromkeys(each.series for each in measured):
        if curves := list(curves_of([each for each in measured if each.series == series])):
            draw_series(directory / f"scale-{series}.svg", series, curves)


def draw_run(directory: Path, run: dict[str, list[dict[str, Any]]]) -> None:
    """Draws what `--json` has written."""
    write_curves(
        directory,
        [
            Measured(each["series"], each["store"], [Point(**point) for point in each["points"]])
            for each in run["series"]
        ],
    )


if __name__ == "__main__":
    draw_again("python -m bench.scale.curves", draw_run)
