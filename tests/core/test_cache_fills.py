"""What becomes of a fill: stored, too old, failed, given up, not to be shared.

L10 one filler: loads <= 1 + fillers that died or failed; L11 no stale fill.
"""

import pytest

from leasekeeper.core.cache import DEATHS_MAX, DIED, LATE_FILLS_MAX
from leasekeeper.core.fills import Failed, FillGrant, Found, Seen
from leasekeeper.messages import FillOutcome, Mark
from tests.core.caches import (
    FILL_MS,
    NEW,
    OLD,
    ONE,
    SIX,
    STALE_MS,
    TTL_MS,
    TWO,
    Cached,
)

STORED, VOIDED = FillOutcome.STORED, FillOutcome.VOIDED
SUPERSEDED, TOO_LATE = FillOutcome.SUPERSEDED, FillOutcome.TOO_LATE

# --- Handed over ------------------------------------------------------------------------------


def test_a_fill_that_nobody_knows_is_too_late() -> None:
    """L11: what was invalidated since its grant is not known either."""
    key = Cached()
    assert key.fill(SIX) is TOO_LATE
    assert key.state == "none"


def test_a_repeated_fill_is_stored_once() -> None:
    """L6: and the value does not get any younger."""
    key = Cached()
    key.granted()
    assert key.fill() is STORED
    key.ms = 700
    assert key.fill() is STORED
    assert key.look().found == Found(OLD, 700, TTL_MS - 700, fresh=True)


def test_a_fill_comes_late_until_twice_its_time_and_no_later() -> None:
    """Its exclusivity ends with its time, its validity does not."""
    key = Cached()
    key.granted()
    key.ms = 2 * FILL_MS - 1
    assert key.fill() is STORED
    other = Cached()
    other.granted()
    other.ms = 2 * FILL_MS
    assert other.fill() is TOO_LATE


def test_a_late_fill_is_shown_while_its_successor_still_loads() -> None:
    """And the successor, which is newer, takes its place."""
    key = Cached()
    key.granted(ONE)
    key.ms = FILL_MS
    key.granted(TWO)
    key.look(server="a")
    key.told()
    assert key.fill(ONE, OLD) is STORED
    assert key.told() == ["a"]
    assert key.value == OLD
    assert key.look(SIX).filling_ms == FILL_MS, "which is still exclusive"
    assert key.fill(TWO, NEW) is STORED
    assert key.value == NEW


def test_a_late_fill_does_not_replace_what_its_successor_stored() -> None:
    """The successor began to load later."""
    key = Cached()
    key.granted(ONE)
    key.ms = FILL_MS
    key.granted(TWO)
    assert key.fill(TWO, NEW) is STORED
    assert key.fill(ONE, OLD) is SUPERSEDED
    assert key.value == NEW


def test_a_void_fill_is_voided_though_it_is_late_and_superseded_too() -> None:
    """What may be too old is the worst of it."""
    key = Cached()
    key.granted(ONE)
    key.invalidate()
    key.loaded(NEW)
    assert key.fill(ONE, OLD) is VOIDED


def test_an_invalidation_while_a_late_fill_is_out_voids_it() -> None:
    """L11, by key, and by a tag that only the fill names."""
    for mark in (Mark.HARD, Mark.SOFT):
        for by_tag in (False, True):
            key = Cached()
            key.granted(ONE)
            key.ms = FILL_MS
            key.mark("t", mark) if by_tag else key.invalidate(mark)
            key.ms = 2 * FILL_MS - 1
            assert key.fill(ONE, OLD, "t") is VOIDED


def test_only_so_many_late_fills_are_remembered() -> None:
    """L12: the oldest goes first."""
    key = Cached()
    fills = [f"{number:032}" for number in range(LATE_FILLS_MAX + 2)]
    for fill in fills:
        key.granted(fill)
        key.invalidate(Mark.SOFT)
    key.granted(SIX)
    assert [key.fill(fill) for fill in fills] == [TOO_LATE] * 2 + [VOIDED] * LATE_FILLS_MAX
    assert key.fill(SIX, NEW) is STORED


def test_how_long_a_load_took_is_measured_from_its_grant() -> None:
    """XFetch goes by that, so a slow load is repeated earlier."""
    key = Cached()
    key.granted(ONE)
    key.ms = 4_000
    key.fill(ONE)
    key.ms = 4_000 + TTL_MS - 8_000
    assert key.look(TWO, early=1.9).grant is None
    assert key.look(TWO, early=2.0).grant is not None


# --- Not modified -----------------------------------------------------------------------------


def shown(tags: tuple[str, ...] = ("t",)) -> Cached:
    """A key whose value is stale, and shown to the filler ONE."""
    key = Cached()
    key.granted(SIX)
    key.fill(SIX, OLD, *tags, stale_ms=STALE_MS, etag="e")
    key.ms = TTL_MS
    assert key.granted(ONE).etag == "e"
    return key


def test_a_value_that_was_not_modified_is_as_good_as_new() -> None:
    """With its tags and its etag, and without being sent again."""
    key = shown()
    assert key.fill(ONE, None, not_modified=True, stale_ms=STALE_MS) is STORED
    assert key.look().found == Found(OLD, 0, TTL_MS, fresh=True)
    key.ms += TTL_MS
    assert key.granted(TWO).etag == "e"
    key.mark("t")
    assert key.state == "none"


def test_a_value_that_was_not_modified_may_have_new_tags_and_a_new_etag() -> None:
    """Whoever loads knows best."""
    key = shown()
    assert key.fill(ONE, None, "u", not_modified=True, etag="f", stale_ms=STALE_MS) is STORED
    key.mark("t")
    assert key.value == OLD
    key.ms += TTL_MS
    assert key.granted(TWO).etag == "f"
    key.mark("u")
    assert key.value is None


def test_a_value_that_is_gone_cannot_be_made_new() -> None:
    """Given up to make room, or past its stale time: there is nothing to make new."""
    key = shown()
    key.entry.evict()
    assert key.fill(ONE, None, not_modified=True) is TOO_LATE
    assert key.state == "none"
    other = Cached()
    other.loaded()
    other.ms = TTL_MS
    other.granted(ONE)
    assert other.fill(ONE, None, not_modified=True) is TOO_LATE
    assert other.state == "none"


def test_a_value_that_was_invalidated_meanwhile_cannot_be_made_new() -> None:
    """L11."""
    key = shown()
    key.mark("t")
    assert key.fill(ONE, None, not_modified=True) is not STORED
    other = shown()
    other.invalidate()
    assert other.fill(ONE, None, not_modified=True) is VOIDED
    assert (key.value, other.value) == (None, None)


def test_another_value_than_the_one_that_was_shown_is_not_made_new() -> None:
    """A late fill has stored it: the filler compared its source with the one before that."""
    key = Cached()
    key.granted(SIX)
    key.fill(SIX, OLD, stale_ms=TTL_MS, etag="e")
    key.ms = TTL_MS
    key.granted(ONE)
    key.ms = TTL_MS + FILL_MS
    assert key.granted(TWO).etag == "e"
    assert key.fill(ONE, NEW, etag="n") is STORED
    assert key.fill(TWO, None, not_modified=True, etag="e") is TOO_LATE
    key.ms += TTL_MS - 1
    assert key.granted(SIX, early=1.0).etag == "n"


# --- Failures ---------------------------------------------------------------------------------


def test_a_failure_is_everybodys_until_its_back_off_is_over() -> None:
    """One shared error: those who wait do not load one after the other."""
    key = Cached()
    key.granted(ONE)
    key.fail(ONE, retry_ms=5_000)
    assert key.look(TWO) == Seen(failed=Failed("no luck", 5_000))
    key.ms = 4_999
    assert key.look(TWO) == Seen(failed=Failed("no luck", 1))
    key.ms = 5_000
    assert isinstance(key.look(TWO).grant, FillGrant)


def test_a_failure_leaves_a_stale_value_where_it_is() -> None:
    """Stale if error; until the back-off is over nobody is asked to refresh it."""
    key = Cached()
    key.loaded(stale_ms=STALE_MS)
    key.ms = TTL_MS
    key.granted(ONE)
    key.fail(ONE, retry_ms=1_000)
    seen = key.look(TWO)
    assert seen.found == Found(OLD, TTL_MS, 0, fresh=False)
    assert seen.grant is None


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
def test_the_back_off_doubles_up_to_30_s_and_half_of_it_is_chance(jitter: float) -> None:
    """So that a source that is down is left alone, and keys do not come back all at once."""
    key = Cached(jitter=jitter)
    waits = []
    for _ in range(25):
        key.granted(ONE)
        key.fail(ONE)
        failed = key.look().failed
        assert failed is not None
        waits.append(failed.retry_after_ms)
        key.ms += failed.retry_after_ms
    most = [min(30_000, 100 * 2**count) for count in range(1, 26)]
    assert waits == [int(each * (1 + jitter) / 2) for each in most]
    assert waits[0] >= 100
    assert max(waits) <= 30_000


def test_the_loader_may_say_when_to_try_again() -> None:
    """0: at once. It counts as a failure in a row all the same."""
    key = Cached()
    key.granted(ONE)
    key.fail(ONE, retry_ms=0)
    key.granted(TWO)
    key.fail(TWO)
    assert key.look().failed == Failed("no luck", 200)


def test_a_value_ends_the_back_off() -> None:
    """A late fill, or a set: what is there is there, and failures are counted anew."""
    for late in (True, False):
        key = Cached()
        key.granted(ONE)
        key.ms = FILL_MS
        key.granted(TWO)
        key.fail(TWO)
        assert key.state == "failed"
        assert (key.fill(ONE) is STORED) if late else key.set(OLD)
        assert key.look().failed is None
        key.invalidate()
        key.granted(SIX)
        key.fail(SIX)
        assert key.look().failed == Failed("no luck", 100)


def test_a_fill_whose_time_is_over_fails_without_consequences() -> None:
    """Another one is under way; but it is over, and cannot be handed over any more."""
    key = Cached()
    key.granted(ONE)
    key.ms = FILL_MS
    key.granted(TWO)
    key.fail(ONE)
    assert key.look(SIX) == Seen(filling_ms=FILL_MS)
    assert key.fill(ONE) is TOO_LATE
    key.fail(SIX)
    assert key.look().failed is None


def test_a_failed_fill_cannot_be_handed_over() -> None:
    """It is over."""
    key = Cached()
    key.granted(ONE)
    key.fail(ONE)
    assert key.fill(ONE) is TOO_LATE


# --- Deaths -----------------------------------------------------------------------------------


def test_when_a_filler_dies_exactly_one_of_those_who_wait_takes_over() -> None:
    """L10: all hear of it, and the first who looks has it."""
    key = Cached()
    key.granted(ONE)
    for server in "abc":
        key.look(server=server)
    key.dies(ONE)
    assert sorted(key.told()) == ["a", "b", "c"]
    grants = [key.look(fill, server="a").grant for fill in (TWO, SIX, ONE)]
    assert [grant is not None for grant in grants] == [True, False, False]


def test_a_dead_fillers_value_is_stored_if_it_comes_nevertheless() -> None:
    """Its connection died, not its load."""
    key = Cached()
    key.granted(ONE)
    key.dies(ONE)
    assert key.fill(ONE) is STORED


def test_a_fill_that_is_not_under_way_cannot_be_given_up() -> None:
    """Its successor stays."""
    key = Cached()
    key.granted(ONE)
    key.ms = FILL_MS
    key.granted(TWO)
    key.dies(ONE)
    assert key.look(SIX).grant is None


@pytest.mark.parametrize("noticed", [True, False])
def test_after_so_many_deaths_in_a_row_the_key_is_left_alone(noticed: bool) -> None:
    """Loads <= 1 + deaths, and not for ever: what kills its loaders is asked for less and less.

    Whether their sessions end, or their time.
    """
    key = Cached(jitter=1.0)
    waits = []
    for _ in range(2):
        for number in range(DEATHS_MAX):
            assert key.look().failed is None, number
            key.granted(ONE)
            if noticed:
                key.dies(ONE)
            else:
                key.ms += FILL_MS
        failed = key.look(TWO).failed
        assert failed is not None
        assert failed.error == DIED
        waits.append(failed.retry_after_ms)
        key.ms += failed.retry_after_ms
    assert waits == [200, 400]


@pytest.mark.parametrize("between", ["stored", "failed", "given up"])
def test_deaths_count_only_in_a_row(between: str) -> None:
    """A load that ends otherwise shows that not all die; one that is given up shows nothing."""
    key = Cached()
    for _ in range(DEATHS_MAX - 1):
        key.granted(ONE)
        key.dies(ONE)
    key.granted(TWO)
    if between == "stored":
        key.fill(TWO)
        key.invalidate()
    elif between == "failed":
        key.fail(TWO, retry_ms=0)
    else:
        key.entry.give_up(TWO, key.now, died=False)
    key.granted(ONE)
    key.dies(ONE)
    assert (key.state == "failed") == (between == "given up")


# --- Given up, and not to be shared -----------------------------------------------------------


def test_a_fill_that_is_given_up_is_free_at_once() -> None:
    """Nobody has failed, so there is no back-off."""
    key = Cached()
    fence = key.granted(ONE).fence
    key.entry.give_up(ONE, key.now, died=False)
    assert key.granted(TWO).fence > fence


def test_what_is_not_to_be_shared_everybody_loads_for_himself() -> None:
    """At the same time, and nothing of it is stored; after a while one is tried again."""
    key = Cached()
    key.granted(ONE)
    key.entry.unshare(ONE, 5_000, key.now)
    grants = [key.granted(fill) for fill in (ONE, TWO, SIX)]
    assert all(not grant.shared and grant.fill_ms == FILL_MS for grant in grants)
    assert len({grant.fence for grant in grants}) == 3
    assert key.fill(TWO) is TOO_LATE
    key.ms = 4_999
    assert not key.granted(TWO).shared
    key.ms = 5_000
    assert key.granted(TWO).shared
    assert key.look(SIX).grant is None


def test_a_value_ends_the_time_of_loading_apart() -> None:
    """It is there for all."""
    key = Cached()
    key.granted(ONE)
    key.entry.unshare(ONE, 5_000, key.now)
    key.set(OLD)
    key.invalidate()
    assert key.granted(TWO).shared


def test_only_the_fill_under_way_can_end_the_sharing() -> None:
    """A late one knows less than its successor."""
    key = Cached()
    key.granted(ONE)
    key.ms = FILL_MS
    key.granted(TWO)
    key.entry.unshare(ONE, 5_000, key.now)
    assert key.look(SIX) == Seen(filling_ms=FILL_MS)


# --- Waiting for another key ------------------------------------------------------------------


def test_it_is_known_what_the_loader_waits_for() -> None:
    """So that two loaders who wait for each other can be told."""
    key = Cached()
    assert key.entry.waits_for is None
    key.granted(ONE)
    assert key.entry.waits_for is None
    key.entry.wait_for(ONE, "other")
    assert key.entry.waits_for == "other"
    key.entry.wait_for(TWO, "else")
    assert key.entry.waits_for == "other", "only of the fill under way"
    key.entry.wait_for(ONE, None)
    assert key.entry.waits_for is None


def test_whoever_takes_over_does_not_wait_yet() -> None:
    """What the dead one waited for does not matter."""
    key = Cached()
    key.granted(ONE)
    key.entry.wait_for(ONE, "other")
    key.dies(ONE)
    key.granted(TWO)
    assert key.entry.waits_for is None
