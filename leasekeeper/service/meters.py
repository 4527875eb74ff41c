"""Counters and histograms for one thread: to count is an addition, and takes no lock.

Those of `prometheus_client` lock for every change, for the sake of programs with threads. All
changes here are made by Trio's thread, some of them several times for every lease, and the locks
took some percent of what a lease takes altogether. What is scraped is made of these by the
families, which a registry of `prometheus_client` collects.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from attrs import define, field
from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily


@define(eq=False)
class Counter:
    """A number that only rises."""

    value: float = 0

    def inc(self, amount: float = 1) -> None:
        """So many more; not less than none."""
        self.value += amount


@define(eq=False)
class Histogram:
    """How often something took how long, in seconds."""

    bounds: Sequence[float]
    """Rising."""
    sum: float = 0
    _counts: list[int] = field(init=False)
    """Up to each bound, from the one before it; and above the last."""

    @_counts.default
    def _nothing_yet(self) -> list[int]:
        return [0] * (len(self.bounds) + 1)

    def observe(self, seconds: float) -> None:
        """It took so long, once."""
        self.sum += seconds
        self._counts[bisect_left(self.bounds, seconds)] += 1

    def buckets(self) -> list[tuple[str, float]]:
        """How often it took no longer than each bound, as it is scraped."""
        bounds = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(bounds, accumulate(self._counts), strict=True))


@define(eq=False)
class Counters:
    """All counters of one name: one for each value of its label, or a single one without."""

    name: str
    meaning: str
    label: str = ""
    _children: dict[str, Counter] = field(factory=dict, init=False)

    def of(self, value: str = "") -> Counter:
        """The counter of a value, which is there from now on."""
        return self._children.setdefault(value, Counter())

    def collect(self) -> Iterable[Metric]:
        """Called for every scrape."""
        labels = [self.label] if self.label else []
        family = CounterMetricFamily(self.name, self.meaning, labels=labels)
        for value, counter in self._children.items():
            family.add_metric([value] if labels else [], counter.value)
        yield family


@define(eq=False)
class Histograms:
    """All histograms of one name, as `Counters`."""

    name: str
    meaning: str
    bounds: Sequence[float]
    label: str = ""
    _children: dict[str, Histogram] = field(factory=dict, init=False)

    def of(self, value: str = "") -> Histogram:
        """The histogram of a value, which is there from now on."""
        known = self._children.get(value)
        if known is None:
            known = self._children[value] = Histogram(self.bounds)
        return known

    def collect(self) -> Iterable[Metric]:
        """Called for every scrape."""
        labels = [self.label] if self.label else []
        family = HistogramMetricFamily(self.name, self.meaning, labels=labels)
        for value, histogram in self._children.items():
            family.add_metric([value] if labels else [], histogram.buckets(), histogram.sum)
        yield family
