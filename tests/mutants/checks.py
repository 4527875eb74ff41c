"""What finds mistakes: simulated worlds, the property machine of the lock, and small scenarios."""

from collections.abc import Awaitable, Callable
from random import Random
from traceback import extract_tb
from typing import Final

from attrs import field, frozen
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from leasekeeper.service.limits import Limits
from tests.mutants import deadlines
from tests.properties.cache_machine import CacheMachine
from tests.properties.cache_sides import Side
from tests.properties.cache_steps import wander
from tests.properties.test_lock_machine import LockMachine
from tests.service.conftest import World, open_world
from tests.service.flaky import FlakyStore
from tests.simulation.chance import run_repeatable
from tests.simulation.laws import Violation
from tests.simulation.runs import run_seed

SECONDS: Final = 15.0
STEPS: Final = 60


@frozen
class Found:
    """That something is wrong, and after how many tries."""

    tries: int
    message: str


@frozen
class Check:
    """`search` returns what it has found, or None. `name` says where it looks."""

    name: str
    search: Callable[[], Found | None] = field(eq=False)


def worlds(first: int = 0, most: int = 20, seconds: float = SECONDS) -> Check:
    """The first of these seeds of the simulation in which a law is broken."""

    def search() -> Found | None:
        for tries, seed in enumerate(range(first, first + most), start=1):
            if (problem := run_seed(seed, seconds).violation) is None:
                continue
            if not isinstance(problem, AssertionError):
                raise problem
            return Found(tries, str(problem))
        return None

    return Check(f"simulation, seeds {first} to {first + most - 1}", search)


def machine(examples: int = 120) -> Check:
    """Random histories of one name, against the model."""

    def search() -> Found | None:
        runs = 0

        class Counting(LockMachine):
            def __init__(self) -> None:
                nonlocal runs
                runs += 1
                super().__init__()

        how = settings(
            max_examples=examples,
            phases=[Phase.generate],
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        try:
            run_state_machine_as_test(Counting, settings=how)
        except AssertionError as problem:
            return Found(runs, first_line(problem))
        return None

    return Check("machine of the lock", search)


def scenario(*steps: Callable[[World, FlakyStore], Awaitable[None]]) -> Check:
    """Stories of the service that must end well."""

    def search() -> Found | None:
        for tries, step in enumerate(steps, start=1):

            async def main(step: Callable[[World, FlakyStore], Awaitable[None]] = step) -> None:
                store = FlakyStore()
                async with open_world(Limits(), store) as world:
                    await step(world, store)

            try:
                run_repeatable(step.__name__, main)
            except* AssertionError as problems:
                found = problems
            else:
                continue
            return Found(tries, first_line(found))
        return None

    return Check(steps[0].__name__.replace("_", " "), search)


def deadline() -> Check:
    """A client of the library whose lease runs out, or whose grace does."""

    def search() -> Found | None:
        found = deadlines.search()
        return found and Found(*found)

    return Check("deadline on a slow network", search)


def cached(side: Callable[[], Side], groups: str, walks: int = 300) -> Check:
    """Random histories of cached keys, against the laws."""

    def search() -> Found | None:
        for seed in range(walks):
            try:
                wander(CacheMachine(side(), steady=False), Random(seed), STEPS, set(groups.split()))
            except AssertionError as problem:
                return Found(seed + 1, first_line(problem))
        return None

    return Check(f"machine of the cache, {groups}", search)


def first_line(problem: BaseException) -> str:
    """Which law was broken, or where rules and laws differ."""
    while isinstance(problem, BaseExceptionGroup):
        problem = problem.exceptions[0]
    if isinstance(problem, Violation):
        return str(problem)
    frames = [each for each in extract_tb(problem.__traceback__) if "properties" in each.filename]
    last = frames[-1]
    return f"{last.name}: {last.line}"
