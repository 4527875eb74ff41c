"""Several servers act on one name: whose a lease is, how it is resumed, and a dead server's turn.

Owners are SERVER.SERIAL. The servers here are "a" and "b".
"""

import pytest
from attrs import evolve

from leasekeeper.core.lock import (
    Busy,
    Contended,
    Elsewhere,
    Granted,
    HolderLost,
    Left,
    Lock,
    Mismatch,
    Missing,
    Moved,
    Queued,
    Renewed,
    Resumed,
    WaiterGranted,
    server_of,
)
from leasekeeper.messages import LostReason, OnDrop
from tests.core.locks import (
    ANN,
    BEN,
    CID,
    START_US,
    TTL_MS,
    Call,
    at,
    exclusive,
    hold,
    queue,
    shared,
    take_events,
)

A1, A2, B1 = "a.1", "a.2", "b.1"


def owners(lock: Lock, ms: int = 0) -> list[str | None]:
    """Those who are told when every holder is put out."""
    lock.break_(now=at(ms))
    return [each.owner for each in take_events(lock) if isinstance(each, HolderLost)]


# --- Owners -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "server"), [(None, None), ("a.1", "a"), ("1f2e.37", "1f2e"), ("a", "a")]
)
def test_an_owner_names_its_server(owner: str | None, server: str | None) -> None:
    assert server_of(owner) == server


def test_what_happens_is_told_to_the_owner() -> None:
    """The loss and the contention to those that hold, the grant to the one that waits."""
    lock = Lock()
    fences = [
        hold(lock, shared(lease, owner=owner)).fence for lease, owner in ((ANN, A1), (BEN, B1))
    ]
    lock.acquire(exclusive(CID, owner=A2), wait=True, now=at(0))
    assert take_events(lock) == [Contended(1, (A1, B1))]
    lock.break_(now=at(1))
    lost_ann, lost_ben, granted = take_events(lock)
    assert lost_ann == HolderLost(ANN, fences[0], LostReason.BROKEN, None, A1)
    assert lost_ben == HolderLost(BEN, fences[1], LostReason.BROKEN, None, B1)
    assert isinstance(granted, WaiterGranted)
    assert granted.owner == A2


def test_a_repeat_by_its_owner_moves_nothing() -> None:
    """L6."""
    lock = Lock()
    hold(lock, exclusive(ANN, owner=A1))
    queue(lock, exclusive(BEN, owner=B1))
    hold(lock, exclusive(ANN, owner=A1), ms=1)
    lock.acquire(exclusive(BEN, owner=B1), wait=True, now=at(1))
    lock.resume(ANN, A1, now=at(1))
    lock.resume(BEN, B1, now=at(1))
    assert take_events(lock) == []


def test_a_repeat_by_another_owner_moves_what_is_held() -> None:
    """L6: the former owner is told, and hears of nothing else."""
    lock = Lock()
    fence = hold(lock, exclusive(ANN, owner=A1)).fence
    assert hold(lock, exclusive(ANN, owner=B1), ms=1).fence == fence
    assert take_events(lock) == [Moved(ANN, A1)]
    assert owners(lock, 1) == [B1]


def test_a_repeat_by_another_owner_moves_the_place_in_the_queue() -> None:
    """L4, L6: from one connection of a server to the next, too."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN, owner=A1), exclusive(CID))
    again = lock.acquire(exclusive(BEN, owner=A2), wait=True, now=at(1))
    assert again == Queued(1, START_US)
    assert take_events(lock) == [Moved(BEN, A1)]
    lock.release(ANN, now=at(2))
    (event,) = take_events(lock)
    assert isinstance(event, WaiterGranted)
    assert (event.lease, event.owner) == (BEN, A2)


def test_a_repeat_with_another_mode_moves_nothing() -> None:
    """L6: it is refused, and the owner keeps what it has."""
    lock = Lock()
    hold(lock, exclusive(ANN, owner=A1))
    assert lock.acquire(shared(ANN, owner=B1), wait=True, now=at(1)) == Mismatch()
    assert take_events(lock) == []
    assert owners(lock, 1) == [A1]


@pytest.mark.parametrize("how", ["acquire", "resume"])
def test_whoever_gives_a_place_up_for_another_says_so(how: str) -> None:
    """L6: the request that waited on the former server must not wait for ever."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN, owner=A1))
    if how == "acquire":
        answer: object = lock.acquire(exclusive(BEN, owner=B1), wait=False, now=at(1))
    else:
        answer = lock.resume(BEN, B1, wait_ms=0, now=at(1))
    assert answer == Busy()
    assert take_events(lock) == [Moved(BEN, A1)]
    assert lock.waiting == 0


# --- Release ----------------------------------------------------------------------------------


def test_a_server_may_release_only_what_is_still_its_own() -> None:
    """L6, L8: the end of a grace does not take away what was resumed elsewhere."""
    lock = Lock()
    hold(lock, exclusive(ANN, owner=A1))
    queue(lock, exclusive(BEN, owner=A2))
    for lease in (ANN, BEN):
        lock.resume(lease, B1, now=at(1))
        assert lock.release(lease, now=at(1), by="a", only_of="a") is Left.NOTHING
    assert lock.release(BEN, now=at(1), by="b", only_of="b") is Left.WAITING
    assert lock.release(ANN, now=at(1), by="b", only_of="b") is Left.HELD
    assert lock.idle


def test_the_serial_does_not_count_when_a_server_releases_its_own() -> None:
    """It knows itself what it still wants."""
    lock = Lock()
    hold(lock, exclusive(ANN, owner=A1))
    lock.resume(ANN, A2, now=at(1))
    assert lock.release(ANN, now=at(1), only_of="a") is Left.HELD


def test_a_release_without_a_condition_is_for_whoever_has_the_id() -> None:
    """L7."""
    lock = Lock()
    hold(lock, exclusive(ANN, owner=A1))
    assert lock.release(ANN, now=at(1), by="b") is Left.HELD


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(("by", "told"), [("b", True), ("a", False), (None, False)])
def test_a_release_by_another_server_is_told_to_the_owner(
    by: str | None, told: bool, waits: bool
) -> None:
    """L6: it has nothing any more, and asks for nothing again."""
    lock = Lock()
    hold(lock, exclusive(CID if waits else ANN, owner=A1))
    if waits:
        queue(lock, exclusive(ANN, owner=A1))
    lock.release(ANN, now=at(1), by=by)
    assert take_events(lock) == ([Moved(ANN, A1)] if told else [])


def test_a_release_that_is_refused_still_lets_time_pass() -> None:
    """L5."""
    lock = Lock()
    hold(lock, exclusive(ANN, owner=B1))
    queue(lock, exclusive(BEN, owner=B1))
    assert lock.release(BEN, now=at(TTL_MS), only_of="a") is Left.NOTHING
    assert [type(each) for each in take_events(lock)] == [HolderLost, WaiterGranted]


# --- Which grants are older than a wait -------------------------------------------------------


def test_whoever_waits_knows_the_last_fence() -> None:
    """L2: a grant at or below it, told late, is not what this wait was granted."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN))
    lock.release(ANN, now=at(1))
    (old,) = take_events(lock)
    assert isinstance(old, WaiterGranted)
    lock.release(BEN, now=at(2))
    hold(lock, exclusive(CID), ms=2)
    queued = lock.acquire(exclusive(BEN), wait=True, now=at(3, us=0))
    assert isinstance(queued, Queued)
    assert queued.fence >= old.grant.fence
    lock.events.clear()
    lock.release(CID, now=at(4, us=0))
    (new,) = take_events(lock)
    assert isinstance(new, WaiterGranted)
    assert new.grant.fence > queued.fence


# --- Resume -----------------------------------------------------------------------------------


def test_a_holder_resumes_with_the_same_fence() -> None:
    """L6, L7: whoever has the lease id has the lease."""
    lock = Lock()
    claim = exclusive(ANN, owner=A1)
    fence = hold(lock, claim).fence
    resumed = lock.resume(ANN, B1, wait_ms=0, now=at(400))
    assert resumed == Resumed(evolve(claim, owner=B1), Granted(fence, TTL_MS, 0))
    assert lock.next_ms() == 400 + TTL_MS
    assert take_events(lock) == [Moved(ANN, A1)]


def test_a_resume_says_what_was_asked_for() -> None:
    """L8: renewal, drops, and the TTL go on as they were, wherever it is resumed."""
    lock = Lock()
    claim = evolve(
        exclusive(ANN, owner=A1),
        auto_renew=False,
        on_drop=OnDrop.RELEASE,
        label="nightly",
        max_hold_ms=9000,
    )
    hold(lock, claim)
    lock.renew(ANN, 700, now=at(1))
    resumed = lock.resume(ANN, B1, now=at(2))
    assert isinstance(resumed, Resumed)
    assert resumed.claim == evolve(claim, owner=B1, ttl_ms=700)


def test_a_waiter_resumes_at_the_same_place() -> None:
    """L4, L6: on any server, which vouches for it from now on."""
    lock = Lock()
    claim = exclusive(BEN, alive_ms=100, owner=A1)
    hold(lock, exclusive(ANN))
    queue(lock, claim, exclusive(CID))
    resumed = lock.resume(BEN, B1, now=at(99))
    assert resumed == Resumed(evolve(claim, owner=B1), Queued(1, START_US))
    assert take_events(lock) == [Moved(BEN, A1)]
    lock.release(ANN, now=at(198))
    (event,) = take_events(lock)
    assert event == WaiterGranted(BEN, Granted(START_US + 198_000, TTL_MS, waited_ms=99), B1)


@pytest.mark.parametrize(
    ("asked_ms", "after_ms", "left_ms"),
    [(None, 400, None), (1000, 400, 600), (1000, 1000, 0), (1000, 1500, 0)],
)
def test_a_resumed_wait_goes_on_with_what_is_left_of_it(
    asked_ms: int | None, after_ms: int, left_ms: int | None
) -> None:
    """And with none left it still waits: its server ends it."""
    lock = Lock()
    hold(lock, exclusive(ANN, max_hold_ms=9000))
    lock.renew(ANN, 9000, now=at(0))
    queue(lock, exclusive(BEN, wait_ms=asked_ms))
    resumed = lock.resume(BEN, B1, now=at(after_ms))
    assert isinstance(resumed, Resumed)
    assert resumed.claim.wait_ms == left_ms
    again = lock.resume(BEN, A1, now=at(after_ms))
    assert isinstance(again, Resumed)
    assert again.claim.wait_ms == left_ms, "asking does not make it longer"


@pytest.mark.parametrize("wait_ms", [None, 1, 5000])
def test_a_resumed_wait_may_have_a_new_deadline(wait_ms: int | None) -> None:
    """From now on, and for whoever resumes it next."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN, wait_ms=700))
    resumed = lock.resume(BEN, B1, wait_ms=wait_ms, now=at(300))
    assert isinstance(resumed, Resumed)
    assert resumed.claim.wait_ms == wait_ms


def test_a_repeated_acquire_sets_how_long_it_waits() -> None:
    """L6: from when it was last asked for."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN, wait_ms=700))
    lock.acquire(exclusive(BEN, wait_ms=500), wait=True, now=at(600))
    resumed = lock.resume(BEN, B1, now=at(800))
    assert isinstance(resumed, Resumed)
    assert resumed.claim.wait_ms == 300


def test_a_resume_that_does_not_wait_gives_the_place_up() -> None:
    """L6."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    queue(lock, exclusive(BEN))
    assert lock.resume(BEN, None, wait_ms=0, now=at(0)) == Busy()
    assert lock.resume(BEN, None, now=at(0)) == Missing()
    assert take_events(lock) == []


def test_a_lost_lease_cannot_be_resumed() -> None:
    """L1."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    assert lock.resume(ANN, None, now=at(TTL_MS)) == Missing()


# --- A dead server's turn passes by -----------------------------------------------------------

BY_B: list[Call] = [
    lambda lock, now: lock.advance(now, by="b"),
    lambda lock, now: lock.release(CID, now=now, by="b"),
    lambda lock, now: lock.renew(CID, now=now, by="b"),
    lambda lock, now: lock.touch(CID, 100, now=now, by="b"),
    lambda lock, now: lock.break_(now=now, by="b"),
    lambda lock, now: lock.acquire(exclusive(CID, owner=B1), wait=False, now=now),
    lambda lock, now: lock.resume(CID, B1, now=now),
]


@pytest.mark.parametrize("call", BY_B)
def test_a_grant_by_another_server_lasts_as_long_as_the_word_of_its_own(call: Call) -> None:
    """L5: that server may be dead; if it is not, it renews."""
    lock = Lock()
    hold(lock, exclusive(ANN))
    lock.renew(ANN, 100, now=at(0))
    queue(lock, exclusive(BEN, alive_ms=400, owner=A1))
    call(lock, at(100))
    lost, granted = take_events(lock)[:2]
    assert isinstance(lost, HolderLost)
    assert isinstance(granted, WaiterGranted)
    assert (granted.owner, granted.grant.ttl_ms) == (A1, 300)
    if lock.idle:
        return  # it was broken in the same call
    assert lock.next_ms() == 400
    assert lock.renew(BEN, now=at(399), by="a") == Renewed(TTL_MS)
    assert lock.next_ms() == 399 + TTL_MS


@pytest.mark.parametrize("by", [None, "a"])
def test_a_grant_by_its_own_server_lasts_its_ttl(by: str | None) -> None:
    """And so does one where there is only one server."""
    lock = Lock()
    hold(lock, exclusive(ANN, owner=A2))
    queue(lock, exclusive(BEN, alive_ms=400, owner=A1))
    lock.release(ANN, now=at(100), by=by)
    (granted,) = take_events(lock)
    assert isinstance(granted, WaiterGranted)
    assert granted.grant.ttl_ms == TTL_MS


def test_the_word_of_a_server_makes_no_grant_longer() -> None:
    """Nor does it reach past the longest hold, which says why it ended."""
    lock = Lock()
    hold(lock, exclusive(ANN, owner=B1))
    queue(lock, exclusive(BEN, alive_ms=9000, max_hold_ms=300, owner=A1))
    lock.release(ANN, now=at(0), by="b")
    (granted,) = take_events(lock)
    assert isinstance(granted, WaiterGranted)
    assert granted.grant.ttl_ms == 300
    lock.advance(at(300), by="b")
    assert take_events(lock) == [
        HolderLost(BEN, granted.grant.fence, LostReason.MAX_HOLD, owner=A1)
    ]


def test_a_dead_server_s_grant_passes_to_the_next() -> None:
    """L5: no later than its waiter would have been passed over."""
    lock = Lock()
    hold(lock, exclusive(ANN, owner=B1))
    queue(lock, exclusive(BEN, alive_ms=400, owner=A1), exclusive(CID, owner=B1))
    lock.release(ANN, now=at(100), by="b")
    take_events(lock)
    lock.advance(at(400), by="b")
    lost, granted = take_events(lock)
    assert isinstance(lost, HolderLost)
    assert (lost.lease, lost.reason, lost.owner) == (BEN, LostReason.EXPIRED, A1)
    assert isinstance(granted, WaiterGranted)
    assert (granted.lease, granted.owner, granted.grant.ttl_ms) == (CID, B1, TTL_MS)


def test_a_repeat_or_a_resume_makes_a_grant_last_its_ttl() -> None:
    """They are the word of its server, too."""
    calls: list[Call] = [
        lambda lock, now: lock.acquire(exclusive(BEN, owner=A1), wait=True, now=now),
        lambda lock, now: lock.resume(BEN, B1, now=now),
    ]
    for again in calls:
        lock = Lock()
        hold(lock, exclusive(ANN, owner=B1))
        queue(lock, exclusive(BEN, alive_ms=400, owner=A1))
        lock.release(ANN, now=at(100), by="b")
        again(lock, at(200))
        assert lock.next_ms() == 200 + TTL_MS


@pytest.mark.parametrize("waits", [False, True])
def test_what_another_server_has_is_left_there_if_asked_to(waits: bool) -> None:
    """L8: a server that asks again for what it lost sight of must not take it from another."""
    lock = Lock()
    hold(lock, exclusive(CID if waits else ANN, owner=A1))
    if waits:
        queue(lock, exclusive(ANN, owner=A1))
    asked = exclusive(ANN, owner=B1)
    assert lock.acquire(asked, wait=True, take_over=False, now=at(1)) == Elsewhere()
    assert take_events(lock) == []
    again = lock.acquire(exclusive(ANN, owner=A1), wait=True, take_over=False, now=at(1))
    assert isinstance(again, Queued if waits else Granted)
