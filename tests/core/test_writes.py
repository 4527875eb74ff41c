"""The rules of queued writes, by example. Each test says a law; read them in order.

L6 idempotence, L8 death is noticed, L9 nothing at rest, L12 overload is refused.
"""

import pytest

from leasekeeper.core.fills import Ask, Conflict
from leasekeeper.core.writes import (
    ANSWER_BYTES_MAX,
    BACKOFF_MAX_MS,
    LAPSED,
    Bounds,
    Full,
    Settled,
    claim_id,
    parse_claim_id,
)
from leasekeeper.messages import Json, Mark
from tests.core.queues import ANN, ATTEMPTS_MAX, BEN, CID, CLAIM_MS, Queued

# --- A put ------------------------------------------------------------------------------------


def test_a_put_value_is_cached_and_can_be_claimed() -> None:
    """Both in one step."""
    queue = Queued()
    seq = queue.put("k", b"7")
    assert queue.cached("k") == b"7"
    claimed = queue.claim(ANN)
    assert (claimed.key, claimed.value, claimed.seq, claimed.attempt) == ("k", Json(b"7"), seq, 1)
    assert claimed.fence > seq
    assert parse_claim_id(claimed.id) == ("k", ANN)


def test_writes_are_claimed_in_the_order_of_their_puts() -> None:
    """Also those of the same millisecond, and never more than are asked for."""
    queue = Queued()
    for key in ("b", "c", "a"):
        queue.put(key)
    assert queue.keys(count=2) == ["b", "c"]
    assert queue.keys() == ["a"]
    assert queue.keys() == []


def test_a_newer_value_replaces_one_that_waits_and_keeps_its_place() -> None:
    """The latest value of a key is written, and a key that is often put is not put off."""
    queue = Queued()
    queue.put("k", b"1")
    queue.put("l")
    queue.ms = 10
    seq = queue.put("k", b"2")
    first, second = queue.take().writes
    assert (first.key, first.value, first.seq) == ("k", Json(b"2"), seq)
    assert second.key == "l"


def test_a_write_through_that_is_open_is_a_conflict() -> None:
    """Nothing is queued then."""
    queue = Queued()
    queue.entry("k").begin("w", (), 1_000, queue.versions, queue.now)
    assert queue.try_put("k") == Conflict()
    assert queue.keys() == []


def test_nobody_loads_a_key_whose_write_is_queued() -> None:
    """What would be loaded is older."""
    queue = Queued()
    queue.put("k", b"7")
    seen = queue.entry("k").look(Ask("f" * 32), queue.versions, queue.now)
    assert seen.grant is None
    assert seen.found is not None


# --- Bounds (L12) -----------------------------------------------------------------------------


def test_too_many_writes_are_refused_but_a_known_key_is_not() -> None:
    """L12."""
    queue = Queued(bounds=Bounds(count=2, bytes=1_000))
    queue.put("k")
    queue.put("l")
    assert queue.try_put("m") == Full()
    assert queue.cached("m") is None
    queue.put("l", b"22")


def test_too_many_bytes_are_refused_but_a_smaller_value_is_not() -> None:
    """L12: what was there counts no more."""
    queue = Queued(bounds=Bounds(count=10, bytes=10))
    queue.put("k", b"x" * 6)
    assert queue.try_put("l", b"x" * 5) == Full()
    assert queue.try_put("k", b"x" * 11) == Full()
    assert queue.cached("k") == b"x" * 6
    queue.put("k", b"x" * 10)
    queue.put("k", b"x" * 2)
    queue.put("l", b"x" * 8)


def test_what_is_written_makes_room() -> None:
    """L12."""
    queue = Queued(bounds=Bounds(count=1, bytes=3))
    queue.put("k", b"123")
    queue.claim()
    assert queue.try_put("l", b"123") == Full()
    queue.ack("k")
    queue.put("l", b"123")


def test_a_dead_write_counts_and_a_revived_one_counts_once() -> None:
    """L12: they cannot pile up unnoticed."""
    queue = Queued(bounds=Bounds(count=1, bytes=3))
    queue.put("k", b"123")
    queue.dies("k")
    assert queue.try_put("l", b"1") == Full()
    assert queue.revive("k")
    assert queue.try_put("l", b"1") == Full()
    queue.put("k", b"321")
    assert len(queue.queue) == 1


def test_large_values_are_claimed_a_few_at_a_time() -> None:
    """L12: an answer is bounded, but one value always fits."""
    half = b"x" * (ANSWER_BYTES_MAX // 2)
    queue = Queued(bounds=Bounds(count=10, bytes=10 * ANSWER_BYTES_MAX))
    for key in "abc":
        queue.put(key, half)
    queue.put("d", half * 3)
    assert queue.take(ANN).next_ms == 0
    assert queue.keys(BEN) == ["c"]
    assert queue.keys(CID) == ["d"]


# --- Claims -----------------------------------------------------------------------------------


def test_a_claimed_write_is_nobody_elses_until_the_claim_is_over() -> None:
    """L8: and then somebody else has it, with a higher fence."""
    queue = Queued()
    queue.put("k")
    first = queue.claim(ANN)
    queue.ms = CLAIM_MS - 1
    taken = queue.take(BEN)
    assert (taken.writes, taken.next_ms) == ((), 1)
    queue.ms = CLAIM_MS
    second = queue.claim(BEN)
    assert second.fence > first.fence
    assert (second.seq, second.attempt) == (first.seq, 2)


def test_a_stale_claim_settles_nothing() -> None:
    """A writer who was too slow cannot end the claim of the next."""
    queue = Queued()
    queue.put("k")
    queue.claim(ANN)
    queue.ms = CLAIM_MS
    queue.claim(BEN)
    assert queue.ack("k", ANN) is Settled.NOT_HELD
    assert queue.retry("k", ANN) is Settled.NOT_HELD
    assert queue.give_back("k", ANN) is Settled.NOT_HELD
    assert queue.ack("k", BEN) is Settled.DONE


def test_a_claim_that_is_over_still_counts_while_nobody_else_has_it() -> None:
    """It did the work, and no higher fence is about."""
    queue = Queued()
    queue.put("k")
    queue.claim(ANN)
    queue.ms = 2 * CLAIM_MS
    assert queue.ack("k", ANN) is Settled.DONE


def test_a_claim_is_settled_once() -> None:
    """L6: a repeat changes nothing, nor does a claim of a key that has no write."""
    queue = Queued()
    queue.put("k")
    queue.claim()
    assert queue.ack("k") is Settled.DONE
    assert queue.ack("k") is Settled.NOT_HELD
    assert queue.ack("l") is Settled.NOT_HELD
    queue.put("k")
    assert queue.ack("k") is Settled.NOT_HELD


def test_a_claim_id_without_a_token_is_nobodys() -> None:
    """Whatever a peer sends."""
    assert parse_claim_id("nonsense") == ("", "nonsense")
    assert parse_claim_id(claim_id(ANN, "a.b")) == ("a.b", ANN)


# --- Written ----------------------------------------------------------------------------------


def test_a_written_value_is_kept_for_its_ttl_from_then_on() -> None:
    """And is gone if it has none."""
    queue = Queued()
    queue.put("k", b"1", ttl_ms=500)
    queue.put("l", b"2")
    queue.take()
    queue.ms = 900
    queue.ack("k")
    queue.ack("l")
    found = queue.found("k")
    assert found is not None
    assert found.ttl_ms == 500
    assert queue.cached("l") is None


def test_a_value_put_while_the_last_is_claimed_is_claimed_after_it() -> None:
    """It is not written beside it, and stays what readers get."""
    queue = Queued()
    queue.put("k", b"1")
    queue.claim(ANN)
    second = queue.put("k", b"2")
    assert queue.keys(BEN) == []
    assert queue.ack("k", ANN) is Settled.QUEUED
    assert queue.cached("k") == b"2"
    claimed = queue.claim(BEN)
    assert (claimed.value, claimed.seq, claimed.attempt) == (Json(b"2"), second, 1)
    assert queue.ack("k", BEN) is Settled.DONE


def test_an_invalidation_takes_effect_when_the_value_is_written() -> None:
    """Before that, what would be loaded is older."""
    queue = Queued()
    queue.put("k", b"1", ttl_ms=5_000)
    queue.entry("k").invalidate(Mark.HARD, queue.versions, queue.now)
    assert queue.cached("k") == b"1"
    queue.claim()
    queue.ack("k")
    assert queue.cached("k") is None


# --- Failed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failures", "jitter", "after_ms"),
    [(1, 0.0, 500), (1, 0.5, 750), (1, 1.0, 1_000), (2, 1.0, 2_000)],
)
def test_a_key_backs_off_for_longer_every_time(failures: int, jitter: float, after_ms: int) -> None:
    """Half of the time is fixed, half is chance."""
    queue = Queued()
    queue.put("k")
    for _ in range(failures - 1):
        queue.claim()
        queue.retry("k", after_ms=0)
    queue.claim()
    assert queue.retry("k", jitter=jitter) is Settled.QUEUED
    assert queue.take().next_ms == after_ms


def test_a_back_off_has_an_end() -> None:
    """However often a write has failed: five minutes."""
    queue = Queued(attempts_max=100)
    queue.put("k")
    for _ in range(40):
        queue.claim()
        queue.retry("k", after_ms=0)
    queue.claim()
    queue.retry("k")
    assert queue.take().next_ms == BACKOFF_MAX_MS == 300_000


def test_one_that_fails_holds_up_no_other() -> None:
    """No head-of-line blocking."""
    queue = Queued()
    queue.put("k")
    queue.put("l")
    [claimed] = queue.take(count=1).writes
    queue.retry(claimed.key, after_ms=5_000)
    assert queue.keys() == ["l"]


def test_a_new_value_of_a_key_that_backs_off_waits_as_well_but_counts_anew() -> None:
    """What is wrong may be the database; what is wrong with a value is forgotten with it."""
    queue = Queued()
    queue.put("k", b"1")
    queue.claim()
    queue.retry("k", after_ms=100)
    queue.put("k", b"2")
    assert queue.take().next_ms == 100
    queue.ms = 100
    claimed = queue.claim()
    assert (claimed.value, claimed.attempt) == (Json(b"2"), 1)


def test_a_value_that_was_replaced_while_it_was_claimed_does_not_die() -> None:
    """Nor does its error stay."""
    queue = Queued()
    queue.put("k", b"1")
    for _ in range(ATTEMPTS_MAX - 1):
        queue.claim()
        queue.retry("k", after_ms=0)
    queue.claim()
    queue.put("k", b"2")
    assert queue.retry("k", error="of the old", after_ms=0) is Settled.QUEUED
    for _ in range(ATTEMPTS_MAX):
        assert queue.claim().value == Json(b"2")
        queue.ms += CLAIM_MS
    assert queue.take().spent == ("k",)
    assert queue.bury("k")
    assert queue.dead()[0].error == LAPSED


# --- Given back -------------------------------------------------------------------------------


def test_a_claim_whose_holder_is_gone_can_be_claimed_at_once() -> None:
    """L8: and it counts as an attempt, for the value may be what killed him."""
    queue = Queued()
    queue.put("k")
    queue.claim(ANN)
    assert queue.give_back("k", ANN) is Settled.QUEUED
    assert queue.claim(BEN).attempt == 2


def test_a_claim_that_nobody_heard_of_was_no_attempt() -> None:
    """Unless it was for another value than the present one."""
    queue = Queued()
    queue.put("k")
    queue.claim(ANN)
    queue.give_back("k", ANN, unseen=True)
    assert queue.claim(BEN).attempt == 1
    queue.put("k", b"2")
    queue.give_back("k", BEN, unseen=True)
    assert queue.claim(CID).attempt == 1
