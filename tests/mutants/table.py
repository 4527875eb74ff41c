"""Which mistake is found by what. Nothing of this is in force unless its context is entered."""

from functools import partial
from typing import Final

from attrs import frozen

from leasekeeper.core.cache import Entry
from leasekeeper.core.lock import Lock
from tests.mutants import locks, scenarios, services
from tests.mutants.checks import Check, cached, deadline, machine, scenario, worlds
from tests.mutants.services import Switch
from tests.properties import cache_mutants
from tests.properties.cache_sides import CoreSide

MACHINE: Final = machine()
WORLDS: Final = worlds()
DEADLINE: Final = deadline()
FILLS_MARKS: Final = cached(CoreSide, "fills marks")
FILLS: Final = cached(CoreSide, "fills")


@frozen
class Mutant:
    """A mistake, how to make it, and what finds it."""

    switch: Switch
    check: Check


def _lock(mutant: type[Lock], check: Check = MACHINE) -> Mutant:
    return Mutant(services.lock(mutant), check)


def _cached(mutant: type[Entry], groups: str) -> Mutant:
    found = cached(partial(CoreSide, new_entry=mutant), groups)
    return Mutant(services.entry(mutant), found)


MUTANTS: Final = {
    # Of the rules of a name.
    "fences are a plain counter": _lock(locks.PlainIncrement),
    "a release ignores the lease id": _lock(locks.ReleasesAnybody, WORLDS),
    "a renewal resurrects": _lock(locks.RenewResurrects, WORLDS),
    "a dead waiter is granted the name": _lock(locks.GrantsToTheDead),
    "an acquire ignores the queue": _lock(locks.Barges),
    "the last comes first": _lock(locks.LastComesFirst),
    "a resume takes a new fence": _lock(locks.ResumeTakesAFence),
    "a repeat is granted anew": _lock(locks.RepeatIsGrantedAnew),
    "a limit lets one more in": _lock(locks.OneTooMany),
    "readers are let in beside a writer": _lock(locks.MixesModes, WORLDS),
    "an expiry is not noticed while others wait": _lock(locks.ExpiryIsNotNoticed),
    "a release does not move the queue": _lock(locks.ReleaseDoesNotAdvance, WORLDS),
    "a waiter cannot leave the queue": _lock(locks.CancelLeavesTheWaiter),
    "a break is not told": _lock(locks.BreakIsQuiet),
    "a grant is not told": _lock(locks.GrantIsQuiet),
    # Of the service.
    "a grace releases what was resumed": Mutant(
        services.grace_releases_what_was_resumed,
        scenario(scenarios.a_resumed_lease_outlives_the_grace),
    ),
    "a lost lease is not told": Mutant(
        services.losses_are_not_told, scenario(scenarios.a_broken_lease_is_told_to_its_holder)
    ),
    "a cancelled wait stays": Mutant(
        services.cancelled_waits_stay, scenario(scenarios.a_cancelled_wait_is_over)
    ),
    "what nobody wants is given back once or never": Mutant(
        services.cancel_only_forgets, scenario(scenarios.a_cancelled_wait_is_over)
    ),
    "askings of a lease id overtake each other": Mutant(
        services.askings_overtake, scenario(scenarios.a_late_asking_undoes_nothing)
    ),
    "a failed resume forgets what was asked for": Mutant(
        services.left_over_is_forgotten, scenario(scenarios.a_failed_resume_forgets_nothing)
    ),
    "a late lease is given back early": Mutant(
        services.given_back_too_early, scenario(scenarios.a_late_renewal_gives_nothing_away_early)
    ),
    # Of the client.
    "a deadline counts from the answer": Mutant(services.deadline_from_receipt, DEADLINE),
    "a deadline ignores the grace": Mutant(services.grace_is_not_counted, DEADLINE),
    # Of the cache; `tests/properties/test_cache_mutants.py` has the others.
    "a fill is stamped at its end": _cached(cache_mutants.StampAtFill, "fills marks"),
    "a void fill is stored": _cached(cache_mutants.NoVoidCheck, "fills marks"),
    "a read ignores tags": _cached(cache_mutants.ReadsIgnoreTags, "fills marks"),
    "two are to load": _cached(cache_mutants.NoLease, "fills"),
}
CHECKS: Final = {
    check.name: check
    for check in (*(each.check for each in MUTANTS.values()), FILLS_MARKS, FILLS)
    if check is not WORLDS and not check.name.startswith("machine of the cache")
} | {check.name: check for check in (FILLS_MARKS, FILLS)}
"""Each once, to be run where nobody has made a mistake; `tests/simulation` does that of worlds."""
