"""Each mistake in the rules of the cache is found by the machine that finds none in the rules.

The mistakes are in `cache_mutants`. The first of them are those of the model that the design was
tried out with; of these, three do not apply: a fill's fence *is* the number that its validity is
judged by, so it cannot be born with another; a value's life is counted from when it is stored, and
what is remembered of tags from its grant; and a voided key is remembered for as long as its fills.
"""

from collections.abc import Callable
from functools import partial
from random import Random
from typing import Final

import pytest
from attrs import frozen
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from leasekeeper.core.cache import Entry
from leasekeeper.core.versions import Versions
from tests.properties import cache_mutants as mutants
from tests.properties.cache_machine import CacheMachine
from tests.properties.cache_sides import CoreSide
from tests.properties.cache_steps import wander

WALKS_MAX: Final = 4_000
STEPS: Final = 60


@frozen
class Mistake:
    """A cache with a mistake, and the steps that lead there."""

    side: Callable[[], CoreSide]
    groups: str
    steady: bool = False
    """It breaks no law but keeps from what it should have what is quite right."""

    def machine(self) -> CacheMachine:
        """As the law has it."""
        return CacheMachine(self.side(), steady=self.steady)

    def walk(self, walks: int) -> None:
        """So often, and always the same."""
        for seed in range(walks):
            wander(self.machine(), Random(seed), STEPS, set(self.groups.split()))


def entry(new_entry: Callable[[], Entry], groups: str, steady: bool = False) -> Mistake:
    """A mistake in the rules of a key."""
    return Mistake(partial(CoreSide, new_entry=new_entry), groups, steady)


def clock(
    new_versions: Callable[[], Versions],
    groups: str,
    new_entry: Callable[[], Entry] = Entry,
) -> Mistake:
    """A mistake in the clock, and perhaps another in the rules of a key."""
    return Mistake(partial(CoreSide, new_entry, new_versions), groups)


CLOCK: Final = "somebody_loads a_writer_commits_and_invalidates somebody_reads clock"
WRITES: Final = "somebody_loads somebody_reads time_passes through"
FEW_TAGS: Final = partial(mutants.FloorStays, records_max=1)

MISTAKES: Final = {
    # Those of the model.
    "stamp at fill": entry(mutants.StampAtFill, "fills marks"),
    "no void check": entry(mutants.NoVoidCheck, "fills marks"),
    "short tombstone": entry(mutants.ShortTombstone, "fills marks"),
    "no max fill": entry(mutants.NeverTooLate, "fills marks", steady=True),
    "no max fill and no floor": clock(
        mutants.FloorStays, "fills marks clock", mutants.NeverTooLate
    ),
    "short tag and no floor": clock(mutants.ShortTagsFloorStays, "fills marks clock"),
    "plain counter": clock(mutants.PlainCounter, "fills marks loss"),
    "no floor check": clock(mutants.NoFloorCheck, "fills marks loss"),
    "no failover floor": Mistake(partial(CoreSide, trusts_replica=True), "fills marks loss"),
    "no lease": entry(mutants.NoLease, "fills"),
    # Of the clock.
    "the floor stays when the clock steps": Mistake(
        partial(CoreSide, new_versions=mutants.FloorStays, forgets=False), CLOCK
    ),
    "the floor stays when tags are too many": clock(FEW_TAGS, "fills marks"),
    "hard tags": clock(mutants.HardTagsAreForgotten, "fills marks"),
    "soft tags": clock(mutants.SoftTagsAreForgotten, "fills marks"),
    "tags of open writes": clock(mutants.IntentsDoNotVoid, WRITES),
    "tags of closed writes": clock(mutants.CloseDoesNotMark, WRITES),
    # Of fills.
    "late is too late": entry(mutants.LateIsTooLate, "fills", steady=True),
    "always refreshes": entry(mutants.AlwaysRefreshes, "fills"),
    "refreshes too early": entry(mutants.RefreshesTooEarly, "fills"),
    "unshared is stored": entry(mutants.UnsharedIsStored, "fills trouble"),
    "older replaces newer": entry(mutants.OlderReplacesNewer, "fills"),
    "any is not modified": entry(mutants.AnyIsNotModified, "fills trouble"),
    "death is not noticed": entry(mutants.DeathIsNotNoticed, "fills trouble", steady=True),
    "no back-off": entry(mutants.NoBackOff, "fills trouble"),
    "fills are forgotten": entry(mutants.FillsAreForgotten, "fills"),
    # Of values.
    "reads ignore tags": entry(mutants.ReadsIgnoreTags, "fills marks"),
    "soft keeps negative": entry(mutants.SoftKeepsNegative, "fills marks"),
    "soft keeps fresh": entry(mutants.SoftKeepsFresh, "fills marks"),
    # Of writes.
    "set keeps the queued": entry(mutants.SetKeepsTheQueued, "sets behind"),
    "end without a word": entry(mutants.EndWithoutAWord, "fills through"),
    "stores while writing": entry(mutants.StoresWhileWriting, "fills through"),
    "writes are forgotten": entry(mutants.WritesAreForgotten, "fills through"),
    "commit ignores key": entry(mutants.CommitIgnoresKey, "fills marks through"),
    "commit ignores tags": entry(mutants.CommitIgnoresTags, "fills marks through"),
    "tags close first": entry(mutants.TagsCloseFirst, "fills through", steady=True),
    "overlap is stored": entry(mutants.OverlapIsStored, "fills through"),
    "late close does not void": entry(mutants.LateCloseDoesNotVoid, "fills through"),
    "written forgets drop": entry(mutants.WrittenForgetsDrop, "fills marks behind"),
    "written ignores tags": entry(mutants.WrittenIgnoresTags, "fills marks behind"),
}
REDUNDANT: Final = {
    # A forgotten tag has raised the floor, so what is remembered for too short a time is only lost.
    "short tag": clock(mutants.ShortTags, "fills marks clock"),
    # A fill that comes after everybody has forgotten its tags is below the floor, too.
    "no max fill": entry(mutants.NeverTooLate, "fills marks clock"),
    # A softly invalidated fill that is stored is never shown as fresh.
    "no soft check": entry(mutants.NoSoftCheck, "fills marks"),
    # What is queued is a change of the key, and voids all that is being loaded.
    "fills while queued": entry(mutants.FillsWhileQueued, "fills marks behind"),
}
"""Guards that another one stands behind: without them no law is broken."""


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str) -> None:
    """By mere chance, always the same: walks are many times as fast as Hypothesis' examples."""
    with pytest.raises(AssertionError):
        MISTAKES[name].walk(WALKS_MAX)


@pytest.mark.parametrize("name", REDUNDANT)
def test_a_redundant_guard_breaks_no_law_by_its_absence(name: str) -> None:
    """It is there for clarity, or so that less is kept, and this says so."""
    REDUNDANT[name].walk(300)


@pytest.mark.parametrize("name", ["no lease", "reads ignore tags", "set keeps the queued"])
def test_a_mistake_is_found_by_hypothesis_too(name: str) -> None:
    """Whose examples are small, once they are found."""
    how = settings(
        max_examples=500,
        stateful_step_count=STEPS,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError):
        run_state_machine_as_test(MISTAKES[name].machine, settings=how)  # type: ignore[arg-type] # a factory


def test_a_cache_without_a_mistake_is_not_found_at_fault() -> None:
    """On the same ways; also one that remembers few tags, and one that forgets nothing."""
    for groups in sorted({mistake.groups for mistake in MISTAKES.values()}):
        Mistake(CoreSide, groups, steady=True).walk(60)
        Mistake(partial(CoreSide, forgets=False), groups).walk(60)
        clock(partial(Versions, records_max=1), groups).walk(60)
