"""Callers who want a cached key, and one look at the store for all of them.

At most one look at a key is under way on a server. Callers that come meanwhile wait for the next
one: so every answer comes from a look that began after its caller had asked, and holds for it
(law L11), however many callers share it.
"""

import math
from collections.abc import Callable
from random import Random
from secrets import token_hex
from typing import Final

import trio
from attrs import define, field, frozen

from leasekeeper.core.fills import FillGrant, Found, Seen
from leasekeeper.errors import FillFailed, RpcError
from leasekeeper.messages import (
    CacheGet,
    CacheHit,
    CacheNegative,
    CacheState,
    CacheToFill,
    Json,
    Refresh,
)
from leasekeeper.service.session import GrantedFill, Session, wait_until
from leasekeeper.service.waiting import Waiting

Answer = CacheHit | CacheToFill | CacheNegative | RpcError

LOOK_MS: Final = 1500
"""Whoever waits has the key looked at this often, in case a message is lost."""


@define(eq=False)
class Caller(Waiting):
    """One `cache.get` that has not been answered."""

    session: Session
    ask: CacheGet
    _withdraw: Callable[["Caller"], None]
    since: float = field(factory=trio.current_time)
    until: float = field(init=False)
    """When its wait is over, by Trio's clock."""
    waited: bool = False
    """Whether it was there when somebody else was to load the value."""
    waits: bool = False
    """Whether it was seen, and waits for another look."""
    answer: Answer | None = None
    _tell: Callable[[Answer], object] | None = field(default=None, init=False)

    @until.default
    def _until(self) -> float:
        return wait_until(self.ask.wait_ms)

    def settle(self, answer: Answer) -> None:
        """Its answer, if it has none yet."""
        if self.answer is None:
            self.answer = answer
            tell, self._tell = self._tell, None  # who is told refers to this
            if tell is not None:
                tell(answer)

    def when_answered(self, tell: Callable[[Answer], object]) -> None:
        """See `Waiting`."""
        assert self.answer is None
        self._tell = tell

    def withdraw(self) -> None:
        """See `Waiting`."""
        self._tell = None
        self._withdraw(self)

    async def answered(self) -> None:
        """Returns once it has its answer."""
        if self.answer is None:
            told = trio.Event()
            self.when_answered(lambda _: told.set())
            await told.wait()

    def result(self) -> CacheHit | CacheToFill | CacheNegative:
        """Its answer, or raises it: many may be told by the same one."""
        assert self.answer is not None
        if isinstance(self.answer, RpcError):
            raise self.answer.with_traceback(None)
        return self.answer


@define(eq=False)
class Desk:
    """The callers of one key, in the order in which they came."""

    key: str
    callers: dict[Caller, None] = field(factory=dict)
    unseen: dict[Caller, None] = field(factory=dict)
    """Those among them for whom nobody looks, or has looked, yet."""
    looking: bool = False
    again: bool = False
    """Whether there was reason to look again while somebody was looking."""
    filling_until: float = 0.0
    """When the fill that they wait for ends, by Trio's clock, as far as is known."""
    seen: trio.Event = field(factory=trio.Event)
    """Set at the end of each look."""
    _being_seen: dict[Caller, None] = field(factory=dict)
    """Those for whom the look that is under way is the first."""
    _loaders: dict[Caller, None] = field(factory=dict)
    """The callers who can load the value."""

    def enter(self, caller: Caller) -> None:
        """Somebody asks."""
        self.callers[caller] = None
        self.unseen[caller] = None
        if caller.ask.can_fill:
            self._loaders[caller] = None

    def leave(self, caller: Caller) -> None:
        """It has its answer, or has given up."""
        self.callers.pop(caller, None)
        self.unseen.pop(caller, None)
        self._being_seen.pop(caller, None)
        self._loaders.pop(caller, None)

    def begin(self) -> int:
        """A look begins; returns for how many it is the first."""
        self.looking, self.again, self.seen = True, False, trio.Event()
        self._being_seen, self.unseen = self.unseen, {}
        return len(self._being_seen)

    def undo(self) -> None:
        """The look has come to nothing: another will be the first for them."""
        self._being_seen, self.unseen = {}, self._being_seen | self.unseen

    def end(self) -> list[Caller]:
        """The look is over; returns those for whom it was the first, and who have no answer."""
        unanswered = list(self._being_seen)
        self.looking, self._being_seen = False, {}
        self.seen.set()
        return unanswered

    def owes_a_look(self, caller: Caller) -> bool:
        """Whether no look that began after this caller had come is over."""
        return caller in self.unseen or caller in self._being_seen

    def waiting(self) -> list[Caller]:
        """Those who were there when the last look began, and have no answer."""
        return [caller for caller in self.callers if caller not in self.unseen]

    def offer(self, fills_max: int) -> "Offer | None":
        """Who is to load the value, if it has to be: who has waited longest, and can."""
        for caller in self._loaders:
            if len(caller.session.fills) < fills_max:
                return Offer(caller, token_hex(16), GrantedFill(caller.ask.fill_ms))
        return None


@frozen
class Offer:
    """A fill that a look may be granted, and for whom."""

    caller: Caller
    fill: str = field(repr=False)
    granted: GrantedFill


def early_of(callers: int, random: Random) -> float:
    """-ln of the least of so many numbers, each uniform in (0, 1]: the chance of all of them."""
    uniform = 1 - random.random()
    least = -math.expm1(math.log1p(-uniform) / callers) if uniform < 1 else 1.0
    return -math.log(max(least, 5e-324))


def is_settled(seen: Seen) -> bool:
    """Whether a look says more than that somebody else is still loading the value."""
    return (
        seen.found is not None
        or seen.negative_ms is not None
        or seen.grant is not None
        or (seen.failed is not None and seen.filling_ms is None)
    )


def answer_from(seen: Seen, *, stale_ok: bool, fill: str | None = None) -> Answer | None:
    """What a look means to a caller; None: it waits. `fill` is the granted one, if it is its."""
    grant = seen.grant if fill is not None else None
    if seen.found and (seen.found.fresh or stale_ok):
        return _hit(seen.found, grant, fill)
    if seen.negative_ms is not None:
        return CacheNegative(seen.negative_ms)
    if grant is not None and fill is not None:
        return CacheToFill(fill, grant.fence, grant.fill_ms, grant.shared, grant.etag)
    if seen.failed is not None and seen.filling_ms is None:
        return FillFailed(seen.failed.error, seen.failed.retry_after_ms)
    return None


def _hit(found: Found, grant: FillGrant | None, fill: str | None) -> CacheHit:
    refresh = None
    if grant is not None and fill is not None:
        refresh = Refresh(fill, grant.fence, grant.fill_ms, grant.etag)
    return CacheHit(
        CacheState.HIT if found.fresh else CacheState.STALE,
        Json(found.value),
        found.age_ms,
        found.ttl_ms,
        refresh,
    )
