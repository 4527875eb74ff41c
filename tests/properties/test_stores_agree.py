"""The embedded store and Redis are one: equal answers, equal visible state, at every moment.

The clock of a private Redis stands still until a machine moves it, so times are compared to the
millisecond, and a deadline can be hit exactly. There are two machines with the same clients:

`CoreAndScripts` holds the Lua against the core, which the embedded store is a thin shell of. Here
even fences, what is published to whom and what is left in Redis' keys must be as they should, and
Redis' clock steps back, too.

`MemoryAndRedis` holds the stores themselves against each other, in one event loop whose clock moves
with Redis' own: what they do by themselves when time has come must be equal, too.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule, run_state_machine_as_test

from leasekeeper.core.lock import (
    Claim,
    Granted,
    HolderLost,
    Missing,
    Resumed,
    WaiterGranted,
)
from leasekeeper.messages import Mode
from leasekeeper.store.api import Renewal
from leasekeeper.store.redis import scripts as scripts_of
from tests.core.locks import ANN, BEN
from tests.properties.stores_loop import Loop, MemoryAndRedis, running_loop
from tests.properties.stores_machine import Clients, Known, Side, Told, in_order, known_of
from tests.properties.stores_scripts import PARTS, WATCH_MS, Core, Scripts
from tests.redises import RunningRedis, running_redis

pytestmark = pytest.mark.system

T = TypeVar("T")

START_US: Final = 1_800_000_000_000_123
SLACK_MS: Final = 10_000
"""For so long Redis knows whom to tell of a lease that ran out while nobody called."""
TTL_MAX_MS: Final = 30_000
LONG_MS, SHORT_MS = 3_600_000, 200


@pytest.fixture(scope="module")
def redis() -> Iterator[RunningRedis]:
    """Its clock stands still."""
    with running_redis(skewed=True) as running:
        running.freeze_clock(START_US)
        yield running


def run(machine: Callable[[], Clients], max_examples: int | None = None) -> None:
    """Runs a machine as often as the profile says."""
    how_often = settings(max_examples=max_examples or settings().max_examples)
    run_state_machine_as_test(machine, settings=how_often)  # type: ignore[arg-type] # a factory


@pytest.fixture(scope="module")
def scripts(redis: RunningRedis) -> Iterator[Scripts]:
    """A connection to it, for the examples to take turns."""
    connected = Scripts(redis)
    yield connected
    connected.close()


# --- The core and the scripts -----------------------------------------------------------------


class CoreAndScripts(Clients):
    """Three servers, of which none confirms a grant unless a client happens to renew it."""

    servers = "abc"

    def __init__(self, scripts: Scripts, memory_ms: int) -> None:
        super().__init__()
        self.core, self.scripts = Core(START_US), scripts
        self.latest_us = START_US
        self.called_ms = self.core.now.ms
        self.late = False
        self.granted: dict[int, int] = {}
        """By fence, how long it had waited."""
        self.abandoned = False
        self.agreed = True
        self.scripts.begin(START_US, memory_ms)

    @initialize(abandoned=st.booleans())
    def it_ends(self, abandoned: bool) -> None:
        """With all leases released, or with clients that simply disappear."""
        self.abandoned = abandoned

    def known(self) -> dict[str, Known]:
        return known_of(self.core.lock, self.core.now.ms)

    def pass_time(self, us: int) -> None:
        self.core.us += us
        self.latest_us = max(self.latest_us, self.core.us)
        self.scripts.redis.freeze_clock(self.core.us)

    @rule(us=st.sampled_from([1, 500, 999]))
    def less_than_a_millisecond_passes(self, us: int) -> None:
        self.pass_time(us)

    @rule(seconds=st.sampled_from([1, 9, 20]))
    def nobody_calls_for_long(self, seconds: int) -> None:
        self.pass_time(seconds * 1_000_000)

    @precondition(lambda self: self.scripts.memory_ms == LONG_MS)
    @rule(us=st.sampled_from([1, 1000, 50_000, 100_000, 60_000_000]))
    def redis_clock_steps_back(self, us: int) -> None:
        """Fences rise nevertheless (L2); leases last longer than they should.

        What is over by then was noticed before, for no one knows when Redis deletes its keys.
        """
        self.a_server_looks_after_the_name(0)
        self.pass_time(-us)

    @rule(by=st.integers(0, 5))
    def a_server_looks_after_the_name(self, by: int) -> None:
        """L5: a touch without lease ids lets time pass."""
        server = self.server(by)
        self.both(server, lambda side: side.touch(server, [], 0))

    @rule(by=st.integers(0, 5))
    def a_server_watches(self, by: int) -> None:
        self.agreed = False
        server = self.server(by)
        assert self.scripts.watch(server) == self.core.watch(server)
        self.the_events_agree()
        self.what_can_be_seen_agrees()

    def both(self, server: str, ask: Callable[[Side], T]) -> T:
        self.agreed = False
        expected = ask(self.core)
        answer = ask(self.scripts)
        assert answer == expected
        self.the_events_agree()
        grant = answer.answer if isinstance(answer, Resumed) else answer
        if isinstance(grant, Granted) and grant.fence not in self.granted:
            self.note(grant)
        self.what_can_be_seen_agrees()
        return answer

    def note(self, grant: Granted) -> None:
        """L2: it is above all before it."""
        assert grant.fence > max(self.granted, default=0)
        self.granted[grant.fence] = grant.waited_ms

    def the_events_agree(self) -> None:
        """Who is told what."""
        expected, self.core.told = in_order(self.core.told), []
        told, self.scripts.told = in_order(self.scripts.told), []
        granted = (each.what.grant for each in told if isinstance(each.what, WaiterGranted))
        for grant in sorted(granted, key=lambda each: each.fence):
            self.note(grant)
        self.late = self.core.now.ms - self.called_ms > SLACK_MS
        self.called_ms = self.core.now.ms
        if self.late:  # Nobody is there any more to tell of what was lost.
            expected = [each for each in expected if each in told or not forgotten(each)]
        assert told == expected

    def what_can_be_seen_agrees(self) -> None:
        """And what is left in the keys."""
        self.what_it_says_of_times_agrees()
        state = self.core.inspect("a", holders_max=99, waiting_max=99)
        assert not self.core.told
        assert self.scripts.state == state
        self.the_keys_are_as_they_should()
        self.agreed = True

    def what_it_says_of_times_agrees(self) -> None:
        """L5: nobody who waits depends on others' calls to learn when to look again."""
        changed, self.core.changed = self.core.changed, set()
        due_ms, self.scripts.due_ms = self.scripts.due_ms, {}
        if self.core.lock.waiting and not self.late:
            assert due_ms == dict.fromkeys(changed, self.core.next_ms)
        if self.scripts.next_ms is not None:
            assert self.scripts.next_ms == self.core.next_ms
        lefts = {each.fence: each.ttl_ms for each in self.core.lock.holders(self.core.now)}
        for fence, left_ms, waited_ms in self.scripts.seen:
            assert left_ms == lefts[fence]
            assert waited_ms == self.granted[fence]

    def the_keys_are_as_they_should(self) -> None:
        """As other programs, and `spec/redis-layout.md`, expect them."""
        raw, holders = self.scripts.raw, self.core.lock._holders
        shared = {lease: h for lease, h in holders.items() if h.claim.mode is Mode.SHARED}
        alone = [lease for lease in holders if lease not in shared]
        queue = list(self.core.lock._queue)
        assert raw.lock == ("shared" if shared else alone[0] if alone else None)
        assert raw.shared == set(shared)
        assert raw.limits == {lease for lease, h in shared.items() if h.claim.limit}
        dead = [] if self.scripts.advances else raw.queue[: len(raw.queue) - len(queue)]
        assert raw.queue == dead + queue
        assert raw.info == {*holders, *dead, *queue, *(["held"] if alone else [])}
        assert -1 not in raw.left_ms.values(), "every key of a name ends by itself (L9)"
        lefts_ms = [holder.expires_ms - self.core.now.ms for holder in holders.values()]
        assert raw.left_ms["lock"] >= max(lefts_ms, default=-2)
        if holders:
            assert raw.fence == self.core.lock.fence
            assert raw.left_ms["fence"] >= max(lefts_ms) + self.scripts.memory_ms

    def teardown(self) -> None:
        """L9: nothing remains of a name at rest, but its fence for a while."""
        if not self.agreed:
            return
        self.pass_time(max(0, self.latest_us - self.core.us))
        if not self.abandoned:
            self.all_release()
            assert self.scripts.raw.left_ms["fence"] <= self.scripts.memory_ms
            self.pass_time(1000 * (max(WATCH_MS, self.scripts.memory_ms) + 1))
        else:
            self.pass_time(1000 * (SLACK_MS + TTL_MAX_MS + self.scripts.memory_ms))
        assert self.scripts.all_keys() == []


def forgotten(told: Told) -> bool:
    """Whether it is of the kind that only who looks in time can tell."""
    return told.what is None or isinstance(told.what, HolderLost)


@pytest.mark.parametrize("memory_ms", [LONG_MS, SHORT_MS])
def test_the_scripts_agree_with_the_core(scripts: Scripts, memory_ms: int) -> None:
    """L1, L2, L4, L5, L6, L8, L9; fences may be forgotten only while Redis' clock goes forward."""
    run(partial(CoreAndScripts, scripts, memory_ms))


# --- What the machines have found -------------------------------------------------------------


@pytest.fixture
def clients(scripts: Scripts) -> Iterator[CoreAndScripts]:
    """For a history that is known beforehand: every step of it is compared."""
    machine = CoreAndScripts(scripts, LONG_MS)
    yield machine
    machine.teardown()


def test_an_exclusive_lease_is_over_in_the_millisecond_of_its_deadline(
    clients: CoreAndScripts,
) -> None:
    """Redis keeps a key through it."""
    clients.acquire(0, Claim(ANN, 300), wait=False)
    clients.acquire(1, Claim(BEN, 300), wait=True)
    clients.pass_time(300_000)
    clients.a_server_looks_after_the_name(2)
    assert [*clients.known()] == [BEN]


def test_no_renewal_resurrects_a_lease_in_the_millisecond_of_its_deadline(
    clients: CoreAndScripts,
) -> None:
    """The script takes a short way where the key is there."""
    clients.acquire(0, Claim(ANN, 300), wait=False)
    clients.pass_time(300_000)
    clients.renew(0, ANN, None)
    assert not clients.known()


def test_the_fence_is_remembered_as_long_as_the_longest_lease(scripts: Scripts) -> None:
    """L2: another that is renewed for less, or released, takes nothing from it."""
    clients = CoreAndScripts(scripts, SHORT_MS)
    clients.acquire(0, Claim(ANN, 30_000, Mode.SHARED), wait=False)
    clients.acquire(1, Claim(BEN, 100, Mode.SHARED), wait=False)
    clients.renew(1, BEN, None)
    clients.release(BEN)
    clients.teardown()


def test_a_waiter_that_died_unnoticed_is_forgotten_with_its_place(clients: CoreAndScripts) -> None:
    """Its entry outlived the queue where somebody held for long, and then no call got past it."""
    clients.acquire(0, Claim(ANN, 30_000), wait=False)
    clients.acquire(1, Claim(BEN, 300, alive_ms=300), wait=True)
    clients.nobody_calls_for_long(20)
    clients.resume(1, BEN)
    assert [*clients.known()] == [ANN]


def test_a_shared_lease_that_ended_unnoticed_does_not_come_back(clients: CoreAndScripts) -> None:
    """L1: its entry outlived its time where somebody waited for long, and was taken for held."""
    clients.acquire(0, Claim(ANN, 100, Mode.SHARED), wait=False)
    clients.acquire(1, Claim(BEN, 300, alive_ms=15_000), wait=True)
    clients.pass_time(12_000_000)
    clients.renew(0, ANN, None)
    assert [*clients.known()] == [BEN]


def test_nobody_has_waited_for_less_than_no_time(clients: CoreAndScripts) -> None:
    """Else a client would believe that its lease is over: it reckons from when it asked."""
    clients.acquire(0, Claim(ANN, 300), wait=False)
    clients.acquire(1, Claim(BEN, 300, alive_ms=15_000), wait=True)
    clients.redis_clock_steps_back(60_000_000)
    clients.release(ANN)
    assert [*clients.known()] == [BEN]


def test_a_new_ttl_is_kept(clients: CoreAndScripts) -> None:
    """The next renewal extends to it again."""
    clients.acquire(0, Claim(ANN, 300), wait=False)
    clients.renew(0, ANN, 30_000)
    clients.pass_time(100_000)
    clients.renew(0, ANN, None)
    assert clients.known()[ANN].left_ms == 30_000


def test_what_is_left_of_a_wait_only_shrinks(clients: CoreAndScripts) -> None:
    """However often it is resumed (L8)."""
    clients.acquire(0, Claim(ANN, 300), wait=False)
    clients.acquire(1, Claim(BEN, 300, alive_ms=300, wait_ms=150), wait=True)
    for left_ms in (100, 50, 0, 0):
        clients.pass_time(50_000)
        clients.resume(left_ms, BEN)
        assert clients.known()[BEN].claim.wait_ms == left_ms


def test_a_grant_that_nobody_confirmed_does_not_end_with_its_longest_hold(
    clients: CoreAndScripts,
) -> None:
    """It ends before that: the reason is another."""
    clients.acquire(0, Claim(ANN, 100), wait=False)
    clients.acquire(1, Claim(BEN, 300, max_hold_ms=150, alive_ms=200), wait=True)
    clients.pass_time(100_000)
    clients.a_server_looks_after_the_name(2)
    assert clients.known()[BEN].left_ms == 100
    clients.pass_time(100_000)
    clients.a_server_looks_after_the_name(2)


def test_who_releases_does_not_delete_the_lock_of_a_foreign_program(
    clients: CoreAndScripts,
) -> None:
    """L1: the lease was over, and the program has taken the lock since."""
    clients.acquire(0, Claim(ANN, 300), wait=False)
    clients.pass_time(300_000)
    lock = clients.scripts.keys[0]
    set_lock: list[str | int] = ["SET", lock, "foreign", "NX", "PX", 300]
    assert clients.scripts.commands(set_lock) == [None]
    clients.pass_time(1000)
    assert clients.scripts.commands(set_lock) == [b"OK"]
    clients.scripts.commands(clients.scripts.eval("a", scripts_of.RELEASE, ANN, ""))
    assert clients.scripts.commands(["GET", lock]) == [b"foreign"]
    clients.agreed = False


@pytest.mark.parametrize(("place", "mode"), [("queue", Mode.EXCLUSIVE), ("shared", Mode.SHARED)])
def test_an_entry_without_its_place_is_none(
    clients: CoreAndScripts, place: str, mode: Mode
) -> None:
    """A script that fails half-way, for want of memory, may leave one."""
    clients.acquire(0, Claim(ANN, 300, Mode.SHARED), wait=False)
    clients.acquire(1, Claim(BEN, 300, mode, alive_ms=300), wait=True)
    scripts = clients.scripts
    scripts.commands(["ZREM", scripts.keys[PARTS.index(place)], BEN])
    assert scripts.renew("b", BEN, None) == Missing()
    assert scripts.resume("b", BEN, "b.1", wait_ms=None) == Missing()
    clients.agreed = False


# --- The stores -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loop(redis: RunningRedis) -> Iterator[Loop]:
    """The stores, running."""
    with running_loop(redis, START_US) as running:
        yield running


def test_the_redis_stores_agree_with_the_embedded_store(loop: Loop) -> None:
    """L1, L2, L4, L5, L6, L8."""
    run(partial(MemoryAndRedis, loop), settings().max_examples // 4)


def test_a_waiter_is_not_forgotten_because_it_cannot_be_renewed(loop: Loop) -> None:
    """L5: it is told of its grant, and then of its loss, by time alone."""
    clients = MemoryAndRedis(loop)
    clients.acquire(0, Claim(ANN, 300), wait=False)
    clients.acquire(1, Claim(BEN, 300), wait=True)
    missed = loop.call(partial(loop.servers["b"].renew, [Renewal(clients.name, BEN)]))
    assert missed == [Missing()]
    clients.pass_time(300_000)
    clients.pass_time(300_000)
