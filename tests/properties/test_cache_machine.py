"""L11, no stale fill, and L10, one filler, over histories nobody thought of; on every cache."""

import contextlib
from collections.abc import Callable, Iterator
from random import Random

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.properties.cache_machine import CacheMachine
from tests.properties.cache_sides import CoreSide, Side
from tests.properties.cache_steps import wander
from tests.properties.cache_stores import MemorySide, RedisSide
from tests.properties.caches_scripts import Wire
from tests.redises import running_redis

STEPS = 60


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    """A Redis whose clock stands still, for the histories to take turns."""
    options = ("--enable-debug-command", "local")
    with (
        running_redis(skewed=True, options=options) as redis,
        contextlib.closing(Wire([redis], 1)) as wire,
    ):
        yield wire


def run(side: Callable[[], Side], examples: int, walks: int) -> None:
    """So many histories that Hypothesis chose, and so many that chance did."""
    how = settings(max_examples=max(1, examples), stateful_step_count=STEPS)

    def machine() -> CacheMachine:
        return CacheMachine(side())

    run_state_machine_as_test(machine, settings=how)  # type: ignore[arg-type] # a factory
    for seed in range(walks):
        try:
            wander(machine(), Random(seed), STEPS)
        except AssertionError as error:
            error.add_note(f"on walk {seed} of {STEPS} steps")
            raise


def test_the_rules_keep_the_laws_of_the_cache() -> None:
    """L10, L11, L2."""
    run(CoreSide, settings().max_examples, 10 * settings().max_examples)


def test_the_embedded_store_keeps_them() -> None:
    """L10, L11, L2."""
    run(MemorySide, settings().max_examples // 10, 5 * settings().max_examples)


@pytest.mark.system
def test_redis_keeps_them(wire: Wire) -> None:
    """L10, L11, L2: whatever it loses, and however its clock steps."""
    run(lambda: RedisSide(wire), settings().max_examples // 20, 2 * settings().max_examples)
