"""Each mistake is found, and nothing is found where there is none."""

import pytest

from tests.mutants.table import CHECKS, MUTANTS


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_found(name: str) -> None:
    """By a law that is broken, or by rules that differ from the model's."""
    mutant = MUTANTS[name]
    with mutant.switch():
        found = mutant.check.search()
    assert found is not None
    assert found.message


@pytest.mark.parametrize("name", CHECKS)
def test_nothing_is_found_where_there_is_no_mistake(name: str) -> None:
    """By the same means."""
    assert CHECKS[name].search() is None
