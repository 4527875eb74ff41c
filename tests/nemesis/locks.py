"""The lock workload: many take a few names, and change what those protect (set-under-lock).

A client writes down what it believes from what the lease itself says: never more than the client
library believes. The work in between blocks, in a thread that nobody cancels, as work often does:
a client that was paused in it goes on with its write when it wakes up, and only the fence is in
its way.
"""

import random
import time
from typing import Final

import anyio
from anyio import CancelScope, to_thread
from anyio.abc import TaskGroup
from attrs import define, field, frozen
from leasekeeper_client import Busy, Keeper, KeeperError, Lease, LeaseLost
from leasekeeper_client.errors import may_have_been_done

from tests.nemesis.history import Operation, Scribe
from tests.nemesis.resource import ask

TTL_S: Final = 2.0
WORK_MAX_S: Final = 2.0
LOOK_S: Final = 0.05
"""How often a holder looks at its lease."""
QUEUE_LOOK_S: Final = 0.25
PAUSE_S: Final = 0.1
SHARED: Final = 0.2
"""The share of visits that want to share a name..."""
LIMIT: Final = 2
"""... among so many."""
NEWS_US: Final = 20_000
"""A deadline that moved by less has not been renewed: its two clock readings differ."""


@frozen
class Wish:
    """What a visit wants."""

    name: str
    lease: str
    shared: bool
    wait: float | None
    work_s: float
    careless: bool
    """It does not look whether it still has the lease before it writes."""


@define(eq=False)
class Belief:
    """What a holder believes of its lease, written down as it changes."""

    scribe: Scribe
    wish: Wish
    lease: Lease
    until: int = field(init=False)
    _told_lost: bool = False

    def __attrs_post_init__(self) -> None:
        self.until = self._until()

    def _until(self) -> int:
        # Read before the lease reads the clock, so that the sum is never later than its deadline.
        now = time.monotonic()
        return int((now + self.lease.remaining) * 1e6)

    async def watch(self, scope: CancelScope) -> None:
        """Until cancelled, or lost."""
        with scope:
            while self.look():  # noqa: ASYNC110 # a lease tells nobody that it was renewed
                await anyio.sleep(LOOK_S)

    def look(self) -> bool:
        """Writes down what is new; returns whether the lease is still believed in."""
        until, members = self._until(), {"name": self.wish.name, "lease": self.wish.lease}
        if self.lease.lost:
            if not self._told_lost:
                self._told_lost = True
                reason = self.lease.lost_reason
                self.scribe.event("lost", **members, fence=self.lease.fence, reason=reason)
            return False
        if until > self.until + NEWS_US:
            self.until = until
            self.scribe.event("held", **members, fence=self.lease.fence, until=until)
        return True


@define(eq=False)
class Locker:
    """Visits the names, one after the other, until it is told to stop."""

    keeper: Keeper
    scribe: Scribe
    tasks: TaskGroup
    resource_port: int
    names: tuple[str, ...]
    number: int
    random: random.Random
    careless: float
    """The share of visits that write without looking."""
    _visits: int = 0

    async def run(self, stopping: anyio.Event) -> None:
        """One visit after the other."""
        while not stopping.is_set():
            await self._visit(self._next_wish())
            await anyio.sleep(PAUSE_S * self.random.random())

    def _next_wish(self) -> Wish:
        self._visits += 1
        dice = self.random.random()
        wait = None if dice < 0.6 else 3 * self.random.random() if dice < 0.85 else 0.0
        return Wish(
            name=self.random.choice(self.names),
            lease=f"{self.scribe.process}-{self.number}-{self._visits}",
            shared=self.random.random() < SHARED,
            wait=wait,
            work_s=WORK_MAX_S * self.random.random() ** 2,
            careless=self.random.random() < self.careless,
        )

    async def _visit(self, wish: Wish) -> None:
        asked = self.scribe.begin(
            "acquire",
            name=wish.name,
            lease=wish.lease,
            mode="shared" if wish.shared else "exclusive",
            limit=LIMIT if wish.shared else None,
            wait_ms=None if wish.wait is None else int(wish.wait * 1000),
        )
        waiting = CancelScope()
        if wish.wait is None:
            self.tasks.start_soon(self._look_at_queue, wish, waiting)
        try:
            await self._hold(wish, asked, waiting)
        finally:
            waiting.cancel()

    async def _hold(self, wish: Wish, asked: Operation, waiting: CancelScope) -> None:
        belief: Belief | None = None
        release: Operation | None = None
        watching = CancelScope()
        try:
            async with self.keeper.lease(
                wish.name,
                shared=wish.shared,
                limit=LIMIT if wish.shared else None,
                ttl=TTL_S,
                wait=wish.wait,
                label=wish.lease,
            ) as lease:
                waiting.cancel()
                belief = Belief(self.scribe, wish, lease)
                asked.ok(fence=lease.fence, until=belief.until)
                self.tasks.start_soon(belief.watch, watching)
                try:
                    await self._work(wish, lease)
                finally:
                    watching.cancel()
                    if belief.look():
                        release = self.scribe.begin("release", name=wish.name, lease=wish.lease)
        except Busy as busy:
            asked.fail(code=busy.code)
        except LeaseLost:
            if belief is None:
                asked.unknown()
            else:
                belief.look()
            if release is not None:
                release.fail()
        except KeeperError as error:
            (asked.unknown if may_have_been_done(error) else asked.fail)(code=error.code or 0)
        else:
            if release is not None:
                release.ok()

    async def _look_at_queue(self, wish: Wish, scope: CancelScope) -> None:
        """Writes down when this visit is surely in the queue."""
        with scope:
            while True:
                await anyio.sleep(QUEUE_LOOK_S)
                try:
                    state = await self.keeper.inspect(wish.name)
                except KeeperError:
                    continue
                if any(waiter.label == wish.lease for waiter in state.waiting):
                    self.scribe.event("queued", name=wish.name, lease=wish.lease)
                    return

    async def _work(self, wish: Wish, lease: Lease) -> None:
        if wish.shared:
            await anyio.sleep(wish.work_s)
        else:
            await to_thread.run_sync(self._change, wish, lease)

    def _change(self, wish: Wish, lease: Lease) -> None:
        """Reads, takes its time, and writes. Runs in a thread."""
        mine = {"resource": wish.name, "fence": lease.fence, "process": self.scribe.process}
        read = ask(self.resource_port, "read", **mine)
        if not read["ok"]:
            return
        time.sleep(wish.work_s)
        if not wish.careless and lease.lost:
            return
        written = {"resource": wish.name, "fence": lease.fence, "value": wish.lease}
        write = self.scribe.begin("write", name=wish.name, lease=wish.lease, **written)
        answer = ask(self.resource_port, "write", **mine, base=read["base"], value=wish.lease)
        if answer["ok"]:
            write.ok()
        else:
            write.fail(code=answer["code"])
