"""What becomes of writes that fail too often, and who is told of what can be claimed.

L5 no lost wake-up, L8 death is noticed, L9 nothing at rest, L12 overload is refused.
"""

from collections.abc import Callable

import pytest

from leasekeeper.core.fills import Ask
from leasekeeper.core.writes import (
    ANSWER_BYTES_MAX,
    LAPSED,
    SPENT_MAX,
    SPENT_MS,
    Bounds,
    Settled,
)
from leasekeeper.messages import DeadWrite, Json
from tests.core.queues import ATTEMPTS_MAX, CLAIM_MS, Queued

# --- The dead ---------------------------------------------------------------------------------


def test_a_write_that_fails_too_often_is_dead() -> None:
    """It is kept, with its last error; it is not claimed, and its value is not served."""
    queue = Queued()
    seq = queue.put("k", b"7", ttl_ms=5_000)
    queue.dies("k")
    assert queue.keys() == []
    assert queue.cached("k") is None
    assert queue.dead() == [DeadWrite("k", Json(b"7"), seq, ATTEMPTS_MAX, "no luck")]


def test_a_dead_write_leaves_the_key_to_be_loaded() -> None:
    """L10: somebody is told to."""
    queue = Queued()
    queue.put("k")
    queue.dies("k")
    seen = queue.entry("k").look(Ask("f" * 32), queue.versions, queue.now)
    assert seen.grant is not None


def test_a_write_whose_claims_all_end_without_a_word_is_put_aside_and_buried() -> None:
    """A value that kills whoever writes it does not do so for ever."""
    queue = Queued()
    queue.put("k")
    for _ in range(ATTEMPTS_MAX):
        queue.claim()
        assert not queue.bury("k")
        queue.give_back("k")
    queue.put("l")
    taken = queue.take()
    assert [write.key for write in taken.writes] == ["l"]
    assert taken.spent == ("k",)
    assert queue.bury("k")
    assert not queue.bury("k")
    assert queue.dead()[0].error == LAPSED


def test_what_nobody_buries_is_put_aside_again() -> None:
    """L5: whoever should have may have died."""
    queue = Queued()
    queue.put("k")
    for _ in range(ATTEMPTS_MAX):
        queue.claim()
        queue.ms += CLAIM_MS
    assert queue.take().spent == ("k",)
    assert queue.take().next_ms == SPENT_MS
    queue.ms += SPENT_MS
    assert queue.take().spent == ("k",)


def test_a_late_ack_saves_what_was_to_be_buried() -> None:
    """It is written, after all."""
    queue = Queued()
    queue.put("k")
    for _ in range(ATTEMPTS_MAX):
        queue.claim()
        queue.ms += CLAIM_MS
    assert queue.take().spent == ("k",)
    assert queue.ack("k") is Settled.DONE
    assert not queue.bury("k")
    assert queue.dead() == []


def test_one_claim_puts_a_bounded_number_aside() -> None:
    """L12: there is more to do at once."""
    queue = Queued(bounds=Bounds(count=1_000, bytes=1_000))
    for number in range(SPENT_MAX + 1):
        queue.put(f"k{number}")
    for _ in range(ATTEMPTS_MAX):
        queue.take(count=1_000)
        queue.ms += CLAIM_MS
    taken = queue.take(count=1_000)
    assert len(taken.spent) == SPENT_MAX
    assert taken.next_ms == 0


def test_dead_writes_are_listed_in_pages_in_the_order_of_their_deaths() -> None:
    """By count, and by size."""
    queue = Queued(bounds=Bounds(count=10, bytes=10 * ANSWER_BYTES_MAX))
    for key in "cab":
        queue.put(key, b"x" * (ANSWER_BYTES_MAX // 2))
        queue.dies(key)
    page, last = queue.queue.dead(0, 1)
    assert [each.key for each in page] == ["c"]
    assert last is not None
    page, more = queue.queue.dead(last, 100)
    assert [each.key for each in page] == ["a", "b"]
    assert more is None
    page, last = queue.queue.dead(0, 100)
    assert [each.key for each in page] == ["c", "a"]
    assert last is not None


def test_a_revived_write_is_queued_as_if_it_were_put_now() -> None:
    """Its value is served again; reviving it twice is reviving it once."""
    queue = Queued()
    old = queue.put("k", b"7", ttl_ms=50)
    queue.dies("k")
    assert queue.revive("k")
    assert not queue.revive("k")
    assert queue.dead() == []
    assert queue.cached("k") == b"7"
    claimed = queue.claim()
    assert (claimed.value, claimed.attempt) == (Json(b"7"), 1)
    assert claimed.seq > old
    queue.ack("k")
    assert queue.cached("k") == b"7"


def test_a_key_that_was_put_since_is_not_revived() -> None:
    """Its newer write stands, also when it is done."""
    queue = Queued()
    queue.put("k", b"1")
    queue.dies("k")
    queue.put("k", b"2")
    assert not queue.revive("k")
    assert queue.dead() == []
    queue.claim()
    queue.ack("k")
    assert not queue.revive("k")


def test_a_key_with_an_open_write_through_is_not_revived() -> None:
    """It may be, afterwards."""
    queue = Queued()
    queue.put("k")
    queue.dies("k")
    queue.entry("k").begin("w", (), 1_000, queue.versions, queue.now)
    assert not queue.revive("k")
    queue.entry("k").close("w", None, (), queue.versions, queue.now)
    assert queue.revive("k")


# --- News, and its life -----------------------------------------------------------------------


def test_a_server_that_waits_is_told_once_of_a_write() -> None:
    """L5: whichever server puts it."""
    queue = Queued()
    assert queue.take(server="s").next_ms is None
    assert queue.take(server="t").next_ms is None
    queue.put("k")
    queue.put("l")
    assert sorted(queue.told()) == ["s", "t"]


def test_a_server_that_got_something_does_not_wait() -> None:
    """Nor does one that does not say so, or has not said so for long."""
    queue = Queued()
    queue.take()
    queue.take(server="old")
    queue.put("k")
    assert queue.told() == ["old"]
    queue.take(server="s")
    queue.put("l")
    assert queue.told() == []
    queue.take()
    queue.take(server="gone")
    queue.ms = 60_000
    queue.put("m")
    assert queue.told() == []


Step = Callable[[Queued], object]


def ack_what_was_put_anew(queue: Queued) -> None:
    """What can be claimed is the newer value."""
    queue.claim()
    queue.put("k", b"2")
    queue.take(server="s")
    queue.ack("k")


def fail(queue: Queued) -> None:
    """It can be claimed after the back-off."""
    queue.claim()
    queue.take(server="s")
    queue.retry("k")


def give_back(queue: Queued) -> None:
    """It can be claimed at once."""
    queue.claim()
    queue.take(server="s")
    queue.give_back("k")


def revive(queue: Queued) -> None:
    """So can this."""
    queue.dies("k")
    queue.take(server="s")
    queue.revive("k")


@pytest.mark.parametrize("step", [ack_what_was_put_anew, fail, give_back, revive])
def test_whatever_can_be_claimed_sooner_than_was_known_is_told(step: Step) -> None:
    """L5."""
    queue = Queued()
    queue.put("k")
    step(queue)
    assert queue.told() == ["s"]


def test_a_queue_is_remembered_while_it_has_writes_or_somebody_waits() -> None:
    """L9."""
    queue = Queued()
    assert queue.queue.keep_until_ms() == 0
    queue.put("k")
    assert queue.queue.keep_until_ms() is None
    queue.dies("k")
    assert queue.queue.keep_until_ms() is None
    queue.revive("k")
    queue.claim()
    queue.ack("k")
    assert queue.queue.keep_until_ms() == 0
    queue.take(server="s")
    assert queue.queue.keep_until_ms() == queue.now.ms + 15_000
