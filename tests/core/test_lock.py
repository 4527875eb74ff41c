"""The rules of one name, by example. Each test says a law; read them in order.

L1 exclusion, L2 fencing, L4 FIFO, L5 no lost wake-up, L6 idempotence, L7 capability.
"""

import pytest

from leasekeeper.core.lock import (
    Busy,
    Contended,
    Granted,
    HolderLost,
    Left,
    Lock,
    Missing,
    Queued,
    QueueFull,
    WaiterGranted,
)
from leasekeeper.messages import LostReason
from tests.core.locks import (
    ANN,
    BEN,
    CID,
    DEE,
    START_US,
    TTL_MS,
    Call,
    at,
    exclusive,
    granted,
    hold,
    queue,
    shared,
    take_events,
)

# --- L1: exclusion ----------------------------------------------------------------------------


def test_a_free_name_is_granted_at_once() -> None:
    """L1."""
    lock = Lock()
    assert lock.idle
    assert hold(lock, exclusive(ANN)) == Granted(fence=START_US, ttl_ms=TTL_MS, waited_ms=0)
    assert not lock.idle
    assert lock.events == []


def test_a_held_name_is_busy_for_others() -> None:
    """L1: neither a second exclusive lease nor a shared one beside it."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    assert lock.acquire(exclusive(BEN), wait=False, now=at(0)) == Busy()
    assert lock.acquire(shared(BEN), wait=False, now=at(0)) == Busy()
    assert lock.waiting == 0


def test_readers_share_and_exclude_a_writer() -> None:
    """L1."""
    lock = Lock()
    hold(lock, shared(ANN))
    hold(lock, shared(BEN))
    assert lock.acquire(exclusive(CID), wait=False, now=at(0)) == Busy()


def test_a_limit_bounds_how_many_share() -> None:
    """L1: a semaphore."""
    lock = Lock()
    hold(lock, shared(ANN, limit=2))
    hold(lock, shared(BEN, limit=2))
    assert lock.acquire(shared(CID, limit=2), wait=False, now=at(0)) == Busy()


@pytest.mark.parametrize(("first", "second"), [(1, 3), (3, 1), (None, 1), (1, None)])
def test_the_smallest_limit_counts_whoever_set_it(first: int | None, second: int | None) -> None:
    """L1: a holder who was promised at most one is not joined by one who would take three."""
    lock = Lock()
    hold(lock, shared(ANN, first))
    assert lock.acquire(shared(BEN, second), wait=False, now=at(0)) == Busy()


def test_limits_that_differ_let_in_as_many_as_the_smallest() -> None:
    """L1."""
    lock = Lock()
    hold(lock, shared(ANN, limit=3))
    hold(lock, shared(BEN, limit=2))
    assert lock.acquire(shared(CID, limit=3), wait=False, now=at(0)) == Busy()


def test_a_lease_ends_when_its_ttl_is_over_and_not_before() -> None:
    """L1, by the store's clock."""
    lock = Lock()
    fence = hold(lock, exclusive(ANN)).fence
    assert lock.acquire(exclusive(BEN), wait=False, now=at(TTL_MS - 1)) == Busy()
    assert take_events(lock) == []
    assert isinstance(lock.acquire(exclusive(BEN), wait=False, now=at(TTL_MS)), Granted)
    assert take_events(lock) == [HolderLost(ANN, fence, LostReason.EXPIRED)]


# --- L2: fencing ------------------------------------------------------------------------------


def test_fences_rise_with_every_grant() -> None:
    """L2, even when the clock stands still."""
    lock = Lock()
    fences = []
    for _ in range(3):
        fences.append(hold(lock, exclusive(ANN)).fence)
        lock.release(ANN, now=at(0))
    assert fences == [START_US, START_US + 1, START_US + 2]


def test_fences_rise_when_the_wall_clock_jumps_back() -> None:
    """L2: the last fence is the floor then."""
    lock = Lock()
    before = hold(lock, exclusive(ANN)).fence
    lock.release(ANN, now=at(1))
    after = lock.acquire(exclusive(BEN), wait=False, now=at(2, us=START_US - 10**12))
    assert after == Granted(before + 1, TTL_MS, waited_ms=0)


def test_fences_rise_when_the_last_one_was_forgotten() -> None:
    """L2: the clock is the floor then."""
    before = hold(Lock(), exclusive(ANN)).fence
    after = hold(Lock(), exclusive(BEN), ms=1).fence
    assert after > before


def test_fences_rise_when_the_last_one_is_remembered() -> None:
    """L2: a store gives a new `Lock` the last fence of its name."""
    lock = Lock(fence=START_US + 5)
    assert hold(lock, exclusive(ANN)).fence == START_US + 6


def test_readers_have_fences_of_their_own() -> None:
    """L2."""
    lock = Lock()
    assert hold(lock, shared(BEN)).fence < hold(lock, shared(ANN)).fence


# --- L4: FIFO ---------------------------------------------------------------------------------


def test_who_waits_is_told_the_position() -> None:
    """L4, and holders hear that others wait."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    assert lock.acquire(exclusive(BEN), wait=True, now=at(0)) == Queued(1, START_US)
    assert lock.acquire(exclusive(CID), wait=True, now=at(0)) == Queued(2, START_US)
    assert take_events(lock) == [Contended(1, (None,)), Contended(2, (None,))]
    assert lock.waiting == 2


def test_waiters_get_it_in_the_order_in_which_they_came() -> None:
    """L4."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(CID), exclusive(BEN), exclusive(DEE))
    for lease in (ANN, CID, BEN, DEE):
        lock.release(lease, now=at(1))
    assert granted(lock) == [CID, BEN, DEE]


def test_a_reader_does_not_pass_a_waiting_writer() -> None:
    """L4: readers could otherwise starve the writer."""
    lock = Lock()
    hold(lock, shared(ANN))
    queue(lock, exclusive(BEN))
    assert lock.acquire(shared(CID), wait=False, now=at(0)) == Busy()
    assert lock.acquire(shared(CID), wait=True, now=at(0)) == Queued(2, START_US)


def test_readers_behind_each_other_are_let_in_together() -> None:
    """L4, L5: the queue moves until its head does not fit."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, shared(BEN), shared(CID), exclusive(DEE))
    lock.release(ANN, now=at(1))
    assert granted(lock) == [BEN, CID]
    assert lock.waiting == 1


def test_a_head_that_does_not_fit_holds_up_those_behind_it() -> None:
    """L4: no overtaking, though the one behind would fit."""
    lock = Lock()
    hold(lock, shared(ANN))
    hold(lock, shared(BEN))
    queue(lock, shared(CID, limit=1), shared(DEE))
    lock.release(ANN, now=at(1))
    assert granted(lock) == []
    lock.release(BEN, now=at(1))
    assert granted(lock) == [CID]


def test_a_dead_waiter_is_passed_over() -> None:
    """L4 is for live waiters; a dead server's waiters stall nobody."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN, alive_ms=100), exclusive(CID))
    lock.release(ANN, now=at(100))
    assert granted(lock) == [CID]
    assert lock.resume(BEN, None, now=at(100)) == Missing()


def test_a_waiter_lives_until_its_last_sign_is_too_old() -> None:
    """L4: the boundary is the same as a lease's."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN, alive_ms=100))
    lock.release(ANN, now=at(99))
    assert granted(lock) == [BEN]


def test_a_touch_keeps_a_waiter_alive() -> None:
    """L4: a server vouches for the waiters it owns."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN, alive_ms=100), exclusive(CID))
    assert lock.touch(BEN, 100, now=at(99))
    lock.release(ANN, now=at(198))
    assert granted(lock) == [BEN]


def test_a_touch_counts_from_now_on() -> None:
    """L4: two of them do not add up, or a dead server's waiters would live too long."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN, alive_ms=100), exclusive(CID))
    assert lock.touch(BEN, 100, now=at(10))
    assert lock.touch(BEN, 100, now=at(20))
    assert lock.next_ms() == 120


def test_a_touch_of_what_does_not_wait_is_answered_with_no() -> None:
    """A server learns so that its waiter is gone, or was granted meanwhile."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN, alive_ms=100))
    assert not lock.touch(ANN, 100, now=at(0))
    assert not lock.touch(CID, 100, now=at(0))
    assert not lock.touch(BEN, 100, now=at(100))


def test_a_queue_has_a_bound() -> None:
    """Past it comes a refusal at once, and who waits already may ask again (L12)."""
    lock = Lock(waiting_max=1)
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN))
    assert lock.acquire(exclusive(CID), wait=True, now=at(0)) == QueueFull(1)
    assert lock.acquire(exclusive(CID), wait=False, now=at(0)) == Busy()
    assert lock.acquire(exclusive(BEN), wait=True, now=at(0)) == Queued(1, START_US)
    assert take_events(lock) == []


# --- L5: no lost wake-up ----------------------------------------------------------------------


def test_a_release_grants_to_the_next_in_the_same_call() -> None:
    """L5, and `waited_ms` is measured by the store's clock."""
    lock = Lock()
    fence = hold(lock, exclusive(ANN)).fence
    queue(lock, exclusive(BEN), ms=10)
    assert lock.release(ANN, now=at(250, us=0)) is Left.HELD
    assert take_events(lock) == [WaiterGranted(BEN, Granted(fence + 1, TTL_MS, waited_ms=240))]


def test_an_expiry_grants_to_the_next() -> None:
    """L5, even if nothing but the clock moves."""
    lock = Lock()
    fence = hold(lock, exclusive(ANN)).fence
    queue(lock, exclusive(BEN))
    lock.advance(at(TTL_MS))
    assert take_events(lock) == [
        HolderLost(ANN, fence, LostReason.EXPIRED),
        WaiterGranted(BEN, Granted(START_US + 1000 * TTL_MS, TTL_MS, waited_ms=TTL_MS)),
    ]


def test_the_next_moment_is_the_first_expiry() -> None:
    """L5: who calls `advance` then misses nothing."""
    lock = Lock()
    assert lock.next_ms() is None
    hold(lock, shared(ANN))
    hold(lock, shared(BEN), ms=5)
    assert lock.next_ms() == TTL_MS
    lock.renew(ANN, now=at(6))
    assert lock.next_ms() == 5 + TTL_MS


def test_the_next_moment_may_be_the_death_of_the_head() -> None:
    """L5: a dead writer at the head holds up live readers no longer than that."""
    lock = Lock()
    hold(lock, shared(ANN))
    queue(lock, exclusive(BEN, alive_ms=100), shared(CID, alive_ms=50), shared(DEE))
    assert lock.next_ms() == 100
    lock.advance(at(100))
    assert granted(lock) == [DEE]


def test_a_waiter_that_leaves_lets_those_behind_it_in() -> None:
    """L5: the head was what they waited for."""
    ways: list[Call] = [
        lambda lock, now: lock.release(BEN, now=now),
        lambda lock, now: lock.acquire(exclusive(BEN), wait=False, now=now),
        lambda lock, now: lock.resume(BEN, None, wait_ms=0, now=now),
    ]
    for give_up in ways:
        lock = Lock()
        hold(lock, shared(ANN))
        queue(lock, exclusive(BEN), shared(CID), shared(DEE))
        assert give_up(lock, at(1)) in (Left.WAITING, Busy())
        assert granted(lock) == [CID, DEE]


def test_every_call_lets_time_pass_first() -> None:
    """L5: whatever is asked, what has run out is lost and the next one has it."""
    calls: list[Call] = [
        lambda lock, now: lock.acquire(exclusive(CID), wait=False, now=now),
        lambda lock, now: lock.resume(CID, None, wait_ms=0, now=now),
        lambda lock, now: lock.renew(CID, now=now),
        lambda lock, now: lock.release(CID, now=now),
        lambda lock, now: lock.touch(CID, 100, now=now),
        lambda lock, now: lock.advance(now),
    ]
    for call in calls:
        lock = Lock()
        hold(lock, exclusive(ANN))
        queue(lock, exclusive(BEN))
        call(lock, at(TTL_MS))
        assert granted(lock) == [BEN]
