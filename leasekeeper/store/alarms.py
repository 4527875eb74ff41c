"""Deadlines with a task: calls back when the time of a key has come."""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import trio
from attrs import define, field

from leasekeeper.core.deadlines import Deadlines

K = TypeVar("K", bound=Hashable)


def trio_ms() -> int:
    """Trio's clock in milliseconds.

    A thousandth is added so that a time that was written as seconds and is read back is reached.
    """
    return int(trio.current_time() * 1000 + 0.001)


@define(eq=False)
class Alarms(Generic[K]):
    """At most one alarm per key, in ms of `trio_ms`. `run` calls `on_due` for each that is due."""

    on_due: Callable[[K], None]
    _deadlines: Deadlines[K] = field(factory=Deadlines[K], init=False)
    _wakes_at_ms: int | None = field(default=None, init=False)
    _sooner: trio.Event = field(factory=trio.Event, init=False)

    def __len__(self) -> int:
        return len(self._deadlines)

    def set(self, key: K, at_ms: int) -> None:
        """Gives the key this alarm instead of any other."""
        self._deadlines.set(key, at_ms)
        if self._wakes_at_ms is None or at_ms < self._wakes_at_ms:
            self._sooner.set()

    def discard(self, key: K) -> None:
        """Takes the key's alarm away, if it has one."""
        self._deadlines.discard(key)

    async def run(self) -> None:
        """Calls back as the alarms come due, until cancelled. What `on_due` raises comes out."""
        while True:
            self._sooner = trio.Event()
            self._wakes_at_ms = self._deadlines.next_ms()
            if self._wakes_at_ms is None:
                await self._sooner.wait()
                continue
            with trio.move_on_at(self._wakes_at_ms / 1000):
                await self._sooner.wait()
            for key in self._deadlines.pop_due(trio_ms()):
                self.on_due(key)
