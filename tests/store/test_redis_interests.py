"""What a server thinks it has, when answers come late."""

from typing import TYPE_CHECKING

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from leasekeeper.core.lock import Claim, HolderLost, WaiterGranted
from leasekeeper.messages import LeaseState
from leasekeeper.store.api import Changed, StoreEvent
from leasekeeper.store.redis.calling import Caller
from leasekeeper.store.redis.interests import Interests
from leasekeeper.store.redis.looking import Looking
from tests.core.locks import Unwalked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leasekeeper.resp.replies import Reply

LEASE = "a" * 32
FENCE = 1_700_000_000_000_000


@define
class Seen:
    """A `Looking` without a Redis: its caller is never called here."""

    events: list[StoreEvent] = field(factory=list)
    grants: list[WaiterGranted] = field(factory=list)
    interests: Interests = field(init=False)
    looking: Looking = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.interests = Interests(lambda _: None)
        caller = Caller(None, None, "a", 0, lambda _: 0, lambda _: None, lambda _: None)  # type: ignore[arg-type]
        self.looking = Looking(
            caller,
            self.interests,
            lambda _, granted: self.grants.append(granted),
            lambda *_: None,
            self.events.append,
            _no_view,
        )

    def compare(self, fence: int, state: bytes) -> None:
        """The answer to a `touch` that ran when this was the name's last fence."""
        answer: Sequence[Reply] = [-1, fence, state]
        self.looking.compare("n", [LEASE], answer)


async def _no_view(name: str) -> LeaseState:
    raise AssertionError(name)


@pytest.mark.parametrize("state", [b"0", b"1"])
async def test_an_answer_that_is_older_than_the_grant_takes_nothing_away(state: bytes) -> None:
    """L1: the touch ran before the release that granted it, and its answer came after."""
    seen = Seen()
    seen.interests.hold("n", Claim(LEASE, 30_000, owner="a.1"), FENCE, 30_000)
    seen.compare(FENCE - 1, state)
    interest = seen.interests.find("n")
    assert interest is not None
    assert LEASE in interest.holdings
    assert seen.events == []


@pytest.mark.parametrize("state", [b"0", b"1"])
async def test_an_answer_that_knows_of_the_grant_says_that_it_is_lost(state: bytes) -> None:
    """L3."""
    seen = Seen()
    seen.interests.hold("n", Claim(LEASE, 30_000, owner="a.1"), FENCE, 30_000)
    seen.compare(FENCE, state)
    (event,) = seen.events
    assert isinstance(event.what, HolderLost)
    assert event.what.fence == FENCE


async def test_a_lease_that_is_over_is_lost_whatever_the_answer_knew() -> None:
    """L3: Redis may have lost the fence, too."""
    seen = Seen()
    seen.interests.hold("n", Claim(LEASE, 1, owner="a.1"), FENCE, 1)
    await trio.sleep(0.005)
    seen.compare(0, b"0")
    assert len(seen.events) == 1


async def test_who_has_only_begun_to_watch_is_not_told_of_a_change() -> None:
    """WAT-1: the answer to `lease.watch` has the state; a look that comes before it is no news."""
    seen, states = Seen(), [(), ((FENCE, False),)]

    async def view(name: str) -> LeaseState:
        seen.interests[name].seen = states.pop(0)
        return LeaseState(name, (), (), 0)

    seen.looking.view = view
    seen.interests.watch("n")
    await seen.looking._look_for_watcher("n")
    assert not seen.events
    await seen.looking._look_for_watcher("n")
    assert [type(each.what) for each in seen.events] == [Changed]


async def test_a_step_of_one_does_not_walk_through_what_all_others_hold() -> None:
    """L13: thousands may share a name, and each is renewed, and comes and goes."""
    interests = Interests(lambda _: None)
    for number in range(1000):
        interests.hold("n", Claim(f"{number}", 30_000, owner="a.1"), FENCE + number, 30_000)
    interests["n"].holdings = Unwalked(interests["n"].holdings)
    interests.hold("n", Claim(LEASE, 30_000, owner="a.1"), FENCE + 1000, 20_000)
    interests.extend("n", LEASE, 10_000)
    interests.extend("n", LEASE, 30_000)
    interests.leave("n", LEASE)
    interests.lose("n", "0")


async def test_the_first_that_runs_out_is_looked_at_in_time(autojump_clock: MockClock) -> None:
    """L5: whatever came, went, and was renewed meanwhile."""
    due: list[float] = []
    interests = Interests(lambda _: due.append(trio.current_time()))
    began = trio.current_time()
    interests.hold("n", Claim("gone", 5_000, owner="a.1"), FENCE, 5_000)
    interests.hold("n", Claim("renewed", 5_000, owner="a.1"), FENCE + 1, 5_000)
    interests.hold("n", Claim("cut", 30_000, owner="a.1"), FENCE + 2, 30_000)
    interests.leave("n", "gone")
    interests.extend("n", "renewed", 20_000)
    interests.extend("n", "cut", 10_000)
    with trio.move_on_after(12):
        await interests.run()
    assert due == [pytest.approx(began + 10, abs=0.05)]
