"""Many who hold one name, or wait for it: a call looks at few of them (L12, L13)."""

import pytest

from leasekeeper.core.lock import Busy, Granted, Left, Lock, Queued, Renewed
from tests.core.locks import ANN, BEN, TTL_MS, Unwalked, at, exclusive, hold, queue, shared

CROWD = 1000


@pytest.fixture
def crowded() -> Lock:
    """A name that a thousand hold."""
    lock = Lock()
    for number in range(CROWD):
        hold(lock, shared(f"{number}", 2 * CROWD))
    lock._holders = Unwalked(lock._holders)
    return lock


def test_no_call_walks_the_holders(crowded: Lock) -> None:
    hold(crowded, shared(ANN))
    assert crowded.acquire(shared(BEN, CROWD), wait=False, now=at(1)) == Busy()
    assert crowded.acquire(exclusive(BEN), wait=False, now=at(1)) == Busy()
    assert crowded.renew(ANN, now=at(2)) == Renewed(TTL_MS)
    assert isinstance(crowded.acquire(shared(ANN), wait=False, now=at(3)), Granted)
    assert crowded.next_ms() == TTL_MS
    assert crowded.release(ANN, now=at(4)) is Left.HELD
    crowded.advance(at(5))


def test_who_is_let_in_by_the_smallest_limit_counts_those_who_left(crowded: Lock) -> None:
    hold(crowded, shared(ANN, CROWD + 1))
    assert crowded.acquire(shared(BEN), wait=False, now=at(1)) == Busy()
    assert crowded.release(ANN, now=at(2)) is Left.HELD
    hold(crowded, shared(BEN), ms=3)


def test_those_who_run_out_at_once_are_told_in_the_order_of_their_fences(crowded: Lock) -> None:
    hold(crowded, shared(ANN), ms=TTL_MS - 1)
    crowded.advance(at(TTL_MS))
    fences = [event.fence for event in crowded.events if hasattr(event, "fence")]
    assert len(fences) == CROWD
    assert fences == sorted(fences)
    assert crowded.next_ms() == 2 * TTL_MS - 1


def test_a_long_queue_is_served_from_its_head() -> None:
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, *(exclusive(f"{number}") for number in range(CROWD)))
    for number in range(CROWD):
        holder = ANN if number == 0 else f"{number - 1}"
        assert lock.release(holder, now=at(1)) is Left.HELD
    assert lock.waiting == 0
    assert isinstance(lock.acquire(exclusive(BEN), wait=True, now=at(2)), Queued)
