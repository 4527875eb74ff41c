"""The store of a simulated world: judged by a witness, shared by servers, and unreliable."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from random import Random
from typing import TypeVar

import trio
from attrs import define, field, frozen

from leasekeeper.core.fills import Ask, Closed, Conflict, Content, Intent, Seen
from leasekeeper.core.lock import Busy, Lock, Missing, Now, Resumed, WaiterGranted
from leasekeeper.errors import Outcome, Unavailable
from leasekeeper.messages import FillOutcome, Key, Mark
from leasekeeper.store.api import Event, StoreEvent
from leasekeeper.store.memory import MemoryStore
from leasekeeper.store.memory_cache import MemoryCache
from leasekeeper.store.memory_writes import MemoryWrites
from tests.service.flaky import Fault, FlakyStore
from tests.service.routing import Face, Routes
from tests.simulation.laws import Violation, Witness, view_of

T = TypeVar("T")


@frozen
class Weather:
    """How a store misbehaves: the share of calls that are slow, and of those that fail."""

    chance: Random
    slow: float
    fails: float
    faults: Counter[str]

    def fault(self) -> Fault:
        """Of the next call."""
        chance, before_s, after_s, fails = self.chance, 0.0, 0.0, None
        if chance.random() < self.slow:
            before_s = chance.choice([0, 0.001, 0.02, 0.3, 1.5])
            after_s = chance.choice([0, 0.001, 0.02, 0.3, 1.5])
            self.faults["store slow"] += 1
        if chance.random() < self.fails:
            fails = chance.choice([Outcome.NONE, Outcome.UNKNOWN])
            self.faults[f"store fails, {fails}"] += 1
        return Fault(before_s, after_s, fails)


@define(eq=False)
class WitnessedCache(MemoryCache):
    """The embedded cache, whose grants are judged: one live fill for each key (L10)."""

    live: dict[str, tuple[str, int]] = field(factory=dict, init=False)
    """The fill that is under way, and when its time is over."""

    async def look(self, key: str, ask: Ask) -> Seen:
        seen = await super().look(key, ask)
        if seen.grant is not None and seen.grant.shared:
            assert ask.fill is not None
            now_ms = self.now().ms
            fill, until_ms = self.live.get(key, ("", 0))
            if fill != ask.fill and now_ms < until_ms:
                raise Violation("L10", f"{key}: two are to load it")
            self.live[key] = ask.fill, now_ms + seen.grant.fill_ms
        return seen

    async def fill(
        self, key: str, fill: str, content: Content, *, not_modified: bool = False
    ) -> FillOutcome:
        self._over(key, fill)
        return await super().fill(key, fill, content, not_modified=not_modified)

    async def fail(
        self, key: str, fill: str, error: str, retry_after_ms: int | None, jitter: float
    ) -> None:
        self._over(key, fill)
        await super().fail(key, fill, error, retry_after_ms, jitter)

    async def unshare(self, key: str, fill: str, ms: int) -> None:
        self._over(key, fill)
        await super().unshare(key, fill, ms)

    async def give_up(self, key: str, fill: str, *, died: bool, jitter: float) -> None:
        self._over(key, fill)
        await super().give_up(key, fill, died=died, jitter=jitter)

    async def set(self, key: str, content: Content) -> int | Conflict:
        self.live.pop(key, None)
        return await super().set(key, content)

    async def invalidate(self, keys: Sequence[str], tags: Sequence[str], mark: Mark) -> None:
        for key in keys:
            self.live.pop(key, None)
        await super().invalidate(keys, tags, mark)

    async def begin_write(
        self, key: str, write: str, tags: tuple[str, ...], ttl_ms: int
    ) -> Intent | Conflict:
        self.live.pop(key, None)
        return await super().begin_write(key, write, tags, ttl_ms)

    async def close_write(
        self, key: str, write: str, content: Content | None, tags: tuple[str, ...]
    ) -> Closed:
        self.live.pop(key, None)
        return await super().close_write(key, write, content, tags)

    def _over(self, key: str, fill: str) -> None:
        if self.live.get(key, ("", 0))[0] == fill:
            del self.live[key]


@define(eq=False)
class WitnessedStore(MemoryStore):
    """The embedded store, each step of which is judged."""

    witness: Witness = field(kw_only=True)
    unheard: set[Key] = field(factory=set, init=False)
    """What was perhaps resumed by who did not hear of it: it stays until it runs out."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.cache = WitnessedCache(self.wall)
        self.writes = MemoryWrites(self.cache, self.allow_volatile_writes)

    def _step(self, name: str, step: Callable[[Lock, Now], T]) -> T:
        def judged(lock: Lock, now: Now) -> T:
            before = view_of(lock)
            answer = step(lock, now)
            self.witness.judge(name, before, lock, now)
            return answer

        return super()._step(name, judged)


@contextmanager
def noting_unheard(inner: MemoryStore, key: Key) -> Iterator[None]:
    """Notes which resumes were perhaps carried out, and not answered."""
    try:
        yield
    except Unavailable as problem:
        if problem.outcome is Outcome.UNKNOWN:
            assert isinstance(inner, WitnessedStore)
            inner.unheard.add(key)
        raise


@define(eq=False)
class SimStore(FlakyStore):
    """One server's own store."""

    bad: Weather | None = None

    @property
    def answers_at_once(self) -> bool:
        return self.bad is None

    async def resume(
        self, name: str, lease: str, owner: str, *, wait_ms: int | None
    ) -> Resumed | Busy | Missing:
        with noting_unheard(self.inner, (name, lease)):
            return await super().resume(name, lease, owner, wait_ms=wait_ms)

    def _fault(self, method: str) -> Fault:
        return self.bad.fault() if self.bad else Fault()


@define(eq=False)
class SimFace(Face):
    """One server's view of the store that several share, which outlives each of them."""

    bad: Weather | None = None

    @property
    def outlives_process(self) -> bool:
        return True

    def _fault(self, method: str) -> Fault:
        return self.bad.fault() if self.bad else Fault()

    async def resume(
        self, name: str, lease: str, owner: str, *, wait_ms: int | None
    ) -> Resumed | Busy | Missing:
        with noting_unheard(self.inner, (name, lease)):
            return await super().resume(name, lease, owner, wait_ms=wait_ms)

    def _is_short(self, name: str, granted: WaiterGranted) -> bool:
        lock = self.inner._locks.get(name)
        if lock is None or granted.lease not in lock._holders:
            return True  # it was released in the same step: who looks finds it gone
        return super()._is_short(name, granted)

    async def run(
        self,
        on_event: Callable[[Event], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        assert isinstance(self.routes, SimRoutes)
        self.routes.hears_of_keys[self.server] = on_event
        try:
            await super().run(on_event, task_status=task_status)
        finally:
            self.routes.hears_of_keys.pop(self.server, None)


@define(eq=False)
class SimRoutes(Routes):
    """News of cached keys go to all servers."""

    hears_of_keys: dict[str, Callable[[Event], None]] = field(factory=dict)

    def hand(self, event: Event) -> None:
        """To whom it is for."""
        if isinstance(event, StoreEvent):
            self.route(event)
        else:
            for on_event in list(self.hears_of_keys.values()):
                on_event(event)
