"""The rules of one name against a model written from the laws, over histories nobody thought of.

Every call is made on both; the answers, the events and all that can be seen must be the same (L1,
L2, L4, L6). After every call the laws themselves are checked too, so that a mistake which both
share does not pass. Time passes between calls without anybody calling `advance`, as it does.
"""

from copy import deepcopy

from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from leasekeeper.core.lock import (
    Busy,
    Claim,
    Contended,
    Event,
    Granted,
    HolderLost,
    Left,
    Lock,
    Mismatch,
    Missing,
    Now,
    Queued,
    QueueFull,
    Renewed,
    WaiterGranted,
)
from leasekeeper.messages import HolderView, LeaseState, LostReason, Mode, WaiterView

WAITING_MAX = 3
START_MS, START_US = 1_000, 1_700_000_000_000_000
FAR_MS = 10**9

LEASES = [letter * 32 for letter in "abcdef"]
STRANGER = "0" * 32
# Few and coinciding, so that deadlines often fall on the same moment, and on that of a call.
DURATIONS = st.sampled_from([100, 150, 300])
WHO = st.integers(0, WAITING_MAX + 2)
"""Someone who holds or waits, by place; or a stranger."""
LATE = st.sampled_from([0, 0, 0, 1, 100, 300])
"""How much time passed before a call, unnoticed: what it is about may have run out."""


@define
class One:
    """A lease id that holds or waits. `end_ms` ends the lease, or the trust in the waiter."""

    claim: Claim
    since_ms: int
    end_ms: int
    asked_ms: int = 0
    ttl_ms: int = 0
    last_ms: int = FAR_MS
    fence: int = 0


@define
class Model:
    """The laws of one name over two plain lists. What happened goes to `events`."""

    holders: list[One] = field(factory=list)
    queue: list[One] = field(factory=list)
    fence: int = 0
    changes: int = 0
    events: list[Event] = field(factory=list)

    def fits(self, claim: Claim) -> bool:
        """L1: alone, or all shared and no more than anyone's limit."""
        together = [one.claim for one in self.holders] + [claim]
        return len(together) == 1 or all(
            each.mode is Mode.SHARED and (each.limit is None or each.limit >= len(together))
            for each in together
        )

    def settle(self, now: Now) -> None:
        """What time alone brings about: leases end, the dead leave, the head moves up (L4, L5)."""
        for one in [one for one in self.holders if one.end_ms <= now.ms]:
            self.put_out(
                one, LostReason.MAX_HOLD if one.end_ms == one.last_ms else LostReason.EXPIRED
            )
        while self.queue and (self.queue[0].end_ms <= now.ms or self.fits(self.queue[0].claim)):
            head = self.queue.pop(0)
            if head.end_ms > now.ms:
                grant = self.grant(head.claim, head.asked_ms, now)
                self.events.append(WaiterGranted(head.claim.lease, grant))

    def grant(self, claim: Claim, asked_ms: int, now: Now) -> Granted:
        """L2: above every fence before it, and not below the clock."""
        self.fence = now.us if now.us > self.fence else self.fence + 1
        last_ms = now.ms + (FAR_MS if claim.max_hold_ms is None else claim.max_hold_ms)
        one = One(claim, now.ms, 0, ttl_ms=claim.ttl_ms, last_ms=last_ms, fence=self.fence)
        self.holders.append(one)
        self.changes += 1
        return Granted(self.fence, self.extend(one, now), now.ms - asked_ms)

    def extend(self, one: One, now: Now) -> int:
        """To the full TTL, but not past the longest hold."""
        one.end_ms = min(now.ms + one.ttl_ms, one.last_ms)
        return one.end_ms - now.ms

    def put_out(self, one: One, reason: LostReason, detail: str | None = None) -> None:
        """A holder is lost, and told so."""
        self.holders.remove(one)
        self.changes += 1
        self.events.append(HolderLost(one.claim.lease, one.fence, reason, detail))

    def find(self, ones: list[One], lease: str) -> One | None:
        """Whoever has this lease id."""
        return next((one for one in ones if one.claim.lease == lease), None)

    def ask_again(self, lease: str, wait: bool, now: Now) -> Granted | Queued | Busy | None:
        """L6: the same grant, the same place; or the place is given up."""
        if one := self.find(self.holders, lease):
            return Granted(one.fence, self.extend(one, now), 0)
        if not (one := self.find(self.queue, lease)):
            return None
        if wait:
            one.asked_ms, one.end_ms = now.ms, now.ms + one.claim.alive_ms
            return Queued(self.queue.index(one) + 1)
        self.queue.remove(one)
        self.settle(now)
        return Busy()

    def ask(
        self, claim: Claim, wait: bool, now: Now
    ) -> Granted | Queued | Busy | QueueFull | Mismatch:
        """L1, L4: at once if nobody is ahead and it fits; else at the end of the queue."""
        known = self.find(self.holders + self.queue, claim.lease)
        if known and (known.claim.mode, known.claim.limit) != (claim.mode, claim.limit):
            return Mismatch()
        if known:
            return self.ask_again(claim.lease, wait, now) or Busy()
        if not self.queue and self.fits(claim):
            return self.grant(claim, now.ms, now)
        if wait and len(self.queue) >= WAITING_MAX:
            return QueueFull(WAITING_MAX)
        if not wait:
            return Busy()
        self.queue.append(One(claim, now.ms, now.ms + claim.alive_ms, asked_ms=now.ms))
        self.events.append(Contended(len(self.queue)))
        return Queued(len(self.queue))

    def leave(self, lease: str) -> Left:
        """L6: afterwards the lease id has nothing."""
        if one := self.find(self.holders, lease):
            self.holders.remove(one)
            self.changes += 1
            return Left.HELD
        if one := self.find(self.queue, lease):
            self.queue.remove(one)
            return Left.WAITING
        return Left.NOTHING

    def view(self, holders_max: int, waiting_max: int, now: Now) -> LeaseState:
        """L7: all that anyone may see."""
        holders = [
            HolderView(
                one.fence,
                one.claim.mode,
                one.claim.label,
                now.ms - one.since_ms,
                max(one.end_ms - now.ms, 0),
                one.claim.client,
            )
            for one in self.holders
        ]
        waiting = [
            WaiterView(
                position, one.claim.mode, one.claim.label, now.ms - one.since_ms, one.claim.client
            )
            for position, one in enumerate(self.queue, start=1)
        ]
        shown = (tuple(holders[:holders_max]), tuple(waiting[:waiting_max]))
        return LeaseState("n", *shown, len(self.queue))


class LockMachine(RuleBasedStateMachine):
    """Clients of one name, and the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = Lock(WAITING_MAX)
        self.model = Model()
        self.ms, self.us = START_MS, START_US
        self.floor_us = 0
        self.settled = True
        """No time has passed since the last call."""
        self.claims: dict[str, Claim] = {}
        """What each lease id last asked for."""
        self.fences: list[int] = []
        """Every fence ever granted, in the order of the grants."""
        self.turns: dict[str, int] = {}
        """When each waiter began to wait; the smallest is first in line."""
        self.turn = 0

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
        for event in events:
            if isinstance(event, WaiterGranted):
                self.fences.append(event.grant.fence)
                self.a_waiter_was_granted(event.lease)

    def a_waiter_was_granted(self, lease: str) -> None:
        """L4: everyone who began to wait before it is gone."""
        mine = self.turns.pop(lease)
        waiting = {one.claim.lease for one in self.model.queue}
        assert all(turn > mine for other, turn in self.turns.items() if other in waiting)

    def someone(self, who: int, late_ms: int) -> str:
        """A lease id: of one who held or waited until now, or of a stranger. Then time passes."""
        known = [one.claim.lease for one in self.model.holders + self.model.queue]
        self.pass_time(late_ms)
        self.model.settle(self.now)
        return [*known, STRANGER][who % (len(known) + 1)]

    # --- Clients ------------------------------------------------------------------------------

    @initialize(readers=st.integers(0, 3), waiting=st.lists(st.sampled_from(Mode), max_size=3))
    def some_are_there_already(self, readers: int, waiting: list[Mode]) -> None:
        for lease in LEASES[:readers]:
            self.acquire(Claim(lease, 300, Mode.SHARED, alive_ms=300), wait=False)
        for lease, mode in zip(LEASES[readers:], waiting, strict=False):
            self.acquire(Claim(lease, 300, mode, alive_ms=300), wait=True)

    @rule(
        lease=st.sampled_from(LEASES),
        mode=st.sampled_from(Mode),
        limit=st.none() | st.integers(1, 3),
        ttl_ms=DURATIONS,
        max_hold_ms=st.none() | DURATIONS,
        alive_ms=DURATIONS,
        wait=st.booleans(),
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
    ) -> None:
        if mode is Mode.EXCLUSIVE:
            limit = None
        claim = Claim(lease, ttl_ms, mode, limit, f"{mode}", "c", "s", max_hold_ms, alive_ms)
        self.acquire(claim, wait)

    @rule(lease=st.sampled_from(LEASES), wait=st.booleans())
    def a_reader_acquires(self, lease: str, wait: bool) -> None:
        """With nothing unusual, so that several often share."""
        self.acquire(Claim(lease, 300, Mode.SHARED, alive_ms=300), wait)

    @rule(lease=st.sampled_from(LEASES), limit=st.integers(1, 3))
    def a_reader_with_a_limit_acquires(self, lease: str, limit: int) -> None:
        self.acquire(Claim(lease, 300, Mode.SHARED, limit, alive_ms=300), wait=False)

    @rule(lease=st.sampled_from(LEASES), max_hold_ms=st.sampled_from([None, 150]))
    def a_writer_waits(self, lease: str, max_hold_ms: int | None) -> None:
        """And may not hold it for long, so that two bounds meet."""
        self.acquire(Claim(lease, 100, max_hold_ms=max_hold_ms, alive_ms=300), wait=True)

    @rule(who=WHO, late_ms=LATE, wait=st.booleans())
    def a_client_repeats_its_request(self, who: int, late_ms: int, wait: bool) -> None:
        """L6, and it finds out what became of it."""
        lease = self.someone(who, late_ms)
        self.acquire(self.claims.get(lease, Claim(lease, 300)), wait)

    @precondition(lambda self: self.settled and self.lock.waiting)
    @rule(place=st.integers(0, WAITING_MAX - 1))
    def a_waiter_gives_up(self, place: int) -> None:
        """L5: and whoever waited only for this one gets in."""
        waiter = self.model.queue[place % len(self.model.queue)]
        self.acquire(waiter.claim, wait=False)

    def acquire(self, claim: Claim, wait: bool) -> None:
        self.model.settle(self.now)
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
            case Queued(position=position):
                assert position == self.lock.waiting, "who comes last waits last (L4)"
                self.turn += 1
                self.turns[claim.lease] = self.turn
        if not isinstance(answer, Mismatch):
            self.claims[claim.lease] = claim

    @rule(who=WHO, late_ms=LATE)
    def a_client_releases(self, who: int, late_ms: int) -> None:
        """L6: and then again."""
        lease = self.someone(who, late_ms)
        left = self.lock.release(lease, now=self.now)
        expected = self.model.leave(lease)
        self.model.settle(self.now)
        self.called(left, expected)
        assert self.lock.release(lease, now=self.now) is Left.NOTHING

    @rule(who=WHO, late_ms=LATE, ttl_ms=st.none() | DURATIONS)
    def a_client_renews(self, who: int, late_ms: int, ttl_ms: int | None) -> None:
        lease = self.someone(who, late_ms)
        holder = self.model.find(self.model.holders, lease)
        expected: Renewed | Missing = Missing()
        if holder:
            holder.ttl_ms = ttl_ms or holder.ttl_ms
            expected = Renewed(self.model.extend(holder, self.now))
        self.called(self.lock.renew(lease, ttl_ms, now=self.now), expected)

    @rule(who=WHO, late_ms=LATE, wait=st.booleans())
    def a_client_resumes(self, who: int, late_ms: int, wait: bool) -> None:
        """L7: the lease id is all it takes, on any server."""
        lease = self.someone(who, late_ms)
        expected = self.model.ask_again(lease, wait, self.now) or Missing()
        self.called(self.lock.resume(lease, "t", wait=wait, now=self.now), expected)

    @rule(who=WHO, late_ms=LATE, alive_ms=DURATIONS)
    def a_server_vouches_for_a_waiter(self, who: int, late_ms: int, alive_ms: int) -> None:
        lease = self.someone(who, late_ms)
        waiter = self.model.find(self.model.queue, lease)
        if waiter:
            waiter.end_ms = self.ms + alive_ms
        self.called(self.lock.touch(lease, alive_ms, now=self.now), waiter is not None)

    @precondition(lambda self: not self.lock.idle)
    @rule(detail=st.sampled_from([None, "maintenance"]), late_ms=LATE)
    def an_operator_breaks_it(self, detail: str | None, late_ms: int) -> None:
        """What has run out by then is not broken but expired."""
        self.pass_time(late_ms)
        self.model.settle(self.now)
        holders = list(self.model.holders)
        for one in holders:
            self.model.put_out(one, LostReason.BROKEN, detail)
        self.model.settle(self.now)
        self.called(self.lock.break_(detail, now=self.now), len(holders))

    # --- The clock, and the store -------------------------------------------------------------

    @rule(ms=st.sampled_from([1, 49, 50, 99, 100, 150, 1000]), noticed=st.booleans())
    def time_passes(self, ms: int, noticed: bool) -> None:
        """And perhaps it is only noticed later, by whatever call comes next."""
        self.pass_time(ms)
        if noticed:
            self.advance()

    def pass_time(self, ms: int) -> None:
        self.ms += ms
        self.us += 1000 * ms
        self.settled = False

    @rule(us=st.sampled_from([-(10**12), -1, 1, 10**12]))
    def the_wall_clock_jumps(self, us: int) -> None:
        """L2 holds whatever it shows, but for a floor once fences were forgotten."""
        self.us = max(self.us + us, self.floor_us)

    @precondition(lambda self: self.settled and self.lock.next_ms() is not None)
    @rule(early_ms=st.integers(0, 1))
    def the_next_moment_comes(self, early_ms: int) -> None:
        """Whoever waits for `next_ms()` calls then, or a little too early."""
        next_ms = self.lock.next_ms()
        assert next_ms is not None
        self.pass_time(next_ms - early_ms - self.ms)
        self.advance()

    def advance(self) -> None:
        self.model.settle(self.now)
        self.lock.advance(self.now)
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
