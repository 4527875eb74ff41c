"""What this server has in each name, as far as the store needs to know it: alarms and news.

The service has its own books. These say which names to look after when an event may be lost, when
to look, and what to put back if Redis loses it.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from attrs import define, field

from leasekeeper.core.lock import Claim, HolderLost, Moved
from leasekeeper.messages import Key
from leasekeeper.store.alarms import Alarms, trio_ms

LOOK_MS: Final = 1500
"""A name with waiters is looked at this often: what is known of its end may be old, for another
server's step may have given it to another holder, or a waiter's server may have died (law L5)."""

Seen = tuple[tuple[int, bool], ...]
"""Fences of the holders that watchers were told of, and whether each is foreign."""


@define
class Holding:
    """A lease that was granted through this server. `expires_ms` by this server's clock."""

    claim: Claim
    fence: int
    since_ms: int
    expires_ms: int


@define
class Interest:
    """One name."""

    holdings: dict[str, Holding] = field(factory=dict)
    waiters: dict[str, Claim] = field(factory=dict)
    doubted: set[str] = field(factory=set)
    """Waiters that were in no queue when it was looked at last."""
    given_back: dict[str, int] = field(factory=dict)
    """The fences of grants to waiters that were refused: a later word of them is old."""
    watched: bool = False
    seen: Seen | None = None
    look_ms: int | None = None
    """When to look what time has changed; None where nobody waits or watches."""
    not_before_ms: int = 0
    """Redis did not answer: there is no use in looking earlier."""
    alarm_ms: int | None = None

    @property
    def idle(self) -> bool:
        """There is nothing to look after."""
        return not (self.holdings or self.waiters or self.watched)

    def next_ms(self) -> int | None:
        """When it is time to look."""
        times = [holding.expires_ms for holding in self.holdings.values()]
        if self.look_ms is not None and (self.waiters or self.watched):
            times.append(self.look_ms)
        return max(min(times), self.not_before_ms) if times else None


@define(eq=False)
class Interests:
    """All names, with an alarm for each. `on_due` hears of a name that should be looked at.

    An alarm may be early, for a renewal does not move it: then it is set again, and nobody hears.
    """

    on_due: Callable[[str], None]
    watched: set[str] = field(factory=set, init=False)
    """The names that are watched here."""
    _names: dict[str, Interest] = field(factory=dict, init=False, repr=False)
    _alarms: Alarms[str] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._alarms = Alarms(self._ring)

    async def run(self) -> None:
        """Rings the alarms, until cancelled."""
        await self._alarms.run()

    def __iter__(self) -> Iterator[tuple[str, Interest]]:
        return iter(list(self._names.items()))

    def __getitem__(self, name: str) -> Interest:
        """The interest in a name, made if there is none."""
        interest = self._names.get(name)
        if interest is None:
            interest = self._names[name] = Interest()
        return interest

    def find(self, name: str) -> Interest | None:
        """The interest in a name, if there is one."""
        return self._names.get(name)

    def fence_of(self, name: str, lease: str) -> int:
        """That of a lease which was granted through this server; 0: it holds nothing."""
        interest = self._names.get(name)
        holding = interest and interest.holdings.get(lease)
        return holding.fence if holding else 0

    def shortest_ttl_ms(self, keys: Iterable[Key]) -> int:
        """Of those of these leases that were granted through this server; 0: of none."""
        interests = ((self._names.get(name), lease) for name, lease in keys)
        holdings = (each.holdings.get(lease) for each, lease in interests if each)
        return min((each.claim.ttl_ms for each in holdings if each), default=0)

    def expect(self, name: str, claim: Claim) -> bool:
        """It is being asked for, and may be granted before the answer comes. Whether it is new."""
        interest = self[name]
        if claim.lease in interest.waiters or claim.lease in interest.holdings:
            return False
        interest.waiters[claim.lease] = claim
        return True

    def wait(self, name: str, claim: Claim, fence: int, next_ms: int) -> None:
        """It is in the queue; a grant at or below `fence` is over. Time tells in `next_ms`."""
        interest = self[name]
        holding = interest.holdings.get(claim.lease)
        if holding and holding.fence <= fence:
            del interest.holdings[claim.lease]
            holding = None
        if not holding:
            interest.waiters[claim.lease] = claim
        interest.doubted.discard(claim.lease)
        self.settle(name)
        self.look(name, next_ms if next_ms >= 0 else LOOK_MS)

    def hold(self, name: str, claim: Claim, fence: int, ttl_ms: int) -> None:
        """Granted, through this server or for it, for `ttl_ms` from now."""
        interest = self[name]
        interest.waiters.pop(claim.lease, None)
        interest.given_back.pop(claim.lease, None)
        now_ms = trio_ms()
        interest.holdings[claim.lease] = Holding(claim, fence, now_ms, now_ms + ttl_ms)
        self.settle(name, now_ms + ttl_ms)

    def extend(self, name: str, lease: str, ttl_ms: int) -> None:
        """Renewed, for `ttl_ms` from now."""
        interest = self._names.get(name)
        if interest and (holding := interest.holdings.get(lease)):
            expires_ms, holding.expires_ms = holding.expires_ms, trio_ms() + ttl_ms
            if holding.expires_ms < expires_ms:
                self.settle(name, holding.expires_ms)

    def watch(self, name: str) -> None:
        """Somebody here watches it."""
        self[name].watched = True
        self.watched.add(name)

    def unwatch(self, name: str) -> None:
        """Nobody here watches it any more."""
        self.watched.remove(name)
        self._names[name].watched = False
        self.settle(name)

    def leave(self, name: str, lease: str) -> None:
        """The lease id has nothing any more that this server must know of."""
        if interest := self._names.get(name):
            interest.holdings.pop(lease, None)
            interest.waiters.pop(lease, None)
            interest.given_back.pop(lease, None)
            interest.doubted.discard(lease)
            self.settle(name)

    def gone(self, name: str, what: HolderLost | Moved) -> bool:
        """It was lost, or moved, unless the lease id has been asked for, or granted, again since.

        Whether the name should be looked at: nobody here knew of the grant that was lost.
        """
        interest = self._names.get(name)
        holding = interest and interest.holdings.get(what.lease)
        waiting = interest and interest.waiters.get(what.lease)
        if isinstance(what, Moved):
            stale = (holding.claim if holding else waiting) or None
            if stale is not None and stale.owner == what.owner:
                self.leave(name, what.lease)
        elif holding and holding.fence <= what.fence:
            self.leave(name, what.lease)
        elif waiting and not holding:
            return True
        return False

    def give_back(self, name: str, lease: str, fence: int) -> None:
        """A waiter was granted it, and is not told: it waits on."""
        if (interest := self._names.get(name)) and lease in interest.waiters:
            interest.given_back[lease] = max(fence, interest.given_back.get(lease, 0))

    def was_given_back(self, name: str, lease: str, fence: int) -> bool:
        """Whether this grant, or a later one, was not told to its waiter."""
        interest = self._names.get(name)
        return interest is not None and fence <= interest.given_back.get(lease, 0)

    def lose(self, name: str, lease: str) -> None:
        """It is not held; it may wait."""
        if (interest := self._names.get(name)) and interest.holdings.pop(lease, None):
            self.settle(name)

    def forget(self, name: str, lease: str) -> None:
        """A waiter is in no queue; or the answer is older than its place: the second counts."""
        interest = self._names.get(name)
        if interest is None or lease not in interest.waiters:
            return
        if lease not in interest.doubted:
            interest.doubted.add(lease)
            return
        self.leave(name, lease)

    def look(self, name: str, in_ms: int) -> None:
        """It should be looked at in `in_ms`, for those who wait or watch; or earlier."""
        if interest := self._names.get(name):
            if interest.waiters:
                in_ms = min(in_ms, LOOK_MS)
            interest.look_ms = trio_ms() + in_ms
            self.settle(name, interest.look_ms)

    def postpone(self, name: str, ms: int) -> None:
        """Redis could not be asked: it is looked at again in `ms`."""
        if interest := self._names.get(name):
            interest.look_ms = interest.not_before_ms = trio_ms() + ms
            self.settle(name, interest.look_ms)

    def settle(self, name: str, at_ms: int | None = None) -> None:
        """Sees that the alarm of a name that has changed is not later than `at_ms`, or forgets it.

        What is gone does not put the alarm off: it is early then, and nobody has to go through
        all that is held of a name that thousands share.
        """
        interest = self._names[name]
        if interest.idle:
            del self._names[name]
            self._alarms.discard(name)
            return
        if interest.alarm_ms is None:
            at_ms = interest.next_ms()
        elif at_ms is not None:
            at_ms = max(at_ms, interest.not_before_ms)
        if at_ms is not None and (interest.alarm_ms is None or at_ms < interest.alarm_ms):
            interest.alarm_ms = at_ms
            self._alarms.set(name, at_ms)

    def _ring(self, name: str) -> None:
        interest = self._names[name]
        interest.alarm_ms = None
        next_ms = interest.next_ms()
        if next_ms is not None and next_ms <= trio_ms():
            interest.look_ms = None
            self.on_due(name)
        else:
            self.settle(name)
