"""What a lease id may ask for again, and what others may see: the second half of the rules."""

from itertools import pairwise

import pytest

from leasekeeper.core.lock import (
    Busy,
    Claim,
    Granted,
    HolderLost,
    Left,
    Lock,
    Mismatch,
    Missing,
    Moved,
    Queued,
    Renewed,
    WaiterGranted,
)
from leasekeeper.messages import HolderView, LeaseState, LostReason, Mode, WaiterView
from tests.core.locks import (
    ANN,
    BEN,
    CID,
    DEE,
    START_US,
    TTL_MS,
    at,
    exclusive,
    granted,
    hold,
    queue,
    shared,
    take_events,
)

# --- L6: idempotence --------------------------------------------------------------------------


def test_a_repeated_acquire_has_the_same_fence_and_the_full_ttl_again() -> None:
    """L6."""
    lock = Lock()
    first = hold(lock, exclusive(ANN))
    again = lock.acquire(exclusive(ANN), wait=True, now=at(400))
    assert again == Granted(first.fence, TTL_MS, waited_ms=0)
    assert lock.next_ms() == 400 + TTL_MS
    assert lock.release(ANN, now=at(400)) is Left.HELD
    assert lock.idle


def test_a_repeated_acquire_keeps_the_place_in_the_queue() -> None:
    """L6: and it does not count as a new wait."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN, alive_ms=100), exclusive(CID))
    again = lock.acquire(exclusive(BEN, alive_ms=100), wait=True, now=at(99))
    assert again == Queued(1, START_US)
    assert lock.acquire(exclusive(CID), wait=True, now=at(99)) == Queued(2, START_US)
    assert take_events(lock) == []
    lock.release(ANN, now=at(150))
    (event,) = take_events(lock)
    assert isinstance(event, WaiterGranted)
    assert event.lease == BEN
    assert event.grant.waited_ms == 150 - 99, "counted from when it was last asked for"


def test_a_repeated_acquire_that_does_not_wait_gives_the_place_up() -> None:
    """L6: its answer says busy, so it may not be granted later."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN))
    assert lock.acquire(exclusive(BEN), wait=False, now=at(1)) == Busy()
    lock.release(ANN, now=at(2))
    assert lock.idle


def test_a_repeated_acquire_finds_the_grant_it_waited_for() -> None:
    """L6: the answer got lost, or is still under way."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN))
    lock.release(ANN, now=at(5))
    (event,) = take_events(lock)
    assert isinstance(event, WaiterGranted)
    again = lock.acquire(exclusive(BEN), wait=False, now=at(6))
    assert again == Granted(event.grant.fence, TTL_MS, waited_ms=0)


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize(
    "other",
    [
        exclusive(BEN),
        shared(BEN),
        shared(BEN, limit=3),
        Claim(BEN, TTL_MS, Mode.EXCLUSIVE, limit=2),
    ],
)
def test_a_lease_id_stands_for_one_claim(waiting: bool, other: Claim) -> None:
    """L6: another mode or limit under the same id is a mistake, and changes nothing."""
    lock = Lock()
    if waiting:
        hold(lock, exclusive(ANN))
        queue(lock, shared(BEN, limit=2))
    else:
        hold(lock, shared(BEN, limit=2))
    before = lock.state("n", holders_max=9, waiting_max=9, now=at(0))
    for wait in (True, False):
        assert lock.acquire(other, wait=wait, now=at(0)) == Mismatch()
    assert lock.state("n", holders_max=9, waiting_max=9, now=at(0)) == before
    assert lock.events == []


def test_a_second_release_finds_nothing() -> None:
    """L6."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    assert lock.release(ANN, now=at(0)) is Left.HELD
    assert lock.release(ANN, now=at(0)) is Left.NOTHING


def test_a_release_takes_a_waiter_out_of_the_queue() -> None:
    """L6: cancel means that it is not granted any more."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN), exclusive(CID))
    assert lock.release(BEN, now=at(0)) is Left.WAITING
    lock.release(ANN, now=at(0))
    assert granted(lock) == [CID]


def test_a_release_gives_back_what_was_granted_meanwhile() -> None:
    """L6: cancel means "and release it, if it was already granted"."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN), exclusive(CID))
    assert lock.release(BEN, now=at(TTL_MS)) is Left.HELD
    assert granted(lock) == [BEN, CID]


def test_a_release_of_one_reader_leaves_the_others() -> None:
    """L6, L7: by lease id."""
    lock = Lock()
    hold(lock, shared(ANN))
    fence = hold(lock, shared(BEN)).fence
    lock.release(ANN, now=at(0))
    assert [holder.fence for holder in lock.holders(at(0))] == [fence]


# --- Renewal ----------------------------------------------------------------------------------


def test_a_renewal_extends_to_the_full_ttl_from_now() -> None:
    """It does not add to what is left."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    assert lock.renew(ANN, now=at(400)) == Renewed(TTL_MS)
    assert lock.next_ms() == 400 + TTL_MS


def test_a_renewal_with_a_ttl_changes_it_from_then_on() -> None:
    """The next renewal without one uses it, too, and it may be shorter."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    assert lock.renew(ANN, 200, now=at(0)) == Renewed(200)
    assert lock.next_ms() == 200
    assert lock.renew(ANN, now=at(100)) == Renewed(200)


def test_a_stale_lease_cannot_renew() -> None:
    """L1: renewal never resurrects, whether or not somebody else has it now."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    assert lock.renew(ANN, now=at(TTL_MS)) == Missing()
    hold(lock, exclusive(BEN), ms=TTL_MS)
    assert lock.renew(ANN, now=at(TTL_MS)) == Missing()


def test_a_waiter_cannot_renew() -> None:
    """L1: it holds nothing."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN))
    assert lock.renew(BEN, now=at(0)) == Missing()


def test_no_renewal_goes_past_the_longest_hold() -> None:
    """And the holder is told which bound it was."""
    lock = Lock()
    grant = hold(lock, exclusive(ANN, max_hold_ms=1500))
    assert grant.ttl_ms == TTL_MS
    assert lock.renew(ANN, now=at(400)) == Renewed(TTL_MS)
    assert lock.renew(ANN, now=at(900)) == Renewed(600)
    repeated = lock.acquire(exclusive(ANN, max_hold_ms=1500), wait=False, now=at(1000))
    assert repeated == Granted(grant.fence, 500, waited_ms=0)
    lock.advance(at(1500))
    assert take_events(lock) == [HolderLost(ANN, grant.fence, LostReason.MAX_HOLD)]


def test_a_longest_hold_may_be_shorter_than_the_ttl() -> None:
    """A grant says what is really left."""
    assert hold(Lock(), exclusive(ANN, max_hold_ms=300)).ttl_ms == 300


def test_time_spent_waiting_is_not_time_held() -> None:
    """Neither for the longest hold nor for what others see."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN, max_hold_ms=300))
    lock.release(ANN, now=at(200))
    (event,) = take_events(lock)
    assert isinstance(event, WaiterGranted)
    assert event.grant.ttl_ms == 300
    assert [holder.held_ms for holder in lock.holders(at(250))] == [50]


def test_a_lease_that_was_not_renewed_has_expired_whatever_its_longest_hold() -> None:
    """Its own TTL ended it, and when this was noticed does not change why."""
    for noticed_ms in (TTL_MS, 1500, 9000):
        lock = Lock()
        fence = hold(lock, exclusive(ANN, max_hold_ms=1500)).fence
        lock.advance(at(noticed_ms))
        assert take_events(lock) == [HolderLost(ANN, fence, LostReason.EXPIRED)]


# --- Break ------------------------------------------------------------------------------------


def test_a_break_puts_every_holder_out_and_the_queue_moves_up() -> None:
    """L1, L5: holders are told, with what the breaker said."""
    lock = Lock()
    fences = [hold(lock, shared(lease)).fence for lease in (ANN, BEN)]
    queue(lock, exclusive(CID))
    assert lock.break_("maintenance", now=at(1)) == 2
    lost_ann, lost_ben, grant = take_events(lock)
    assert lost_ann == HolderLost(ANN, fences[0], LostReason.BROKEN, "maintenance")
    assert lost_ben == HolderLost(BEN, fences[1], LostReason.BROKEN, "maintenance")
    assert isinstance(grant, WaiterGranted)
    assert grant.lease == CID
    assert grant.grant.fence > max(fences)
    assert lock.renew(ANN, now=at(1)) == Missing()


def test_a_break_of_a_free_name_breaks_nothing() -> None:
    """Nor does it count what had run out by itself."""
    lock = Lock()
    assert lock.break_(now=at(0)) == 0
    fence = hold(lock, exclusive(ANN)).fence
    assert lock.break_(now=at(TTL_MS)) == 0
    assert take_events(lock) == [HolderLost(ANN, fence, LostReason.EXPIRED)]


# --- What others see --------------------------------------------------------------------------


def test_the_state_shows_holders_and_waiters() -> None:
    """In the order of their fences and of the queue, with times from the store's clock."""
    lock = Lock()
    assert lock.state("n", holders_max=9, waiting_max=9, now=at(0)) == LeaseState("n", (), (), 0)
    fence = hold(lock, Claim(ANN, TTL_MS, label="nightly", client="worker-1")).fence
    queue(lock, Claim(BEN, TTL_MS, Mode.SHARED, 2, "report", "worker-2"), ms=10)
    assert lock.state("n", holders_max=9, waiting_max=9, now=at(100)) == LeaseState(
        "n",
        (HolderView(fence, Mode.EXCLUSIVE, "nightly", 100, TTL_MS - 100, "worker-1"),),
        (WaiterView(1, Mode.SHARED, "report", 90, "worker-2"),),
        1,
    )


def test_the_state_is_bounded_but_counts_everybody() -> None:
    """L12."""
    lock = Lock()
    fences = [hold(lock, shared(lease)).fence for lease in (ANN, BEN)]
    queue(lock, exclusive(CID), exclusive(DEE))
    state = lock.state("n", holders_max=1, waiting_max=1, now=at(0))
    assert [holder.fence for holder in state.holders] == fences[:1]
    assert [waiter.position for waiter in state.waiting] == [1]
    assert state.waiting_total == 2


def test_looking_changes_nothing() -> None:
    """Even where time has passed: `advance` is what lets it."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    state = lock.state("n", holders_max=9, waiting_max=9, now=at(2 * TTL_MS))
    assert [holder.ttl_ms for holder in state.holders] == [0]
    assert (lock.revision, lock.events) == (1, [])


def test_a_repeat_does_not_shorten_how_long_it_was_held_or_waited_for() -> None:
    """L6: `held_ms` and `waiting_ms` count from the first."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN))
    lock.acquire(exclusive(ANN), wait=False, now=at(50))
    lock.acquire(exclusive(BEN), wait=True, now=at(50))
    state = lock.state("n", holders_max=9, waiting_max=9, now=at(60))
    assert [holder.held_ms for holder in state.holders] == [60]
    assert [waiter.waiting_ms for waiter in state.waiting] == [60]


def test_the_revision_counts_the_changes_of_holders_only() -> None:
    """Who watches is told of those."""
    lock = Lock()
    revisions = [lock.revision]
    for call in (
        lambda: lock.acquire(exclusive(ANN), wait=False, now=at(0)),
        lambda: lock.release(ANN, now=at(0)),
        lambda: lock.acquire(exclusive(BEN), wait=False, now=at(0)),
        lambda: lock.break_(now=at(0)),
        lambda: lock.acquire(exclusive(CID), wait=False, now=at(0)),
        lambda: lock.advance(at(TTL_MS)),
    ):
        call()
        revisions.append(lock.revision)
    assert all(later == earlier + 1 for earlier, later in pairwise(revisions))
    hold(lock, exclusive(DEE), ms=TTL_MS)
    before = lock.revision
    queue(lock, exclusive(ANN), ms=TTL_MS)
    lock.renew(DEE, now=at(TTL_MS))
    lock.release(ANN, now=at(TTL_MS))
    assert lock.revision == before


def test_no_repr_shows_a_lease_id() -> None:
    """L7: a lease id is a capability, and a repr ends up in a log."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    lock.acquire(exclusive(BEN), wait=True, now=at(0))
    claim, waiter = exclusive(ANN), WaiterGranted(BEN, Granted(7, TTL_MS, 0))
    lost, moved = HolderLost(ANN, 7, LostReason.EXPIRED), Moved(ANN, "a.1")
    resumed = lock.resume(BEN, "a.1", now=at(0))
    state = lock.state("n", holders_max=9, waiting_max=9, now=at(0))
    for shown in map(repr, (claim, waiter, lost, moved, resumed, state, lock)):
        assert ANN not in shown
        assert BEN not in shown
