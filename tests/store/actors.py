"""Servers of a store without the service above it: what they ask, and what they are told."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from secrets import token_hex
from typing import Final, TypeVar

import trio
from attrs import define, evolve, field, frozen

from leasekeeper.core.lock import (
    Busy,
    Claim,
    Contended,
    Elsewhere,
    Granted,
    HolderLost,
    Left,
    Mismatch,
    Missing,
    Moved,
    Queued,
    QueueFull,
    Renewed,
    WaiterGranted,
)
from leasekeeper.errors import Unavailable
from leasekeeper.messages import LeaseState, Mode
from leasekeeper.resp.settings import parse_url
from leasekeeper.store.api import Changed, Renewal, Store, StoreEvent
from leasekeeper.store.memory import MemoryStore
from leasekeeper.store.redis.store import Options, RedisStore
from tests.redis_groups import RedisCluster
from tests.redises import Reply, RunningRedis, Word

E = TypeVar("E", WaiterGranted, HolderLost, Contended, Moved, Changed)

WITHIN_S: Final = 10.0
"""How long a test waits for what has to come, and has no deadline of its own."""
WAKE_S: Final = 2.0
"""Law L5: within this after an expiry, the next waiter has it."""
LONG_MS: Final = 30_000


@frozen
class Held:
    """A lease, and what was claimed."""

    claim: Claim
    grant: Granted

    @property
    def lease(self) -> str:
        return self.claim.lease

    @property
    def fence(self) -> int:
        return self.grant.fence


@define(eq=False)
class Actor:
    """A server with nothing but a store. `told` has the events that no test has taken yet."""

    store: Store
    server: str
    told: list[StoreEvent] = field(factory=list)
    _heard: trio.lowlevel.ParkingLot = field(factory=trio.lowlevel.ParkingLot)
    _serials: Iterator[int] = field(factory=lambda: count(1))

    def hear(self, event: StoreEvent) -> None:
        """What the store calls."""
        self.told.append(event)
        self._heard.unpark_all()

    def claim(
        self,
        mode: Mode = Mode.EXCLUSIVE,
        *,
        limit: int | None = None,
        ttl_ms: int = LONG_MS,
        alive_ms: int = LONG_MS,
        max_hold_ms: int | None = None,
        wait_ms: int | None = None,
        label: str | None = None,
        client: str | None = None,
    ) -> Claim:
        """A claim with a lease id and an owner of its own."""
        return Claim(
            lease=token_hex(16),
            ttl_ms=ttl_ms,
            mode=mode,
            limit=limit,
            label=label,
            client=client,
            owner=self.owner(),
            max_hold_ms=max_hold_ms,
            alive_ms=alive_ms,
            wait_ms=wait_ms,
        )

    def owner(self) -> str:
        """One that was never used before."""
        return f"{self.server}.{next(self._serials)}"

    def again(self, claim: Claim) -> Claim:
        """The same, asked for by another."""
        return evolve(claim, owner=self.owner())

    async def ask(
        self, name: str, claim: Claim, *, wait: bool = False, take_over: bool = True
    ) -> Granted | Queued | Busy | QueueFull | Mismatch | Elsewhere:
        return await self.store.acquire(name, claim, wait=wait, take_over=take_over)

    async def take(self, name: str, claim: Claim | None = None) -> Held:
        """Asks for a name that it gets at once."""
        claim = claim or self.claim()
        grant = await self.ask(name, claim)
        assert isinstance(grant, Granted), grant
        return Held(claim, grant)

    async def queue(self, name: str, claim: Claim | None = None) -> Claim:
        """Asks for a name that it has to wait for."""
        claim = claim or self.claim()
        answer = await self.ask(name, claim, wait=True)
        assert isinstance(answer, Queued), answer
        return claim

    async def is_free(self, name: str) -> bool:
        """Whether it can be had; it is given back at once."""
        claim = self.claim()
        answer = await self.ask(name, claim)
        await self.store.release(name, claim.lease)
        return isinstance(answer, Granted)

    async def renew(
        self, name: str, lease: str, ttl_ms: int | None = None
    ) -> Renewed | Missing | Unavailable:
        [answer] = await self.store.renew([Renewal(name, lease, ttl_ms)])
        return answer

    async def release(self, name: str, lease: str) -> Left:
        return await self.store.release(name, lease)

    async def touch(self, name: str, lease: str, alive_ms: int = LONG_MS) -> bool | Unavailable:
        [answer] = await self.store.touch([(name, lease)], alive_ms)
        return answer

    async def look(self, name: str) -> LeaseState:
        return await self.store.inspect(name, holders_max=100, waiting_max=100)

    async def fences(self, name: str) -> list[int]:
        """Of its holders."""
        return [each.fence for each in (await self.look(name)).holders]

    # --- What it is told ----------------------------------------------------------------------

    async def next_told(
        self,
        kind: type[E],
        holds: Callable[[E], bool] = lambda _: True,
        *,
        name: str = "n",
        within_s: float = WITHIN_S,
    ) -> E:
        """The next event of this kind about this name of which it holds, taken out."""
        with trio.fail_after(within_s):
            while (found := self._find(kind, holds, name)) is None:
                await self._heard.park()
        self.told.remove(found)
        assert isinstance(found.what, kind)
        return found.what

    def _find(self, kind: type[E], holds: Callable[[E], bool], name: str) -> StoreEvent | None:
        for event in self.told:
            if event.name == name and isinstance(event.what, kind) and holds(event.what):
                return event
        return None

    async def granted(
        self, claim: Claim, name: str = "n", *, within_s: float = WITHIN_S
    ) -> Granted:
        """Waits for the grant of a waiter."""
        event = await self.next_told(
            WaiterGranted, lambda told: told.lease == claim.lease, name=name, within_s=within_s
        )
        assert event.owner in {None, claim.owner}
        return event.grant

    async def lost(self, lease: str, name: str = "n", *, within_s: float = WITHIN_S) -> HolderLost:
        """Waits for the loss of a holder."""
        return await self.next_told(
            HolderLost, lambda told: told.lease == lease, name=name, within_s=within_s
        )

    def told_of(self, kind: type[E], name: str = "n") -> list[E]:
        """The events of this kind that nobody has taken."""
        events = [event.what for event in self.told if event.name == name]
        return [each for each in events if isinstance(each, kind)]


class Deaf(RedisStore):
    """A server whose channels lose everything; it has only its own calls."""

    def _on_message(self, channel: str, text: bytes) -> None:
        del channel, text


def as_list(reply: Reply) -> list[Reply]:
    """A reply that is a list."""
    assert isinstance(reply, list), reply
    return reply


@asynccontextmanager
async def acting(store: Store, server: str = "one") -> AsyncIterator[Actor]:
    """A server at work on a store."""
    actor = Actor(store, server)
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run, actor.hear)
        try:
            yield actor
        finally:
            nursery.cancel_scope.cancel()


@frozen
class Place:
    """Where leases live: `memory`, or the URL of a Redis."""

    url: str
    nodes: tuple[RunningRedis, ...] = ()

    @property
    def is_shared(self) -> bool:
        """Whether several servers can work on it."""
        return bool(self.nodes)

    def node_of(self, name: str) -> RunningRedis:
        """The Redis that has a name."""
        if len(self.nodes) == 1:
            return self.nodes[0]
        return RedisCluster(list(self.nodes)).node_of(f"lk:{{{name}}}:lock")

    def on(self, name: str, *command: Word) -> Reply:
        """The reply of the Redis that has this name."""
        return self.node_of(name).cli(*command)

    def keys(self) -> list[str]:
        """All that are there."""
        return sorted(str(key) for each in self.nodes for key in as_list(each.cli("KEYS", "*")))

    def keys_for_ever(self) -> list[str]:
        """Those that would never go away."""
        return [
            str(key)
            for each in self.nodes
            for key in as_list(each.cli("KEYS", "*"))
            if each.cli("PTTL", str(key)) == -1
        ]

    def acting(
        self, server: str = "one", options: Options | None = None, *, deaf: bool = False
    ) -> AbstractAsyncContextManager[Actor]:
        """A server on it, with a name of its own."""
        options = options or Options()
        if not self.is_shared:
            return acting(MemoryStore(waiting_max=options.waiting_max), server)
        make = Deaf if deaf else RedisStore
        return acting(make(parse_url(self.url), server, options), server)
