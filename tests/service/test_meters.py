"""Our counters and histograms are scraped as those of `prometheus_client` are."""

import prometheus_client as theirs
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from leasekeeper.service import meters as ours

BOUNDS = (0.0001, 0.5, 1, 30)
labels = st.sampled_from(["a", "b", "c d"])
seconds = st.sampled_from(BOUNDS) | st.floats(0, 1000)


def scraped(registry: CollectorRegistry) -> list[str]:
    """The lines of a scrape, but for the times at which metrics were made: ours have none."""
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if "_created" not in line]


@given(st.lists(st.tuples(labels, seconds)))
def test_histograms_with_a_label(observed: list[tuple[str, float]]) -> None:
    mine, foreign = CollectorRegistry(), CollectorRegistry()
    family = ours.Histograms("took_seconds", "How long.", BOUNDS, "what")
    mine.register(family)
    other = theirs.Histogram(
        "took_seconds", "How long.", ["what"], buckets=BOUNDS, registry=foreign
    )
    for what, took_s in observed:
        family.of(what).observe(took_s)
        other.labels(what).observe(took_s)
    assert scraped(mine) == scraped(foreign)


@given(st.lists(seconds))
def test_a_histogram_without_a_label(observed: list[float]) -> None:
    mine, foreign = CollectorRegistry(), CollectorRegistry()
    family = ours.Histograms("took_seconds", "How long.", BOUNDS)
    mine.register(family)
    histogram = family.of()
    other = theirs.Histogram("took_seconds", "How long.", buckets=BOUNDS, registry=foreign)
    for took_s in observed:
        histogram.observe(took_s)
        other.observe(took_s)
    assert scraped(mine) == scraped(foreign)


@given(st.lists(st.tuples(labels, st.integers(0, 5))))
def test_counters_with_a_label(counted: list[tuple[str, int]]) -> None:
    mine, foreign = CollectorRegistry(), CollectorRegistry()
    family = ours.Counters("seen_total", "How many.", "what")
    mine.register(family)
    other = theirs.Counter("seen_total", "How many.", ["what"], registry=foreign)
    for what, amount in counted:
        family.of(what).inc(amount)
        other.labels(what).inc(amount)
    assert scraped(mine) == scraped(foreign)


def test_a_counter_without_a_label_is_there_before_it_counts() -> None:
    mine, foreign = CollectorRegistry(), CollectorRegistry()
    family = ours.Counters("seen_total", "How many.")
    mine.register(family)
    counter = family.of()
    other = theirs.Counter("seen_total", "How many.", registry=foreign)
    assert scraped(mine) == scraped(foreign)
    counter.inc()
    other.inc()
    assert scraped(mine) == scraped(foreign)
