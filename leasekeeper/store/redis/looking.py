"""Looking after names: what a lost message, or nobody's call at all, would leave unnoticed (L5).

A name is looked at when the lease of a holder may have run out, when a foreign program may have let
go, and after every interruption of this server's channel. To look is to run `touch`, which lets
time pass and says what each lease id has.
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final

import trio
from attrs import define, field

from leasekeeper.core.lock import Claim, Granted, HolderLost, Moved, WaiterGranted
from leasekeeper.errors import Unavailable
from leasekeeper.messages import Key, LeaseState, LostReason
from leasekeeper.resp.replies import Reply
from leasekeeper.store.alarms import trio_ms
from leasekeeper.store.api import Changed, StoreEvent
from leasekeeper.store.redis.calling import Caller, NameCall
from leasekeeper.store.redis.entries import integer, word
from leasekeeper.store.redis.interests import Holding, Interest, Interests
from leasekeeper.store.redis.lanes import Lanes
from leasekeeper.store.redis.scripts import TOUCH

_AT_ONCE: Final = 100
"""Names in one round trip."""
LEASES_PER_CALL: Final = 200
"""Lease ids in one call of `touch`."""
_ELSEWHERE: Final = b"2"
"""What `touch` says of a lease that is held for another server."""
_RETRY_MS: Final = 500
_PAUSED_MS: Final = 1000
"""How often a name is looked at that nothing but a pause of grants keeps from its waiters."""


@define(eq=False)
class Looking:
    """Looks at names, and at what watchers see.

    `on_granted` hears of grants that may have been missed, `on_left_out` of waiters whose places
    Redis has lost, `on_event` of losses and changes, and `view` reads a name for its watchers.
    """

    caller: Caller
    interests: Interests
    on_granted: Callable[[str, WaiterGranted], None]
    on_left_out: Callable[[str, Sequence[Claim]], None]
    on_event: Callable[[StoreEvent], None]
    view: Callable[[str], Awaitable[LeaseState]]
    _due: Lanes = field(init=False, repr=False)
    _changed: Lanes = field(init=False, repr=False)
    _queue_lost: set[str] = field(factory=set, init=False, repr=False)
    """Names whose waiters are not to be forgotten if they have no place."""

    def __attrs_post_init__(self) -> None:
        self._due = Lanes(self.caller.node_of, self._look, _AT_ONCE)
        self._changed = Lanes(self.caller.node_of, self._look_for_watchers, 1)

    async def run(self) -> None:
        """Looks at what is due, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._due.run)
            nursery.start_soon(self._changed.run)

    def look_soon(self, name: str) -> None:
        """Time, or a lost message, may have changed this name."""
        self._due.add(name)

    def look_at_all(self, *, queues_lost: bool = False) -> None:
        """Messages may have been lost: every name with a waiter or watcher is looked at.

        If queues may have been lost as well, waiters that have no place any more get a new one.
        """
        for name, interest in self.interests:
            if interest.waiters:
                if queues_lost:
                    self._queue_lost.add(name)
                self.look_soon(name)
            if interest.watched:
                self.changed(name)

    def changed(self, name: str) -> None:
        """The holders of a watched name may have changed."""
        self._changed.add(name)

    async def _look(self, names: Sequence[str]) -> None:
        asked: list[tuple[str, list[str]]] = []
        for name in names:
            interest = self.interests.find(name)
            asked.append((name, _doubtful(interest) if interest else []))
        answers = await self.caller.call_many(
            [NameCall(name, TOUCH, (0, *leases)) for name, leases in asked]
        )
        for (name, leases), answer in zip(asked, answers, strict=True):
            if isinstance(answer, Unavailable):
                self.interests.postpone(name, _RETRY_MS)
            else:
                self._seen(name, leases, answer)

    def _seen(self, name: str, leases: Sequence[str], answer: Sequence[Reply]) -> None:
        there = self.compare(name, leases, answer)
        if name in self._queue_lost and not self.caller.paused_ms(name):
            self._queue_lost.discard(name)
            self._queue_again(
                name, [each for each, has in zip(leases, there, strict=True) if not has]
            )
        if interest := self.interests.find(name):
            if interest.watched:
                self.changed(name)
            next_ms = integer(answer[0])
            if next_ms >= 0 or interest.waiters:
                self.interests.look(name, _PAUSED_MS if next_ms < 0 else next_ms)

    def compare(
        self, name: str, leases: Sequence[str], answer: Sequence[Reply], *, vouched: bool = False
    ) -> list[bool]:
        """What `touch` says of lease ids, against what was thought; what is news is told.

        `vouched`: they are known to wait, whatever is thought here. Returns whether each of them
        has anything here.
        """
        has_any: list[bool] = []
        if self.caller.paused_ms(name):
            self._queue_lost.add(name)
        fence = integer(answer[1])
        for lease, state in zip(leases, answer[2:], strict=True):
            words = word(state).split()
            has_any.append(words != [b"0"] and words[0] != _ELSEWHERE)
            interest = self.interests.find(name)
            holding = interest.holdings.get(lease) if interest else None
            waits = vouched or (interest is not None and lease in interest.waiters)
            if not _is_newer(holding, fence):
                self._compare(name, lease, words, holding, waits=waits)
        return has_any

    def _compare(
        self, name: str, lease: str, state: list[bytes], holding: Holding | None, *, waits: bool
    ) -> None:
        if len(state) == 3:
            fence, left_ms, waited_ms = (int(each) for each in state)
            if holding is None and waits:
                self.on_granted(name, WaiterGranted(lease, Granted(fence, left_ms, waited_ms)))
            elif holding is not None and holding.fence == fence:
                self.interests.extend(name, lease, left_ms)
            elif holding is not None and holding.fence < fence:  # granted anew, by another server
                self._lose(name, lease, holding)
        elif holding is not None and state == [_ELSEWHERE, b"%d" % holding.fence]:
            self.interests.leave(name, lease)
            self.on_event(StoreEvent(name, Moved(lease, holding.claim.owner)))
        elif holding is not None:
            self._lose(name, lease, holding)
        elif state == [b"0"] and name not in self._queue_lost:  # whoever waits for it asks again
            self.interests.forget(name, lease)

    def _lose(self, name: str, lease: str, holding: Holding) -> None:
        self.interests.leave(name, lease)
        lost = HolderLost(lease, holding.fence, LostReason.EXPIRED)
        self.on_event(StoreEvent(name, lost))

    def _queue_again(self, name: str, leases: Sequence[str]) -> None:
        interest = self.interests.find(name)
        if interest and (claims := [c for each in leases if (c := interest.waiters.get(each))]):
            self.on_left_out(name, claims)

    async def _look_for_watchers(self, names: Sequence[str]) -> None:
        for name in names:
            await self._look_for_watcher(name)

    async def _look_for_watcher(self, name: str) -> None:
        interest = self.interests.find(name)
        if interest is None or not interest.watched:
            return
        seen = interest.seen
        try:
            state = await self.view(name)
        except Unavailable:
            self.interests.postpone(name, _RETRY_MS)
            return
        # Whoever has only begun to watch, and has seen nothing, is answered with the state.
        if seen is not None and interest.seen != seen:
            self.on_event(StoreEvent(name, Changed(state)))


def _is_newer(holding: Holding | None, fence: int) -> bool:
    """Whether it was granted after that was the last fence of its name, and is not over."""
    return holding is not None and holding.fence > fence and holding.expires_ms > trio_ms()


def _doubtful(interest: Interest) -> list[str]:
    """The lease ids that time may have changed: the first waiters, and holders that are over."""
    now_ms = trio_ms()
    waiters = islice(interest.waiters, LEASES_PER_CALL // 2)
    over = (lease for lease, each in interest.holdings.items() if each.expires_ms <= now_ms)
    return [*waiters, *islice(over, LEASES_PER_CALL // 2)]


def in_calls(waiters: Sequence[Key], alive_ms: int) -> list[tuple[NameCall, list[int]]]:
    """Calls of `touch` for these waiters, each with the places of its lease ids among them."""
    by_name: dict[str, list[int]] = {}
    for place, (name, _) in enumerate(waiters):
        by_name.setdefault(name, []).append(place)
    calls: list[tuple[NameCall, list[int]]] = []
    for name, places in by_name.items():
        for start in range(0, len(places), LEASES_PER_CALL):
            part = places[start : start + LEASES_PER_CALL]
            leases = [waiters[place][1] for place in part]
            calls.append((NameCall(name, TOUCH, (alive_ms, *leases)), part))
    return calls
