"""The key layout: where a name lives in Redis. `spec/redis-layout.md` is its specification."""

from typing import Final

from attrs import field, frozen
from redis.crc import key_slot

_PARTS: Final = ("lock", "shared", "limits", "queue", "info", "fence", "watch")
FENCE: Final = _PARTS.index("fence")
WATCH: Final = _PARTS.index("watch")
_CLOCK_PARTS: Final = ("clock", "hard", "soft", "ends", "writes")
_QUEUE_PARTS: Final = ("log", "writes", "due", "dead", "graves", "bytes", "news")
CLUSTER_PARTITIONS: Final = 64
"""So many partitions share out the cached keys of a cluster; else there is one."""


@frozen
class Layout:
    """Keys and channels under one prefix.

    All keys of a name have the name as their hash tag, so that they share a slot of a cluster.
    """

    prefix: str = "lk"
    _lock_start: str = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "_lock_start", f"{self.prefix}:{{")

    def keys(self, name: str) -> list[str]:
        """The keys of a name, in the order of the scripts' KEYS."""
        start = f"{self._lock_start}{name}}}:"
        return [start + part for part in _PARTS]

    def lock(self, name: str) -> str:
        """The key that a foreign program sets with `SET NX PX` to take part."""
        return f"{self._lock_start}{name}}}:lock"

    def lock_pattern(self, prefix: str) -> str:
        """A glob of the lock keys of all names with this prefix."""
        return f"{self._lock_start}{prefix}*}}:lock"

    def name_of(self, lock: str) -> str:
        """The name of a lock key."""
        return lock.removeprefix(self._lock_start).removesuffix("}:lock")

    def partition_keys(self, partition: int) -> list[str]:
        """The keys of a partition of the cache, in the order of the cache scripts' KEYS."""
        start = f"{self._lock_start}c{partition}}}:"
        return [start + part for part in _CLOCK_PARTS]

    def entry(self, partition: int, key: str) -> str:
        """Where a cached key of this partition is."""
        return f"{self._lock_start}c{partition}}}:e:{key}"

    def queue_keys(self, partition: int, queue: str) -> list[str]:
        """What a queue of writes has in this partition, in the order of the scripts' KEYS."""
        start = f"{self._lock_start}c{partition}}}:q:{queue}:"
        return [start + part for part in _QUEUE_PARTS]

    def rehearsed_keys(self, name: str) -> list[str]:
        """Those of a partition with one entry, in the slot of a name, to rehearse with."""
        start = f"{self._lock_start}{name}}}:"
        return [*(start + part for part in _CLOCK_PARTS), f"{start}e:{name}"]

    @property
    def channels(self) -> str:
        """What the name of every server's channel begins with."""
        return f"{self.prefix}:server:"

    @property
    def servers(self) -> str:
        """The channel that all servers listen to."""
        return f"{self.prefix}:servers"

    @property
    def hold(self) -> str:
        """Lives while grants are paused, for servers that start meanwhile."""
        return f"{self.prefix}:hold"


def partition_of(key: str, partitions: int) -> int:
    """Which of so many partitions a cached key is in: the same for every server."""
    return key_slot(key.encode()) % partitions if partitions > 1 else 0
