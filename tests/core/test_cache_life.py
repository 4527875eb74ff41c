"""Who hears of a key, for how long it is remembered, and what a clock that steps does to it."""

from collections.abc import Callable

import pytest

from leasekeeper.messages import FillOutcome, Mark
from tests.core.caches import (
    FILL_MS,
    INK,
    NEW,
    OLD,
    ONE,
    PEN,
    STALE_MS,
    TTL_MS,
    TWO,
    WAYS,
    Cached,
    at,
)

MINUTE_MS = 60_000

# --- News -------------------------------------------------------------------------------------


def test_news_goes_to_the_servers_that_wait_and_to_no_other() -> None:
    """L5: they look again, once, and wait anew if they must."""
    key = Cached()
    key.granted(ONE)
    key.look(server="a")
    key.look(TWO, server="b")
    key.look(server="b")
    key.look()
    assert key.told() == []
    key.fill()
    assert sorted(key.told()) == ["a", "b"]
    key.invalidate()
    assert key.told() == [], "they have not asked to hear more"


def test_who_is_answered_by_a_hit_or_a_negative_entry_does_not_wait() -> None:
    """A hit writes nothing."""
    for value in (OLD, None):
        key = Cached()
        key.loaded(value)
        keep_ms = key.keep_ms
        key.look(server="a")
        assert key.keep_ms == keep_ms
        key.invalidate()
        assert key.told() == []


def test_who_sees_a_stale_value_may_wait_for_a_fresh_one() -> None:
    """It depends on its callers."""
    key = Cached()
    key.loaded(stale_ms=STALE_MS)
    key.ms = TTL_MS
    key.granted(ONE, server="a")
    key.fill(ONE, NEW)
    assert key.told() == ["a"]


def test_who_does_not_ask_again_hears_nothing_after_a_while() -> None:
    """L9: a server that is gone is forgotten."""
    key = Cached()
    key.look(server="a")
    key.ms = 14_999
    key.look(server="b")
    key.ms = 15_000
    key.invalidate()
    assert key.told() == ["b"]


def void_fill(key: Cached) -> None:
    """A fill that is not stored."""
    key.mark("t")
    assert key.fill(ONE, OLD, "t") is FillOutcome.VOIDED


CHANGES: list[Callable[[Cached], object]] = [
    lambda key: key.fill(),
    void_fill,
    lambda key: key.fail(),
    lambda key: key.dies(),
    lambda key: key.entry.give_up(ONE, key.now, died=False),
    lambda key: key.entry.unshare(ONE, 1_000, key.now),
    lambda key: key.set(OLD),
    lambda key: key.invalidate(),
    lambda key: key.invalidate(Mark.SOFT),
    lambda key: key.begin(),
    lambda key: key.close(),
    lambda key: key.put(OLD),
]


@pytest.mark.parametrize("number", range(len(CHANGES)))
def test_whatever_ends_the_load_under_way_is_news(number: int) -> None:
    """L5: a value, a failure, or the turn of one of those who wait."""
    key = Cached()
    key.granted(ONE)
    key.look(server="a")
    CHANGES[number](key)
    assert key.told() == ["a"]


def test_that_the_time_of_a_fill_is_over_is_news_when_it_is_noticed() -> None:
    """L5: whoever looks first has the fill, and the others hear of it."""
    key = Cached()
    key.granted(ONE)
    key.ms = 1
    key.look(server="a")
    key.look(server="b")
    key.ms = FILL_MS
    assert key.look(TWO, server="b").grant is not None
    assert sorted(key.told()) == ["a", "b"]
    key.fill(TWO)
    assert key.told() == ["b"]


# --- How long it is remembered ----------------------------------------------------------------


def test_a_key_at_rest_need_not_be_remembered() -> None:
    """L9."""
    key = Cached()
    key.set(OLD, ttl_ms=100)
    assert key.keep_ms == 100
    key.invalidate()
    assert key.keep_ms == 0


def test_a_key_is_remembered_for_as_long_as_anything_of_it_matters() -> None:
    """L9, L11: for a value, a late fill, a write-through, a waiter, a time of loading apart."""
    key = Cached()
    key.granted(ONE)
    assert key.keep_ms == 2 * FILL_MS, "it may come late"
    key.fill(ONE, stale_ms=STALE_MS)
    assert key.keep_ms == TTL_MS + STALE_MS
    key.invalidate()
    key.begin(INK, ttl_ms=7_000)
    assert key.keep_ms == 7_000
    key.look(server="a")
    assert key.keep_ms == 15_000
    key.close(INK)
    assert key.keep_ms == 0
    key.granted(TWO)
    key.entry.unshare(TWO, 90_000, key.now)
    assert key.keep_ms == 90_000


def test_a_voided_fill_is_remembered_until_nobody_would_store_it() -> None:
    """L11: else an unknown void would be forgotten with the key."""
    key = Cached()
    key.granted(ONE)
    key.invalidate()
    assert key.keep_ms == 2 * FILL_MS


def test_a_failure_is_remembered_beyond_the_next_attempt() -> None:
    """Else the back-off would never grow: the next attempt comes after `retry_at_ms`."""
    key = Cached()
    key.granted(ONE)
    key.fail(ONE, retry_ms=1_000)
    assert key.keep_ms >= 1_000 + 30_000


def test_a_key_tells_the_size_of_its_value_and_gives_it_up() -> None:
    """To make room; it is loaded anew then."""
    key = Cached()
    assert key.entry.size == 0
    key.loaded(OLD)
    assert key.entry.size == len(OLD)
    key.entry.evict()
    assert (key.entry.size, key.state, key.keep_ms) == (0, "none", 0)
    key.loaded(None)
    assert key.entry.size == 0


# --- The clock steps --------------------------------------------------------------------------


def test_a_value_survives_a_clock_that_steps_back() -> None:
    """It lives longer; its age is never negative."""
    key = Cached()
    key.loaded(stale_ms=STALE_MS)
    key.ms = -MINUTE_MS
    found = key.look().found
    assert found is not None
    assert (found.value, found.age_ms, found.fresh) == (OLD, 0, True)


@WAYS
@pytest.mark.parametrize("step_ms", [-MINUTE_MS, MINUTE_MS])
def test_what_is_void_stays_void_though_the_clock_steps(
    void: Callable[[Cached], None], step_ms: int
) -> None:
    """L11: fences tell the order, not the time."""
    key = Cached()
    key.loaded(OLD, "t1", "t2", ttl_ms=10 * TTL_MS)
    key.ms = step_ms
    void(key)
    assert key.value is None
    key.ms = 0
    assert key.value is None


@WAYS
def test_a_fill_from_before_a_step_back_is_void_all_the_same(
    void: Callable[[Cached], None],
) -> None:
    """L11."""
    key = Cached()
    key.granted(ONE)
    key.ms = -MINUTE_MS
    void(key)
    assert key.fill(ONE, OLD, "t1", "t2") is FillOutcome.VOIDED


def test_a_fill_is_exclusive_for_longer_when_the_clock_steps_back() -> None:
    """L10: never is there a second one."""
    key = Cached()
    key.granted(ONE)
    key.ms = -MINUTE_MS
    assert key.look(TWO).grant is None
    assert key.fill(ONE) is FillOutcome.STORED
    assert key.look(TWO, early=1.0).found is not None


def test_a_load_that_seems_to_have_taken_no_time_is_not_refreshed_early() -> None:
    """The clock has stepped back meanwhile, so nobody knows how long it took."""
    key = Cached()
    key.granted(ONE)
    key.ms = -MINUTE_MS
    key.fill(ONE)
    key.ms = -1
    assert key.look(TWO, early=99.0).grant is None


def test_what_was_forgotten_while_the_clock_was_ahead_does_not_come_back() -> None:
    """L11: of a tag nobody knows any more that it was invalidated, so the floor has risen."""
    key = Cached()
    key.loaded(OLD, "t")
    key.ms = 10
    key.mark("t")
    key.ms = 10 * MINUTE_MS
    key.mark("other")
    assert key.versions.records == 1, "the other one is forgotten"
    key.ms = 20
    assert key.value is None


def test_a_fill_of_a_write_through_that_was_forgotten_does_not_come_back() -> None:
    """L11: as above, for the tags of a write-through that ended without a word."""
    key = Cached()
    key.versions.open(["t"], PEN, at(5_000).ms, key.now)
    key.ms = 10
    key.granted(ONE)
    key.ms = 10 * MINUTE_MS
    key.mark("other")
    key.ms = 20
    assert key.fill(ONE, OLD, "t") is FillOutcome.VOIDED
