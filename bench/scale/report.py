"""Points of a series, the slopes that are fitted to them, and the Markdown table of both."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from attrs import field, frozen

from bench.observed import Figures
from bench.report import number
from bench.scale.series import KIND_OF, SERIES


@frozen
class Measure:
    """What is looked at as the number grows."""

    title: str
    unit: str
    of: Callable[[Figures], float]


def cost_us(who: str) -> Callable[[Figures], float]:
    """Their CPU time for each operation."""
    return lambda figures: 1e6 * figures[who] / figures["rate"]


SERVER: Final = Measure("CPU of the servers", "µs", cost_us("server_cpu"))
REDIS: Final = Measure("CPU of Redis", "µs", cost_us("redis_cpu"))
LATENCY: Final = Measure("latency, p50", "ms", lambda figures: figures["p50_ms"])
MEASURES: Final = (SERVER, REDIS, LATENCY)


@frozen
class Point:
    """One size of a series, and the figures of each round."""

    n: int
    rounds: list[Figures] = field(factory=list)

    def values(self, measure: Measure) -> list[float]:
        """One a round."""
        return [measure.of(figures) for figures in self.rounds]

    def median(self, measure: Measure) -> float:
        """Over the rounds."""
        return statistics.median(self.values(measure))


@frozen
class Measured:
    """A series over one store."""

    series: str
    store: str
    points: Sequence[Point]

    @property
    def measures(self) -> Iterator[Measure]:
        """Those that it has."""
        return (each for each in MEASURES if each is not REDIS or self.store == "redis")

    def slope(self, measure: Measure) -> float:
        """That of the line through its points, where both axes are logarithmic.

        0: it does not depend on the number; 1: it grows in proportion. Not a number if there are
        too few points, or one is too small to be measured.
        """
        medians = [point.median(measure) for point in self.points]
        if len(medians) < 2 or min(medians) <= 0:
            return math.nan
        return statistics.linear_regression(
            [math.log(point.n) for point in self.points], [math.log(each) for each in medians]
        ).slope


def table(measured: Sequence[Measured]) -> str:
    """The costs in Markdown: a row for each point, and below them the slopes."""
    titles = " | ".join(f"{each.title} ({each.unit})" for each in MEASURES)
    lines = [f"| series | server | n | {titles} |", "|---|---|---:|---:|---:|---:|"]
    for each in measured:
        has = set(each.measures)
        begin = f"| {SERIES[each.series].title} | {KIND_OF[each.store].title}"
        for point in each.points:
            cells = [number(point.median(m)) if m in has else "" for m in MEASURES]
            lines.append(f"{begin} | {point.n:,} | {' | '.join(cells)} |")
        slopes = [slope_text(each.slope(m)) if m in has else "" for m in MEASURES]
        lines.append(f"{begin} | **slope** | {' | '.join(slopes)} |")
    return "\n".join(lines)


def slope_text(slope: float) -> str:
    """With its sign."""
    return "?" if math.isnan(slope) else f"{slope:+.2f}"
