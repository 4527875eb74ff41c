"""Many clients at work on a few names, and what the resource behind those saw of it (L1, L2)."""

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from secrets import token_hex
from typing import Final

import trio
from attrs import define, field, frozen

from tests.harness import Peer, dial
from tests.processes import RunningServer, running_server
from tests.system.faults.stations import (
    BUSY,
    LOST,
    POLL_S,
    UNAVAILABLE,
    Attempt,
    attempt,
    check_refusals,
    now,
)

WORK_S: Final = 0.01
WAIT_MS: Final = 1000


@frozen
class Visit:
    """One client in the resource, by its own clock: never longer than it may believe."""

    name: str
    fence: int
    began_at: float
    ended_at: float


@define(eq=False)
class Load:
    """Clients that take a name, work, and give it back, as fast as they can."""

    clients: int
    ttl_ms: int = 1000
    visits: list[Visit] = field(factory=list)
    attempts: list[Attempt] = field(factory=list)
    """All requests for leases, with their answers."""
    releases: list[Attempt] = field(factory=list)

    async def work(self, peer: Peer, names: Sequence[str]) -> None:
        """One client, until cancelled."""
        while True:
            await self._visit(peer, random.choice(names))

    async def _visit(self, peer: Peer, name: str) -> None:
        params = {"name": name, "ttl_ms": self.ttl_ms, "lease": token_hex(16), "wait_ms": WAIT_MS}
        asked = await attempt(peer, "lease.acquire", **params, auto_renew=False)
        self.attempts.append(asked)
        if asked.code is not None:
            await trio.sleep(POLL_S * random.random())
            return
        until = asked.began_at + (asked.answer["waited_ms"] + asked.answer["ttl_ms"]) / 1000
        await trio.sleep(WORK_S * random.random())
        if asked.ended_at < until:
            visit = Visit(name, asked.answer["fence"], asked.ended_at, min(now(), until))
            self.visits.append(visit)
        released = await attempt(peer, "lease.release", name=name, lease=params["lease"])
        self.releases.append(released)

    # --- What was seen ------------------------------------------------------------------------

    def check(self) -> None:
        """Nobody was there while somebody else was, and fences rose in the order of the visits."""
        check_refusals([each for each in self.attempts if each.code != LOST], WAIT_MS / 1000)
        assert {each.code for each in self.attempts} <= {None, BUSY, LOST, UNAVAILABLE}
        check_refusals(self.releases)
        for name in {visit.name for visit in self.visits}:
            visits = sorted(
                (visit for visit in self.visits if visit.name == name), key=lambda v: v.began_at
            )
            for before, after in pairwise(visits):
                assert before.ended_at <= after.began_at, (before, after)
                assert before.fence < after.fence, (before, after)

    def gap_s(self, since: float, names: Sequence[str]) -> float:
        """The longest time from then on in which no lease on any of these names was granted."""
        times = [v.began_at for v in self.visits if v.name in names and v.began_at > since]
        times = [since, *sorted(times), now()]
        return max(after - before for before, after in pairwise(times))

    def errors_s(self, since: float) -> float:
        """From then on, how long requests were answered `unavailable`."""
        times = [each.ended_at for each in self.attempts if each.code == UNAVAILABLE]
        return max(times, default=since) - since

    def has_visits_since(self, since: float, names: Sequence[str]) -> bool:
        """Whether every one of these names was taken after that."""
        return {v.name for v in self.visits if v.began_at > since} >= {*names}


@asynccontextmanager
async def serving(redis_url: str, count: int, *options: str) -> AsyncIterator[list[RunningServer]]:
    """Server processes on this Redis."""
    async with AsyncExitStack() as stack:
        servers: list[RunningServer] = []

        async def start() -> None:
            running = running_server(options=("--store", redis_url, *options))
            servers.append(await trio.to_thread.run_sync(running.__enter__))
            stack.push_async_callback(trio.to_thread.run_sync, running.__exit__, None, None, None)

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(start)
        try:
            yield servers
        finally:
            for each in servers:  # how they would end in good order is no matter here
                each.process.kill()


@asynccontextmanager
async def at_work(*loads: tuple[Load, Sequence[str]], urls: Sequence[str]) -> AsyncIterator[None]:
    """Clients of each load on its names, shared out among the servers, while the block lasts."""
    async with trio.open_nursery() as peers:
        async with trio.open_nursery() as workers:
            for load, names in loads:
                for number in range(load.clients):
                    peer = await dial(urls[number % len(urls)], peers)
                    workers.start_soon(load.work, peer, names)
            yield
            workers.cancel_scope.cancel()
        peers.cancel_scope.cancel()
