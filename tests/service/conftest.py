"""A keeper on the embedded store and a virtual clock, and clients without sockets."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import TypeVar

import pytest
import trio
import trio.testing
from attrs import define, field
from trio.testing import MockClock

from leasekeeper.errors import RpcError
from leasekeeper.messages import (
    LeaseAcquire,
    LeaseGrant,
    Liveness,
    Notification,
    Params,
    Result,
)
from leasekeeper.service.keeper import Keeper
from leasekeeper.service.limits import Limits
from leasekeeper.service.session import Session
from leasekeeper.store.api import Store
from leasekeeper.store.memory import MemoryStore

R = TypeVar("R")


@define(eq=False)
class Client:
    """A session as a connection would drive it. While `alive`, a ping is answered at once."""

    keeper: Keeper
    alive: bool = True
    session: Session = field(init=False)
    told: list[Notification] = field(factory=list)
    pings: int = 0

    def __attrs_post_init__(self) -> None:
        self.session = self.keeper.attach(self.told.append, self._ping)

    def _ping(self) -> None:
        self.pings += 1
        if self.alive:
            self.keeper.alive(self.session)

    def with_heartbeats(self) -> "Client":
        """Only heartbeats count as a sign of life."""
        self.session.liveness = Liveness.HEARTBEAT
        return self

    async def ask(self, params: Params, expect: type[R]) -> R:
        """Carries out a request whose result is of this type."""
        result = await self.keeper.handle(self.session, params)
        assert isinstance(result, expect)
        return result

    async def acquire(self, name: str, **fields: object) -> LeaseGrant:
        """`lease.acquire`."""
        return await self.ask(LeaseAcquire(name, **fields), LeaseGrant)  # type: ignore[arg-type]

    def drop(self) -> None:
        """The connection is gone."""
        self.keeper.detach(self.session, clean=False)

    def close(self) -> None:
        """The client closed its connection."""
        self.keeper.detach(self.session, clean=True)

    def heard(self, kind: type[R]) -> list[R]:
        """The notifications of this kind."""
        return [each for each in self.told if isinstance(each, kind)]


@define(eq=False)
class Pending:
    """A request under way in a task."""

    result: Result | None = None
    error: RpcError | None = None
    done: trio.Event = field(factory=trio.Event)
    scope: trio.CancelScope = field(factory=trio.CancelScope)

    @property
    def grant(self) -> LeaseGrant:
        """What it was granted."""
        assert isinstance(self.result, LeaseGrant), self
        return self.result


Start = Callable[[Client, Params], Pending]


@define(eq=False)
class World:
    """A keeper that runs, and the nursery for requests."""

    keeper: Keeper
    nursery: trio.Nursery

    def client(self) -> Client:
        """A new client."""
        return Client(self.keeper)

    async def start(self, client: Client, params: Params) -> Pending:
        """Starts a request, and lets it run until it waits."""
        pending = Pending()
        self.nursery.start_soon(_carry_out, client, params, pending)
        await trio.testing.wait_all_tasks_blocked()
        return pending

    async def wait_for(self, client: Client, name: str, **fields: object) -> Pending:
        """Starts an acquire that waits for ever unless told otherwise."""
        ask = LeaseAcquire(name, **({"wait_ms": None} | fields))  # type: ignore[arg-type]
        return await self.start(client, ask)


async def _carry_out(client: Client, params: Params, pending: Pending) -> None:
    with pending.scope:
        try:
            pending.result = await client.keeper.handle(client.session, params)
        except RpcError as error:
            pending.error = error
    pending.done.set()


@asynccontextmanager
async def open_world(limits: Limits, store: Store | None = None) -> AsyncIterator[World]:
    """A running keeper with these limits. A test that does not name `clock` would wait for it."""
    assert isinstance(trio.lowlevel.current_clock(), MockClock), "the test must name `clock`"
    keeper = Keeper(store or MemoryStore(waiting_max=limits.waiters_per_name), limits)
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.run)
        yield World(keeper, nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture
def clock() -> MockClock:
    """Jumps ahead when nothing else is to do. A test that wants it must name it itself."""
    return MockClock(autojump_threshold=0)


@pytest.fixture
async def world(clock: MockClock) -> AsyncIterator[World]:
    """A running keeper on a clock that jumps ahead when nothing else is to do."""
    async with open_world(Limits()) as opened:
        yield opened


def new_lease() -> str:
    """A lease id as clients choose them."""
    return token_hex(16)
