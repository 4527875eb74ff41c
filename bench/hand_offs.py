"""What P3 reports of hand-offs: how long they take, and how evenly the waiters are served."""

from collections.abc import Sequence
from typing import Final

from bench.observed import Figures
from bench.shapes import Unexpected, percentile

PERCENTILES: Final = {
    "p5_ms": 0.05,
    "p25_ms": 0.25,
    "p50_ms": 0.50,
    "p75_ms": 0.75,
    "p95_ms": 0.95,
    "p99_ms": 0.99,
    "p999_ms": 0.999,
}


def hand_off_figures(
    latencies_ms: Sequence[float], grants: Sequence[int], out_of_order: int
) -> Figures:
    """The figures of a run; `grants` counts those of each waiter, of which each has a latency.

    Raises:
        Unexpected: there was no hand-off.
    """
    if not latencies_ms:
        raise Unexpected("the lock was handed to nobody")
    ordered = sorted(latencies_ms)
    return {
        **{name: percentile(ordered, share) for name, share in PERCENTILES.items()},
        "hand_offs": len(latencies_ms),
        "out_of_order": out_of_order,
        "fairness": fairness(grants),
        "least_share": least_share(grants),
    }


def fairness(grants: Sequence[int]) -> float:
    """Jain's index: 1 if all waiters were served equally often, 1/n if only one of n was."""
    return sum(grants) ** 2 / (len(grants) * sum(each**2 for each in grants))


def least_share(grants: Sequence[int]) -> float:
    """The grants of the waiter with the fewest, divided by the mean: 1 at best, 0 if it starves."""
    return min(grants) * len(grants) / sum(grants)
