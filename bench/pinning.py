"""Which process has which core."""

import os

from attrs import frozen


def pin(pid: int, core: int) -> None:
    """Keeps a process on one core, where the system can (Linux)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(pid, {core})


@frozen
class Cores:
    """Which core is whose; None where processes cannot be pinned, or there is only one core."""

    servers: tuple[int | None, ...] = (None, None)
    """The first server's, and the second's."""
    load: int | None = None
    redis: int | None = None

    @classmethod
    def available(cls) -> "Cores":
        """The servers have the first core, load and Redis the second, or one each if there are."""
        if hasattr(os, "sched_getaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            if len(cores) >= 2:
                third = cores[2] if len(cores) >= 3 else cores[1]
                fourth = cores[3] if len(cores) >= 4 else cores[0]
                return cls(servers=(cores[0], fourth), load=cores[1], redis=third)
        return cls()

    @property
    def told(self) -> str:
        """For the head of the report."""
        if self.load is None:
            return "no process has a core of its own"
        if self.load == self.redis:
            return "servers on one core, load and Redis on another"
        return "servers, load and Redis on a core each"
