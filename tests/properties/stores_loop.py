"""The stores themselves in one event loop, as two sides that a state machine can hold together.

The loop runs in a thread of its own, and its clock moves only when it is told to; Redis' clock
moves with it. So the stores see the same time, and no test waits for it to pass.
"""

import itertools
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

import trio
import trio.testing
from attrs import define, evolve, field
from trio.testing import MockClock

from leasekeeper.core.lock import (
    Busy,
    Claim,
    Contended,
    Elsewhere,
    Event,
    Granted,
    HolderLost,
    Left,
    Lock,
    Mismatch,
    Missing,
    Queued,
    QueueFull,
    Renewed,
    Resumed,
    WaiterGranted,
    server_of,
)
from leasekeeper.messages import LeaseState
from leasekeeper.resp.settings import parse_url
from leasekeeper.store.api import Changed, Renewal, Store, StoreEvent
from leasekeeper.store.memory import MemoryStore
from leasekeeper.store.redis.store import Options, RedisStore
from tests.properties.stores_machine import (
    WAITING_MAX,
    Clients,
    Known,
    Side,
    Told,
    in_order,
    known_of,
    told_by,
)
from tests.redises import RunningRedis

T = TypeVar("T")

WITHIN_S: Final = 2.0
"""How long stores may take to tell what they have to."""
SERVERS: Final = "ab"
GRAIN_US: Final = 10_000
"""Alarms of stores are that coarse."""
NUMBERS: Final = itertools.count()
_FOREVER_MS: Final = 10**9


@define(eq=False)
class Loop:
    """Runs stores, and makes calls of them from another thread. `us` is the time everywhere."""

    redis: RunningRedis
    start_us: int
    us: int = field(init=False)
    memory: MemoryStore = field(init=False)
    servers: Mapping[str, Store] = field(init=False)
    from_memory: list[StoreEvent] = field(factory=list)
    from_servers: Mapping[str, list[StoreEvent]] = field(
        factory=lambda: {server: [] for server in SERVERS}
    )
    _clock: MockClock = field(factory=MockClock)
    _token: trio.lowlevel.TrioToken = field(init=False)
    _scope: trio.CancelScope = field(factory=trio.CancelScope)
    _barriers: int = 0

    def __attrs_post_init__(self) -> None:
        self.us = self.start_us

    @property
    def ms(self) -> int:
        """By the embedded store's clock."""
        return (self.us - self.start_us) // 1000

    def lock(self, name: str) -> Lock:
        """A name in the embedded store's own books."""
        return self.memory._locks.get(name) or Lock()

    def call(self, ask: Callable[[], Awaitable[T]]) -> T:
        """The answer to a call made in the loop."""
        return trio.from_thread.run(ask, trio_token=self._token)

    def pass_time(self, us: int) -> None:
        """Redis first, so that who wakes up finds it at the new time."""
        self.us += us
        self.redis.freeze_clock(self.us)
        self.call(self._jump)

    async def _jump(self) -> None:
        # A little further, for sums of fractions may be a little less.
        until = (self.us - self.start_us) / 1_000_000 + 1e-7
        self._clock.jump(max(0, until - trio.current_time()))
        await trio.testing.wait_all_tasks_blocked()

    def flush(self) -> None:
        """Returns when the servers have heard all that was published until now."""
        self._barriers += 1
        mark = StoreEvent("barrier", Contended(self._barriers))
        self.redis.pipeline(
            *(
                ["PUBLISH", f"lk:server:{server}", f"contended barrier {self._barriers}"]
                for server in SERVERS
            )
        )
        deadline = time.monotonic() + WITHIN_S
        while any(mark not in events for events in self.from_servers.values()):
            assert time.monotonic() < deadline, "a server does not hear what is published"
            time.sleep(0.0002)
        for events in self.from_servers.values():
            events.remove(mark)

    async def run(self, on_started: Callable[[], None]) -> None:
        """Runs the stores, until `stop`."""
        self._token = trio.lowlevel.current_trio_token()
        settings = evolve(parse_url(self.redis.url), pool_min=1, read_ms=_FOREVER_MS)
        options = Options(restart_hold_ms=0, waiting_max=WAITING_MAX, preflight_ms=_FOREVER_MS)
        self.memory = MemoryStore(WAITING_MAX, lambda: self.us)
        self.servers = {server: RedisStore(settings, server, options) for server in SERVERS}
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.memory.run, self.from_memory.append)
                for server, store in self.servers.items():
                    await nursery.start(store.run, self.from_servers[server].append)
                on_started()

    def told(self, name: str) -> tuple[list[Told], list[Told]]:
        """What the servers should hear of a name, and have heard."""
        expected = told_by(_of(name, self.from_memory))
        heard = [
            Told(server, what)
            for server, events in self.from_servers.items()
            for what in _of(name, events)
        ]
        return in_order(expected), in_order(heard)

    def forget_events(self) -> None:
        """Those until now were dealt with."""
        self.from_memory.clear()
        for events in self.from_servers.values():
            events.clear()

    def stop(self) -> None:
        """Ends the stores."""
        trio.from_thread.run_sync(self._scope.cancel, trio_token=self._token)


def _of(name: str, events: Sequence[StoreEvent]) -> Iterator[Event]:
    for each in events:
        if each.name == name and not isinstance(each.what, Changed):
            # What a server finds out for itself, it does not say whose it is: it is its own.
            yield each.what


@contextmanager
def running_loop(redis: RunningRedis, us: int) -> Iterator[Loop]:
    """The stores, running."""
    loop = Loop(redis, us)
    redis.freeze_clock(us)
    started = threading.Event()
    run = partial(trio.run, loop.run, started.set, clock=loop._clock)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(10), "the stores do not start"
    yield loop
    loop.stop()
    thread.join()


@define(eq=False)
class StoreSide:
    """One name in a store, or in several that should be one.

    The servers live, and vouch for their waiters. Renewals and releases are made by the server that
    has the lease, as services make them: another one would leave it in the dark about its own.
    """

    loop: Loop
    name: str
    stores: Mapping[str, Store]
    servers: dict[str, str] = field(factory=dict)
    """Which of them has a lease, unless it is the one that asks."""

    def acquire(
        self, server: str, claim: Claim, *, wait: bool, take_over: bool = True
    ) -> Granted | Queued | Busy | QueueFull | Mismatch | Elsewhere:
        """Of that server's store."""
        store, claim = self.stores[server], evolve(claim, alive_ms=_FOREVER_MS)
        return self.loop.call(partial(store.acquire, self.name, claim, wait=wait))

    def resume(
        self, server: str, lease: str, owner: str, *, wait_ms: int | None
    ) -> Resumed | Busy | Missing:
        """Of that server's store."""
        store = self.stores[server]
        return self.loop.call(partial(store.resume, self.name, lease, owner, wait_ms=wait_ms))

    def renew(self, server: str, lease: str, ttl_ms: int | None) -> Renewed | Missing:
        """Of the owner's store."""
        store = self.stores[self.servers.get(lease, server)]
        [answer] = self.loop.call(partial(store.renew, [Renewal(self.name, lease, ttl_ms)]))
        assert isinstance(answer, Renewed | Missing)
        return answer

    def release(self, server: str, lease: str, *, only_of: str | None) -> Left:
        """Of the owner's store; or, if it may have moved, of the server that had it."""
        if only_of is None:
            server = self.servers.get(lease, server)
        store, only_of = self.stores[server], only_of and server
        return self.loop.call(partial(store.release, self.name, lease, only_of=only_of))

    def touch(self, server: str, leases: Sequence[str], alive_ms: int) -> Sequence[bool]:
        """Of that server's store, for those of its own that wait, or are not known."""
        store, held = self.stores[server], self.loop.lock(self.name)._holders
        mine = [each for each in leases if self.servers.get(each, server) == server]
        keys = [(self.name, lease) for lease in mine if lease not in held]
        answers = self.loop.call(partial(store.touch, keys, _FOREVER_MS))
        assert all(isinstance(each, bool) for each in answers)
        return [each is True for each in answers]

    def break_(self, server: str, detail: str | None) -> int:
        """Of that server's store."""
        return self.loop.call(partial(self.stores[server].break_, self.name, detail))

    def inspect(self, server: str, *, holders_max: int, waiting_max: int) -> LeaseState:
        """Of that server's store."""
        store = self.stores[server]
        shown = {"holders_max": holders_max, "waiting_max": waiting_max}
        return self.loop.call(partial(store.inspect, self.name, **shown))


@define
class Fences:
    """Which fence of the one side is which of the other. Both rise with the grants (L2)."""

    pairs: dict[int, int] = field(factory=lambda: {0: 0})

    def agree(self, left: object, right: object) -> bool:
        """Whether they are the same but for the fences, and those are of the same grants."""
        left, of_left = apart(left)
        right, of_right = apart(right)
        if left != right:
            return False
        for ours, theirs in zip(of_left, of_right, strict=True):
            if ours not in self.pairs and theirs not in self.pairs.values():
                self.pairs[ours] = theirs
        rising = [self.pairs[each] for each in sorted(self.pairs)]
        assert rising == sorted(rising)
        return [self.pairs.get(each) for each in of_left] == of_right


def apart(value: object) -> tuple[object, list[int]]:
    """A value without its fences, and the fences."""
    match value:
        case Granted() | Queued() | HolderLost():
            return evolve(value, fence=0), [value.fence]
        case WaiterGranted():
            return evolve(value, grant=evolve(value.grant, fence=0)), [value.grant.fence]
        case Resumed():
            return evolve(value, answer=evolve(value.answer, fence=0)), [value.answer.fence]
        case LeaseState():
            holders = tuple(evolve(each, fence=0) for each in value.holders)
            return evolve(value, holders=holders), [each.fence for each in value.holders]
        case Told():
            what, fences = apart(value.what)
            assert isinstance(what, Event)
            return evolve(value, what=what), fences
        case list():
            pairs = [apart(each) for each in value]
            return [each for each, _ in pairs], [fence for _, some in pairs for fence in some]
        case _:
            return value, []


class MemoryAndRedis(Clients):
    """Two servers that live: together they are to their clients as one with the embedded store."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.loop = loop
        self.name = f"n{next(NUMBERS)}"
        self.memory = StoreSide(loop, self.name, dict.fromkeys(SERVERS, loop.memory))
        self.redis = StoreSide(loop, self.name, loop.servers)
        self.fences = Fences()
        self.heard: set[tuple[object, ...]] = set()
        """What has been told until now, and may come again."""
        self.agreed = True

    def known(self) -> dict[str, Known]:
        return known_of(self.loop.lock(self.name), self.loop.ms)

    def pass_time(self, us: int) -> None:
        """L5: what that brings about, servers notice by themselves."""
        self.agreed = False
        self.loop.pass_time(math.ceil(us / GRAIN_US) * GRAIN_US)
        self.the_events_agree()
        self.what_can_be_seen_agrees()

    def both(self, server: str, ask: Callable[[Side], T]) -> T:
        self.agreed = False
        for lease, known in self.known().items():
            its_server = server_of(known.claim.owner)
            self.memory.servers[lease] = self.redis.servers[lease] = its_server or server
        expected = ask(self.memory)
        answer = ask(self.redis)
        assert self.fences.agree(expected, answer), (expected, answer)
        self.the_events_agree()
        self.what_can_be_seen_agrees()
        return answer

    def the_events_agree(self) -> None:
        """Who is told what, once it has come."""
        self.loop.flush()
        within(lambda: self.fences.agree(*self.news()), lambda: str(self.news()))
        self.heard.update(map(which, self.loop.told(self.name)[1]))
        self.loop.forget_events()

    def news(self) -> tuple[list[Told], list[Told]]:
        """What should be told since the last call, and what was told for the first time."""
        expected, told = self.loop.told(self.name)
        first = {which(each): each for each in reversed(told) if which(each) not in self.heard}
        # What a server found when it looked, before it heard of it: that comes, too.
        first |= {which(each): each for each in told if which(each) in first and has_owner(each)}
        new = in_order(first.values())
        return (
            [each for each in expected if not over(each, expected)],
            [each for each in new if not over(each, new)],
        )

    def what_can_be_seen_agrees(self) -> None:
        state = self.memory.inspect("a", holders_max=99, waiting_max=99)
        for server in SERVERS:
            look = partial(self.redis.inspect, server, holders_max=99, waiting_max=99)
            within(partial(self.sees, state, look), partial(str, state))
        self.agreed = True

    def sees(self, state: LeaseState, look: Callable[[], LeaseState]) -> bool:
        """Whether it is the same for who looks now."""
        return self.fences.agree(state, look())

    def teardown(self) -> None:
        """Then no server looks after it any more."""
        if not self.agreed:
            self.loop.forget_events()
            return
        self.all_release()
        for store in self.loop.servers.values():
            assert isinstance(store, RedisStore)
            assert store._interests.find(self.name) is None


def which(told: Told) -> tuple[object, ...]:
    """What it is about: a repeat is about the same."""
    match told.what:
        case WaiterGranted(lease, grant):
            return told.server, WaiterGranted, lease, grant.fence
        case HolderLost(lease, fence):
            return told.server, HolderLost, lease, fence
    return told.server, object()


def has_owner(told: Told) -> bool:
    """Whether Redis told it."""
    return not isinstance(told.what, WaiterGranted | HolderLost) or told.what.owner is not None


def over(granted: Told, told: list[Told]) -> bool:
    """Whether it is a grant that is over when it is told: it need not be."""
    return isinstance(granted.what, WaiterGranted) and any(
        isinstance(each.what, HolderLost) and each.what.fence == granted.what.grant.fence
        for each in told
    )


def within(condition: Callable[[], bool], what: Callable[[], str]) -> None:
    """Waits until it is so."""
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.0005)
