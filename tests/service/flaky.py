"""The embedded store behind a network that is slow, loses calls, and loses answers."""

from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TypeVar

import trio
from attrs import define, field, frozen

from leasekeeper.core.lock import (
    Busy,
    Claim,
    Elsewhere,
    Granted,
    Left,
    Mismatch,
    Missing,
    Queued,
    QueueFull,
    Renewed,
    Resumed,
)
from leasekeeper.errors import Outcome, Unavailable
from leasekeeper.messages import Key, LeasePage, LeaseState
from leasekeeper.store.api import Event, Health, Renewal
from leasekeeper.store.memory import MemoryStore
from leasekeeper.store.writes import WriteStore
from tests.service.flaky_cache import FlakyCache

T = TypeVar("T")


@frozen
class Fault:
    """What happens to one call: how long until its effect, how long until its answer, or none."""

    before_s: float = 0
    after_s: float = 0
    fails: Outcome | None = None


@define(eq=False)
class FlakyStore:
    """A `Store`. Faults are scripted per method, or left to chance while `weather` is set.

    Nothing reaches `unreachable` names. While `kept` is a list, events stay in it.
    """

    inner: MemoryStore = field(factory=MemoryStore)
    weather: Random | None = None
    script: dict[str, list[Fault]] = field(factory=dict)
    late_s: float = 0
    """How long events are under way; they keep their order."""
    unreachable: set[str] = field(factory=set)
    kept: list[Event] | None = None
    _on_event: Callable[[Event], None] = field(default=lambda _: None, init=False)

    @property
    def outlives_process(self) -> bool:
        return False

    @property
    def answers_at_once(self) -> bool:
        return False

    @property
    def cache(self) -> FlakyCache:
        return FlakyCache(self.inner.cache, self._call)

    @property
    def writes(self) -> WriteStore:
        return self.inner.writes

    @property
    def health(self) -> Health:
        return self.inner.health

    async def run(
        self,
        on_event: Callable[[Event], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        send, receive = trio.open_memory_channel[Event](100_000)

        def forward(event: Event) -> None:
            if self.kept is not None:
                self.kept.append(event)
            elif self.late_s:
                send.send_nowait(event)
            else:
                on_event(event)

        self._on_event = on_event
        async with trio.open_nursery() as nursery:
            await nursery.start(self._run_inner, forward)
            task_status.started()
            async for event in receive:
                await trio.sleep(self.late_s)
                on_event(event)

    def deliver(self) -> None:
        """Hands over the events that were kept, and keeps no more."""
        events, self.kept = self.kept or [], None
        for event in events:
            self._on_event(event)

    async def _run_inner(
        self, on_event: Callable[[Event], None], *, task_status: trio.TaskStatus[None]
    ) -> None:
        await self.inner.run(on_event, task_status=task_status)

    async def acquire(
        self, name: str, claim: Claim, *, wait: bool, take_over: bool = True
    ) -> Granted | Queued | Busy | QueueFull | Mismatch | Elsewhere:
        self._reach(name)
        return await self._call(
            "acquire",
            lambda: self.inner.acquire(name, claim, wait=wait, take_over=take_over),
        )

    async def resume(
        self, name: str, lease: str, owner: str, *, wait_ms: int | None
    ) -> Resumed | Busy | Missing:
        self._reach(name)
        return await self._call(
            "resume", lambda: self.inner.resume(name, lease, owner, wait_ms=wait_ms)
        )

    async def renew(self, renewals: Sequence[Renewal]) -> Sequence[Renewed | Missing | Unavailable]:
        reached = [each for each in renewals if each.name not in self.unreachable]
        answers = iter(await self._call("renew", lambda: self._renew(reached)))
        return [
            Unavailable(Outcome.NONE, 100) if each.name in self.unreachable else next(answers)
            for each in renewals
        ]

    async def _renew(self, renewals: Sequence[Renewal]) -> Sequence[Renewed | Missing]:
        return await self.inner.renew(renewals)

    async def release(self, name: str, lease: str, *, only_of: str | None = None) -> Left:
        self._reach(name)
        return await self._call("release", lambda: self._release(name, lease, only_of))

    async def _release(self, name: str, lease: str, only_of: str | None) -> Left:
        return await self.inner.release(name, lease, only_of=only_of)

    async def touch(self, waiters: Sequence[Key], alive_ms: int) -> Sequence[bool | Unavailable]:
        reached = [key for key in waiters if key[0] not in self.unreachable]
        answers = iter(await self._call("touch", lambda: self._touch(reached, alive_ms)))
        return [
            Unavailable(Outcome.NONE, 100) if name in self.unreachable else next(answers)
            for name, _ in waiters
        ]

    async def _touch(self, waiters: Sequence[Key], alive_ms: int) -> Sequence[bool]:
        return await self.inner.touch(waiters, alive_ms)

    async def break_(self, name: str, detail: str | None) -> int:
        self._reach(name)
        return await self._call("break_", lambda: self._break(name, detail))

    async def _break(self, name: str, detail: str | None) -> int:
        return await self.inner.break_(name, detail)

    async def inspect(self, name: str, *, holders_max: int, waiting_max: int) -> LeaseState:
        self._reach(name)
        return await self._call(
            "inspect",
            lambda: self.inner.inspect(name, holders_max=holders_max, waiting_max=waiting_max),
        )

    async def list_leases(self, prefix: str, limit: int, cursor: str | None) -> LeasePage:
        return await self._call("list", lambda: self.inner.list_leases(prefix, limit, cursor))

    async def watch(self, name: str) -> None:
        await self._call("watch", lambda: self.inner.watch(name))

    def unwatch(self, name: str) -> None:
        self.inner.unwatch(name)

    def _reach(self, name: str) -> None:
        if name in self.unreachable:
            raise Unavailable(Outcome.NONE, 100)

    async def _call(self, method: str, effect: Callable[[], Awaitable[T]]) -> T:
        fault = self._fault(method)
        if fault.before_s:
            await trio.sleep(fault.before_s)
        if fault.fails is Outcome.NONE:
            raise Unavailable(Outcome.NONE, 100)
        answer = await effect()
        if fault.after_s:
            await trio.sleep(fault.after_s)
        if fault.fails is Outcome.UNKNOWN:
            raise Unavailable(Outcome.UNKNOWN, 100)
        return answer

    def _fault(self, method: str) -> Fault:
        if scripted := self.script.get(method):
            return scripted.pop(0)
        if self.weather is None:
            return Fault()
        slow = [0, 0, 0, 0.001, 0.02, 0.3]
        fails = [None, None, None, None, Outcome.NONE, Outcome.UNKNOWN]
        chance = self.weather
        return Fault(chance.choice(slow), chance.choice(slow), chance.choice(fails))
