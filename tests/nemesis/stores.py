"""Where the servers of a run keep their leases, and what can be done to it."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Final

from attrs import frozen

from tests.redis_groups import (
    RedisCluster,
    ReplicatedRedis,
    in_step,
    is_master,
    running_cluster,
    running_replicas,
)
from tests.redises import RunningRedis, running_redis, until

TOPOLOGIES: Final = ("embedded", "single", "sentinel", "cluster")
DURABLE: Final = ("--appendonly", "yes", "--appendfsync", "always")
"""What a Redis acknowledged is there again after it was killed."""
REPLICAS: Final = 2
SENTINELS: Final = 3
MASTERS: Final = 3
# A busy machine must not fail over by itself.
DOWN_AFTER_MS: Final = 2000
FAILOVER_MS: Final = 4000
PUBLISH_MS: Final = 1000
"""How often sentinels speak. In four times that they turn a master that they have not heard of into
a replica again, and who promotes one while the old master lives looks at it once in a second."""


@frozen
class Store:
    """One of `TOPOLOGIES`. What it is not is None."""

    topology: str
    single: RunningRedis | None = None
    replicated: ReplicatedRedis | None = None
    cluster: RedisCluster | None = None
    skewed: bool = False
    """Whether the clock of the single Redis can be moved."""

    @property
    def url(self) -> str:
        """For `--store`."""
        for group in (self.single, self.replicated, self.cluster):
            if group is not None:
                return group.url
        return "memory"

    @property
    def redises(self) -> list[RunningRedis]:
        """All servers that hold data."""
        if self.single is not None:
            return [self.single]
        if self.replicated is not None:
            return self.replicated.servers
        return self.cluster.nodes if self.cluster is not None else []

    def masters(self) -> list[RunningRedis]:
        """Those that hold it first, at this moment."""
        if self.replicated is not None:
            return [self.replicated.master()]
        return self.cluster.masters() if self.cluster is not None else self.redises

    def settle(self) -> None:
        """Waits until the Redises are one again: a master that all know, replicas in step.

        Raises:
            RedisFailed: They do not become one.
        """
        if self.cluster is not None:
            self.cluster.wait_until_ok()
        if self.replicated is not None:
            until(self._in_step, "the replicas are in step with their master")

    def _in_step(self) -> bool:
        assert self.replicated is not None
        master, replicas = self.replicated.master(), self.replicated.replicas()
        ports = {each.info("replication").get("master_port") for each in replicas}
        return is_master(master) and ports == {str(master.port)} and all(map(in_step, replicas))

    def mend(self) -> None:
        """Continues whatever is stopped, and starts whatever is dead; it may do so at any time."""
        for each in self.redises:
            if each.alive:
                each.resume()
            else:
                each.start()


@contextlib.contextmanager
def running_store(topology: str) -> Iterator[Store]:
    """The Redises that it takes, gone at the end."""
    with contextlib.ExitStack() as stack:
        match topology:
            case "embedded":
                yield Store(topology)
            case "single":
                skewed = shutil.which("cc") is not None
                single = stack.enter_context(running_redis(options=DURABLE, skewed=skewed))
                yield Store(topology, single=single, skewed=skewed)
            case "sentinel":
                group = running_replicas(
                    REPLICAS,
                    sentinels=SENTINELS,
                    down_after_ms=DOWN_AFTER_MS,
                    failover_timeout_ms=FAILOVER_MS,
                    options=DURABLE,
                )
                replicated = stack.enter_context(group)
                for each in replicated.sentinels:
                    each.cli("SENTINEL", "DEBUG", "publish-period", PUBLISH_MS)
                yield Store(topology, replicated=replicated)
            case "cluster":
                nodes = running_cluster(
                    MASTERS, replicas_each=1, node_timeout_ms=DOWN_AFTER_MS, options=DURABLE
                )
                yield Store(topology, cluster=stack.enter_context(nodes))
            case _:
                raise ValueError(f"no such topology: {topology!r}")
