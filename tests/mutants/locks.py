"""The rules of one name with one mistake each. The first line of each class says which."""

from attrs import define, evolve, field

from leasekeeper.core.lock import Busy as BusyAnswer
from leasekeeper.core.lock import (
    Claim,
    Elsewhere,
    Granted,
    Holder,
    Left,
    Lock,
    Mismatch,
    Missing,
    Now,
    Queued,
    QueueFull,
    Renewed,
    Resumed,
    WaiterGranted,
    server_of,
)
from leasekeeper.messages import ORIGINAL_WAIT, LostReason, Mode


@define
class PlainIncrement(Lock):
    """Fences are counted, and begin anew when the name was forgotten."""

    def _grant(
        self, claim: Claim, *, asked_ms: int, now: Now, known_ms: int | None = None
    ) -> Granted:
        return super()._grant(claim, asked_ms=asked_ms, now=Now(now.ms, 0), known_ms=known_ms)


@define
class ReleasesAnybody(Lock):
    """A release puts out whoever holds the name, as DEL without a comparison does."""

    def release(
        self, lease: str, *, now: Now, by: str | None = None, only_of: str | None = None
    ) -> Left:
        self.advance(now, by=by)
        if lease not in self._holders and lease not in self._queue and self._holders:
            lease = next(iter(self._holders))
        return super().release(lease, now=now, by=by, only_of=only_of)


@define
class RenewResurrects(Lock):
    """A renewal brings back what has run out."""

    _dead: dict[str, Holder] = field(factory=dict, repr=False)

    def renew(
        self, lease: str, ttl_ms: int | None = None, *, now: Now, by: str | None = None
    ) -> Renewed | Missing:
        self.advance(now, by=by)
        if (holder := self._dead.pop(lease, None)) is not None:
            self._holders.setdefault(lease, holder)
            holder.renew(now)
        return super().renew(lease, ttl_ms, now=now, by=by)

    def _lose(self, holder: Holder, reason: LostReason, detail: str | None = None) -> None:
        super()._lose(holder, reason, detail)
        self._dead[holder.claim.lease] = holder


@define
class GrantsToTheDead(Lock):
    """A waiter is granted the name though its server has not been heard of for long."""

    def advance(self, now: Now, *, by: str | None = None) -> None:
        for waiter in self._queue.values():
            waiter.alive_until_ms = max(waiter.alive_until_ms, now.ms + 1)
        super().advance(now, by=by)


@define
class Barges(Lock):
    """Who fits is let in, whoever waits."""

    def acquire(
        self, claim: Claim, *, wait: bool, take_over: bool = True, now: Now
    ) -> Granted | Queued | BusyAnswer | QueueFull | Mismatch | Elsewhere:
        self.advance(now, by=server_of(claim.owner))
        if self._find(claim.lease) is None and self._fits(claim):
            return self._grant(claim, asked_ms=now.ms, now=now)
        return super().acquire(claim, wait=wait, take_over=take_over, now=now)


@define
class LastComesFirst(Lock):
    """The queue is served from its end."""

    def advance(self, now: Now, *, by: str | None = None) -> None:
        self._queue = dict(reversed(self._queue.items()))
        super().advance(now, by=by)
        self._queue = dict(reversed(self._queue.items()))


@define
class ResumeTakesAFence(Lock):
    """A lease that is resumed has a new fence."""

    def resume(
        self, lease: str, owner: str | None, *, wait_ms: int | None = ORIGINAL_WAIT, now: Now
    ) -> Resumed | BusyAnswer | Missing:
        answer = super().resume(lease, owner, wait_ms=wait_ms, now=now)
        if holder := self._holders.get(lease):
            self.fence = holder.fence = self.fence + 1
            assert isinstance(answer, Resumed)
            assert isinstance(answer.answer, Granted)
            return evolve(answer, answer=evolve(answer.answer, fence=holder.fence))
        return answer


@define
class RepeatIsGrantedAnew(Lock):
    """A request that is repeated gets another grant."""

    def _hold_again(self, lease: str, owner: str | None, now: Now) -> Granted:
        grant = super()._hold_again(lease, owner, now)
        self.fence = self._holders[lease].fence = max(self.fence + 1, now.us)
        return evolve(grant, fence=self.fence)


@define
class OneTooMany(Lock):
    """A limit lets one more in."""

    def _fits(self, claim: Claim) -> bool:
        if claim.limit is not None:
            claim = evolve(claim, limit=claim.limit + 1)
        limits = self._limits
        self._limits = {limit + 1: holders for limit, holders in limits.items()}
        fits = super()._fits(claim)
        self._limits = limits
        return fits


@define
class MixesModes(Lock):
    """A reader is let in beside a writer."""

    def _fits(self, claim: Claim) -> bool:
        return super()._fits(claim) or (
            claim.mode is Mode.SHARED and claim.limit is None and len(self._holders) == 1
        )


@define
class ExpiryIsNotNoticed(Lock):
    """While somebody waits, nobody looks whether the holder has run out."""

    def next_ms(self) -> int | None:
        return None if self._queue else super().next_ms()


@define
class ReleaseDoesNotAdvance(Lock):
    """After a release the next visitor has to see that the name is free."""

    def release(
        self, lease: str, *, now: Now, by: str | None = None, only_of: str | None = None
    ) -> Left:
        self.advance(now, by=by)
        known = self._find(lease)
        if known is None or only_of not in {None, server_of(known.owner)}:
            return Left.NOTHING
        return self._leave(lease)


@define
class CancelLeavesTheWaiter(Lock):
    """Only a holder can be released; who waits stays in the queue."""

    def _leave(self, lease: str) -> Left:
        if lease in self._queue:
            return Left.WAITING
        return super()._leave(lease)


@define
class BreakIsQuiet(Lock):
    """Nobody is told that a lease was broken."""

    def _lose(self, holder: Holder, reason: LostReason, detail: str | None = None) -> None:
        super()._lose(holder, reason, detail)
        if reason is LostReason.BROKEN:
            self.events.pop()


@define
class GrantIsQuiet(Lock):
    """A waiter is not told that it was granted the name."""

    def advance(self, now: Now, *, by: str | None = None) -> None:
        super().advance(now, by=by)
        self.events = [each for each in self.events if not isinstance(each, WaiterGranted)]
