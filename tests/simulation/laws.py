"""What must hold in a simulated world, whatever happens to it.

`Beliefs` judges by what clients believe, each by its own arithmetic. `Witness` stands beside the
store and judges each of its steps by the state before and after it, knowing nothing of the rules.
"""

from collections import Counter
from collections.abc import Callable
from typing import ClassVar, Final

import trio
from attrs import define, field, frozen

from leasekeeper.core.lock import Holder, HolderLost, Lock, Now, Waiter
from leasekeeper.messages import LostReason, Mode

GONE_MS: Final = 2_000
"""How long an expired holder may be left in place while somebody waits (L5)."""


class Violation(AssertionError):
    """A law was broken.

    Each is kept in `seen`, too: a server contains what is raised while it carries out a request.
    """

    seen: ClassVar[list["Violation"]] = []

    def __init__(self, law: str, what: str) -> None:
        super().__init__(f"{law} at {trio.current_time():.3f} s: {what}")
        self.law: Final = law
        self.seen.append(self)


@define(eq=False)
class Belief:
    """What one client believes to hold. `stands`: whether it still does, by its own clock."""

    name: str
    lease: str
    fence: int
    stands: Callable[[], bool]
    shared: bool = False
    limit: int | None = None

    def agrees(self, others: int) -> bool:
        """Whether so many others may share with it."""
        return self.shared and (self.limit is None or others < self.limit)


@define
class Beliefs:
    """Of all clients (L1, L2)."""

    counts: Counter[str]
    by_name: dict[str, dict[str, Belief]] = field(factory=dict)
    fences: dict[str, int] = field(factory=dict)
    """Of each name that of the last exclusive lease that was believed in."""
    broken: set[tuple[str, str, int]] = field(factory=set)
    """Grants whose holders were put out by force, by name, lease and fence."""

    def begin(self, belief: Belief) -> None:
        """A client begins to act on a grant, at this moment. One that was put out by force before
        it read of the grant does not know that yet, which no law forbids."""
        if not belief.stands() or (belief.name, belief.lease, belief.fence) in self.broken:
            return
        self.counts["believed"] += 1
        known = self.by_name.setdefault(belief.name, {})
        standing = {lease: each for lease, each in known.items() if each.stands()}
        standing.pop(belief.lease, None)
        for each in (belief, *standing.values()):
            if standing and not each.agrees(len(standing)):
                raise Violation("L1", f"{belief.name}: two believe in it, of {len(standing) + 1}")
        last = self.fences.get(belief.name, 0)
        if belief.fence < last or (belief.fence == last and belief.lease not in known):
            raise Violation("L2", f"{belief.name}: fence {belief.fence} after {last}")
        if not belief.shared:
            self.fences[belief.name] = belief.fence
        standing[belief.lease] = belief
        self.by_name[belief.name] = standing

    def end(self, name: str, lease: str) -> None:
        """It does not act on it any more."""
        self.by_name.get(name, {}).pop(lease, None)

    def stop(self, name: str, lease: str, fence: int) -> None:
        """It was put out by force, and does not know yet: no law forbids that."""
        self.broken.add((name, lease, fence))
        if (belief := self.by_name.get(name, {}).pop(lease, None)) is not None:
            belief.stands = _never


def _never() -> bool:
    return False


@frozen
class View:
    """One name as it was."""

    holders: dict[str, Holder]
    fences: dict[str, int]
    queue: list[tuple[str, Waiter]]


def view_of(lock: Lock) -> View:
    """What is there now."""
    fences = {lease: holder.fence for lease, holder in lock._holders.items()}
    return View(dict(lock._holders), fences, list(lock._queue.items()))


@define
class Witness:
    """Judges each step of the embedded store (L1, L2, L4, L5, L8), by `beliefs` of who is told."""

    beliefs: Beliefs
    counts: Counter[str]
    fences: dict[str, int] = field(factory=dict)

    def judge(self, name: str, before: View, lock: Lock, now: Now) -> None:
        """A step on this name is over."""
        after = view_of(lock)
        self._holders(name, after)
        lost = {event.fence for event in lock.events if isinstance(event, HolderLost)}
        for lease, holder in after.holders.items():
            old = before.fences.get(lease)
            if old is None or old in lost:
                self._grant(name, lease, holder, before, after, now)
            elif old != holder.fence:
                raise Violation("L6", f"{name}: a held lease has another fence")
        self._wake_up(name, after, now)
        for event in lock.events:
            if isinstance(event, HolderLost) and event.reason is LostReason.BROKEN:
                self.beliefs.stop(name, event.lease, event.fence)

    def overdue(self, name: str, lock: Lock, now_ms: int) -> None:
        """Looked at now and then, between the steps (L5)."""
        for holder in lock._holders.values():
            if lock._queue and holder.expires_ms < now_ms - GONE_MS:
                raise Violation("L5", f"{name}: its holder has run out, and others wait")

    def _holders(self, name: str, after: View) -> None:
        claims = [holder.claim for holder in after.holders.values()]
        if len(claims) > 1 and any(claim.mode is Mode.EXCLUSIVE for claim in claims):
            raise Violation("L1", f"{name}: an exclusive holder is not alone in the store")
        for claim in claims:
            if claim.limit is not None and len(claims) > claim.limit:
                raise Violation("L1", f"{name}: {len(claims)} holders, and a limit {claim.limit}")

    def _grant(
        self, name: str, lease: str, holder: Holder, before: View, after: View, now: Now
    ) -> None:
        self.counts["granted"] += 1
        if holder.fence <= self.fences.get(name, 0):
            raise Violation("L2", f"{name}: fence {holder.fence} after {self.fences[name]}")
        self.fences[name] = holder.fence
        still = {each for each, _ in after.queue}
        for each, waiter in before.queue:
            if each == lease:
                if waiter.alive_until_ms <= now.ms:
                    raise Violation("L8", f"{name}: granted to one nobody vouches for")
                return
            if each in still:
                raise Violation("L4", f"{name}: one was granted before who waits longer")
            if each in after.holders and after.holders[each].fence > holder.fence:
                raise Violation("L4", f"{name}: granted in another order than queued")

    def _wake_up(self, name: str, after: View, now: Now) -> None:
        for _, head in after.queue[:1]:
            claims = [head.claim, *(holder.claim for holder in after.holders.values())]
            limits = [claim.limit for claim in claims if claim.limit is not None]
            fits = len(claims) == 1 or (
                all(claim.mode is Mode.SHARED for claim in claims)
                and len(claims) <= min(limits, default=len(claims))
            )
            if fits:
                raise Violation("L5", f"{name}: it is free, and somebody waits")
