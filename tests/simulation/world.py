"""The simulated world: a store, one or two whole servers over it, a network, and time."""

import hashlib
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Final

import trio
from attrs import define, field

from leasekeeper.messages import Key
from leasekeeper.server.app import Server
from leasekeeper.server.config import ServerConfig
from leasekeeper.service.keeper import Keeper
from tests.simulation.chance import InOrder, seed_keeper, wall_us
from tests.simulation.database import Database
from tests.simulation.laws import Beliefs, Violation, Witness
from tests.simulation.stores import SimFace, SimRoutes, SimStore, Weather, WitnessedStore
from tests.simulation.wires import End, Network

Trace = Callable[..., None]

SETTLED_S: Final = 120.0
"""After the weather has cleared everybody who waits must have been granted within this time."""
LEFT_S: Final = 8.0
"""So long after everybody has left nothing may be left of them."""
FORGOTTEN_S: Final = 40.0
"""The same, where a server has gone that could have released something."""


@define(eq=False)
class Running:
    """One server."""

    host: str
    server: Server
    store: SimStore | SimFace
    connections: trio.Nursery
    scope: trio.CancelScope


@define(eq=False)
class World:
    """See the module."""

    seed: str
    nursery: trio.Nursery
    tell: Trace | None = None
    """Told of everything, if somebody wants to know."""
    chance: Random = field(init=False)
    counts: Counter[str] = field(factory=Counter)
    faults: Counter[str] = field(factory=Counter)
    network: Network = field(init=False)
    beliefs: Beliefs = field(init=False)
    witness: Witness = field(init=False)
    database: Database = field(init=False)
    weather: Weather = field(init=False)
    store: WitnessedStore = field(init=False)
    routes: SimRoutes | None = field(default=None, init=False)
    running: dict[str, Running] = field(factory=dict, init=False)
    stopping: bool = field(default=False, init=False)
    restarts: int = field(default=0, init=False)
    trace: "hashlib._Hash" = field(factory=hashlib.sha256, init=False)
    """Of everything that was sent, and when."""

    def __attrs_post_init__(self) -> None:
        chance = self.chance = Random(f"{self.seed}/world")
        self.beliefs = Beliefs(self.counts)
        self.witness = Witness(self.beliefs, self.counts)
        self.database = Database(self.counts)
        self.store = WitnessedStore(wall=wall_us, witness=self.witness)
        severity = chance.choice([0.0, 0.02, 0.1, 0.3])
        self.weather = Weather(
            Random(f"{self.seed}/weather"), 2 * severity, severity / 2, self.faults
        )
        self.network = Network(
            Random(f"{self.seed}/network"), self.nursery, self.faults, self.record
        )
        self.network.bad = chance.random() < 0.8
        if chance.random() < 0.6:
            self.routes = SimRoutes(self.store)

    # --- What is seen -------------------------------------------------------------------------

    def log(self, *what: object) -> None:
        """For those who want to know."""
        if self.tell is not None:
            self.tell(f"{trio.current_time():10.4f}", *what)

    def record(self, where: str, data: bytes) -> None:
        """Something was sent."""
        self.counts["messages"] += 1
        self.trace.update(f"{trio.current_time()!r} {where} ".encode())
        self.trace.update(data)

    # --- Servers ------------------------------------------------------------------------------

    async def start(self) -> None:
        """Starts the store, if it is shared, and the servers."""
        hosts = ["a"]
        if self.routes is not None:
            await self.nursery.start(self.store.run, self.routes.hand)
            hosts = ["a", "b"]
        for host in hosts:
            await self.nursery.start(self._serve, host)
            if self.routes is not None:
                self.nursery.start_soon(self._come_and_go, host)
        self.nursery.start_soon(self._look)

    async def _serve(
        self, host: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        store = self._store_for(host)
        server_id = store.server if isinstance(store, SimFace) else "e"
        keeper = Keeper(store, server=server_id)
        seed_keeper(keeper, f"{self.seed}/{server_id}")
        server = Server(ServerConfig(), keeper)
        server.connections = InOrder()
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.run)
            async with trio.open_nursery() as connections:
                running = Running(host, server, store, connections, nursery.cancel_scope)
                self.running[host] = running
                self.network.servers[host] = self._accept(running)
                task_status.started()
                await trio.sleep_forever()

    def _store_for(self, host: str) -> SimStore | SimFace:
        bad = None if self.stopping else self.weather
        if self.routes is None:
            return SimStore(self.store, bad=bad)
        self.restarts += 1
        return SimFace(routes=self.routes, server=f"{host}{self.restarts}", bad=bad)

    @staticmethod
    def _accept(running: Running) -> Callable[[End], None]:
        def accept(end: End) -> None:
            running.connections.start_soon(running.server.serve_stream, end)

        return accept

    async def _come_and_go(self, host: str) -> None:
        chance = Random(f"{self.seed}/{host}")
        if chance.random() < 0.4:
            return
        while True:
            await trio.sleep(chance.uniform(5, 60))
            if self.stopping:
                return
            running = self.running[host]
            fault = "kill" if chance.random() < 0.3 else "drain"
            self.faults[f"server {fault}"] += 1
            self.log("server", host, fault)
            if fault == "drain":
                await running.server.drain()
            self._end(running)
            await trio.sleep(chance.choice([0, 0.5, 3]))
            await self.nursery.start(self._serve, host)

    def _end(self, running: Running) -> None:
        del self.network.servers[running.host], self.running[running.host]
        if isinstance(running.store, SimFace):
            assert self.routes is not None
            self.routes.servers.pop(running.store.server, None)
            self.routes.hears_of_keys.pop(running.store.server, None)
            for watching in self.routes.watched.values():
                watching.discard(running.store.server)
        running.scope.cancel()

    async def _look(self) -> None:
        """L5: what is overdue."""
        while True:
            await trio.sleep(1)
            if Violation.seen:
                raise Violation.seen[0]
            now_ms = int(trio.current_time() * 1000)
            for name, lock in self.store._locks.items():
                self.witness.overdue(name, lock, now_ms)

    # --- The end ------------------------------------------------------------------------------

    def heal(self) -> None:
        """Everything works again, and nobody begins anything new."""
        self.log("healed")
        self.stopping = True
        self.network.heal()
        for running in self.running.values():
            running.store.bad = None

    async def check_left(self) -> None:
        """Everybody has left: nothing is left of them (L9)."""
        gone = bool(self.faults["server kill"] or self.faults["server drain"])
        await trio.sleep(FORGOTTEN_S if gone else LEFT_S)
        if not self._some_left(but=self.store.unheard):
            await trio.sleep(FORGOTTEN_S)
        for name, lock in self.store._locks.items():
            those = f"{list(lock._holders)} hold, {list(lock._queue)} wait"
            raise Violation("L9", f"{name}: {those} when everybody has left")
        for running in self.running.values():
            keeper = running.server.keeper
            left = {
                "tenures": len(keeper.leases.tenures),
                "sessions": len(keeper.sessions),
                "to be given back": len(keeper.leases.unwanted),
                "turns": len(keeper.leases._turns._queues),
                "connections": len(running.connections.child_tasks),
                "watched": len(keeper._watchers),
            }
            if any(left.values()):
                raise Violation("L9", f"server {running.host} has still {left}")

    def _some_left(self, but: set[Key]) -> bool:
        """Whether anything else is left."""
        left = {
            (name, lease)
            for name, lock in self.store._locks.items()
            for lease in (*lock._holders, *lock._queue)
        }
        return bool(left - but)
