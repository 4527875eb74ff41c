"""What nobody wants any more: released by lease id until the store has confirmed it."""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import trio
from attrs import define, field

from leasekeeper.core.lock import Left
from leasekeeper.errors import Unavailable
from leasekeeper.messages import TTL_MAX_MS, Key
from leasekeeper.service.limits import Limits
from leasekeeper.store.alarms import trio_ms
from leasekeeper.store.api import Store

_AT_ONCE: Final = 16
"""So many are given back side by side: one that the store is slow at does not keep the others."""


@define
class _Leaving:
    """The store calls under way that release one key."""

    calls: int = 0
    done: trio.Event | None = None
    """Made when somebody waits for it."""


@define(eq=False)
class Unwanted:
    """Releases, at once or in the background. `is_wanted`: whether it was asked for again."""

    store: Store
    limits: Limits
    is_wanted: Callable[[Key], bool]
    _keys: dict[Key, tuple[str | None, int]] = field(factory=dict, init=False, repr=False)
    """With each the server that it must still belong to, if any, and when it ends by itself."""
    _some: trio.Event = field(factory=trio.Event, init=False)
    _leaving: dict[Key, _Leaving] = field(factory=dict, init=False, repr=False)
    _since_s: dict[str, float] = field(factory=dict, init=False, repr=False)
    """By name, when the latest of the store calls began."""

    def __contains__(self, key: Key) -> bool:
        return key in self._keys

    def __len__(self) -> int:
        return len(self._keys) + len(self._leaving)

    async def run(self) -> None:
        """Gives back in the background, until cancelled."""
        async with trio.open_nursery() as nursery:
            for _ in range(_AT_ONCE):
                nursery.start_soon(self._give_back)

    def add(self, key: Key, only_of: str | None, ttl_ms: int = TTL_MAX_MS) -> None:
        """Releases this in the background, unless it is asked for again before.

        With `only_of`, only if it still belongs to that server. After its TTL, which nobody renews,
        there is no need: so an outage does not pile them up (law L12).
        """
        ends_ms = trio_ms() + ttl_ms + self.limits.waiter_alive_ms
        if key in self._keys:
            before, before_ms = self._keys[key]
            only_of, ends_ms = only_of and before, max(ends_ms, before_ms)
        self._keys[key] = only_of, ends_ms
        self._some.set()

    async def hurry(self, key: Key) -> None:
        """Releases now what was left to the background, if nobody has asked for it again since.

        Cancellation:
            It is released in the background.
        """
        if key in self._keys:
            only_of, ends_ms = self._keys.pop(key)
            if self.is_wanted(key):
                return
            with suppress(Unavailable):
                await self.release(key, only_of, self._left_ms(ends_ms))
        else:  # it may be under way
            await self.settled(key)

    def _left_ms(self, ends_ms: int) -> int:
        return ends_ms - self.limits.waiter_alive_ms - trio_ms()

    async def release(self, key: Key, only_of: str | None = None, ttl_ms: int = TTL_MAX_MS) -> Left:
        """Releases now. With `only_of`, only if it still belongs to that server.

        Raises:
            Unavailable: the store did not answer; it will be asked until it does.

        Cancellation:
            It is released in the background.
        """
        leaving = self._leaving.setdefault(key, _Leaving())
        leaving.calls += 1
        since_s = self._since_s[key[0]] = trio.current_time()
        try:
            return await self.store.release(*key, only_of=only_of)
        except (Unavailable, trio.Cancelled):
            self.add(key, only_of, ttl_ms)
            raise
        finally:
            leaving.calls -= 1
            if not leaving.calls:
                del self._leaving[key]
                if leaving.done is not None:
                    leaving.done.set()
            if self._since_s.get(key[0]) == since_s:
                del self._since_s[key[0]]

    def since_s(self, name: str) -> float | None:
        """Since when the store is being asked to release a lease of this name, if it is."""
        return self._since_s.get(name)

    async def settled(self, key: Key) -> None:
        """Waits while the store is being asked to release this key.

        Whoever asks for the key does so after this, or the release, if it reached the store later,
        would take away what was just granted.
        """
        while leaving := self._leaving.get(key):
            if leaving.done is None:
                leaving.done = trio.Event()
            await leaving.done.wait()

    async def _give_back(self) -> None:
        while True:
            while not self._keys:
                if self._some.is_set():
                    self._some = trio.Event()
                await self._some.wait()
            key = next(iter(self._keys))
            only_of, ends_ms = self._keys.pop(key)
            if self.is_wanted(key) or ends_ms <= trio_ms():
                continue
            try:
                await self.release(key, only_of, self._left_ms(ends_ms))
            except Unavailable:
                await trio.sleep(self.limits.store_retry_ms / 1000)
