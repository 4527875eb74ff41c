"""The clock of cached keys, by example: numbers that rise, tags, and what is forgotten (L11)."""

import pytest

from leasekeeper.core.lock import Now
from leasekeeper.core.versions import Versions
from leasekeeper.messages import Mark
from tests.core.caches import FILL_MS, INK, PEN, START_MS, TTL_MS, at

HARD, SOFT = Mark.HARD, Mark.SOFT


def fence_at(ms: int) -> int:
    """That of a grant at this moment, when not much happens."""
    return at(ms).us


# --- Numbers ----------------------------------------------------------------------------------


def test_numbers_follow_the_clock_and_rise_when_it_does_not() -> None:
    """They are microseconds since 1970, unless the clock stands still or steps back."""
    versions = Versions()
    moments = [Now(5, 5_000), Now(5, 5_000), Now(2, 2_000), Now(9, 9_000)]
    assert [versions.next(now) for now in moments] == [5_000, 5_001, 5_002, 9_000]


def test_numbers_fit_into_what_json_holds_exactly() -> None:
    """Below 2^53, for some 250 years."""
    versions = Versions()
    assert versions.next(at(0)) < 2**53


# --- Tags -------------------------------------------------------------------------------------


def test_what_was_granted_before_a_tag_was_invalidated_is_void() -> None:
    """L11: and what was granted after that is not, not even in the same moment."""
    versions = Versions()
    before = versions.next(at(0))
    versions.mark(["t", "u"], HARD, at(0))
    after = versions.next(at(0))
    for tags in (["t"], ["u"], ["other", "u"]):
        assert versions.voids(tags, before, at(0).ms)
        assert not versions.voids(tags, after, at(0).ms)
    assert not versions.voids(["other"], before, at(0).ms)
    assert not versions.voids([], before, at(0).ms)


def test_the_last_invalidation_of_a_tag_counts() -> None:
    """One number for each tag, however often it is invalidated (L12)."""
    versions = Versions()
    versions.mark(["t"], HARD, at(0))
    between = versions.next(at(1))
    versions.mark(["t"], HARD, at(2))
    assert versions.voids(["t"], between, at(1).ms)
    assert versions.records == 1


def test_soft_invalidations_void_nothing_and_the_first_after_the_grant_counts() -> None:
    """Of several tags: a value is stale from then on."""
    versions = Versions()
    versions.matters(TTL_MS)
    before = versions.next(at(0))
    assert versions.softened(["t", "u"], before) is None
    versions.mark(["t"], SOFT, at(1))
    versions.mark(["u"], SOFT, at(2))
    assert not versions.voids(["t", "u"], before, at(0).ms)
    assert versions.softened(["t", "u"], before) == fence_at(1)
    assert versions.softened(["u"], before) == fence_at(2)
    assert versions.softened(["t", "u"], fence_at(1)) == fence_at(2)
    assert versions.softened(["other"], before) is None
    assert versions.softened(["t", "u"], versions.next(at(2))) is None


# --- Write-throughs ---------------------------------------------------------------------------


def test_a_write_through_of_a_tag_voids_what_is_granted_before_its_end() -> None:
    """L11: an invalidation in advance."""
    versions = Versions()
    before = versions.next(at(0))
    versions.open(["t"], PEN, at(FILL_MS).ms, at(0))
    during = versions.next(at(0))
    assert versions.is_open(["other", "t"], at(FILL_MS - 1))
    assert not versions.is_open(["other"], at(0))
    assert versions.voids(["t"], before, at(0).ms)
    assert versions.voids(["t"], during, at(FILL_MS - 1).ms)
    assert not versions.voids(["t"], during, at(FILL_MS).ms)
    assert not versions.is_open(["t"], at(FILL_MS))


def test_a_write_through_that_is_closed_voids_what_was_granted_until_then() -> None:
    """L11: and nothing later, though its time is not over."""
    versions = Versions()
    versions.open(["t"], PEN, at(FILL_MS).ms, at(0))
    during = versions.next(at(5))
    versions.close(["t"], PEN, at(5))
    assert versions.voids(["t"], during, at(5).ms)
    assert not versions.voids(["t"], versions.next(at(5)), at(5).ms)
    assert not versions.is_open(["t"], at(5))


def test_a_tag_is_open_until_the_last_of_its_write_throughs_is_closed() -> None:
    """Each for itself; one begun twice is one."""
    versions = Versions()
    for write, until_ms in ((PEN, 1_000), (INK, 3_000), (PEN, 2_000)):
        versions.open(["t"], write, at(until_ms).ms, at(0))
    versions.close(["t"], INK, at(1))
    assert versions.is_open(["t"], at(1_999))
    versions.close(["t"], PEN, at(1))
    assert not versions.is_open(["t"], at(1))


def test_a_write_through_does_not_stand_in_its_own_way() -> None:
    """Others do."""
    versions = Versions()
    versions.open(["t"], PEN, at(FILL_MS).ms, at(0))
    fence = versions.next(at(0))
    assert not versions.voids(["t"], fence, at(0).ms, PEN)
    assert versions.voids(["t"], fence, at(0).ms, INK)


def test_closing_what_is_not_open_invalidates_all_the_same() -> None:
    """L11: it may have been forgotten."""
    versions = Versions()
    fence = versions.next(at(0))
    versions.close(["t"], PEN, at(0))
    assert versions.voids(["t"], fence, at(0).ms)


def test_a_write_through_that_ends_without_a_word_becomes_an_invalidation() -> None:
    """L11, L12: it was done by then, if ever, and need not be remembered any longer."""
    versions = Versions()
    versions.open(["t"], PEN, at(1_000).ms, at(0))
    versions.open(["t"], INK, at(2_000).ms, at(0))
    during = versions.next(at(999))
    versions.mark(["other"], HARD, at(1_999))
    assert versions.is_open(["t"], at(1_999)), "one of them goes on"
    versions.mark(["other"], HARD, at(2_000))
    assert versions.voids(["t"], during, at(10 * FILL_MS).ms), "whatever the clock said"
    assert not versions.voids(["t"], versions.next(at(2_000)), at(0).ms)


def test_a_write_through_that_begins_makes_up_for_those_that_ended_without_a_word() -> None:
    """L12: one of a tag that is written to all the time is forgotten, too; L11: not its effect."""
    versions = Versions()
    versions.open(["t"], PEN, at(1_000).ms, at(0))
    versions.open(["t"], INK, at(1_400).ms, at(0))
    during = versions.next(at(999))
    for number in range(1, 5):
        versions.open(["t"], INK * number, at(1_500 + number).ms, at(1_000))
    assert versions.voids(["t"], during, at(10 * FILL_MS).ms)
    versions.close(["t"], INK * 4, at(1_000))
    assert not versions.voids(["t"], versions.next(at(1_000)), at(1_503).ms)
    assert versions.voids(["t"], versions.next(at(1_000)), at(1_502).ms)


# --- What may have been lost ------------------------------------------------------------------


def test_nothing_older_is_believed_once_something_may_have_been_lost() -> None:
    """It fails closed: whatever its tags, and without any."""
    versions = Versions()
    before = versions.next(at(0))
    versions.distrust(at(0))
    assert versions.voids([], before, at(0).ms)
    assert not versions.voids([], versions.next(at(0)), at(0).ms)


def test_a_clock_that_was_lost_starts_above_all_it_ever_gave() -> None:
    """If it is not behind: that is what the time in it is for."""
    versions = Versions()
    last = [versions.next(at(0)) for _ in range(3)][-1]
    fresh = Versions()
    fresh.distrust(at(1))
    assert fresh.voids([], last, at(0).ms)
    assert fresh.next(at(1)) > last


# --- What is forgotten ------------------------------------------------------------------------


@pytest.mark.parametrize("mark", Mark)
def test_a_tag_is_remembered_for_as_long_as_anything_granted_before_may_matter(mark: Mark) -> None:
    """L9, L11: the longest time that anything lives, counted from its grant."""
    versions = Versions()
    versions.matters(TTL_MS)
    versions.matters(FILL_MS)
    versions.mark(["t"], mark, at(0))
    versions.mark(["u"], mark, at(TTL_MS))
    assert versions.records == 2
    versions.mark(["u"], mark, at(TTL_MS + 1))
    assert versions.records == 1


@pytest.mark.parametrize("mark", Mark)
def test_whatever_is_forgotten_the_floor_is_above_it(mark: Mark) -> None:
    """L11: so nothing comes back, should the clock step back."""
    versions = Versions()
    fence = versions.next(at(0))
    versions.mark(["t"], mark, at(0))
    versions.mark(["u"], mark, at(1))
    assert versions.records == 1
    assert versions.voids(["t"], fence, at(0).ms)
    assert not versions.voids(["u"], versions.next(at(1)), at(1).ms)


def test_a_bounded_number_is_forgotten_at_once() -> None:
    """L12: no call takes long; the next ones go on."""
    versions = Versions()
    versions.matters(TTL_MS)
    versions.mark([f"t{number}" for number in range(250)], HARD, at(0))
    counts = []
    for _ in range(3):
        versions.mark([], HARD, at(2 * TTL_MS))
        counts.append(versions.records)
    assert counts == [150, 50, 0]


@pytest.mark.parametrize("mark", Mark)
def test_past_so_many_tags_the_oldest_go_and_what_is_older_is_void(mark: Mark) -> None:
    """L12, L11: it fails closed."""
    versions = Versions(records_max=2)
    versions.matters(TTL_MS)
    old = versions.next(at(0))
    versions.mark(["t"], mark, at(0))
    newer = versions.next(at(0))
    versions.mark(["u", "v"], mark, at(0))
    assert versions.records == 2
    assert versions.voids(["t"], old, at(0).ms)
    assert not versions.voids(["other"], newer, at(0).ms)


def test_a_clock_is_as_old_as_it_is_told() -> None:
    """What a store kept of it goes back in."""
    versions = Versions(seq=fence_at(5_000), floor=fence_at(4_000), life_ms=TTL_MS)
    assert versions.next(at(0)) == fence_at(5_000) + 1
    assert versions.voids([], fence_at(4_000) - 1, START_MS)
    assert not versions.voids([], fence_at(4_000), START_MS)
