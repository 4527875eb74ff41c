"""One seed: a world from its beginning to its end, and what was seen of it."""

from collections import Counter
from random import Random
from typing import Final

import trio
from attrs import define, field

from tests.simulation.chance import run_repeatable
from tests.simulation.flurries import Flurry
from tests.simulation.holders import Holder
from tests.simulation.laws import Violation
from tests.simulation.peers import Actor
from tests.simulation.programs import Program, dialled
from tests.simulation.world import SETTLED_S, Trace, World

SECONDS: Final = 60.0


@define
class Outcome:
    """What came of a seed."""

    seed: int
    seconds: float = 0.0
    """Simulated."""
    digest: str = ""
    """Of all that was sent, and when."""
    counts: Counter[str] = field(factory=Counter)
    faults: Counter[str] = field(factory=Counter)
    violation: BaseException | None = None


def run_seed(seed: int, seconds: float = SECONDS, tell: Trace | None = None) -> Outcome:
    """Runs a world. Whatever goes wrong in it is in the outcome."""
    outcome = Outcome(seed)
    Violation.seen.clear()

    async def main() -> None:
        try:
            await _live(outcome, seconds, tell)
        finally:
            outcome.seconds = trio.current_time()

    with dialled():
        try:
            run_repeatable(f"{seed}", main)
        except Exception as problem:
            outcome.violation = _first(problem)
    if Violation.seen:
        outcome.violation = Violation.seen[0]
    return outcome


async def _live(outcome: Outcome, seconds: float, tell: Trace | None) -> None:
    async with trio.open_nursery() as nursery:
        world = World(f"{outcome.seed}", nursery, tell)
        outcome.counts, outcome.faults = world.counts, world.faults
        try:
            await world.start()
            await _act(world, seconds)
            await world.check_left()
        finally:
            outcome.digest = world.trace.hexdigest()
        nursery.cancel_scope.cancel()


async def _act(world: World, seconds: float) -> None:
    async def stop() -> None:
        await trio.sleep(seconds)
        world.heal()
        await trio.sleep(SETTLED_S)
        raise Violation("L5", f"still there: {sorted(here)}")

    here: set[str] = set()

    async def act(actor: Actor, name: str) -> None:
        here.add(name)
        await actor.run()  # type: ignore[attr-defined] # each kind has one
        here.remove(name)
        if not here:
            acting.cancel_scope.cancel()

    async with trio.open_nursery() as acting:
        for number, kind in enumerate(_cast(world.chance)):
            name = f"{kind.__name__.lower()} {number}"
            acting.start_soon(act, kind(world, name), name)
        acting.start_soon(stop)


def _cast(chance: Random) -> list[type[Actor]]:
    kinds: list[type[Actor]] = [Holder, Program, Flurry]
    return [Holder, Program, *(chance.choice(kinds) for _ in range(chance.randrange(2, 5)))]


def _first(problem: BaseException) -> BaseException:
    """What went wrong first, out of all groups."""
    while isinstance(problem, BaseExceptionGroup):
        laws = [each for each in problem.exceptions if isinstance(each, Violation)]
        problem = laws[0] if laws else problem.exceptions[0]
    return problem
