"""Write-behind: what the server does with queued writes, without sockets.

    claim ── Counter ── claim ──> WriteStore      one claim at a time for each queue
               ^                      │
               └───── QueueNews ──────┘           put, failed, given back: claim again

A claim is made for the one who has waited longest, and when it finds nothing, that holds for all
who were there when it began. What a session has claimed is given back at once when it ends.
"""

from collections.abc import Awaitable, Callable, Sequence
from random import Random
from secrets import token_hex
from typing import Final

import structlog
import trio
from attrs import define, field

from leasekeeper.core.fills import Conflict, Content
from leasekeeper.core.writes import Bounds, Full, Settled, Take
from leasekeeper.errors import (
    Busy,
    Forbidden,
    LimitReached,
    Overloaded,
    RpcError,
    Unavailable,
)
from leasekeeper.messages import (
    ClaimedWrite,
    DeadPage,
    WriteQueued,
    WritesAck,
    WritesClaim,
    WritesClaimed,
    WritesDead,
    WritesPut,
    WritesRetry,
    WritesRevive,
    WritesRevived,
    WritesSettled,
)
from leasekeeper.service.limits import Limits
from leasekeeper.service.metrics import Metrics
from leasekeeper.service.session import Session, wait_until
from leasekeeper.store.alarms import Alarms, trio_ms
from leasekeeper.store.writes import WriteStore

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

CLAIM_MS: Final = 1500
"""For those who wait it is claimed again this often, in case a message is lost."""
FULL_RETRY_MS: Final = 1000
"""A full queue is emptied by writers, and they take their time."""
_GIVEN_BACK_AT_ONCE: Final = 1000


@define(eq=False)
class Claimant:
    """One `writes.claim` that has not been answered."""

    session: Session
    ask: WritesClaim
    until: float = field(init=False)
    """When its wait is over, by Trio's clock."""
    answer: Sequence[ClaimedWrite] | RpcError | None = None
    looked: trio.Event = field(factory=trio.Event)
    """Set when a claim that began after it came has ended, whatever it found."""
    called: trio.Event = field(factory=trio.Event)
    """Set when it has its answer."""

    @until.default
    def _until(self) -> float:
        return wait_until(self.ask.wait_ms)

    def settle(self, answer: Sequence[ClaimedWrite] | RpcError) -> None:
        """Its answer."""
        self.answer = answer
        self.looked.set()
        self.called.set()


@define(eq=False)
class Counter:
    """The claimants of one queue, in the order in which they came."""

    queue: str
    claimants: dict[Claimant, None] = field(factory=dict)
    claiming: bool = False
    again: bool = False
    """Whether there was reason to claim again while somebody was claiming."""

    def leave(self, claimant: Claimant) -> None:
        """It has its answer, or has given up."""
        self.claimants.pop(claimant, None)


@define(eq=False)
class Writes:
    """Queued writes, for the sessions of this server. It knows no connections.

    All requests raise `Unavailable` where the store did not answer, and may then be repeated: a put
    is queued twice then, and a claim that was lost on the way ends by its time.
    """

    store: WriteStore
    server: str
    limits: Limits
    metrics: Metrics = field(repr=False)
    random: Random = field(factory=Random, repr=False)
    _counters: dict[str, Counter] = field(factory=dict, init=False, repr=False)
    _alarms: Alarms[str] = field(init=False, repr=False)
    _nursery: trio.Nursery | None = field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._alarms = Alarms(self.news)

    async def run(self) -> None:
        """Claims for those who wait, and gives back claims of those who are gone, until
        cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for queue in self._counters:  # some were quicker
                    self.news(queue)
                await self._alarms.run()
            finally:
                self._nursery = None

    def __len__(self) -> int:
        """The queues that somebody claims from now."""
        return len(self._counters)

    # --- Requests -----------------------------------------------------------------------------

    async def put(self, ask: WritesPut) -> WriteQueued:
        """Replaces a cached value and queues the write of it.

        Raises:
            Forbidden: the store may lose it, and that is not allowed.
            LimitReached: the value is too large.
            Busy: a write-through of this key is open.
            Overloaded: the queue is full.
        """
        if refusal := self.store.refusal:
            raise Forbidden(refusal)
        if len(ask.value.text) > self.limits.value_bytes:
            raise LimitReached("value_bytes", self.limits.value_bytes)
        bounds = Bounds(self.limits.writes_per_queue, self.limits.writes_bytes_per_queue)
        content = Content(ask.value.text, ask.ttl_ms or 0)
        seq = await self.store.put(ask.queue, ask.key, content, bounds)
        if isinstance(seq, Conflict):
            raise Busy(holders=(), waiting=0, retry_after_ms=self.limits.store_retry_ms)
        if isinstance(seq, Full):
            raise Overloaded(FULL_RETRY_MS)
        self.metrics.writes_queued.inc()
        return WriteQueued(seq)

    async def claim(self, session: Session, ask: WritesClaim) -> WritesClaimed:
        """Claims writes, or waits for some; none when the wait is over.

        Raises:
            LimitReached: too many wait, or the session has claimed too many.

        Cancellation:
            What was claimed meanwhile is given back.
        """
        self._refuse_too_many(session, ask)
        counter = self._counters.get(ask.queue)
        if counter is None:
            counter = self._counters[ask.queue] = Counter(ask.queue)
        if len(counter.claimants) >= self.limits.waiters_per_queue:
            raise LimitReached("waiters_per_queue", self.limits.waiters_per_queue)
        claimant = Claimant(session, ask)
        counter.claimants[claimant] = None
        self.news(ask.queue)
        try:
            await claimant.looked.wait()
            with trio.move_on_at(claimant.until):
                await claimant.called.wait()
        except trio.Cancelled:
            self._withdraw(claimant)
            raise
        finally:
            counter.leave(claimant)
            self._tidy(counter)
        if isinstance(claimant.answer, RpcError):
            raise claimant.answer
        return WritesClaimed(tuple(claimant.answer or ()))

    async def ack(self, session: Session, ask: WritesAck) -> WritesSettled:
        """Claimed writes are carried out."""
        settled = _count(await self.store.ack(ask.queue, ask.ids))
        self._forget(session, ask.queue, ask.ids)
        self.metrics.writes_acked.inc(settled)
        return WritesSettled(settled)

    async def retry(self, session: Session, ask: WritesRetry) -> WritesSettled:
        """Claimed writes have failed."""
        jitters = [self.random.random() for _ in ask.ids]
        answers = await self.store.retry(
            ask.queue, ask.ids, ask.error, ask.after_ms, jitters, self.limits.writes_attempts_max
        )
        self._forget(session, ask.queue, ask.ids)
        settled, dead = _count(answers), answers.count(Settled.DEAD)
        self.metrics.writes_retried.inc(settled - dead)
        self._count_dead(ask.queue, dead)
        return WritesSettled(settled)

    async def dead(self, ask: WritesDead) -> DeadPage:
        """A page of the writes that were given up.

        Raises:
            InvalidParams: the cursor is none of ours.
        """
        return await self.store.dead(ask.queue, ask.limit, ask.cursor)

    async def revive(self, ask: WritesRevive) -> WritesRevived:
        """Queues writes again that were given up."""
        revived = await self.store.revive(ask.queue, tuple(dict.fromkeys(ask.keys)))
        self.metrics.writes_queued.inc(revived)
        return WritesRevived(revived)

    # --- The end of sessions, and news --------------------------------------------------------

    def end(self, session: Session) -> None:
        """Its connection is gone: what it has claimed is given back at once (law L8)."""
        by_queue: dict[str, list[str]] = {}
        for queue, claim in session.claims:
            by_queue.setdefault(queue, []).append(claim)
        until = max(session.claims.values(), default=0.0)
        session.claims.clear()
        for queue, ids in by_queue.items():
            self._in_background(self._give_back, queue, ids, until, False)

    def news(self, queue: str) -> None:
        """There is reason to claim for those who wait."""
        counter = self._counters.get(queue)
        if counter is None or not counter.claimants:
            return
        if counter.claiming:
            counter.again = True
        elif self._nursery is not None:
            counter.claiming = True
            self._nursery.start_soon(self._claim_all, counter)

    # --- Claiming -----------------------------------------------------------------------------

    async def _claim_all(self, counter: Counter) -> None:
        """Claims for one after the other, until nothing is left or nobody."""
        try:
            while counter.claimants and await self._claim_for_first(counter):
                pass
        finally:
            counter.claiming = False
            self._tidy(counter)

    async def _claim_for_first(self, counter: Counter) -> bool:
        """One claim, for the first; whether there may be more to claim."""
        counter.again = False
        there = list(counter.claimants)
        first = there[0]
        until = trio.current_time() + first.ask.claim_ms / 1000
        take = Take(
            token_hex(16),
            first.ask.max,
            first.ask.claim_ms,
            self.limits.writes_attempts_max,
            self.server,
        )
        try:
            self._refuse_too_many(first.session, first.ask)  # others of its requests came first
            taken = await self.store.claim(counter.queue, take)
        except RpcError as problem:
            for each in there if isinstance(problem, Unavailable) else (first,):
                counter.leave(each)
                each.settle(problem)
            return True
        self._count_dead(counter.queue, len(taken.spent))
        if taken.writes:
            self._hand_over(counter, first, taken.writes, until)
            return True
        for each in there:
            each.looked.set()
            if each.ask.wait_ms == 0:
                counter.leave(each)
                each.settle(())
        left_ms = CLAIM_MS if taken.next_ms is None else taken.next_ms
        self._alarms.set(counter.queue, trio_ms() + min(left_ms + 1, CLAIM_MS))
        return counter.again or left_ms == 0

    def _hand_over(
        self,
        counter: Counter,
        claimant: Claimant,
        writes: Sequence[ClaimedWrite],
        until: float,
    ) -> None:
        session = claimant.session
        if claimant not in counter.claimants or not session.attached:
            ids = [each.id for each in writes]
            self._in_background(self._give_back, counter.queue, ids, until, True)
            return
        for each in writes:
            session.claims[counter.queue, each.id] = until
        self.metrics.writes_claimed.inc(len(writes))
        counter.leave(claimant)
        claimant.settle(writes)

    def _tidy(self, counter: Counter) -> None:
        known = self._counters.get(counter.queue)
        if not counter.claimants and not counter.claiming and known is counter:
            del self._counters[counter.queue]
            self._alarms.discard(counter.queue)

    # --- Claims -------------------------------------------------------------------------------

    def _refuse_too_many(self, session: Session, ask: WritesClaim) -> None:
        most = self.limits.claims_per_session
        if len(session.claims) + ask.max <= most:
            return
        now = trio.current_time()
        for claim in [claim for claim, until in session.claims.items() if until <= now]:
            del session.claims[claim]
        if len(session.claims) + ask.max > most:
            raise LimitReached("claims_per_session", most)

    def _withdraw(self, claimant: Claimant) -> None:
        """Its request was cancelled: what it has claimed can be claimed by others."""
        if claimant.answer is None or isinstance(claimant.answer, RpcError):
            return
        claims, queue = claimant.session.claims, claimant.ask.queue
        untils = {
            each.id: until
            for each in claimant.answer
            if (until := claims.pop((queue, each.id), None)) is not None
        }
        if untils:
            until = max(untils.values())
            self._in_background(self._give_back, queue, list(untils), until, True)

    async def _give_back(self, queue: str, ids: Sequence[str], until: float, unseen: bool) -> None:
        """Until the store has confirmed it, or the claims are over anyway."""
        for start in range(0, len(ids), _GIVEN_BACK_AT_ONCE):
            some = ids[start : start + _GIVEN_BACK_AT_ONCE]
            while trio.current_time() < until:
                try:
                    await self.store.give_back(queue, some, unseen=unseen)
                    break
                except Unavailable:
                    await trio.sleep(self.limits.store_retry_ms / 1000)

    def _forget(self, session: Session, queue: str, ids: Sequence[str]) -> None:
        for claim in ids:
            session.claims.pop((queue, claim), None)

    def _count_dead(self, queue: str, dead: int) -> None:
        if dead:
            self.metrics.writes_dead.inc(dead)
            _log.warning("queued writes failed too often: they are dead", queue=queue, count=dead)

    def _in_background(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(work, *args)


def _count(answers: Sequence[Settled]) -> int:
    return sum(each is not Settled.NOT_HELD for each in answers)
