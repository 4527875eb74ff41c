"""Steps of a machine that Hypothesis, or mere chance, can choose from."""

from collections.abc import Callable, Sequence, Set
from random import Random
from typing import Final, TypeVar

from attrs import frozen
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

F = TypeVar("F", bound=Callable[..., None])


@frozen
class Step:
    """What somebody may do: a method, when, and the choices for each of its arguments."""

    name: str
    group: str
    """What it is about."""
    when: Callable[[RuleBasedStateMachine], object]
    weight: int
    """How often mere chance chooses it, compared with others."""
    choices: dict[str, Sequence[object]]


STEPS: Final[list[Step]] = []


def step(
    group: str,
    when: Callable[..., object] = lambda _: True,
    *,
    weight: int = 4,
    **choices: Sequence[object],
) -> Callable[[F], F]:
    """Makes a method a rule of the machine, and a step of `wander`."""

    def note(method: F) -> F:
        STEPS.append(Step(method.__name__, group, when, weight, choices))
        chosen = {name: st.sampled_from(some) for name, some in choices.items()}
        ruled: F = precondition(lambda self: bool(when(self)))(rule(**chosen)(method))  # type: ignore[call-overload] # of names it knows nothing
        return ruled

    return note


def wander(
    machine: RuleBasedStateMachine,
    chance: Random,
    length: int,
    groups: Set[str] | None = None,
) -> None:
    """Does what Hypothesis does, without its care for small examples, and many times as fast.

    With `groups` it walks among the steps of those, or of these names; else among some of all, each
    time others, so that some walks go deep where others go wide.
    """
    often = chance.choice((0.4, 0.6, 0.9))
    some = [
        each
        for each in STEPS
        if (
            chance.random() < often
            if groups is None
            else not groups.isdisjoint({each.group, each.name})
        )
    ]
    for each in chance.choices(some, [each.weight for each in some], k=length if some else 0):
        if each.when(machine):
            chosen = {name: chance.choice(choices) for name, choices in each.choices.items()}
            getattr(machine, each.name)(**chosen)
    machine.teardown()
