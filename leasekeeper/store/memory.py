"""The embedded store: `leasekeeper.core.lock` and a clock. It ends with its process.

No call of it blocks, and none is a checkpoint: a cancellation finds a call either not begun or
answered, so no outcome is ever unknown.
"""

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, TypeVar

import trio
from attrs import define, field
from sortedcontainers import SortedList

from leasekeeper.core.lock import (
    Busy,
    Claim,
    Elsewhere,
    Granted,
    Left,
    Lock,
    Mismatch,
    Missing,
    Now,
    Queued,
    QueueFull,
    Renewed,
    Resumed,
)
from leasekeeper.errors import InvalidParams
from leasekeeper.messages import Key, LeasePage, LeaseState, ListedLease
from leasekeeper.store.alarms import Alarms, trio_ms
from leasekeeper.store.api import Changed, Event, Health, Renewal, StoreEvent
from leasekeeper.store.memory_cache import MemoryCache
from leasekeeper.store.memory_writes import MemoryWrites

T = TypeVar("T")

_WATCH_VIEW_MAX: Final = 100


def wall_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


@define(eq=False)
class MemoryStore:
    """Leases in this process, by Trio's clock.

    Fences of all names come from one rising clock, `max(wall clock, last fence + 1)`, so a name at
    rest needs no memory at all (law L9), and fences rise across restarts too (law L2).
    """

    waiting_max: int = 10_000
    wall: Callable[[], int] = wall_us
    allow_volatile_writes: bool = False
    _locks: dict[str, Lock] = field(factory=dict, init=False)
    _names: SortedList[str] = field(factory=SortedList, init=False)
    """The keys of _locks, in order."""
    _alarms: Alarms[str] = field(init=False)
    _watched: set[str] = field(factory=set, init=False)
    _last_us: int = field(default=0, init=False)
    cache: MemoryCache = field(init=False)
    writes: MemoryWrites = field(init=False)
    _on_event: Callable[[Event], None] = field(default=lambda _: None, init=False)

    def __attrs_post_init__(self) -> None:
        self._alarms = Alarms(self._advance)
        self.cache = MemoryCache(self.wall)
        self.writes = MemoryWrites(self.cache, self.allow_volatile_writes)

    @property
    def outlives_process(self) -> bool:
        """False: a restart loses every lease."""
        return False

    @property
    def answers_at_once(self) -> bool:
        """True."""
        return True

    @property
    def health(self) -> Health:
        """It is always there, and never pauses grants."""
        return Health("memory")

    async def run(
        self,
        on_event: Callable[[Event], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Lets time pass for every name whose deadline has come, until cancelled."""
        self._on_event = on_event
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._alarms.run)
            nursery.start_soon(self.cache.run, on_event)
            nursery.start_soon(self.writes.run, on_event)
            task_status.started()

    async def acquire(
        self, name: str, claim: Claim, *, wait: bool, take_over: bool = True
    ) -> Granted | Queued | Busy | QueueFull | Mismatch | Elsewhere:
        """Asks for a name."""
        return self._step(
            name, lambda lock, now: lock.acquire(claim, wait=wait, take_over=take_over, now=now)
        )

    async def resume(
        self, name: str, lease: str, owner: str, *, wait_ms: int | None
    ) -> Resumed | Busy | Missing:
        """Takes over what the lease id holds or waits for."""
        return self._step(
            name, lambda lock, now: lock.resume(lease, owner, wait_ms=wait_ms, now=now)
        )

    async def renew(self, renewals: Sequence[Renewal]) -> Sequence[Renewed | Missing]:
        """Renews many leases."""
        return [self._renew(each) for each in renewals]

    async def release(self, name: str, lease: str, *, only_of: str | None = None) -> Left:
        """Gives a lease back or leaves the queue."""
        return self._step(name, lambda lock, now: lock.release(lease, only_of=only_of, now=now))

    async def touch(self, waiters: Sequence[Key], alive_ms: int) -> Sequence[bool]:
        """Vouches for waiters."""
        return [self._touch(name, lease, alive_ms) for name, lease in waiters]

    async def break_(self, name: str, detail: str | None) -> int:
        """Puts all holders out."""
        return self._step(name, lambda lock, now: lock.break_(detail, now=now))

    async def inspect(self, name: str, *, holders_max: int, waiting_max: int) -> LeaseState:
        """What others may see of a name."""

        def look(lock: Lock, now: Now) -> LeaseState:
            lock.advance(now)
            return lock.state(name, holders_max=holders_max, waiting_max=waiting_max, now=now)

        return self._step(name, look)

    async def list_leases(self, prefix: str, limit: int, cursor: str | None) -> LeasePage:
        """A page of held leases. The cursor is the last one's name and fence."""
        last_name, last_fence = _parse_cursor(cursor) if cursor else (prefix, 0)
        names = list(islice(self._names.irange(max(prefix, last_name)), limit + 1))
        found: list[ListedLease] = []
        for name in names:
            if not name.startswith(prefix):
                return LeasePage(tuple(found), None)
            after = last_fence if name == last_name else 0
            found += [each for each in self._listed(name) if each.fence > after]
            if len(found) > limit:
                return LeasePage(tuple(found[:limit]), _cursor(found[limit - 1]))
        return LeasePage(tuple(found), _cursor(found[-1]) if len(names) > limit else None)

    async def watch(self, name: str) -> None:
        """From now on there are `Changed` events for this name."""
        self._watched.add(name)

    def unwatch(self, name: str) -> None:
        """`Changed` events for this name are not wanted any more."""
        self._watched.discard(name)

    def _listed(self, name: str) -> list[ListedLease]:
        def look(lock: Lock, now: Now) -> list[ListedLease]:
            lock.advance(now)
            return [
                ListedLease(
                    name=name,
                    fence=holder.fence,
                    mode=holder.mode,
                    label=holder.label,
                    held_ms=holder.held_ms,
                    ttl_ms=holder.ttl_ms,
                    client=holder.client,
                    foreign=holder.foreign,
                    waiting=lock.waiting,
                )
                for holder in lock.holders(now)
            ]

        return self._step(name, look)

    def _renew(self, each: Renewal) -> Renewed | Missing:
        return self._step(each.name, lambda lock, now: lock.renew(each.lease, each.ttl_ms, now=now))

    def _touch(self, name: str, lease: str, alive_ms: int) -> bool:
        return self._step(name, lambda lock, now: lock.touch(lease, alive_ms, now=now))

    def _advance(self, name: str) -> None:
        self._step(name, lambda lock, now: lock.advance(now))

    def _now(self) -> Now:
        self._last_us = max(self.wall(), self._last_us + 1)
        return Now(trio_ms(), self._last_us)

    def _step(self, name: str, step: Callable[[Lock, Now], T]) -> T:
        """One atomic step on a name: afterwards its events are told, and its next deadline set."""
        now = self._now()
        known = self._locks.get(name)
        lock = known or Lock(self.waiting_max)
        before = lock.revision
        answer = step(lock, now)
        self._last_us = max(self._last_us, lock.fence)
        if not lock.idle:
            if known is None:
                self._locks[name] = lock
                self._names.add(name)
        elif known is not None:
            del self._locks[name]
            self._names.remove(name)
        if (next_ms := lock.next_ms()) is None:
            self._alarms.discard(name)
        else:
            self._alarms.set(name, next_ms)
        for event in lock.events:
            self._on_event(StoreEvent(name, event))
        lock.events.clear()
        if name in self._watched and lock.revision != before:
            state = lock.state(
                name, holders_max=_WATCH_VIEW_MAX, waiting_max=_WATCH_VIEW_MAX, now=now
            )
            self._on_event(StoreEvent(name, Changed(state)))
        return answer


def _cursor(lease: ListedLease) -> str:
    return f"{lease.name} {lease.fence}"


def _parse_cursor(cursor: str) -> tuple[str, int]:
    name, _, fence = cursor.partition(" ")
    if not fence.isdecimal():
        raise InvalidParams("$.cursor", "expected a cursor from an earlier page")
    return name, int(fence)
