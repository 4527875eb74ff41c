"""Ideal histories violate nothing; and whatever is wrong in one is found by the check for it."""

from collections import Counter
from random import Random
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leasekeeper.verify import CHECKS, Report, read, verify
from tests.verify.ideal import Line, ideal_history, written
from tests.verify.mutants import MUTANTS

SEEDS: Final = range(6)


def judged(lines: list[Line]) -> Report:
    """What the checks say of it."""
    return verify(read(written(lines).splitlines()))


def violated(report: Report) -> list[str]:
    """The names of the checks that found anything."""
    return [each.check for each in report.results if each.violated]


@given(st.integers(100, 2**32), st.booleans(), st.integers(0))
@settings(suppress_health_check=[HealthCheck.too_slow], max_examples=15)
def test_an_ideal_history_violates_nothing(seed: int, faults: bool, order: int) -> None:
    lines = ideal_history(seed, faults=faults)
    Random(order).shuffle(lines)
    assert violated(judged(lines)) == []


def test_every_check_has_something_to_look_at_in_ideal_histories() -> None:
    looked_at: Counter[str] = Counter()
    excused: Counter[str] = Counter()
    for seed in SEEDS:
        for result in judged(ideal_history(seed)).results:
            looked_at[result.check] += result.looked_at
            excused.update(result.excused)
    assert set(looked_at) == set(CHECKS)
    assert min(looked_at.values()) > 50
    assert set(excused) == {"clock_step"}


@pytest.mark.parametrize("name", MUTANTS)
def test_what_is_wrong_is_found(name: str) -> None:
    check, mutant = MUTANTS[name]
    spoiled = 0
    for seed in SEEDS:
        for faults in (True, False):
            if check == "stuck" and not faults:
                continue  # there is no heal
            lines = mutant(ideal_history(seed, faults=faults), Random(seed))
            if lines is not None:
                spoiled += 1
                assert check in violated(judged(lines)), (seed, faults)
    assert spoiled >= 4
