"""P4 for caches: many callers of one missing key, in one process, with Redis behind it.

The function that is cached notes how often it is called, and when its first call ends: that is the
fill. It takes its time until all callers are there, as in ours. Ours come over ten connections to
two servers; those of a library are one process, which is the easier case.
"""

import asyncio
import importlib
import threading
import time
from collections.abc import Callable
from typing import Final

from attrs import define

from bench.herd import LOAD_S, VALUE
from bench.observed import Figures, Observed
from bench.redises import HOST
from bench.shapes import NAMES, Unexpected, percentile

TASKS: Final = 1_000
"""Callers of a cache of asyncio. Ten thousand would be a connection to Redis each."""
THREADS: Final = 200
"""Callers of a cache that blocks."""
KEY: Final = f"{NAMES}/missing"
KEPT_S: Final = 60
START_S: Final = 30.0


@define(eq=False)
class Callers:
    """How many have come, how often they had to load, and when they were served."""

    count: int
    come: int = 0
    loads: int = 0
    filled_at: float = 0.0

    def begin_load(self) -> None:
        """The value is not there."""
        self.loads += 1

    def end_load(self, observed: Observed) -> str:
        """The value is there now."""
        if not self.filled_at:
            observed.begin()
            self.filled_at = time.monotonic()
        return VALUE

    def figures(self, served_at: list[float], observed: Observed) -> Figures:
        """What P4 reports."""
        if len(served_at) != self.count:
            raise Unexpected(f"{len(served_at)} of {self.count} callers were served")
        latencies_ms = [1000 * (at - self.filled_at) for at in served_at]
        return observed.shares() | {
            "rate": 1000 * self.count / max(latencies_ms),
            "callers": self.count,
            "loads": self.loads,
            "p50_ms": percentile(latencies_ms, 0.50),
            "last_ms": max(latencies_ms),
        }


async def in_tasks(decorate: Callable[..., Callable[..., object]], observed: Observed) -> Figures:
    """A cache of asyncio, given as what decorates the function."""
    callers = Callers(TASKS)
    all_come = asyncio.Event()

    async def value() -> str:
        callers.begin_load()
        async with asyncio.timeout(START_S):
            await all_come.wait()
        await asyncio.sleep(LOAD_S)
        return callers.end_load(observed)

    cached = decorate(value)

    async def caller() -> float:
        callers.come += 1
        if callers.come == callers.count:
            all_come.set()
        pending = cached()
        assert asyncio.iscoroutine(pending)
        if await pending != VALUE:
            raise Unexpected("a caller was served something else")
        return time.monotonic()

    served_at = await asyncio.gather(*(caller() for _ in range(callers.count)))
    return callers.figures(list(served_at), observed)


def aiocache(port: int, observed: Observed) -> Figures:
    """`cached_stampede`: one of a process loads, the others wait for an event."""
    library = importlib.import_module("aiocache")

    async def run() -> Figures:
        where = {"endpoint": HOST, "port": port, "pool_max_size": TASKS}
        redis = library.Cache.REDIS
        decorate = library.cached_stampede(ttl=KEPT_S, lease=KEPT_S, key=KEY, cache=redis, **where)
        return await in_tasks(decorate, observed)

    return asyncio.run(run())


def cashews(port: int, observed: Observed) -> Figures:
    """`cache(lock=True)`: callers in a process wait for one task; only that asks for the lock."""
    library = importlib.import_module("cashews")

    async def run() -> Figures:
        cache = library.Cache()
        # Otherwise a wait for a connection that is too long would be taken for a miss.
        cache.setup(f"redis://{HOST}:{port}", suppress=False, wait_for_connection_timeout=KEPT_S)
        return await in_tasks(cache(ttl=f"{KEPT_S}s", key=KEY, lock=True), observed)

    return asyncio.run(run())


def dogpile(port: int, observed: Observed) -> Figures:
    """`get_or_create` with the lock in Redis, which is redis-py's and polls."""
    region = importlib.import_module("dogpile.cache").make_region()
    arguments = {
        "host": HOST,
        "port": port,
        "distributed_lock": True,
        "thread_local_lock": False,
        "connection_kwargs": {"max_connections": THREADS},
    }
    region.configure("dogpile.cache.redis", expiration_time=KEPT_S, arguments=arguments)
    callers = Callers(THREADS)
    served_at: list[float] = []

    all_come = threading.Event()

    def value() -> str:
        callers.begin_load()
        all_come.wait(START_S)
        time.sleep(LOAD_S)
        return callers.end_load(observed)

    def caller() -> None:
        if region.get_or_create(KEY, value) == VALUE:
            served_at.append(time.monotonic())

    threads = [threading.Thread(target=caller, daemon=True) for _ in range(callers.count)]
    for thread in threads:
        thread.start()
    all_come.set()
    for thread in threads:
        thread.join()
    return callers.figures(served_at, observed)


CACHES: Final[dict[str, Callable[[int, Observed], Figures]]] = {
    "aiocache": aiocache,
    "cashews": cashews,
    "dogpile": dogpile,
}


def one_load_for_all(peer: str, port: int, observed: Observed) -> Figures:
    """P4: from the end of the first load until each caller has the value."""
    return CACHES[peer](port, observed)
