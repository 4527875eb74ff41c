"""Bars of the figures that are compared, as SVG: one file a figure, without a library for it."""

import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from attrs import frozen

from bench.processes import KINDS
from bench.report import Rounds, column, number

LABELS_PX: Final = 270
BARS_PX: Final = 420
VALUES_PX: Final = 110
BAR_PX: Final = 18
STEP_PX: Final = 26
TOP_PX: Final = 44
OURS: Final = "#2f6f9f"
OTHERS: Final = "#b8bec4"
STYLE: Final = "text{font:13px sans-serif;fill:#222}.title{font-weight:bold}.note{fill:#666}"


@frozen
class Chart:
    """A figure of a shape."""

    shape: str
    figure: str
    title: str
    unit: str
    better: str


CHARTS: Final = (
    Chart("P1", "rate", "P1: 50 workers with a free lock each", "lock cycles a second", "longer"),
    Chart("P2", "rate", "P2: 50 connections, one request each", "messages a second", "longer"),
    Chart("P3", "p50_ms", "P3: 20 waiters on one lock, hand-off, p50", "ms", "shorter"),
    Chart("P3", "p99_ms", "P3: 20 waiters on one lock, hand-off, p99", "ms", "shorter"),
    Chart("P4", "last_ms", "P4: the last caller of a missing key", "ms", "shorter"),
)


@frozen
class Bar:
    """One server: the median over the rounds, and their spread."""

    label: str
    ours: bool
    values: Sequence[float]

    def drawn(self, top: int, scale: float) -> str:
        """A bar as long as the median, and a line from the least to the most."""
        median = statistics.median(self.values)
        middle = top + BAR_PX // 2
        least, most = (LABELS_PX + scale * end for end in (min(self.values), max(self.values)))
        return "\n".join(
            [
                f'<text x="{LABELS_PX - 8}" y="{middle + 4}" text-anchor="end">'
                f"{escape(self.label)}</text>",
                f'<rect x="{LABELS_PX}" y="{top}" width="{scale * median:.1f}" '
                f'height="{BAR_PX}" fill="{OURS if self.ours else OTHERS}"/>',
                f'<path d="M{least:.1f} {middle}H{most:.1f}" stroke="#222"/>',
                f'<text x="{most + 8:.1f}" y="{middle + 4}">{number(median)}</text>',
            ]
        )


def drawing(chart: Chart, bars: Sequence[Bar]) -> str:
    """The whole file."""
    most = max(max(bar.values) for bar in bars)
    scale = BARS_PX / most if most else 0.0
    width, height = LABELS_PX + BARS_PX + VALUES_PX, TOP_PX + STEP_PX * len(bars) + 8
    note = f"{chart.unit}; {chart.better} is better; line: spread over the rounds"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(chart.title)}</title>",
        f'<style>{STYLE}</style><rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="8" y="18" class="title">{escape(chart.title)}</text>',
        f'<text x="8" y="36" class="note">{escape(note)}</text>',
        *(bar.drawn(TOP_PX + STEP_PX * place, scale) for place, bar in enumerate(bars)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def write_plots(directory: Path, measured: dict[str, Rounds]) -> None:
    """A file for each figure that was measured, named by shape and figure."""
    directory.mkdir(parents=True, exist_ok=True)
    for chart in CHARTS:
        rounds = measured.get(chart.shape, {})
        bars = [
            Bar(KINDS[kind].title, KINDS[kind].store is not None, column(rounds, kind, name))
            for name in [chart.figure]
            for kind in rounds
        ]
        if bars:
            path = directory / f"{chart.shape}-{chart.figure}.svg"
            path.write_text(drawing(chart, bars))
