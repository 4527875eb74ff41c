"""What a review found in the service: what a resume of unknown outcome leaves behind."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from leasekeeper.errors import Outcome, Unavailable
from leasekeeper.messages import (
    LeaseAcquireAll,
    LeaseGrant,
    LeaseGrants,
    LeaseInspect,
    LeaseRelease,
    LeaseReleased,
    LeaseResume,
    LeaseState,
)
from tests.service.conftest import new_lease
from tests.service.flaky import Fault
from tests.service.routing import Side, two_servers
from tests.service.test_servers import holds

Pair = tuple[Side, Side]


@pytest.fixture
async def pair(clock: MockClock) -> AsyncIterator[Pair]:
    """Two running servers on a clock that jumps ahead when nothing else is to do."""
    async with two_servers() as opened:
        yield opened


@pytest.mark.parametrize("then", [None, Outcome.NONE])
async def test_l3_a_resume_of_unknown_outcome_takes_no_lease_from_who_believes_in_it(
    then: Outcome | None, pair: Pair, clock: MockClock
) -> None:
    """L3, L6, ERR-4: the store did it, and its answer was lost: the client may repeat it."""
    a, b = pair
    faults = [Fault(fails=Outcome.UNKNOWN), *([Fault(fails=then)] if then else [])]
    b.store.script["resume"] = list(faults)
    old, new = a.world.client(), b.world.client()
    grant = await old.acquire("n")
    old.drop()
    for _ in faults:
        with pytest.raises(Unavailable):
            await new.ask(LeaseResume("n", grant.lease), LeaseGrant)
        await trio.sleep(6)
    assert await holds(a.world, "n", grant.fence)
    again = await new.ask(LeaseResume("n", grant.lease), LeaseGrant)
    assert again.fence == grant.fence
    assert not new.told


async def test_l5_a_wait_whose_resume_is_not_repeated_stalls_nobody(
    pair: Pair, clock: MockClock
) -> None:
    """L5: its turn comes, nobody is there, and the next has it at once."""
    a, b = pair
    b.store.script["resume"] = [Fault(fails=Outcome.UNKNOWN)]
    holder, old, new, next_one = a.world.client(), a.world.client(), b.world.client(), None
    held, lease = await holder.acquire("n"), new_lease()
    await a.world.wait_for(old, "n", lease=lease)
    next_one = await a.world.wait_for(a.world.client(), "n")
    old.drop()
    with pytest.raises(Unavailable):
        await new.ask(LeaseResume("n", lease), LeaseGrant)
    await holder.ask(LeaseRelease("n", held.lease), LeaseReleased)
    await trio.testing.wait_all_tasks_blocked()
    assert next_one.grant.fence > held.fence


async def test_l6_a_cancelled_wait_is_given_back_though_a_resume_failed_before_it(
    pair: Pair, clock: MockClock
) -> None:
    """L6: what the store answered to the second request was got here, whatever the first met."""
    a, b = pair
    b.store.script["resume"] = [Fault(before_s=1, fails=Outcome.NONE)]
    holder, client, lease = a.world.client(), b.world.client(), new_lease()
    await holder.acquire("n")
    first = await b.world.start(client, LeaseResume("n", lease))
    second = await b.world.wait_for(client, "n", lease=lease)
    await first.done.wait()
    await trio.testing.wait_all_tasks_blocked()
    second.scope.cancel()
    await trio.sleep(1)
    state = await holder.ask(LeaseInspect("n"), LeaseState)
    assert (len(state.holders), state.waiting_total) == (1, 0)


async def test_l3_a_repeat_of_many_that_fails_takes_nothing_from_who_was_answered(
    pair: Pair, clock: MockClock
) -> None:
    """L3, L6: the first answer is believed in, whatever becomes of its repeat."""
    a, _ = pair
    client, ask = a.world.client(), LeaseAcquireAll(("m", "n"), lease=new_lease())
    grants = (await client.ask(ask, LeaseGrants)).leases
    a.store.script["acquire"] = [Fault(), Fault(fails=Outcome.NONE)]
    with pytest.raises(Unavailable):
        await client.ask(ask, LeaseGrants)
    await trio.sleep(1)
    for grant in grants:
        assert await holds(a.world, grant.name, grant.fence)
