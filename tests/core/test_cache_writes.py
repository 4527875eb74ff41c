"""Changes of a cached value that no load brings: set, write-through and write-behind.

L11: what is read after an acknowledged write was not loaded before it.
"""

from collections.abc import Callable

import pytest

from leasekeeper.core.fills import Closed, Conflict, Content, Found, Seen
from leasekeeper.messages import FillOutcome, Mark
from tests.core.caches import (
    FILL_MS,
    INK,
    NEW,
    OLD,
    ONE,
    PEN,
    SIX,
    STALE_MS,
    TTL_MS,
    TWO,
    WAYS,
    Cached,
    at,
)

VOIDED, STORED, TOO_LATE = FillOutcome.VOIDED, FillOutcome.STORED, FillOutcome.TOO_LATE

# --- Set --------------------------------------------------------------------------------------


def test_a_value_that_is_set_is_fresh_from_then_on() -> None:
    """It has taken no time to load, so nobody refreshes it early."""
    key = Cached()
    assert key.set(NEW, "t") == at(0).us
    assert key.look().found == Found(NEW, 0, TTL_MS, fresh=True)
    key.ms = TTL_MS - 1
    assert key.look(ONE, early=99.0).grant is None
    key.mark("t")
    assert key.state == "none"


def test_a_set_replaces_the_value_and_voids_what_is_being_loaded() -> None:
    """L11."""
    key = Cached()
    key.loaded(OLD)
    key.ms = TTL_MS
    key.granted(ONE)
    key.set(NEW)
    assert key.fill(ONE, OLD) is VOIDED
    assert key.value == NEW


def test_a_set_is_not_stored_while_a_write_through_is_open() -> None:
    """There is no telling which came last: of its key, or of one of the value's tags."""
    key = Cached()
    key.begin()
    assert isinstance(key.set(NEW), int)
    assert key.state == "none"
    other = Cached()
    other.loaded(OLD)
    other.versions.open(["t"], PEN, at(FILL_MS).ms, other.now)
    assert isinstance(other.set(NEW, "t"), int)
    assert other.state == "none"
    other.ms = FILL_MS
    other.set(NEW, "t")
    assert other.value == NEW


def test_a_set_of_a_key_with_a_queued_write_is_a_conflict() -> None:
    """The queued value is what the database will have in the end."""
    key = Cached()
    key.put(OLD)
    assert key.set(NEW) == Conflict()
    assert key.value == OLD


# --- Write-through ----------------------------------------------------------------------------


def test_while_a_write_through_is_open_everybody_loads_for_himself() -> None:
    """What is loaded may be the old state or the new, so nothing is stored, and nobody waits."""
    key = Cached()
    key.loaded(OLD)
    assert key.begin().until_ms == at(FILL_MS).ms
    for fill in (ONE, TWO):
        seen = key.look(fill)
        assert seen.found is None
        assert seen.grant is not None
        assert not seen.grant.shared
        assert key.fill(fill) is TOO_LATE


def test_a_write_through_voids_all_that_was_granted_before_its_end() -> None:
    """L11: what was granted before its beginning."""
    key = Cached()
    key.granted(ONE)
    key.begin()
    assert key.fill(ONE) is VOIDED
    key.close()
    key.granted(TWO)
    assert key.fill(TWO, NEW) is STORED


def test_a_commit_stores_the_value() -> None:
    """With its tags, among which are those of the write-through itself."""
    key = Cached()
    key.begin(PEN, "t")
    key.ms = 5
    assert key.close(PEN, NEW, "t", "u") == Closed(stored=True, in_time=True)
    assert key.look().found == Found(NEW, 0, TTL_MS, fresh=True)
    key.mark("u")
    assert key.state == "none"


@pytest.mark.parametrize("value", [NEW, None])
def test_the_end_of_a_write_through_invalidates_its_tags(value: bytes | None) -> None:
    """L11: commit or abort, those it was begun with and those it is closed for."""
    for tag in ("begun", "closed"):
        key, other = Cached(), Cached()
        other.versions = key.versions
        key.begin(PEN, "begun")
        other.ms = FILL_MS
        other.granted(ONE)  # granted when it should have been over, so its time does not say it
        key.close(PEN, value, "closed")
        assert other.fill(ONE, OLD, tag) is VOIDED
        assert not key.versions.is_open([tag], key.now)


def test_an_aborted_write_through_leaves_nothing() -> None:
    """It may have been committed nevertheless."""
    key = Cached()
    key.loaded(OLD)
    key.begin()
    assert key.close() == Closed(stored=False, in_time=True)
    assert key.granted(ONE).shared


def test_a_write_through_that_runs_out_voids_all_before_its_end() -> None:
    """L11: nobody knows whether it was committed. What is granted after that is stored."""
    key = Cached()
    key.begin(PEN, ttl_ms=5_000)
    key.ms = 4_999
    assert not key.granted(ONE).shared
    key.ms = 5_000
    assert key.granted(TWO).shared
    assert key.fill(TWO) is STORED


def test_a_write_through_that_ran_out_is_closed_all_the_same() -> None:
    """L11: its transaction may have come too late, so what was loaded since is void."""
    key = Cached()
    key.begin(PEN, ttl_ms=5_000)
    key.ms = 5_000
    key.loaded(OLD)
    assert key.close(PEN, NEW) == Closed(stored=False, in_time=False)
    assert key.state == "none"


def test_a_write_through_begun_twice_under_one_id_is_one() -> None:
    """L6."""
    key = Cached()
    begun = key.begin(PEN)
    key.ms = 100
    assert key.begin(PEN) == begun
    assert key.close(PEN, NEW).stored


def test_a_write_through_of_a_tag_begun_twice_is_one() -> None:
    """L6: a repeat is no change of the tag that would keep its own value out."""
    key = Cached()
    begun = key.begin(PEN, "t")
    key.ms = 100
    assert key.begin(PEN, "t") == begun
    assert key.close(PEN, NEW, "t").stored


def test_a_write_through_begun_again_when_it_is_over_is_another() -> None:
    """L11: what was loaded in between is void."""
    key = Cached()
    key.begin(PEN, "t", ttl_ms=1_000)
    key.ms = 1_000
    key.loaded(OLD, "t")
    key.begin(PEN, "t")
    assert key.state == "none"
    assert key.versions.is_open(["t"], key.now)


def test_a_write_through_closed_twice_invalidates_twice() -> None:
    """L6: it does no harm."""
    key = Cached()
    key.begin(PEN)
    key.close(PEN, NEW)
    assert key.close(PEN, NEW) == Closed(stored=False, in_time=False)
    assert key.state == "none"


def test_it_is_known_which_tags_an_open_write_through_was_begun_with() -> None:
    """For those that are kept elsewhere."""
    key = Cached()
    key.begin(PEN, "t", "u")
    assert key.entry.tags_of(PEN) == ("t", "u")
    assert key.entry.tags_of(INK) == ()


@pytest.mark.parametrize("order", [(PEN, INK), (INK, PEN)])
def test_write_throughs_of_one_key_that_overlap_store_nothing(order: tuple[str, str]) -> None:
    """L11: which of them the database had last is not known, whichever says so last."""
    key = Cached()
    key.begin(PEN)
    key.begin(INK)
    assert [key.close(write, NEW).stored for write in order] == [False, False]
    assert key.state == "none"


def test_a_write_through_that_overlapped_one_that_ran_out_stores_nothing() -> None:
    """L11."""
    key = Cached()
    key.begin(PEN, ttl_ms=1_000)
    key.begin(INK, ttl_ms=5_000)
    key.ms = 2_000
    assert key.close(INK, NEW) == Closed(stored=False, in_time=True)


def invalidate_softly(key: Cached) -> None:
    """By key."""
    key.invalidate(Mark.SOFT)


def mark_softly(key: Cached) -> None:
    """By tag."""
    key.mark("t2", Mark.SOFT)


def begin_other_with_tag(key: Cached) -> None:
    """A write-through of another key, which is still open."""
    key.versions.open(["t2"], INK, at(FILL_MS).ms, key.now)


@pytest.mark.parametrize("soft", [invalidate_softly, mark_softly, begin_other_with_tag])
def test_a_commit_stores_no_value_when_its_tags_or_key_changed_softly_meanwhile(
    soft: Callable[[Cached], None],
) -> None:
    """L11: it would be shown as fresh."""
    key = Cached()
    key.begin(PEN, "t1")
    soft(key)
    assert key.close(PEN, NEW, "t1", "t2") == Closed(stored=False, in_time=True)
    assert key.state == "none"


def test_what_is_forgotten_of_tags_while_a_write_through_is_open_does_not_matter_to_it() -> None:
    """The floor rises with it, but not above what is still under way."""
    key = Cached()
    key.begin(PEN, ttl_ms=5_000)
    key.mark("other")
    key.ms = 4_999
    key.mark("another")
    assert key.close(PEN, NEW).stored


@WAYS
def test_a_commit_stores_no_value_when_something_was_invalidated_meanwhile(
    void: Callable[[Cached], None],
) -> None:
    """L11: its value may have been computed before the other write, which was told of already."""
    key = Cached()
    key.begin(INK, "t1")
    void(key)
    assert key.close(INK, NEW, "t1", "t2") == Closed(stored=False, in_time=True)
    assert key.state == "none"


def test_a_commit_is_not_bothered_by_changes_of_tags_its_value_has_not() -> None:
    """Two writers of different keys may both change one list."""
    key, other = Cached(), Cached()
    other.versions = key.versions
    key.begin(PEN, "list")
    other.begin(INK, "list")
    content = Content(NEW, TTL_MS)
    assert key.entry.close(PEN, content, (), key.versions, key.now).stored
    assert other.entry.close(INK, content, (), key.versions, key.now).stored
    assert (key.value, other.value) == (NEW, NEW)


def test_a_key_with_a_tag_under_change_is_loaded_by_everybody_for_himself() -> None:
    """As soon as its tags are known: from its last fill, stored or not."""
    key = Cached()
    key.versions.open(["t"], PEN, at(FILL_MS).ms, key.now)
    assert key.granted(ONE).shared, "nobody knows yet"
    assert key.fill(ONE, OLD, "t") is VOIDED
    assert not key.granted(TWO).shared
    key.ms = FILL_MS
    assert key.granted(SIX).shared


def test_what_is_loaded_while_a_tag_is_under_change_is_not_stored() -> None:
    """L11: the tag is known only when it is filled; and its end counts, not the fill's."""
    key = Cached()
    key.versions.open(["t"], PEN, at(5_000).ms, key.now)
    key.ms = 4_999
    key.granted(ONE)
    key.ms = 6_000
    assert key.fill(ONE, OLD, "t") is VOIDED
    key.granted(TWO)
    assert key.fill(TWO, OLD, "t") is STORED


def test_others_load_for_themselves_even_while_a_doomed_fill_is_under_way() -> None:
    """It began before the write-through of its tag, and will be void."""
    key = Cached()
    key.loaded(OLD, "t")
    key.ms = TTL_MS
    key.granted(ONE)
    key.versions.open(["t"], PEN, at(key.ms + FILL_MS).ms, key.now)
    seen = key.look(TWO)
    assert seen.grant is not None
    assert (seen.grant.shared, seen.filling_ms) == (False, FILL_MS)


# --- Write-behind -----------------------------------------------------------------------------


def test_a_queued_value_is_read_until_it_is_written() -> None:
    """It has no TTL, and nobody is asked to load anything else."""
    key = Cached()
    key.loaded(OLD)
    key.put(NEW, ttl_ms=5)
    assert key.entry.keep_until_ms() is None
    key.ms = 10 * TTL_MS
    assert key.look(ONE, early=99.0) == Seen(Found(NEW, key.ms, 5, fresh=True))


def test_a_queued_value_is_newer_than_all_before_it() -> None:
    """Its number is a fence; a later one has a greater."""
    key = Cached()
    fence = key.granted(ONE).fence
    first = key.put(OLD)
    second = key.put(NEW)
    assert fence < first < second
    assert key.value == NEW
    assert key.fill(ONE, OLD) is VOIDED


def test_a_queued_value_is_not_given_up_to_make_room() -> None:
    """It is nowhere else yet."""
    key = Cached()
    key.put(NEW)
    key.entry.evict()
    assert key.value == NEW


def test_a_written_value_stays_for_its_ttl_from_then_on() -> None:
    """Or goes, if it has none."""
    key = Cached()
    seq = key.put(NEW, ttl_ms=5_000)
    key.ms = TTL_MS
    key.written(seq)
    assert key.look().found == Found(NEW, 0, 5_000, fresh=True)
    assert key.keep_ms == TTL_MS + 5_000
    key.ms += 4_999
    assert key.look(ONE, early=99.0).grant is None, "no load has been measured"
    key.written(key.put(NEW))
    assert key.state == "none"


def test_a_value_that_was_put_again_stays_until_that_is_written() -> None:
    """What is done is an older write."""
    key = Cached()
    first = key.put(OLD, ttl_ms=5_000)
    second = key.put(NEW)
    key.written(first)
    assert key.entry.keep_until_ms() is None
    assert key.value == NEW
    key.written(second)
    assert key.state == "none"
    key.written(second)
    assert key.state == "none"


@pytest.mark.parametrize("soft", [None, invalidate_softly, mark_softly])
@WAYS
def test_an_invalidation_of_a_queued_value_holds_once_it_is_written(
    void: Callable[[Cached], None], soft: Callable[[Cached], None] | None
) -> None:
    """L11: until then the queued value is the truth, for it will be."""
    key = Cached()
    seq = key.put(NEW, "t1", "t2", ttl_ms=TTL_MS)
    if void.__name__ in {"set_value", "begin_and_abort"}:
        key.close(PEN)  # the others are conflicts
    else:
        (soft or void)(key)
    assert key.value == NEW
    key.written(seq)
    assert key.state == "none"
    assert key.granted(ONE).shared


def test_a_tag_invalidated_long_ago_still_holds_once_the_value_is_written() -> None:
    """L11: even if nobody remembers that any more, for it has lain in the queue for so long."""
    key = Cached()
    seq = key.put(NEW, "t", ttl_ms=5_000)
    key.ms = 1_000
    key.mark("t")
    key.ms = 3_600_000
    key.mark("other")
    assert key.versions.records == 1
    key.written(seq)
    assert key.state == "none"


def test_a_value_written_after_long_outlives_what_is_forgotten_of_its_time_in_the_queue() -> None:
    """It is as good as new, so what happened before does not matter to it any more."""
    key = Cached()
    seq = key.put(NEW, ttl_ms=TTL_MS)
    key.ms = 1_000
    key.mark("other")
    key.ms = 50_000
    key.written(seq)
    key.ms = 50_000 + TTL_MS - 1
    key.mark("another")
    assert key.value == NEW


def test_a_write_that_is_given_up_takes_its_value_with_it() -> None:
    """The database will never have it; unless the key was put again since."""
    key = Cached()
    first = key.put(OLD, ttl_ms=TTL_MS)
    second = key.put(NEW, ttl_ms=TTL_MS)
    key.entry.given_up(first)
    assert key.value == NEW
    key.entry.given_up(second)
    assert key.state == "none"
    key.granted(ONE)


def test_an_invalidation_before_the_last_put_is_over() -> None:
    """The value is newer than that."""
    key = Cached()
    key.put(OLD, ttl_ms=TTL_MS)
    key.invalidate()
    key.written(key.put(NEW, ttl_ms=TTL_MS))
    assert key.value == NEW


def test_a_queued_value_has_the_tags_last_known_if_it_has_none() -> None:
    """L11: what had them has them still; and a value may bring its own."""
    for own, gone in (((), True), (("own",), False)):
        key = Cached()
        key.loaded(OLD, "t", stale_ms=STALE_MS)
        seq = key.put(NEW, *own, ttl_ms=TTL_MS)
        key.mark("t")
        key.written(seq)
        assert (key.value is None) == gone


def test_a_write_is_not_queued_while_a_write_through_is_open_nor_the_other_way_round() -> None:
    """There would be no telling which comes last."""
    key = Cached()
    key.begin(PEN)
    assert key.entry.put(Content(NEW, 0), key.versions, key.now) == Conflict()
    key.close(PEN)
    key.put(NEW)
    assert key.entry.begin(PEN, (), FILL_MS, key.versions, key.now) == Conflict()
    assert key.close(PEN, OLD) == Closed(stored=False, in_time=False)
    assert key.value == NEW
