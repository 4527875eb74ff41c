"""What there is of a key, and whom it is shown: the cache's rules, by example.

L10 one filler, L11 no stale fill.
"""

from collections.abc import Callable

import pytest

from leasekeeper.core.fills import FillGrant, Found, Seen
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
    WAYS,
    Cached,
    at,
)

MINUTE_MS = 60_000

# --- Grants -----------------------------------------------------------------------------------


def test_who_cannot_load_learns_that_there_is_nothing() -> None:
    """And nothing is kept of the question (L9)."""
    key = Cached()
    assert key.look() == Seen()
    assert key.keep_ms == 0


def test_the_first_who_can_load_it_is_granted_the_fill() -> None:
    """L10."""
    key = Cached()
    seen = key.look(ONE)
    assert seen == Seen(grant=FillGrant(at(0).us, FILL_MS))
    assert key.keep_ms == 2 * FILL_MS


def test_others_learn_how_long_the_load_may_take_and_are_granted_nothing() -> None:
    """L10."""
    key = Cached()
    key.granted(ONE)
    key.ms = 3_000
    assert key.look(TWO) == Seen(filling_ms=FILL_MS - 3_000)
    assert key.look() == Seen(filling_ms=FILL_MS - 3_000)


def test_a_repeated_look_has_the_same_grant() -> None:
    """L6, L10: for what is left of its time."""
    key = Cached()
    fence = key.granted(ONE).fence
    key.ms = 3_000
    assert key.look(ONE) == Seen(grant=FillGrant(fence, FILL_MS - 3_000))


def test_a_fill_is_exclusive_until_its_time_is_over_and_no_longer() -> None:
    """L10."""
    key = Cached()
    fence = key.granted(ONE).fence
    key.ms = FILL_MS - 1
    assert key.look(TWO).grant is None
    key.ms = FILL_MS
    assert key.granted(TWO).fence > fence


def test_fences_rise_even_if_the_clock_stands_still_or_steps_back() -> None:
    """Fences order grants, sets and invalidations alike."""
    key = Cached()
    fences = [key.granted(ONE).fence]
    key.invalidate()
    fences.append(key.granted(TWO).fence)
    key.ms = -MINUTE_MS
    fence = key.set(OLD)
    assert isinstance(fence, int)
    fences.append(fence)
    fences.append(key.begin().fence)
    fences.append(key.granted(SIX).fence)
    assert fences == sorted(set(fences))


# --- Freshness --------------------------------------------------------------------------------


def test_a_value_is_fresh_for_its_ttl_from_when_it_was_stored() -> None:
    """And a hit grants nothing."""
    key = Cached()
    key.granted()
    key.ms = 1_000
    assert key.fill() is FillOutcome.STORED
    key.ms = 1_400
    assert key.look(TWO) == Seen(Found(OLD, 400, TTL_MS - 400, fresh=True))
    key.ms = 1_000 + TTL_MS - 1
    assert key.state == "fresh"
    key.ms = 1_000 + TTL_MS
    assert key.state == "none"
    key.granted(TWO)


def test_a_stale_value_is_shown_while_one_caller_loads_it_anew() -> None:
    """Stale-while-revalidate, L10."""
    key = Cached()
    key.loaded(stale_ms=STALE_MS)
    key.ms = TTL_MS
    stale = Found(OLD, TTL_MS, 0, fresh=False)
    first, second = key.look(ONE), key.look(TWO)
    assert first.found == second.found == stale
    assert first.grant is not None
    assert (second.grant, second.filling_ms) == (None, FILL_MS)
    assert key.fill(ONE, NEW) is FillOutcome.STORED
    assert key.look(TWO).found == Found(NEW, 0, TTL_MS, fresh=True)


def test_a_stale_value_is_of_no_use_once_its_stale_time_is_over() -> None:
    """Staleness is bounded."""
    key = Cached()
    key.loaded(stale_ms=STALE_MS)
    key.ms = TTL_MS + STALE_MS - 1
    assert key.state == "stale"
    assert key.keep_ms == TTL_MS + STALE_MS
    key.ms += 1
    assert key.state == "none"


def test_who_fills_is_shown_the_etag_of_the_value_that_is_there() -> None:
    """So that it can find out whether there is anything to load. A gone value has none."""
    key = Cached()
    key.granted()
    key.fill(etag="e1", stale_ms=STALE_MS)
    key.ms = TTL_MS
    assert key.granted(TWO).etag == "e1"
    assert key.granted(TWO).etag == "e1", "also when the look is repeated"
    key.ms = TTL_MS + STALE_MS
    assert key.granted(SIX).etag is None


# --- Invalidation -----------------------------------------------------------------------------


@WAYS
def test_a_voided_value_is_shown_to_nobody(void: Callable[[Cached], None]) -> None:
    """L11: not as a stale one either; and it is loaded anew at once."""
    key = Cached()
    key.loaded(OLD, "t1", "t2", stale_ms=STALE_MS)
    void(key)
    assert key.value is None
    key.granted(TWO)


@WAYS
def test_a_fill_granted_before_an_invalidation_is_not_stored(
    void: Callable[[Cached], None],
) -> None:
    """L11: it may have read before the write. Of its tags nobody knew until now."""
    key = Cached()
    key.granted()
    void(key)
    assert key.fill(ONE, OLD, "t1", "t2") is FillOutcome.VOIDED
    assert key.value is None


@WAYS
def test_a_fill_granted_after_an_invalidation_is_stored(void: Callable[[Cached], None]) -> None:
    """In the same moment even: fences tell the order."""
    key = Cached()
    key.loaded(OLD, "t1", "t2")
    void(key)
    key.granted()
    assert key.fill(ONE, NEW, "t1", "t2") is FillOutcome.STORED
    assert key.value == NEW


def test_an_invalidation_by_key_lets_another_load_at_once() -> None:
    """L10 counts it: the load that is under way is void."""
    key = Cached()
    key.granted(ONE)
    key.invalidate()
    key.granted(TWO)
    assert key.fill(TWO, NEW) is FillOutcome.STORED
    assert key.fill(ONE, OLD) is FillOutcome.VOIDED
    assert key.value == NEW


def test_an_invalidation_by_tag_concerns_only_what_has_it() -> None:
    """L11, and no more than that."""
    key = Cached()
    key.loaded(OLD, "t1")
    key.mark("t2")
    assert key.state == "fresh"


def test_a_soft_invalidation_makes_a_value_stale_for_its_stale_time() -> None:
    """From then on, and no longer than it would have lived anyway."""
    for soften in (Cached.invalidate, lambda key, mark: key.mark("t", mark)):
        key = Cached()
        key.loaded(OLD, "t", stale_ms=STALE_MS)
        key.ms = 1_000
        soften(key, Mark.SOFT)
        assert key.look().found == Found(OLD, 1_000, 0, fresh=False)
        key.ms = 1_000 + STALE_MS - 1
        assert key.state == "stale"
        key.ms += 1
        assert key.state == "none"
        key.granted()


def test_a_soft_invalidation_does_not_lengthen_a_life() -> None:
    """A value that is about to go goes."""
    key = Cached()
    key.loaded(OLD, stale_ms=STALE_MS)
    key.ms = TTL_MS + STALE_MS - 1
    key.invalidate(Mark.SOFT)
    assert key.state == "stale"
    key.ms += 1
    assert key.state == "none"


def test_a_value_without_stale_time_is_gone_when_softly_invalidated() -> None:
    """It may not be shown as stale at all."""
    key = Cached()
    key.loaded(OLD)
    key.invalidate(Mark.SOFT)
    assert key.state == "none"


def test_the_first_of_two_soft_invalidations_counts() -> None:
    """By key and by tag, in either order: a value does not get younger."""
    for first, second in (("t", None), (None, "t")):
        key = Cached()
        key.loaded(OLD, "t", stale_ms=STALE_MS)
        for tag in (first, second):
            key.ms += 5_000
            key.mark(tag, Mark.SOFT) if tag else key.invalidate(Mark.SOFT)
        key.ms = 5_000 + STALE_MS
        assert key.state == "none"


def test_a_softly_invalidated_value_is_refreshed_by_one() -> None:
    """L10, and what it loads is fresh again."""
    key = Cached()
    key.loaded(OLD, "t", stale_ms=STALE_MS)
    key.mark("t", Mark.SOFT)
    key.granted(ONE)
    assert key.look(TWO).grant is None
    assert key.fill(ONE, NEW, "t") is FillOutcome.STORED
    assert key.state == "fresh"


@pytest.mark.parametrize("by", ["key", "tag"])
def test_a_fill_granted_before_a_soft_invalidation_is_not_stored(by: str) -> None:
    """L11: it would be shown as fresh."""
    key = Cached()
    key.granted()
    key.invalidate(Mark.SOFT) if by == "key" else key.mark("t", Mark.SOFT)
    assert key.fill(ONE, OLD, "t") is FillOutcome.VOIDED


def test_a_soft_invalidation_by_key_lets_another_load_at_once() -> None:
    """The load under way is void, so nobody need wait for it."""
    key = Cached()
    key.granted(ONE)
    key.invalidate(Mark.SOFT)
    key.granted(TWO)


# --- Negative entries -------------------------------------------------------------------------


def test_that_there_is_no_such_thing_is_believed_for_its_ttl() -> None:
    """And nobody loads it meanwhile."""
    key = Cached()
    key.loaded(None, ttl_ms=5_000, stale_ms=STALE_MS)
    key.ms = 1_000
    assert key.look(ONE, early=99.0) == Seen(negative_ms=4_000)
    key.ms = 5_000
    key.granted(ONE)


@WAYS
def test_a_negative_entry_is_voided_as_a_value_is(void: Callable[[Cached], None]) -> None:
    """L11: the thing may exist by now, and it has tags, too."""
    key = Cached()
    key.loaded(None, "t1", "t2")
    assert key.state == "negative"
    void(key)
    assert key.state == "none"


@pytest.mark.parametrize("by", ["key", "tag"])
def test_a_soft_invalidation_ends_a_negative_entry(by: str) -> None:
    """It is not true any more, and there is no value to go on with."""
    key = Cached()
    key.loaded(None, "t", stale_ms=STALE_MS)
    key.invalidate(Mark.SOFT) if by == "key" else key.mark("t", Mark.SOFT)
    assert key.look().negative_ms is None
    key.granted()
