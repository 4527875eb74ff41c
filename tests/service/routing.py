"""One embedded store for several servers: each hears of what is its own, as over a network."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio
from attrs import define, evolve, field

from leasekeeper.core.lock import (
    Contended,
    HolderLost,
    Left,
    Missing,
    Moved,
    Renewed,
    WaiterGranted,
    server_of,
)
from leasekeeper.messages import Key
from leasekeeper.service.keeper import Keeper
from leasekeeper.service.limits import Limits
from leasekeeper.store.api import Changed, Renewal, StoreEvent
from leasekeeper.store.memory import MemoryStore
from tests.service.conftest import World
from tests.service.flaky import FlakyStore


@define(eq=False)
class Routes:
    """Hands each event of one store to the servers that it is for."""

    store: MemoryStore = field(factory=MemoryStore)
    servers: dict[str, Callable[[StoreEvent], None]] = field(factory=dict)
    watched: dict[str, set[str]] = field(factory=dict)

    def route(self, event: StoreEvent) -> None:
        """The servers hear of it now; what delays it for one of them is that one's face."""
        for server in self._servers_of(event):
            if on_event := self.servers.get(server or ""):
                on_event(event)

    def _servers_of(self, event: StoreEvent) -> set[str | None]:
        match event.what:
            case WaiterGranted(owner=owner) | HolderLost(owner=owner) | Moved(owner=owner):
                return {server_of(owner)}
            case Contended(owners=owners):
                return {server_of(owner) for owner in owners}
            case Changed():
                return {*self.watched.get(event.name, ())}


@define(eq=False)
class Face(FlakyStore):
    """The shared store as one server sees it. What it does, it does in that server's name.

    A grant that another server's call made lasts only as long as this one's word: it is renewed
    before anybody here is told of it.
    """

    routes: Routes = field(kw_only=True)
    server: str = field(kw_only=True)

    def __attrs_post_init__(self) -> None:
        self.inner = self.routes.store

    async def _run_inner(
        self, on_event: Callable[[StoreEvent], None], *, task_status: trio.TaskStatus[None]
    ) -> None:
        async def confirm(name: str, granted: WaiterGranted) -> None:
            (answer,) = await self._renew([Renewal(name, granted.lease)])
            if isinstance(answer, Renewed):
                grant = evolve(granted.grant, ttl_ms=answer.ttl_ms)
                on_event(StoreEvent(name, evolve(granted, grant=grant)))

        async with trio.open_nursery() as nursery:

            def tell(event: StoreEvent) -> None:
                if isinstance(event.what, WaiterGranted) and self._is_short(event.name, event.what):
                    nursery.start_soon(confirm, event.name, event.what)
                else:
                    on_event(event)

            self.routes.servers[self.server] = tell
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self.routes.servers.pop(self.server, None)

    def _is_short(self, name: str, granted: WaiterGranted) -> bool:
        claim = self.inner._locks[name]._holders[granted.lease].claim
        full_ms = min(claim.ttl_ms, claim.max_hold_ms or claim.ttl_ms)
        return granted.grant.ttl_ms < full_ms

    async def _renew(self, renewals: Sequence[Renewal]) -> Sequence[Renewed | Missing]:
        def renew(each: Renewal) -> Renewed | Missing:
            return self.inner._step(
                each.name,
                lambda lock, now: lock.renew(each.lease, each.ttl_ms, now=now, by=self.server),
            )

        return [renew(each) for each in renewals]

    async def _release(self, name: str, lease: str, only_of: str | None) -> Left:
        return self.inner._step(
            name,
            lambda lock, now: lock.release(lease, now=now, by=self.server, only_of=only_of),
        )

    async def _touch(self, waiters: Sequence[Key], alive_ms: int) -> Sequence[bool]:
        def touch(name: str, lease: str) -> bool:
            return self.inner._step(
                name, lambda lock, now: lock.touch(lease, alive_ms, now=now, by=self.server)
            )

        return [touch(name, lease) for name, lease in waiters]

    async def _break(self, name: str, detail: str | None) -> int:
        return self.inner._step(
            name, lambda lock, now: lock.break_(detail, now=now, by=self.server)
        )

    async def watch(self, name: str) -> None:
        self.routes.watched.setdefault(name, set()).add(self.server)
        await super().watch(name)

    def unwatch(self, name: str) -> None:
        watching = self.routes.watched.get(name, set())
        watching.discard(self.server)
        if not watching:
            super().unwatch(name)


@define(eq=False)
class Side:
    """One of two servers: its world, its view of the store, and how to kill it."""

    world: World
    store: Face
    scope: trio.CancelScope

    def die(self) -> None:
        """The process ends without a word; its clients' connections with it."""
        self.store.routes.servers.pop(self.store.server, None)
        self.scope.cancel()


@asynccontextmanager
async def two_servers(limits: Limits | None = None) -> AsyncIterator[tuple[Side, Side]]:
    """Two running keepers, "a" and "b", on one store."""
    routes = Routes()
    async with trio.open_nursery() as nursery:
        await nursery.start(routes.store.run, routes.route)
        sides = []
        for server in ("a", "b"):
            face = Face(routes=routes, server=server)
            keeper = Keeper(face, limits or Limits(), server)
            sides.append(await nursery.start(_run_side, keeper, face))
        yield sides[0], sides[1]
        nursery.cancel_scope.cancel()


async def _run_side(keeper: Keeper, face: Face, *, task_status: trio.TaskStatus[Side]) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.run)
            task_status.started(Side(World(keeper, nursery), face, scope))
