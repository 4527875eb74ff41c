"""Private Redis servers that belong together: with replicas, under sentinels, as a cluster."""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, TypeVar

import attrs

from tests.redises import HOST, RedisFailed, RunningRedis, running_redis, until

T = TypeVar("T", RunningRedis, "RedisCluster")

MASTER_NAME: Final = "mymaster"
SLOTS: Final = 16384

# A replica is in step as soon as it has asked, instead of five seconds later.
REPLICATING: Final = ("--repl-diskless-sync-delay", "0")

# Sentinels find each other, and what became of their master, in tenths of seconds instead of
# seconds. On a busy machine they do not retire for half a minute because a timer was late. Their
# ping-period stays: they promote no replica that they last heard of five of those ago.
SENTINEL_PACE: Final = (
    *("info-period", 100),
    *("publish-period", 100),
    *("ask-period", 100),
    *("min-link-reconnect-period", 500),
    *("tilt-trigger", 10_000),
    *("tilt-period", 1_000),
)


@attrs.define(eq=False)
class ReplicatedRedis:
    """A master with replicas, and the sentinels that watch them, if any."""

    servers: list[RunningRedis]
    sentinels: list[RunningRedis]

    @property
    def url(self) -> str:
        """Of the sentinels; without sentinels, of the present master."""
        if not self.sentinels:
            return self.master().url
        password, sentinel_password = self.servers[0].password, self.sentinels[0].password
        credentials = "" if password is None else f":{password}@"
        query = "" if sentinel_password is None else f"?sentinel_password={sentinel_password}"
        hosts = ",".join(each.address for each in self.sentinels)
        return f"redis+sentinel://{credentials}{hosts}/{MASTER_NAME}{query}"

    def master(self) -> RunningRedis:
        """Whom the first living sentinel names; without sentinels, the first that says it is it."""
        if self.sentinels:
            sentinel = next(each for each in self.sentinels if each.alive)
            return self._named_by(sentinel)
        return next(each for each in self.servers if each.alive and is_master(each))

    def replicas(self) -> list[RunningRedis]:
        """The other living servers."""
        master = self.master()
        return [each for each in self.servers if each.alive and each is not master]

    def kill_master(self) -> RunningRedis:
        """Kills it; returns what was killed."""
        master = self.master()
        master.kill()
        return master

    def wait_until_promoted(self, instead_of: RunningRedis) -> RunningRedis:
        """Waits until all living sentinels name another master, and it is one.

        Raises:
            RedisFailed: If that takes too long.
        """

        def promoted() -> bool:
            named = {self._named_by(each) for each in self.sentinels if each.alive}
            return len(named) == 1 and instead_of not in named and is_master(*named)

        until(promoted, f"a replica is promoted instead of {instead_of.address}")
        return self.master()

    def promote(self, replica: RunningRedis) -> None:
        """Makes it a master, which the other living servers follow; what sentinels do, by hand."""
        replica.cli("REPLICAOF", "NO", "ONE")
        for each in self.servers:
            if each.alive and each is not replica:
                each.cli("REPLICAOF", HOST, replica.port)

    def _named_by(self, sentinel: RunningRedis) -> RunningRedis:
        named = sentinel.cli("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER_NAME)
        assert isinstance(named, list)
        return next(each for each in self.servers if str(each.port) == named[1])


def is_master(redis: RunningRedis) -> bool:
    """What it thinks of itself."""
    return redis.info("replication")["role"] == "master"


def in_step(replica: RunningRedis) -> bool:
    """Whether it has its master's data."""
    return replica.info("replication").get("master_link_status") == "up"


@contextlib.contextmanager
def running_replicas(
    replicas: int = 1,
    *,
    sentinels: int = 0,
    quorum: int = 2,
    down_after_ms: int = 500,
    failover_timeout_ms: int = 1000,
    options: Sequence[str] = (),
    password: str | None = None,
    sentinel_password: str | None = None,
) -> Iterator[ReplicatedRedis]:
    """A master, replicas in step with it, and sentinels that know each other and all of them.

    Args:
        replicas: How many.
        sentinels: How many.
        quorum: How many sentinels have to miss the master.
        down_after_ms: For how long they have to.
        failover_timeout_ms: After twice this, sentinels that could not agree try again.
        options: For the master and the replicas, as of `running_redis`.
        password: Of the master and the replicas.
        sentinel_password: Of the sentinels.

    Raises:
        RedisFailed: If they do not come together in time.
    """
    with contextlib.ExitStack() as stack:

        def start(config: str) -> RunningRedis:
            return stack.enter_context(
                running_redis(options=(*REPLICATING, *options), config=config, password=password)
            )

        def watch() -> RunningRedis:
            return stack.enter_context(
                running_redis(options=("--sentinel",), config=config, password=sentinel_password)
            )

        master = start("")
        # In the file, and not among the options, so that Redis itself may change it.
        servers = [master, *(start(f"replicaof {HOST} {master.port}\n") for _ in range(replicas))]
        until(lambda: all(map(in_step, servers[1:])), "the replicas are in step")
        config = (
            f"sentinel monitor {MASTER_NAME} {HOST} {master.port} {quorum}\n"
            f"sentinel down-after-milliseconds {MASTER_NAME} {down_after_ms}\n"
            f"sentinel failover-timeout {MASTER_NAME} {failover_timeout_ms}\n"
        )
        if password is not None:
            config += f"sentinel auth-pass {MASTER_NAME} {password}\n"
        if sentinel_password is not None:
            config += f"sentinel sentinel-pass {sentinel_password}\n"
        watching = [watch() for _ in range(sentinels)]
        for each in watching:
            each.cli("SENTINEL", "DEBUG", *SENTINEL_PACE)
        until(
            lambda: all(knows(each, replicas, sentinels - 1) for each in watching),
            "the sentinels know each other and the replicas",
        )
        yield ReplicatedRedis(servers, watching)


def knows(sentinel: RunningRedis, replicas: int, sentinels: int) -> bool:
    """Whether it has found that many."""
    said = sentinel.cli("SENTINEL", "MASTER", MASTER_NAME)
    assert isinstance(said, list)
    facts = dict(zip(said[::2], said[1::2], strict=True))
    return (facts["num-slaves"], facts["num-other-sentinels"]) == (str(replicas), str(sentinels))


@attrs.define(eq=False)
class RedisCluster:
    """The nodes of a cluster: first its masters, then their replicas in the same order."""

    nodes: list[RunningRedis]

    @property
    def url(self) -> str:
        """Of all nodes."""
        password = self.nodes[0].password
        credentials = "" if password is None else f":{password}@"
        return f"redis+cluster://{credentials}{','.join(each.address for each in self.nodes)}"

    @property
    def living(self) -> list[RunningRedis]:
        """The nodes that were not killed."""
        return [each for each in self.nodes if each.alive]

    def masters(self) -> list[RunningRedis]:
        """The living nodes that are masters in their own eyes."""
        return [each for each in self.living if is_master(each)]

    def node_of(self, key: str) -> RunningRedis:
        """The master that serves a key, as the first living node sees it."""
        witness = self.living[0]
        slot = witness.cli("CLUSTER", "KEYSLOT", key)
        assert isinstance(slot, int)
        port = next(port for first, last, port in served(witness) if first <= slot <= last)
        return next(each for each in self.nodes if each.port == port)

    def kill_node(self, node: RunningRedis) -> None:
        """SIGKILL; `wait_until_ok` waits for the others to get over it."""
        node.kill()

    def wait_until_ok(self) -> None:
        """Waits until every living node sees every slot served by a living one, and serves.

        Raises:
            RedisFailed: If that takes too long.
        """
        until(self._ok, "the cluster is whole, in the eyes of all of its living nodes")

    def _ok(self) -> bool:
        alive = {each.port for each in self.living}
        for each in self.living:
            ranges = served(each)
            slots = sum(last + 1 - first for first, last, port in ranges if port in alive)
            if slots != SLOTS or cluster_state(each) != "ok":
                return False
        return True

    def flushall(self) -> None:
        """Empties all living masters, and with them their replicas."""
        for each in self.masters():
            each.cli("FLUSHALL")


@contextlib.contextmanager
def running_cluster(
    masters: int = 3,
    *,
    replicas_each: int = 0,
    node_timeout_ms: int = 1000,
    options: Sequence[str] = (),
    password: str | None = None,
) -> Iterator[RedisCluster]:
    """A cluster that serves all slots, shared out evenly among its masters.

    Args:
        masters: How many.
        replicas_each: How many each of them has.
        node_timeout_ms: After which silence a node counts as failed.
        options: For every node, as of `running_redis`.
        password: Of every node.

    Raises:
        RedisFailed: If they do not come together in time.
    """
    clustered = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms))
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(
                running_redis(options=(*REPLICATING, *clustered, *options), password=password)
            )
            for _ in range(masters * (1 + replicas_each))
        ]
        share_slots(nodes[:masters])
        introduce(nodes)
        for number, replica in enumerate(nodes[masters:]):
            follow(replica, nodes[number % masters])
        cluster = RedisCluster(nodes)
        cluster.wait_until_ok()
        until(lambda: all(map(in_step, nodes[masters:])), "the replicas are in step")
        yield cluster


def share_slots(masters: Sequence[RunningRedis]) -> None:
    """Gives each master its part of the slots.

    With an epoch of its own: nodes that begin with the same have to sort that out at a node timeout
    a round, and a replica of one that has not may not be elected.
    """
    bounds = [SLOTS * number // len(masters) for number in range(len(masters) + 1)]
    for epoch, master in enumerate(masters, start=1):
        master.cli("CLUSTER", "SET-CONFIG-EPOCH", epoch)
        master.cli("CLUSTER", "ADDSLOTSRANGE", bounds[epoch - 1], bounds[epoch] - 1)


def introduce(nodes: Sequence[RunningRedis]) -> None:
    """Has every node meet every earlier one, which is quicker than to wait for gossip."""
    for number, node in enumerate(nodes):
        for earlier in nodes[:number]:
            node.cli("CLUSTER", "MEET", HOST, earlier.port)
    until(
        lambda: all(len(known(each)) == len(nodes) for each in nodes), "the nodes know each other"
    )


def known(node: RunningRedis) -> list[str]:
    """The nodes it has shaken hands with, itself included."""
    said = node.cli("CLUSTER", "NODES")
    assert isinstance(said, str)
    return [line for line in said.splitlines() if "handshake" not in line]


def follow(replica: RunningRedis, master: RunningRedis) -> None:
    """Makes a node without slots the replica of another that it knows."""
    master_id = master.cli("CLUSTER", "MYID")
    assert isinstance(master_id, str)
    replica.cli("CLUSTER", "REPLICATE", master_id)


def served(witness: RunningRedis) -> list[tuple[int, int, int]]:
    """First slot, last slot and the master's port of each range, as one node sees them."""
    said = witness.cli("CLUSTER", "SLOTS")
    assert isinstance(said, list)
    ranges: list[tuple[int, int, int]] = []
    for each in said:
        match each:
            case [int(first), int(last), [str(), int(port), *_], *_]:
                ranges.append((first, last, port))
    return ranges


def cluster_state(node: RunningRedis) -> str:
    """`ok` or `fail`."""
    said = node.cli("CLUSTER", "INFO")
    assert isinstance(said, str)
    return said.splitlines()[0].removeprefix("cluster_state:")


@attrs.define(eq=False)
class Redises:
    """One single server and one cluster for a whole session, started when first asked for.

    They are handed out empty, and with no script cached. A test that kills them, or changes their
    configuration, wants private ones. A start that failed is remembered, so that a missing
    redis-server fails every test at once rather than slowly.
    """

    _stack: contextlib.ExitStack
    _single: RunningRedis | RedisFailed | None = None
    _cluster: RedisCluster | RedisFailed | None = None

    def single(self) -> RunningRedis:
        """The shared server.

        Raises:
            RedisFailed: If it cannot be started.
        """
        if self._single is None:
            self._single = self._started(running_redis())
        redis = unless_failed(self._single)
        emptied(redis)
        return redis

    def cluster(self) -> RedisCluster:
        """The shared cluster of three masters.

        Raises:
            RedisFailed: If it cannot be started.
        """
        if self._cluster is None:
            self._cluster = self._started(running_cluster())
        cluster = unless_failed(self._cluster)
        for each in cluster.nodes:
            emptied(each)
        return cluster

    def _started(self, starting: AbstractContextManager[T]) -> T | RedisFailed:
        try:
            return self._stack.enter_context(starting)
        except RedisFailed as failure:
            return failure


def unless_failed(start: T | RedisFailed) -> T:
    """What was started; a failure is raised, each time anew."""
    if isinstance(start, RedisFailed):
        raise RedisFailed(*start.args)
    return start


def emptied(redis: RunningRedis) -> None:
    """No keys, no scripts."""
    redis.cli("FLUSHALL")
    redis.cli("SCRIPT", "FLUSH")
