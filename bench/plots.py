"""The figures that are compared, as SVG: one file each.

`python -m bench.plots FILE DIR` draws an earlier run again.
"""

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

from bench.drawing import INK, OTHERS, OURS, draw_again, plot, steps_of_1_2_5
from bench.hand_offs import PERCENTILES
from bench.observed import Figures
from bench.processes import KINDS
from bench.report import Rounds, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FRAME_IN: Final = 1.4
"""What is above and below the servers of a plot."""
EACH_IN: Final = 0.3
NOTE_IN: Final = 0.2
"""The second line of a note."""
BAR: Final = 0.65
"""How much of its line a bar fills."""


@frozen
class Chart:
    """A figure of a shape that is drawn as bars."""

    shape: str
    figure: str
    title: str
    unit: str
    better: str


CHARTS: Final = (
    Chart("P1", "rate", "P1: 50 workers with a free lock each", "lock cycles a second", "longer"),
    Chart("P2", "rate", "P2: 50 connections, one request each", "messages a second", "longer"),
    Chart(
        "P4",
        "last_ms",
        "P4: the last caller of a missing key",
        "ms after the load ended",
        "shorter",
    ),
)
HAND_OFF_FIGURES: Final = {*PERCENTILES, "hand_offs", "out_of_order", "fairness", "least_share"}
"""Earlier runs lack some of them."""


@frozen
class Served:
    """One server of a plot, and what was measured of it in each round."""

    kind: str
    shape: str
    rounds: Sequence[Figures]

    @property
    def label(self) -> str:
        """Its name; that of a peer that is not known any more is what the file says."""
        title = KINDS[self.kind].title if self.kind in KINDS else self.kind
        return f"{title} (P3b)" if self.shape == "P3b" else title

    @property
    def colour(self) -> str:
        """Whether it is ours."""
        return OURS if self.kind in KINDS and KINDS[self.kind].store else OTHERS

    def values(self, figure: str) -> list[float]:
        """One a round."""
        return [figures[figure] for figures in self.rounds]

    def median(self, figure: str) -> float:
        """Over the rounds."""
        return statistics.median(self.values(figure))


def served(
    measured: dict[str, Rounds], shapes: Sequence[str], wanted: set[str]
) -> Iterator[Served]:
    """The servers that these shapes were measured on, where all the wanted figures are there."""
    for shape in shapes:
        for kind, rounds in measured.get(shape, {}).items():
            if rounds and all(wanted <= figures.keys() for figures in rounds):
                yield Served(kind, shape, rounds)


def height_in(servers: Sequence[Served]) -> float:
    """That of a plot with a line for each."""
    return FRAME_IN + EACH_IN * len(servers)


def name_lines(axes: "Axes", servers: Sequence[Served], beside: Sequence[str] = ()) -> None:
    """Writes the servers to the left of their lines, the first on top, and texts to the right."""
    places = range(len(servers))
    axes.set_yticks(places, [each.label for each in servers])
    axes.set_ylim(len(servers) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    for label, each in zip(axes.get_yticklabels(), servers, strict=True):
        label.set_fontweight("bold" if each.colour == OURS else "normal")
    if beside:
        right = axes.secondary_yaxis("right")
        right.set_yticks(places, beside)
        right.tick_params(length=0, pad=8)
        right.spines["right"].set_visible(False)


def draw_bars(path: Path, chart: Chart, servers: Sequence[Served]) -> None:
    """Bars as long as the medians, and a line from the least to the most."""
    note = f"{chart.better} is better; bar: median, line: least to most over the rounds"
    with plot(path, chart.title, note, height_in(servers)) as axes:
        for place, each in enumerate(servers):
            values, median = each.values(chart.figure), each.median(chart.figure)
            axes.barh(
                place,
                median,
                BAR,
                color=each.colour,
                xerr=[[median - min(values)], [max(values) - median]],
                error_kw={"ecolor": INK, "capsize": 2, "linewidth": 1},
            )
            axes.annotate(
                number(median),
                (max(values), place),
                xytext=(6, 0),
                textcoords="offset points",
                verticalalignment="center",
            )
        name_lines(axes, servers)
        axes.margins(x=0.1)
        axes.xaxis.set_major_formatter(lambda value, _: number(value))
        axes.set_xlabel(chart.unit)


def draw_latencies(path: Path, servers: Sequence[Served]) -> None:
    """How the latencies of hand-offs are spread."""
    note = (
        "shorter is better; medians over the rounds\n"
        "box: p25 to p75, line in it: p50; whiskers: p5 to p99; dot: p99.9"
    )
    boxes = [
        {
            "whislo": each.median("p5_ms"),
            "q1": each.median("p25_ms"),
            "med": each.median("p50_ms"),
            "q3": each.median("p75_ms"),
            "whishi": each.median("p99_ms"),
            "fliers": [each.median("p999_ms")],
        }
        for each in servers
    ]
    line = {"color": INK}
    with plot(
        path, "P3: 20 waiters on one lock, hand-off", note, height_in(servers) + NOTE_IN
    ) as axes:
        drawn = axes.bxp(
            boxes,
            positions=range(len(servers)),
            widths=BAR,
            orientation="horizontal",
            patch_artist=True,
            boxprops={"edgecolor": INK},
            medianprops=line | {"linewidth": 2},
            whiskerprops=line,
            capprops=line,
            flierprops={"marker": "o", "markersize": 4, "markerfacecolor": INK},
            manage_ticks=False,
        )
        for box, each in zip(drawn["boxes"], servers, strict=True):
            box.set_facecolor(each.colour)
        axes.set_xscale("log")
        steps_of_1_2_5(axes.xaxis)
        beside = [
            f"p50 {number(each.median('p50_ms'))}, p99 {number(each.median('p99_ms'))} ms"
            for each in servers
        ]
        name_lines(axes, servers, beside)
        axes.set_xlabel("ms from the release to the next holder's grant, logarithmic")


def draw_fairness(path: Path, servers: Sequence[Served]) -> None:
    """How evenly the waiters are served, and how many grants are out of order."""
    note = (
        "bar: Jain's index of the waiters' grants; diamond: the fewest grants, of the mean\n"
        "medians over the rounds; grants out of order: of all rounds together"
    )
    beside = [
        f"out of order: {sum(each.values('out_of_order')):,.0f} "
        f"of {sum(each.values('hand_offs')):,.0f}"
        for each in servers
    ]
    places = range(len(servers))
    with plot(
        path, "P3: 20 waiters on one lock, fairness", note, height_in(servers) + NOTE_IN
    ) as axes:
        colours = [each.colour for each in servers]
        axes.barh(places, [each.median("fairness") for each in servers], BAR, color=colours)
        least = [each.median("least_share") for each in servers]
        axes.plot(
            least, places, "D", color="white", markeredgecolor=INK, markersize=6, clip_on=False
        )
        name_lines(axes, servers, beside)
        axes.set_xlim(0, 1)
        axes.set_xlabel("fairness; 1: all waiters are served equally often")


def write_plots(directory: Path, measured: dict[str, Rounds]) -> None:
    """A file for each figure that was measured, named by shape and figure."""
    directory.mkdir(parents=True, exist_ok=True)
    for chart in CHARTS:
        if servers := list(served(measured, [chart.shape], {chart.figure})):
            draw_bars(directory / f"{chart.shape}-{chart.figure}.svg", chart, servers)
    if servers := list(served(measured, ["P3", "P3b"], HAND_OFF_FIGURES)):
        draw_latencies(directory / "P3-hand-off.svg", servers)
        draw_fairness(directory / "P3-fairness.svg", servers)


if __name__ == "__main__":
    draw_again("python -m bench.plots", lambda path, run: write_plots(path, run["rounds"]))
