"""What operations cost against how many there are of something, as SVG: one file a series."""

import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Final

from attrs import frozen

from bench.plots import OTHERS, OURS, STYLE
from bench.report import number
from bench.scale.report import REDIS, SERVER, Measure, Measured, Point, slope_text
from bench.scale.series import SERIES

LEFT_PX: Final = 70
RIGHT_PX: Final = 570
TOP_PX: Final = 120
BOTTOM_PX: Final = 400
WIDTH_PX: Final = 600
HEIGHT_PX: Final = 450
EMBEDDED: Final = "#c0662f"
STEPS: Final = (1, 2, 5)
"""Where lines are drawn within a decade."""


@frozen
class Curve:
    """One cost of a series over one store."""

    label: str
    colour: str
    points: Sequence[Point]
    measure: Measure


@frozen
class Axis:
    """A logarithmic axis, from pixel to pixel."""

    least: float
    most: float
    begin_px: float
    end_px: float

    def px(self, value: float) -> float:
        """Where a value is."""
        share = math.log(value / self.least) / math.log(self.most / self.least)
        return self.begin_px + share * (self.end_px - self.begin_px)


def steps(least: float, most: float) -> list[float]:
    """1, 2, 5, 10, ..., from the last that is not above the least to the first not below the most.

    There are at least two.
    """
    decades = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 2)
    every = [step * 10.0**decade for decade in decades for step in STEPS]
    first = max(each for each in every if each <= least)
    last = min(each for each in every if each >= most and each > first)
    return [each for each in every if first <= each <= last]


def curves_of(measured: Sequence[Measured]) -> Iterator[Curve]:
    """The costs of a series that can be drawn."""
    for each in measured:
        costs = [(SERVER, "server, embedded store", EMBEDDED)]
        if each.store == "redis":
            costs = [(SERVER, "servers, on Redis", OURS), (REDIS, "Redis", OTHERS)]
        for measure, label, colour in costs:
            if all(min(point.values(measure)) > 0 for point in each.points):
                slope = slope_text(each.slope(measure))
                yield Curve(f"{label}: slope {slope}", colour, each.points, measure)


def drawing(series: str, curves: Sequence[Curve]) -> str:
    """The whole file."""
    sizes = sorted({point.n for curve in curves for point in curve.points})
    costs = [
        value for curve in curves for point in curve.points for value in point.values(curve.measure)
    ]
    ticks = steps(min(costs), max(costs))
    across = Axis(sizes[0], max(sizes[-1], sizes[0] + 1), LEFT_PX + 20, RIGHT_PX - 20)
    up = Axis(ticks[0], ticks[-1], BOTTOM_PX, TOP_PX)
    about = SERIES[series]
    note = f"CPU time for each {about.operation}, µs; line: spread over the rounds"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" '
            'role="img">',
            f"<title>{escape(about.title)}</title>",
            f'<style>{STYLE}</style><rect width="{WIDTH_PX}" height="{HEIGHT_PX}" fill="#fff"/>',
            f'<text x="8" y="18" class="title">{escape(about.title)}</text>',
            f'<text x="8" y="36" class="note">{escape(note)}</text>',
            *grid(up, ticks),
            *feet(across, sizes, about.number),
            *(
                line
                for place, curve in enumerate(curves)
                for line in drawn(curve, place, across, up)
            ),
            "</svg>\n",
        ]
    )


def grid(up: Axis, ticks: Sequence[float]) -> Iterator[str]:
    """The lines of the costs."""
    for tick in ticks:
        y = up.px(tick)
        yield f'<path d="M{LEFT_PX} {y:.1f}H{RIGHT_PX}" stroke="#e4e6e8"/>'
        yield f'<text x="{LEFT_PX - 8}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>'


def feet(across: Axis, sizes: Sequence[int], what: str) -> Iterator[str]:
    """The numbers below, and what they count."""
    for size in sizes:
        x = across.px(size)
        yield f'<text x="{x:.1f}" y="{BOTTOM_PX + 20}" text-anchor="middle">{size:,}</text>'
    middle = (LEFT_PX + RIGHT_PX) / 2
    yield (
        f'<text x="{middle:.0f}" y="{BOTTOM_PX + 40}" text-anchor="middle" class="note">'
        f"{escape(what)}</text>"
    )


def drawn(curve: Curve, place: int, across: Axis, up: Axis) -> Iterator[str]:
    """Its line in the legend, a line through the medians, and the spread at each of them."""
    foot = 58 + 18 * place
    yield f'<path d="M8 {foot - 4}H32" stroke="{curve.colour}" stroke-width="2"/>'
    yield f'<text x="40" y="{foot}">{escape(curve.label)}</text>'
    places = [(across.px(point.n), up.px(point.median(curve.measure))) for point in curve.points]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    yield f'<path d="M{path}" stroke="{curve.colour}" stroke-width="2" fill="none"/>'
    for (x, y), point in zip(places, curve.points, strict=True):
        values = point.values(curve.measure)
        least, most = up.px(min(values)), up.px(max(values))
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{curve.colour}"/>'
        yield f'<path d="M{x:.1f} {least:.1f}V{most:.1f}" stroke="#222"/>'


def write_curves(directory: Path, measured: Sequence[Measured]) -> None:
    """A file for each series that was measured."""
    directory.mkdir(parents=True, exist_ok=True)
    for series in dict.fromkeys(each.series for each in measured):
        if curves := list(curves_of([each for each in measured if each.series == series])):
            (directory / f"scale-{series}.svg").write_text(drawing(series, curves))
