"""The figures of P3, from latencies and grants that are known."""

import math

import pytest

from bench.hand_offs import PERCENTILES, fairness, hand_off_figures, least_share
from bench.shapes import Unexpected, percentile


def test_the_percentiles_of_a_thousand_latencies() -> None:
    figures = hand_off_figures([float(ms) for ms in reversed(range(1000))], [500, 500], 3)
    assert {name: figures[name] for name in PERCENTILES} == {
        "p5_ms": 50,
        "p25_ms": 250,
        "p50_ms": 500,
        "p75_ms": 750,
        "p95_ms": 950,
        "p99_ms": 990,
        "p999_ms": 999,
    }
    assert (figures["hand_offs"], figures["out_of_order"]) == (1000, 3)
    assert (figures["fairness"], figures["least_share"]) == (1, 1)


def test_one_latency_is_every_percentile() -> None:
    assert {percentile([7.0], share) for share in (0.0, *PERCENTILES.values(), 1.0)} == {7.0}


@pytest.mark.parametrize(
    ("grants", "index", "least"),
    [
        ([5, 5, 5, 5], 1.0, 1.0),
        ([20, 0, 0, 0], 0.25, 0.0),
        ([10, 10, 0, 0], 0.5, 0.0),
        ([1, 2, 3], 36 / 42, 0.5),
        ([9], 1.0, 1.0),
    ],
)
def test_how_even_the_grants_are(grants: list[int], index: float, least: float) -> None:
    assert math.isclose(fairness(grants), index)
    assert math.isclose(least_share(grants), least)


def test_no_hand_off_is_no_result() -> None:
    with pytest.raises(Unexpected, match="nobody"):
        hand_off_figures([], [0, 0], 0)
