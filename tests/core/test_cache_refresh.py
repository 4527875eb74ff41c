"""XFetch: one caller loads a value anew before it is stale (L10)."""

import math
from random import Random

import pytest

from leasekeeper.messages import FillOutcome
from tests.core.caches import (
    ONE,
    TTL_MS,
    TWO,
    Cached,
)

MINUTE_MS = 60_000

# --- XFetch: a refresh before the value is stale ----------------------------------------------


def aged(load_ms: int, ttl_ms: int = TTL_MS) -> Cached:
    """A key whose value took so long to load, stored at 0."""
    key = Cached(-load_ms)
    key.granted()
    key.ms = 0
    assert key.fill(ttl_ms=ttl_ms) is FillOutcome.STORED
    return key


@pytest.mark.parametrize("early", [0.0, 0.5, 1.0, 3.7])
@pytest.mark.parametrize("load_ms", [0, 1, 250, 4_000])
def test_a_hit_grants_a_refresh_from_exactly_the_moment_of_the_formula(
    load_ms: int, early: float
) -> None:
    """`now + delta * early >= expiry`: the slower the load, the earlier."""
    due_ms = math.ceil(TTL_MS - load_ms * early)
    key = aged(load_ms)
    key.ms = min(due_ms, TTL_MS) - 1
    assert key.look(TWO, early=early).grant is None
    key.ms = due_ms
    seen = key.look(TWO, early=early)
    assert seen.grant is not None
    assert (seen.found is not None) == (due_ms < TTL_MS), "the value is still a hit"


def test_no_refresh_is_granted_in_the_first_half_of_the_ttl() -> None:
    """Or a value that takes long to load would be loaded for ever."""
    key = aged(load_ms=9_000, ttl_ms=10_001)
    key.ms = 4_999
    assert key.look(TWO, early=1e6).grant is None
    key.ms = 5_000
    assert key.look(TWO, early=1e6).grant is not None


def test_one_caller_refreshes_and_all_have_the_present_value() -> None:
    """L10."""
    key = aged(load_ms=1_000)
    key.ms = TTL_MS - 1
    seen = [key.look(fill, early=5.0) for fill in (ONE, TWO)]
    assert [each.found is not None and each.found.fresh for each in seen] == [True, True]
    assert [each.grant is not None for each in seen] == [True, False]


def test_who_cannot_load_is_granted_no_refresh() -> None:
    """However due it is."""
    key = aged(load_ms=1_000)
    key.ms = TTL_MS - 1
    assert key.look(None, early=99.0).grant is None
    key.granted(ONE, early=99.0)


def test_no_refresh_is_granted_in_the_back_off() -> None:
    """The failed load leaves the value where it is."""
    key = aged(load_ms=1_000)
    key.ms = TTL_MS - 1_000
    key.granted(ONE, early=9.0)
    key.fail(ONE, retry_ms=500)
    key.ms += 499
    seen = key.look(TWO, early=9.0)
    assert seen.found is not None
    assert seen.found.fresh
    assert seen.grant is None
    key.ms += 1
    assert key.look(TWO, early=9.0).grant is not None


def test_refreshes_begin_when_the_formula_says_they_do() -> None:
    """A key that is looked at every 500 ms is refreshed so long before its expiry.

    Each look grants it with probability exp(-(expiry - now) / delta), so it has not begun by a
    moment with the product of what is left of 1. That is compared with what 1,000 keys do.
    """
    load_ms, step_ms, keys = 2_000, 500, 1_000
    chance = Random(7)
    moments = [first_refresh_ms(load_ms, step_ms, chance) for _ in range(keys)]
    not_yet = 1.0
    for ms in range(TTL_MS // 2, TTL_MS + 1, step_ms):
        not_yet *= 1.0 - math.exp((ms - TTL_MS) / load_ms)
        measured = sum(moment > ms for moment in moments) / keys
        # Kolmogorov and Smirnov: chance alone exceeds this once in a hundred.
        assert abs(measured - not_yet) < 1.63 / math.sqrt(keys), ms


def first_refresh_ms(load_ms: int, step_ms: int, chance: Random) -> int:
    """When a key that is looked at in such steps is granted its refresh."""
    key = aged(load_ms)
    key.ms = TTL_MS // 2
    while key.look(TWO, early=-math.log(1.0 - chance.random())).grant is None:
        key.ms += step_ms
    return key.ms
