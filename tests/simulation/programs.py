"""Programs that use the Python client, in a simulated world."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from ssl import SSLContext
from typing import Any, Final

import trio
import trio.lowlevel
from attrs import define, field
from leasekeeper_client import (
    Busy,
    Keeper,
    KeeperError,
    Lease,
    LeaseOptions,
    LeaseSet,
    _websocket,
    connect,
)
from leasekeeper_client.errors import ConnectionFailed

from tests.simulation.database import KEYS, TAGS
from tests.simulation.holders import LIMIT, NAMES
from tests.simulation.laws import Belief, Violation
from tests.simulation.peers import Actor
from tests.simulation.wires import AnyioEnd, Link

PROGRAM: Final[ContextVar["Program"]] = ContextVar("program")


@contextmanager
def dialled() -> Iterator[None]:
    """Within it, the client library dials in the simulated network."""
    before = _websocket._dial

    async def dial(address: _websocket.Address, ssl_context: SSLContext | None) -> Any:  # noqa: ANN401 # enough of a stream
        del ssl_context
        return PROGRAM.get().dial(address.uri.host)

    _websocket._dial = dial
    try:
        yield
    finally:
        _websocket._dial = before


@define(eq=False)
class Program(Actor):
    """One process after the other; each may be killed in any state."""

    links: list[Link] = field(factory=list, init=False)
    dead: bool = field(default=False, init=False)
    beliefs: list[Belief] = field(factory=list, init=False)

    def dial(self, host: str) -> AnyioEnd:
        """For the library."""
        if self.dead:
            raise ConnectionFailed("the dead do not dial")
        try:
            link, end = self.world.network.dial(host)
        except OSError as exc:
            raise ConnectionFailed("nobody listens") from exc
        self.links.append(link)
        self.count("connections")
        return AnyioEnd(end)

    async def run(self) -> None:
        """Until the world stops."""
        PROGRAM.set(self)
        while not self.world.stopping:
            self.dead, self.links = False, []
            async with trio.open_nursery() as nursery:
                if self.world.network.bad and self.chance.random() < 0.5:
                    nursery.start_soon(self.die, nursery.cancel_scope)
                try:
                    await self.process()
                except (KeeperError, TimeoutError) as error:
                    self.count(f"process ended by {type(error).__name__}")
                nursery.cancel_scope.cancel()
            await trio.sleep(self.chance.choice([0.1, 1]))

    async def die(self, scope: trio.CancelScope) -> None:
        """The process is killed."""
        await trio.sleep(self.chance.uniform(0, 40))
        if self.world.stopping:
            return
        self.log("is killed")
        self.world.faults["client killed"] += 1
        self.dead = True
        for belief in self.beliefs:
            self.world.beliefs.stop(belief.name, belief.lease, belief.fence)
        for link in self.links:
            link.cut()
        scope.cancel()

    async def process(self) -> None:
        """One life."""
        order = self.chance.sample(self.hosts, len(self.hosts))
        urls = [f"ws://{host}:1" for host in order]
        async with (
            connect(urls, client=self.name, clock=trio.current_time) as keeper,
            trio.open_nursery() as nursery,
        ):
            for _ in range(2):
                nursery.start_soon(self.task, keeper)

    async def task(self, keeper: Keeper) -> None:
        """Of a process there are several."""
        while not self.world.stopping:
            try:
                with trio.move_on_after(self.chance.choice([0.3, 5, 40, 1_000])) as scope:
                    await self.cycle(keeper)
                if scope.cancelled_caught:
                    self.count("cancelled")
            except Busy:
                self.count("busy")
            except (KeeperError, LoadError) as error:
                self.count(type(error).__name__)
                if isinstance(error, ConnectionFailed):
                    await trio.sleep(0.5)
            await trio.sleep(self.chance.choice([0, 0.1, 1, 3]))

    async def cycle(self, keeper: Keeper) -> None:
        """Does one thing."""
        if self.chance.random() < 0.5:
            await self.lock(keeper)
        else:
            await self.look(keeper)

    # --- Leases -------------------------------------------------------------------------------

    async def lock(self, keeper: Keeper) -> None:
        """Holds a lease, or several, for a while."""
        name, chance = self.chance.choice(NAMES), self.chance
        options: LeaseOptions = {
            "ttl": chance.choice([0.5, 3, 20]),
            "wait": chance.choice([0, 0.5, 10, None]),
        }
        match chance.choice(["lease", "lease", "shared", "semaphore", "lease_all", "inspect"]):
            case "lease":
                async with keeper.lease(name, **options) as lease:
                    await self.hold([lease])
            case "shared":
                async with keeper.shared(name, **options) as lease:
                    await self.hold([lease], shared=True)
            case "semaphore":
                async with keeper.semaphore(name, LIMIT, **options) as lease:
                    await self.hold([lease], shared=True, limit=LIMIT)
            case "lease_all":
                names = chance.sample(NAMES, 2)
                leases: LeaseSet
                async with keeper.lease_all(names, **options) as leases:
                    await self.hold(list(leases.values()))
            case _:
                await keeper.inspect(name)

    async def hold(
        self, leases: list[Lease], *, shared: bool = False, limit: int | None = None
    ) -> None:
        """The body of the context: acts on what it holds."""
        with self.believing(leases, shared, limit):
            until = trio.current_time() + self.chance.choice([0, 0.3, 3, 12])
            while trio.current_time() < until and not self.world.stopping:
                await trio.sleep(0.5)
                if any(lease.lost for lease in leases):
                    await trio.lowlevel.checkpoint()
                    raise Violation("L3", f"{leases[0].name} is lost, and its body goes on")
                if self.chance.random() < 0.05:
                    await leases[0].renew()

    @contextmanager
    def believing(self, leases: list[Lease], shared: bool, limit: int | None) -> Iterator[None]:
        """Within it, it believes in these."""
        made = [self.belief(lease, shared, limit) for lease in leases]
        self.beliefs += made
        try:
            for belief in made:
                self.count("leases held")
                self.world.beliefs.begin(belief)
            yield
        finally:
            for belief in made:
                self.beliefs.remove(belief)
                self.world.beliefs.end(belief.name, belief.lease)

    @staticmethod
    def belief(lease: Lease, shared: bool, limit: int | None) -> Belief:
        """As the library sees it."""
        name, lease_id = lease.name, lease._hold.lease_id
        return Belief(name, lease_id, lease.fence, lambda: not lease.lost, shared, limit)

    # --- The cache ----------------------------------------------------------------------------

    async def look(self, keeper: Keeper) -> None:
        """Reads or writes something that is cached."""
        key, tag = self.chance.choice(KEYS), self.chance.choice(TAGS)
        match self.chance.choice(["read"] * 6 + ["write", "write", "tag", "through"]):
            case "read":
                await self.read(keeper, key)
            case "write":
                version = self.world.database.write(key)
                await keeper.cache.invalidate(key)
                self.world.database.announce(key, version)
            case "tag":
                version = self.world.database.write(tag)
                await keeper.cache.invalidate(tags=[tag])
                self.world.database.announce(tag, version)
            case _:
                await self.write_through(keeper, key)

    async def read(self, keeper: Keeper, key: str) -> None:
        """A value that is loaded if it has to be."""
        rows = (key, TAGS[KEYS.index(key)])
        floor = self.world.database.floor(rows)

        async def load() -> list[int]:
            early = self.chance.random() < 0.7
            found = self.world.database.read(rows)
            await trio.sleep(self.chance.choice([0, 0.02, 0.5, 3, 12]))
            if self.chance.random() < 0.1:
                raise LoadError
            return found if early else self.world.database.read(rows)

        got = await keeper.cache.get_or_fill(
            key,
            load,
            ttl=self.chance.choice([0.5, 5, 30]),
            stale=self.chance.choice([0, 2]),
            tags=rows[1:],
            wait=self.chance.choice([0, 2, 15]),
            fill=self.chance.choice([1, 5]),
        )
        self.log("read", key, got, floor)
        self.world.database.judge(key, got, floor)

    async def write_through(self, keeper: Keeper, key: str) -> None:
        """A change that nobody reads around."""
        database, rows = self.world.database, (key, TAGS[KEYS.index(key)])
        async with keeper.cache.write_through(key, ttl=self.chance.choice([1, 5])) as write:
            await trio.sleep(self.chance.choice([0, 0.1, 2]))
            write.ensure()
            version = database.write(key)
            if self.chance.random() < 0.5:
                write.set([version, database.rows[rows[1]]], ttl=10, tags=rows[1:])
        database.announce(key, version)


class LoadError(Exception):
    """The source does not answer."""
