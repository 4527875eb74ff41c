"""What the programs under load use while it lasts: CPU time, memory, and what Redis says of itself.

Figures of other processes come from /proc; where there is none they are not numbers.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import frozen

if TYPE_CHECKING:
    import redis

Figures = dict[str, float]
"""`rate` is what the shape counts, per second: lock cycles, messages, hand-offs, renewals, ..."""

_THE_END: Final = "that is all"
_USER_TICKS: Final = 11
_SYSTEM_TICKS: Final = 12


def cpu_s(pid: int) -> float:
    """The CPU time another process has used so far."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return float("nan")
    ticks = int(after_name[_USER_TICKS]) + int(after_name[_SYSTEM_TICKS])
    return ticks / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> float:
    """The memory another process has now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except FileNotFoundError:
        return float("nan")
    [resident] = [line for line in lines if line.startswith("VmRSS:")]
    return int(resident.split()[1]) * 1024


def client_of(url: str) -> "redis.Redis":
    """A client of Redis.

    The library takes longer to import than all the rest of a load, and most of them do not need it.
    """
    import redis

    return redis.Redis.from_url(url)


@frozen
class Store:
    """The Redis behind the servers, or the masters of a cluster."""

    url: str
    pids: tuple[int, ...]

    @property
    def used_bytes(self) -> float:
        """The memory it has given out."""
        with client_of(self.url) as client:
            return float(client.info("memory")["used_memory"])

    @property
    def keys(self) -> int:
        """How many there are, of whatever kind."""
        with client_of(self.url) as client:
            keys: int = client.dbsize()
        return keys

    @property
    def scripts_run(self) -> int:
        """How many calls of scripts it has answered."""
        with client_of(self.url) as client:
            said = client.info("commandstats").get("cmdstat_evalsha", {"calls": 0})
        return int(said["calls"])

    def commands_during(self, act: Callable[[], None]) -> int:
        """How many commands it is sent while that lasts, by whomever; not those of scripts."""
        with client_of(self.url) as watcher, client_of(self.url) as client:
            client.ping()
            with watcher.monitor() as monitor:
                act()
                client.echo(_THE_END)
                count = 0
                while (seen := monitor.next_command())["command"] != f"ECHO {_THE_END}":
                    count += seen["client_type"] != "lua"
        return count


class Observed:
    """The processes that serve. A load at 1.0 of a core measures itself, not them."""

    def __init__(self, server_pids: list[int], store: Store | None) -> None:
        self._server_pids = server_pids
        self.store = store
        self.begin()

    @property
    def servers_bytes(self) -> float:
        """The memory that the servers have now."""
        return sum(map(resident_bytes, self._server_pids))

    def begin(self) -> None:
        """From here on, CPU time counts."""
        self._wall = time.monotonic()
        self._before = self._used_s()

    def shares(self) -> Figures:
        """CPU time per wall time since the beginning."""
        wall = time.monotonic() - self._wall
        return {name: (used - self._before[name]) / wall for name, used in self._used_s().items()}

    def _used_s(self) -> Figures:
        used = {"load_cpu": time.process_time(), "server_cpu": sum(map(cpu_s, self._server_pids))}
        if self.store is not None:
            used["redis_cpu"] = sum(map(cpu_s, self.store.pids))
        return used
