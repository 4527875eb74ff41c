"""A few of the simulated worlds, always the same; `python -m tests.simulation` runs as many as one
has time for."""

import os
import subprocess
import sys

import pytest

from tests.simulation.runs import Outcome, run_seed

SEEDS = range(30)
SECONDS = 12.0
AGAIN = 3


@pytest.mark.parametrize("seed", SEEDS)
def test_a_world_full_of_faults_obeys_the_laws(seed: int) -> None:
    """L1 to L6, L8 to L11."""
    outcome = run_seed(seed, SECONDS)
    if outcome.violation is not None:
        raise outcome.violation
    assert outcome.counts["granted"]


def test_a_seed_goes_the_same_way_again() -> None:
    """To the last byte that is sent, and the moment of it; in another process, too."""
    first, second = run_seed(AGAIN, SECONDS), run_seed(AGAIN, SECONDS)
    assert _seen(first) == _seen(second)
    assert first.counts["messages"] > 100
    code = f"from {__name__} import *; print(run_seed({AGAIN}, {SECONDS}).digest)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == first.digest


def _seen(outcome: Outcome) -> tuple[object, ...]:
    return outcome.digest, outcome.seconds, outcome.counts, outcome.faults, str(outcome.violation)
