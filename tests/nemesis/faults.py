"""What the nemesis can do, each kind with the laws that it excuses: as few as is honest.

A kind is a context manager: it chooses its victim, announces it (so that the history has the fault
before anybody can feel it), strikes, and at the end of the block undoes what it did. The block is
as long as the fault lasts. Undoing includes the restart of what was killed.
"""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final, TypeAlias

from attrs import define, field, frozen
from redis.exceptions import ResponseError

from tests.nemesis.fleet import Client, Fleet, Server
from tests.nemesis.history import Scribe
from tests.nemesis.stores import TOPOLOGIES
from tests.proxy import RunningProxy, Way
from tests.redis_groups import MASTER_NAME
from tests.redises import RedisFailed, RunningRedis

STEP_MS: Final = 60_000
DELAYS_MS: Final = (20, 100, 400)
TRIES: Final = 20

Strike: TypeAlias = Callable[["Stage"], AbstractContextManager[None]]


@frozen
class Kind:
    """A kind of fault."""

    name: str
    layer: str
    """Two faults at a time are of two layers."""
    strike: Strike
    topologies: tuple[str, ...] = TOPOLOGIES
    excuses: tuple[str, ...] = ()
    excuses_embedded: tuple[str, ...] = ()
    """Where the server is the store, what ends with it."""
    loses_data: bool = False
    hides_store: bool = False
    """No server that starts finds it, as long as this lasts."""
    starts_servers: bool = False
    seconds: tuple[float, float] = (1.0, 8.0)

    def excused(self, topology: str) -> list[str]:
        """Which checks it may break there."""
        return list(self.excuses_embedded if topology == "embedded" else self.excuses)


@define(eq=False)
class Stage:
    """What a kind needs: whom to strike, chance, and where to write it down."""

    fleet: Fleet
    scribe: Scribe
    random: random.Random
    kind: Kind
    targets: list[str] = field(factory=list)

    def announce(self, target: str, *, excuses_nothing: bool = False) -> None:
        """It begins, with this victim. Called before anything is done."""
        self.targets.append(target)
        excuses = [] if excuses_nothing else self.kind.excused(self.fleet.shape.topology)
        self._say(target, "begin", excuses)

    def over(self) -> None:
        """It has ended, and nothing of it is left."""
        for target in self.targets:
            self._say(target, "end", [])

    def _say(self, target: str, phase: str, excuses: list[str]) -> None:
        kind = self.kind.name
        self.scribe.event("fault", fault=kind, target=target, phase=phase, excuses=excuses)

    def server(self) -> Server:
        """Some server."""
        return self.random.choice(self.fleet.servers)

    def client(self) -> Client:
        """Some client; if possible one that is in the middle of a change."""
        names = self.fleet.ask("readers")["processes"]
        busy = [client for client in self.fleet.clients if client.name in names]
        return self.random.choice(busy or self.fleet.clients)

    def master(self) -> RunningRedis:
        """Some Redis that has data first."""
        return self.random.choice(self.fleet.store.masters())

    def single(self) -> RunningRedis:
        """The only Redis."""
        assert self.fleet.store.single is not None
        return self.fleet.store.single


# --- Processes ------------------------------------------------------------------------------------


@contextlib.contextmanager
def pause_client(stage: Stage) -> Iterator[None]:
    """Stops it, in the middle of a change if one is to be found there."""
    for _ in range(TRIES):
        client = stage.client()
        stage.announce(client.name)
        client.process.pause()
        if client.name in stage.fleet.ask("readers")["processes"]:
            break
        client.process.resume()
        stage.over()
        stage.targets.clear()
        time.sleep(0.1)
    else:
        client = stage.client()
        stage.announce(client.name)
        client.process.pause()
    try:
        yield
    finally:
        client.process.resume()


@contextlib.contextmanager
def kill_client(stage: Stage) -> Iterator[None]:
    """For good; another takes its place."""
    client = stage.client()
    stage.announce(client.name)
    client.process.kill()
    yield
    client.live()
    client.process.await_greeting()


@contextlib.contextmanager
def pause_server(stage: Stage) -> Iterator[None]:
    server = stage.server()
    stage.announce(server.process.name)
    server.process.pause()
    try:
        yield
    finally:
        server.process.resume()


@contextlib.contextmanager
def kill_server(stage: Stage) -> Iterator[None]:
    server = stage.server()
    stage.announce(server.process.name)
    server.process.kill()
    yield
    server.process.start()


@contextlib.contextmanager
def drain_server(stage: Stage) -> Iterator[None]:
    server = stage.server()
    stage.announce(server.process.name)
    server.process.drain()
    yield
    server.process.start()


@contextlib.contextmanager
def rolling_restart(stage: Stage) -> Iterator[None]:
    """Drains and restarts one server after the other."""
    stage.announce("all servers")
    for server in stage.fleet.servers:
        server.process.drain()
        server.process.start()
    yield


# --- Lines ----------------------------------------------------------------------------------------


def bad_line(
    spoil: Callable[[RunningProxy, random.Random], None], *, to_redis: bool, cut: bool = False
) -> Strike:
    """A fault of the line on one side of a server; `cut` if connections are in disorder then."""

    @contextlib.contextmanager
    def strike(stage: Stage) -> Iterator[None]:
        server = stage.server()
        line = server.to_redis if to_redis else server.to_clients
        assert line is not None
        stage.announce(server.process.name)
        spoil(line, stage.random)
        try:
            yield
        finally:
            if cut:
                line.cut()
            line.heal()

    return strike


def delayed(line: RunningProxy, chance: random.Random) -> None:
    line.delay(chance.choice(DELAYS_MS))


def cut_off(line: RunningProxy, chance: random.Random) -> None:
    line.cut()


def refused(line: RunningProxy, chance: random.Random) -> None:
    line.refuse()
    line.cut()


def unanswered(line: RunningProxy, chance: random.Random) -> None:
    line.drop_replies()


def one_way(line: RunningProxy, chance: random.Random) -> None:
    line.one_way(chance.choice((Way.TO_REDIS, Way.TO_CLIENT)))


def half_open(line: RunningProxy, chance: random.Random) -> None:
    line.half_open()


def bad_lines() -> Iterator[Kind]:
    """All faults of lines: to clients in every topology, to Redis where it is one."""
    for name, spoil, cut in (
        ("delay", delayed, False),
        ("cut", cut_off, False),
        ("refuse", refused, False),
        ("drop_replies", unanswered, True),
        ("one_way", one_way, False),
        ("half_open", half_open, False),
    ):
        yield Kind(f"client_{name}", "lines", bad_line(spoil, to_redis=False, cut=cut))
        strike = bad_line(spoil, to_redis=True, cut=cut)
        yield Kind(f"redis_{name}", "links", strike, topologies=("single",), hides_store=True)


# --- Redis ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def pause_redis(stage: Stage) -> Iterator[None]:
    """A master is silent. Where it has replicas, and is for long, one of them takes over."""
    redis = stage.master()
    stage.announce(redis.address)
    redis.pause()
    try:
        yield
    finally:
        redis.resume()


@contextlib.contextmanager
def kill_redis(stage: Stage) -> Iterator[None]:
    """A master is dead for a while, and comes back with all that it acknowledged."""
    redis = stage.master()
    stage.announce(redis.address)
    redis.kill()
    try:
        yield
    finally:
        redis.start()


@contextlib.contextmanager
def empty_redis(stage: Stage) -> Iterator[None]:
    """It dies, and comes back with nothing."""
    redis = stage.single()
    stage.announce(redis.address)
    redis.kill()
    for file in (redis.directory / "appendonlydir").glob("*"):
        file.unlink()
    try:
        yield
    finally:
        redis.start()


@contextlib.contextmanager
def flushall(stage: Stage) -> Iterator[None]:
    """All data are gone, of all masters, and nobody is told but those who listen."""
    stage.announce("all masters")
    for redis in stage.fleet.store.masters():
        redis.cli("FLUSHALL")
    yield


@contextlib.contextmanager
def cut_redis(stage: Stage) -> Iterator[None]:
    """Every connection of the servers to a master ends, as Redis itself ends them."""
    redis = stage.master()
    stage.announce(redis.address)
    for kind in ("normal", "pubsub"):
        redis.cli("CLIENT", "KILL", "TYPE", kind)
    yield


@contextlib.contextmanager
def clock_forward(stage: Stage) -> Iterator[None]:
    """The clock of Redis is set forwards, and stays so."""
    stage.announce(f"+{STEP_MS} ms")
    stage.single().step_clock(STEP_MS)
    yield


@contextlib.contextmanager
def clock_back(stage: Stage) -> Iterator[None]:
    """The clock of Redis is set back, which breaks nothing; and later right again, which ends
    leases early as any step forwards."""
    stage.announce(f"-{STEP_MS} ms", excuses_nothing=True)
    stage.single().step_clock(-STEP_MS)
    try:
        yield
    finally:
        stage.announce(f"+{STEP_MS} ms")
        stage.single().step_clock(STEP_MS)


@contextlib.contextmanager
def evict(stage: Stage) -> Iterator[None]:
    """Redis may throw away what it likes; it has memory enough not to."""
    redis = stage.master()
    stage.announce(redis.address)
    redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        yield
    finally:
        redis.cli("CONFIG", "SET", "maxmemory-policy", "noeviction")


@contextlib.contextmanager
def failover(stage: Stage) -> Iterator[None]:
    """A replica takes over while its master lives, because it was told to."""
    store = stage.fleet.store
    master = stage.master()
    stage.announce(master.address)
    # There may be no replica that is ready, or sentinels may give up; then this fault is none.
    with contextlib.suppress(ResponseError, RedisFailed):
        if store.replicated is not None:
            sentinel = stage.random.choice(store.replicated.sentinels)
            sentinel.cli("SENTINEL", "FAILOVER", MASTER_NAME)
            store.replicated.wait_until_promoted(master)
        elif store.cluster is not None:
            replica_of(master, store.redises).cli("CLUSTER", "FAILOVER")
    yield


def replica_of(master: RunningRedis, redises: list[RunningRedis]) -> RunningRedis:
    """Its replica, as that sees it.

    Raises:
        ResponseError: It has none.
    """
    for each in redises:
        if each.alive and each is not master:
            said = each.info("replication")
            if said["role"] == "slave" and said["master_port"] == str(master.port):
                return each
    raise ResponseError(f"{master.address} has no replica")


# --- All of them ----------------------------------------------------------------------------------

# What a master acknowledged and no replica has is lost with the master: the leases that stand
# beside those are named in the specification (redis-layout, 8), and so are queued writes.
_FAILOVER: Final = ("exclusion", "writes")
_REPLICATED: Final = ("sentinel", "cluster")
# A server with the embedded store takes with it what it has: leases of which the holders hear
# nothing if it is killed, and queued writes, for which it has to be told that they may be lost.
_KILLED: Final = ("exclusion", "writes")

KINDS: Final = (
    Kind("pause_client", "clients", pause_client, seconds=(1.0, 8.0)),
    Kind("kill_client", "clients", kill_client, seconds=(0.0, 3.0)),
    Kind("pause_server", "servers", pause_server),
    Kind(
        "kill_server",
        "servers",
        kill_server,
        excuses_embedded=_KILLED,
        starts_servers=True,
        seconds=(0.0, 6.0),
    ),
    Kind(
        "drain_server",
        "servers",
        drain_server,
        excuses_embedded=("writes",),
        starts_servers=True,
        seconds=(0.0, 5.0),
    ),
    Kind(
        "rolling_restart",
        "servers",
        rolling_restart,
        excuses_embedded=("writes",),
        starts_servers=True,
        seconds=(0.0, 0.0),
    ),
    *bad_lines(),
    Kind("pause_redis", "store", pause_redis, topologies=("single",), hides_store=True),
    Kind("kill_redis", "store", kill_redis, topologies=("single",), hides_store=True),
    Kind("pause_master", "store", pause_redis, topologies=_REPLICATED, excuses=_FAILOVER),
    Kind("kill_master", "store", kill_redis, topologies=_REPLICATED, excuses=_FAILOVER),
    Kind("failover", "store", failover, topologies=_REPLICATED, excuses=_FAILOVER),
    Kind(
        "empty_redis",
        "store",
        empty_redis,
        topologies=("single",),
        excuses=("writes",),
        loses_data=True,
        hides_store=True,
    ),
    Kind(
        "flushall",
        "store",
        flushall,
        topologies=("single", *_REPLICATED),
        excuses=("writes",),
        loses_data=True,
        seconds=(0.0, 1.0),
    ),
    Kind("cut_redis", "store", cut_redis, topologies=("single", *_REPLICATED), seconds=(0.0, 1.0)),
    # Leases end early by the store's clock, and their holders hear of it when they next renew.
    Kind("clock_forward", "clock", clock_forward, topologies=("single",), excuses=("exclusion",)),
    Kind("clock_back", "clock", clock_back, topologies=("single",), excuses=("exclusion",)),
    Kind("evict", "store", evict, topologies=("single", *_REPLICATED)),
)
LEFT_OUT: Final = (
    "network namespaces: lines are spoilt by proxies instead",
    "slow disk: nothing here slows a disk without slowing the machine",
    "proxies to Redis under Sentinel and in a Cluster: servers find the nodes by themselves",
)


def kinds_for(topology: str, wanted: tuple[str, ...], *, skewed: bool) -> list[Kind]:
    """The kinds that there are for a topology, and of those the wanted ones, if any are named.

    Raises:
        ValueError: One is named that there is not.
    """
    here = [
        each for each in KINDS if topology in each.topologies and (skewed or each.layer != "clock")
    ]
    unknown = {*wanted} - {each.name for each in here}
    if unknown:
        raise ValueError(f"no such faults for {topology}: {', '.join(sorted(unknown))}")
    return [each for each in here if not wanted or each.name in wanted]
