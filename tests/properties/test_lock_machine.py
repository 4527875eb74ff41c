"""The rules of one name against a model written from the laws, over histories nobody thought of.

Every call is made on both; the answers, the events and all that can be seen must be the same (L1,
L2, L4, L6). After every call the laws themselves are checked too, so that a mistake which both
share does not pass. Time passes between calls without anybody calling `advance`, as it does. Two
servers act on the name, "a" and "b", each for several owners; sometimes nobody says who acts.
"""

from copy import deepcopy

from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from leasekeeper.core.lock import (
    Claim,
    Granted,
    HolderLost,
    Left,
    Lock,
    Mismatch,
    Missing,
    Now,
    Queued,
    Renewed,
    Resumed,
    WaiterGranted,
)
from leasekeeper.messages import (
    ORIGINAL_WAIT,
    LostReason,
    Mode,
    OnDrop,
)
from tests.properties.model import WAITING_MAX, Model, server

START_MS, START_US = 1_000, 1_700_000_000_000_000

LEASES = [letter * 32 for letter in "abcdef"]
STRANGER = "0" * 32
# Few and coinciding, so that deadlines often fall on the same moment, and on that of a call.
DURATIONS = st.sampled_from([100, 150, 300])
WHO = st.integers(0, WAITING_MAX + 2)
"""Someone who holds or waits, by place; or a stranger."""
LATE = st.sampled_from([0, 0, 0, 1, 100, 300])
"""How much time passed before a call, unnoticed: what it is about may have run out."""
OWNER = st.sampled_from(["a.1", "a.2", "b.1", None])
SERVER = st.sampled_from(["a", "b", None])
WAITS = st.sampled_from([None, 100, 150])


class LockMachine(RuleBasedStateMachine):
    """Clients of one name, on two servers, and the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = Lock(WAITING_MAX)
        self.model = Model()
        self.ms, self.us = START_MS, START_US
        self.floor_us = 0
        self.last_called_ms = START_MS
        self.settled = True
        """No time has passed since the last call."""
        self.claims: dict[str, Claim] = {}
        """What each lease id last asked for."""
        self.fences: list[int] = []
        """Every fence ever granted, in the order of the grants."""
        self.turns: dict[str, int] = {}
        """When each waiter began to wait; the smallest is first in line."""
        self.turn = 0
        self.floors: dict[str, int] = {}
        """The fence that each waiter was told its grant would be above."""

    @property
    def now(self) -> Now:
        return Now(self.ms, self.us)

    def called(self, answer: object, expected: object) -> None:
        """The answer and the events are the model's; what they mean is noted."""
        assert answer == expected
        events, self.lock.events = self.lock.events, []
        expected_events, self.model.events = self.model.events, []
        assert events == expected_events
        self.settled = True
        self.last_called_ms = self.ms
        for event in events:
            if isinstance(event, WaiterGranted):
                self.fences.append(event.grant.fence)
                self.a_waiter_was_granted(event.lease)
                assert event.grant.fence > self.floors[event.lease]

    def a_waiter_was_granted(self, lease: str) -> None:
        """L4: everyone who began to wait before it is gone."""
        mine = self.turns.pop(lease)
        waiting = {one.claim.lease for one in self.model.queue}
        assert all(turn > mine for other, turn in self.turns.items() if other in waiting)

    def someone(self, who: int, late_ms: int, by: str | None) -> str:
        """A lease id: of one who held or waited until now, or of a stranger. Then time passes,
        and the server that acts notices."""
        known = [one.claim.lease for one in self.model.holders + self.model.queue]
        self.pass_time(late_ms)
        self.model.settle(self.now, by)
        return [*known, STRANGER][who % (len(known) + 1)]

    # --- Clients ------------------------------------------------------------------------------

    @initialize(readers=st.integers(0, 3), waiting=st.lists(st.sampled_from(Mode), max_size=3))
    def some_are_there_already(self, readers: int, waiting: list[Mode]) -> None:
        for lease in LEASES[:readers]:
            self.acquire(Claim(lease, 300, Mode.SHARED, alive_ms=300), wait=False)
        for lease, mode in zip(LEASES[readers:], waiting, strict=False):
            self.acquire(Claim(lease, 300, mode, alive_ms=300, wait_ms=200), wait=True)

    @rule(
        lease=st.sampled_from(LEASES),
        mode=st.sampled_from(Mode),
        limit=st.none() | st.integers(1, 3),
        ttl_ms=DURATIONS,
        max_hold_ms=st.none() | DURATIONS,
        alive_ms=DURATIONS,
        wait=st.booleans(),
        wait_ms=WAITS,
        owner=OWNER,
        on_drop=st.sampled_from(OnDrop),
    )
    def a_client_acquires(
        self,
        lease: str,
        mode: Mode,
        limit: int | None,
        ttl_ms: int,
        max_hold_ms: int | None,
        alive_ms: int,
        wait: bool,
        wait_ms: int | None,
        owner: str | None,
        on_drop: OnDrop,
    ) -> None:
        if mode is Mode.EXCLUSIVE:
            limit = None
        claim = Claim(lease, ttl_ms, mode, limit, f"{mode}", "c", owner, max_hold_ms, alive_ms)
        claim = evolve(claim, wait_ms=wait_ms, on_drop=on_drop, auto_renew=not limit)
        self.acquire(claim, wait)

    @rule(lease=st.sampled_from(LEASES), wait=st.booleans())
    def a_reader_acquires(self, lease: str, wait: bool) -> None:
        """With nothing unusual, so that several often share."""
        self.acquire(Claim(lease, 300, Mode.SHARED, alive_ms=300), wait)

    @rule(lease=st.sampled_from(LEASES), limit=st.integers(1, 3))
    def a_reader_with_a_limit_acquires(self, lease: str, limit: int) -> None:
        self.acquire(Claim(lease, 300, Mode.SHARED, limit, alive_ms=300), wait=False)

    @rule(
        lease=st.sampled_from(LEASES),
        max_hold_ms=st.sampled_from([None, 150]),
        wait_ms=WAITS,
        owner=OWNER,
    )
    def a_writer_waits(
        self, lease: str, max_hold_ms: int | None, wait_ms: int | None, owner: str | None
    ) -> None:
        """And may not hold it for long, so that two bounds meet."""
        claim = Claim(lease, 100, max_hold_ms=max_hold_ms, alive_ms=300, owner=owner)
        self.acquire(evolve(claim, wait_ms=wait_ms), wait=True)

    @rule(who=WHO, late_ms=LATE, wait=st.booleans(), owner=OWNER)
    def a_client_repeats_its_request(
        self, who: int, late_ms: int, wait: bool, owner: str | None
    ) -> None:
        """L6, and it finds out what became of it; maybe on another server."""
        lease = self.someone(who, late_ms, server(owner))
        self.acquire(evolve(self.claims.get(lease, Claim(lease, 300)), owner=owner), wait)

    @precondition(lambda self: self.settled and self.lock.waiting)
    @rule(place=st.integers(0, WAITING_MAX - 1))
    def a_waiter_gives_up(self, place: int) -> None:
        """L5: and whoever waited only for this one gets in."""
        waiter = self.model.queue[place % len(self.model.queue)]
        self.acquire(evolve(waiter.claim, owner=waiter.owner), wait=False)

    def acquire(self, claim: Claim, wait: bool) -> None:
        self.model.settle(self.now, server(claim.owner))
        held = self.model.find(self.model.holders, claim.lease)
        queued = self.model.find(self.model.queue, claim.lease)
        place = self.model.queue.index(queued) + 1 if queued else None
        if not held and not queued:  # if it ever waited, it lost its turn by leaving, or dying
            self.turns.pop(claim.lease, None)
        answer = self.lock.acquire(claim, wait=wait, now=self.now)
        self.called(answer, self.model.ask(claim, wait, self.now))
        match answer:
            case Granted(fence=fence) if held:
                assert fence == held.fence, "a repeated acquire has the same fence (L6)"
            case Granted(fence=fence):
                self.fences.append(fence)
            case Queued(position=position) if queued:
                assert position == place, "a repeated acquire keeps its place (L6)"
                self.floors[claim.lease] = answer.fence
            case Queued(position=position):
                self.floors[claim.lease] = answer.fence
                assert position == self.lock.waiting, "who comes last waits last (L4)"
                self.turn += 1
                self.turns[claim.lease] = self.turn
        if not isinstance(answer, Mismatch):
            self.claims[claim.lease] = claim

    @rule(who=WHO, late_ms=LATE, by=SERVER, only_of=SERVER)
    def a_client_releases(
        self, who: int, late_ms: int, by: str | None, only_of: str | None
    ) -> None:
        """L6: and then again. With `only_of`, what was resumed elsewhere stays (L8)."""
        lease = self.someone(who, late_ms, by)
        left = self.lock.release(lease, now=self.now, by=by, only_of=only_of)
        expected = self.model.leave(lease, by, only_of)
        self.model.settle(self.now, by)
        self.called(left, expected)
        again = self.lock.release(lease, now=self.now, by=by, only_of=only_of)
        assert again is Left.NOTHING

    @rule(who=WHO, late_ms=LATE, ttl_ms=st.none() | DURATIONS, by=SERVER)
    def a_client_renews(self, who: int, late_ms: int, ttl_ms: int | None, by: str | None) -> None:
        """On any server, and the lease stays with its own."""
        lease = self.someone(who, late_ms, by)
        holder = self.model.find(self.model.holders, lease)
        expected: Renewed | Missing = Missing()
        if holder:
            holder.ttl_ms = ttl_ms or holder.ttl_ms
            expected = Renewed(self.model.extend(holder, self.now))
        self.called(self.lock.renew(lease, ttl_ms, now=self.now, by=by), expected)

    @rule(
        who=WHO,
        late_ms=LATE,
        owner=OWNER,
        wait_ms=st.sampled_from([ORIGINAL_WAIT, ORIGINAL_WAIT, 0]) | WAITS,
    )
    def a_client_resumes(
        self, who: int, late_ms: int, owner: str | None, wait_ms: int | None
    ) -> None:
        """L7: the lease id is all it takes, on any server."""
        lease = self.someone(who, late_ms, server(owner))
        answer = self.lock.resume(lease, owner, wait_ms=wait_ms, now=self.now)
        expected = self.model.resume(lease, owner, wait_ms, self.now)
        if isinstance(answer, Resumed) and isinstance(answer.answer, Granted):
            answer = evolve(answer, claim=evolve(answer.claim, wait_ms=None))
        elif isinstance(answer, Resumed) and isinstance(answer.answer, Queued):
            self.floors[lease] = answer.answer.fence
        self.called(answer, expected)

    @precondition(lambda self: self.settled and self.lock.waiting)
    @rule(place=st.integers(0, WAITING_MAX - 1), late_ms=LATE, owner=OWNER)
    def a_waiter_is_resumed(self, place: int, late_ms: int, owner: str | None) -> None:
        """L8: where its connection was lost; it waits no longer than it would have."""
        holders, waiting = len(self.model.holders), len(self.model.queue)
        self.a_client_resumes(holders + place % waiting, late_ms, owner, ORIGINAL_WAIT)

    @rule(who=WHO, late_ms=LATE, alive_ms=DURATIONS, by=SERVER)
    def a_server_vouches_for_a_waiter(
        self, who: int, late_ms: int, alive_ms: int, by: str | None
    ) -> None:
        lease = self.someone(who, late_ms, by)
        waiter = self.model.find(self.model.queue, lease)
        if waiter:
            waiter.end_ms = self.ms + alive_ms
        answer = self.lock.touch(lease, alive_ms, now=self.now, by=by)
        self.called(answer, waiter is not None)

    @precondition(lambda self: not self.lock.idle)
    @rule(detail=st.sampled_from([None, "maintenance"]), late_ms=LATE, by=SERVER)
    def an_operator_breaks_it(self, detail: str | None, late_ms: int, by: str | None) -> None:
        """What has run out by then is not broken but expired."""
        self.pass_time(late_ms)
        self.model.settle(self.now, by)
        holders = list(self.model.holders)
        for one in holders:
            self.model.put_out(one, LostReason.BROKEN, detail)
        self.model.settle(self.now, by)
        self.called(self.lock.break_(detail, now=self.now, by=by), len(holders))

    # --- The clock, and the store -------------------------------------------------------------

    @rule(ms=st.sampled_from([1, 49, 50, 99, 100, 150, 1000]), noticed=st.booleans(), by=SERVER)
    def time_passes(self, ms: int, noticed: bool, by: str | None) -> None:
        """And perhaps it is only noticed later, by whatever call comes next."""
        self.pass_time(ms)
        if noticed:
            self.advance(by)

    def pass_time(self, ms: int) -> None:
        self.ms += ms
        self.us += 1000 * ms
        self.settled = False

    @rule(us=st.sampled_from([-(10**12), -1, 1, 10**12]))
    def the_wall_clock_jumps(self, us: int) -> None:
        """L2 holds whatever it shows, but for a floor once fences were forgotten."""
        self.us = max(self.us + us, self.floor_us)

    @precondition(lambda self: self.settled and self.lock.next_ms() is not None)
    @rule(early_ms=st.integers(0, 1), by=SERVER)
    def the_next_moment_comes(self, early_ms: int, by: str | None) -> None:
        """Whoever waits for `next_ms()` calls then, or a little too early."""
        next_ms = self.lock.next_ms()
        assert next_ms is not None
        self.pass_time(next_ms - early_ms - self.ms)
        self.advance(by)

    def advance(self, by: str | None) -> None:
        self.model.settle(self.now, by)
        self.lock.advance(self.now, by=by)
        self.called(None, None)

    @precondition(lambda self: self.lock.idle)
    @rule(fence_too=st.booleans())
    def the_store_forgets_a_name_at_rest(self, fence_too: bool) -> None:
        """L2: the last fence is remembered whatever the clock shows, or the clock has passed it."""
        remembered = self.lock.fence
        if fence_too:
            remembered, self.us = 0, max(self.us, self.lock.fence + 1)
            self.floor_us = self.us
        self.lock, self.model = Lock(WAITING_MAX, remembered), Model(fence=remembered)
        self.claims.clear()

    # --- The laws -----------------------------------------------------------------------------

    @invariant()
    def all_that_can_be_seen_is_as_the_model_has_it(self) -> None:
        for holders_max, waiting_max in ((99, 99), (1, 2)):
            assert self.lock.state(
                "n", holders_max=holders_max, waiting_max=waiting_max, now=self.now
            ) == self.model.view(holders_max, waiting_max, self.now)
        assert self.lock.waiting == len(self.model.queue)
        assert self.lock.idle == (not self.model.holders and not self.model.queue)
        assert self.lock.revision == self.model.changes
        assert self.lock.fence == self.model.fence

    @invariant()
    def exclusive_is_alone_and_shared_within_every_limit(self) -> None:
        """L1."""
        holders = list(self.lock.holders(self.now))
        if any(holder.mode is Mode.EXCLUSIVE for holder in holders):
            assert len(holders) == 1
        for one in self.model.holders:
            assert one.claim.limit is None or len(holders) <= one.claim.limit

    @invariant()
    def fences_only_rise(self) -> None:
        """L2, in the order of the grants."""
        assert self.fences == sorted(set(self.fences))
        held = [holder.fence for holder in self.lock.holders(self.now)]
        assert held == [fence for fence in self.fences if fence in held]

    @invariant()
    def whose_they_are_is_as_the_model_has_it(self) -> None:
        """L8: told to each owner, once, when all are put out."""
        copy = deepcopy(self.lock)
        copy.events.clear()
        now = Now(self.last_called_ms, self.us)
        copy.break_(now=now)
        told = [each.owner for each in copy.events if isinstance(each, HolderLost)]
        assert told[: len(self.model.holders)] == [one.owner for one in self.model.holders]

    @precondition(lambda self: self.settled)
    @invariant()
    def nobody_waits_for_a_free_name(self) -> None:
        """L5, and the head of the queue is one that lives and does not fit."""
        if self.lock.waiting:
            assert list(self.lock.holders(self.now))
            head = self.model.queue[0]
            assert head.end_ms > self.ms
            assert not self.model.fits(head.claim)
        assert self.lock.waiting <= WAITING_MAX

    @precondition(lambda self: self.settled)
    @invariant()
    def nothing_changes_by_itself_before_the_next_moment(self) -> None:
        """L5: `next_ms` is not over yet, nor too late, nor too early."""
        next_ms = self.lock.next_ms()
        if next_ms is None:
            assert self.lock.idle
            return
        assert next_ms > self.ms
        assert not self.changes_by(next_ms - 1)
        assert self.changes_by(next_ms)

    def changes_by(self, ms: int) -> bool:
        """Whether there is anything to tell, or one waiter fewer, when time has come so far."""
        later = deepcopy(self.lock)
        later.advance(Now(ms, self.us))
        return bool(later.events) or later.waiting != self.lock.waiting


# A history is cheap, and the rare ones are worth finding.
TestLockMachine = LockMachine.TestCase
TestLockMachine.settings = settings(max_examples=4 * settings().max_examples)
