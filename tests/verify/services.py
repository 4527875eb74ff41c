"""An ideal lock service, an ideal cache, an ideal write-behind, and what they are used for.

They live on a virtual clock, do each thing in one moment, and are as simple as can be: what is said
of them in a history is right by construction.
"""

from typing import Final

from attrs import define, field

from tests.verify.clockwork import Clock, Signal

FENCE_STEP: Final = 10
"""There is room between fences for those that a service should not give."""


@define
class Fences:
    """Numbers that rise."""

    last: int = 1_000

    def next(self) -> int:
        """A greater one."""
        self.last += FENCE_STEP
        return self.last


# --- Leases -----------------------------------------------------------------------------------


@define(eq=False)
class Lease:
    """One that is held, or waited for."""

    name: str
    id: str
    exclusive: bool
    limit: int | None
    ttl_us: int
    granted: Signal
    fence: int = 0
    expires: int = 0


@define
class Keeper:
    """Leases, first come, first served."""

    clock: Clock
    fences: Fences
    _holders: dict[str, dict[str, Lease]] = field(factory=dict)
    _queues: dict[str, list[Lease]] = field(factory=dict)

    def acquire(self, lease: Lease, *, wait: bool) -> bool:
        """Whether it is granted or, if it may wait, queued; then its signal tells of the grant."""
        self._expire(lease.name)
        queue = self._queues.setdefault(lease.name, [])
        if queue or not self._fits(lease):
            if wait:
                queue.append(lease)
            return wait
        self._grant(lease)
        return True

    def release(self, name: str, id_: str) -> None:
        """It is held and waited for no more."""
        self._holders.setdefault(name, {}).pop(id_, None)
        queue = self._queues.setdefault(name, [])
        queue[:] = [each for each in queue if each.id != id_]
        self._advance(name)

    def renew(self, lease: Lease) -> bool:
        """Whether it was still held."""
        self._expire(lease.name)
        held = lease.id in self._holders[lease.name]
        if held:
            self._prolong(lease)
        return held

    def expire_all(self) -> None:
        """As if the clock had leapt: no lease is held any more, whatever its holder believes."""
        for name, holders in self._holders.items():
            holders.clear()
            self._advance(name)

    def _prolong(self, lease: Lease) -> None:
        lease.expires = self.clock.now + lease.ttl_us
        self.clock.later(lease.ttl_us, lambda: self._expire(lease.name))

    def _grant(self, lease: Lease) -> None:
        lease.fence = self.fences.next()
        self._holders.setdefault(lease.name, {})[lease.id] = lease
        self._prolong(lease)
        lease.granted.set(lease)

    def _fits(self, lease: Lease) -> bool:
        holders = self._holders.setdefault(lease.name, {}).values()
        if lease.exclusive:
            return not holders
        limits = [each.limit for each in (*holders, lease) if each.limit is not None]
        fits = len(holders) < min(limits, default=len(holders) + 1)
        return fits and not any(each.exclusive for each in holders)

    def _expire(self, name: str) -> None:
        holders = self._holders.setdefault(name, {})
        for lease in list(holders.values()):
            if lease.expires <= self.clock.now:
                del holders[lease.id]
        self._advance(name)

    def _advance(self, name: str) -> None:
        queue = self._queues.setdefault(name, [])
        while queue and self._fits(queue[0]):
            self._grant(queue.pop(0))


@define
class Resource:
    """Takes what does not come with a fence lower than one it has seen."""

    name: str
    highest: int = 0
    values: list[str] = field(factory=list)

    def write(self, fence: int, value: str) -> bool:
        """Whether it is taken."""
        if fence < self.highest:
            return False
        self.highest = fence
        self.values.append(value)
        return True


# --- The cache --------------------------------------------------------------------------------


@define(eq=False)
class Fill:
    """The right to load a key."""

    fence: int
    done: Signal


@define
class Entry:
    """What is cached under a key."""

    version: int | None = None
    fill: Fill | None = None
    voided: int = 0
    """Nothing that was granted before is taken."""


@define
class Cache:
    """Values that one at a time loads, and everybody may invalidate."""

    clock: Clock
    fences: Fences
    tags: dict[str, list[str]]
    entries: dict[str, Entry] = field(factory=dict)

    def entry(self, key: str) -> Entry:
        """That of the key."""
        return self.entries.setdefault(key, Entry())

    def fill(self, key: str) -> Fill:
        """Grants a fill: there must be none."""
        entry = self.entry(key)
        assert entry.fill is None
        entry.fill = Fill(self.fences.next(), Signal(self.clock))
        return entry.fill

    def hand_over(self, key: str, fill: Fill, version: int) -> None:
        """Takes what was loaded, unless it is void."""
        entry = self.entry(key)
        if fill.fence > entry.voided:
            entry.version = version
        self.give_up(key, fill)

    def give_up(self, key: str, fill: Fill) -> None:
        """The fill is over; who waits looks again."""
        if self.entry(key).fill is fill:
            self.entry(key).fill = None
        fill.done.set()

    def invalidate(self, keys: list[str], tags: list[str]) -> None:
        """Forgets."""
        tagged = [key for key, some in self.tags.items() if set(tags) & set(some)]
        for key in {*keys, *tagged}:
            entry = self.entry(key)
            entry.voided = self.fences.next()
            entry.version = None
            if entry.fill is not None:
                self.give_up(key, entry.fill)


@define
class Writes:
    """The last value of each key that is still to be written."""

    fences: Fences
    waiting: dict[str, tuple[int, str]] = field(factory=dict)

    def put(self, key: str, value: str) -> int:
        """Its number."""
        seq = self.fences.next()
        self.waiting[key] = (seq, value)
        return seq
