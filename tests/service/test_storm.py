"""Many clients on a store that is slow, loses calls and loses answers; then the weather clears.

What each client believes, by its own arithmetic, is checked against all others at every grant; and
afterwards nothing may be left of what nobody wants.
"""

from random import Random

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from leasekeeper.errors import RpcError, Unavailable
from leasekeeper.messages import (
    LeaseAcquire,
    LeaseAcquireAll,
    LeaseBreak,
    LeaseGrant,
    LeaseGrants,
    LeaseLost,
    LeaseRelease,
    LeaseRenew,
    LeaseResume,
    LeaseWatch,
    Notification,
    OnDrop,
    Params,
    SessionHeartbeat,
)
from leasekeeper.service.limits import Limits
from leasekeeper.service.session import Stage
from tests.service.conftest import Client, Pending, World, new_lease, open_world
from tests.service.flaky import FlakyStore

NAMES = ("a", "b", "c")
CLIENTS = 10
STORM_S = 240
TTLS_MS = (100, 400, 3_000, 60_000)


@define
class Beliefs:
    """Until when whom believes to hold what."""

    until: dict[str, dict[str, tuple[int, float]]] = field(
        factory=lambda: {name: {} for name in NAMES}
    )
    grants: int = 0

    def begin(self, grant: LeaseGrant, sent_at: float) -> None:
        """L1, L3: nobody else may believe in it now."""
        now, deadline = trio.current_time(), sent_at + (grant.waited_ms + grant.ttl_ms) / 1000
        others = self.until[grant.name]
        if deadline <= now:
            return
        for lease, (fence, until) in others.items():
            assert lease == grant.lease or until <= now, (
                f"{grant.name}: two believe, {lease} {fence}"
            )
        others[grant.lease] = (grant.fence, deadline)
        self.grants += 1

    def end(self, name: str, lease: str) -> None:
        """Its holder does not act on it any more."""
        self.until[name].pop(lease, None)


@define(eq=False)
class Actor:
    """One client, one session after the other."""

    world: World
    beliefs: Beliefs
    chance: Random
    client: Client = field(init=False)
    pending: list[Pending] = field(factory=list)
    asked: dict[Pending, Params] = field(factory=dict)
    leases: list[tuple[str, str]] = field(factory=list)
    asks: int = 0
    given_up: dict[tuple[str, str], int] = field(factory=dict)
    """For each lease that a cancel gave up, which was the last request before it: none of them,
    whatever it is answered, has a client believe in it any more."""

    def connect(self) -> None:
        self.client = self.world.client()
        self.client.session.notify = self.hear
        if self.chance.random() < 0.4:
            self.client.with_heartbeats()

    def hear(self, note: Notification) -> None:
        if isinstance(note, LeaseLost):
            self.beliefs.end(note.name, note.lease)

    async def run(self) -> None:
        self.connect()
        while True:
            await trio.sleep(self.chance.choice([0, 0, 0.001, 0.02, 0.2, 1]))
            match self.chance.randrange(16):
                case 0 | 1 | 2:
                    self.acquire(self.chance.choice(NAMES), new_lease())
                case 3:
                    self.acquire_all(new_lease())
                case 4 if self.leases:
                    self.acquire(*self.chance.choice(self.leases))
                case 5 | 6 | 7 | 8 if self.leases:
                    self.release(*self.chance.choice(self.leases))
                case 9 if self.pending:
                    self.cancel(self.chance.choice(self.pending))
                case 10 if self.leases:
                    name, lease = self.chance.choice(self.leases)
                    self.beliefs.end(name, lease)  # for the new TTL may be shorter
                    self.ask(LeaseRenew(name, lease, self.chance.choice(TTLS_MS)))
                case 11:
                    self.ask(SessionHeartbeat())
                case 12:
                    self.ask(LeaseWatch(self.chance.choice(NAMES)))
                case 13 if self.chance.random() < 0.3:
                    self.ask(LeaseBreak(self.chance.choice(NAMES)))
                case 14:
                    self.leave(clean=self.chance.random() < 0.5)

    def acquire(self, name: str, lease: str) -> None:
        self.remember(name, lease)
        self.ask(
            LeaseAcquire(
                name,
                ttl_ms=self.chance.choice(TTLS_MS),
                wait_ms=self.chance.choice([0, 200, 2_000, None]),
                lease=lease,
                auto_renew=self.chance.random() < 0.8,
                on_drop=self.chance.choice(list(OnDrop)),
                max_hold_ms=self.chance.choice([None, None, 500]),
            )
        )

    def acquire_all(self, lease: str) -> None:
        for _ in range(self.chance.choice([1, 1, 2])):
            wait_ms = self.chance.choice([0, 500, None])
            self.ask(LeaseAcquireAll(("a", "b"), 3_000, wait_ms, lease=lease))
        self.remember("a", lease)
        self.remember("b", lease)

    def remember(self, name: str, lease: str) -> None:
        self.leases = [(name, lease), *self.leases][:8]

    def release(self, name: str, lease: str) -> None:
        self.leases = [each for each in self.leases if each != (name, lease)]
        self.beliefs.end(name, lease)
        self.ask(LeaseRelease(name, lease))

    def cancel(self, pending: Pending) -> None:
        """Which releases what it had been granted, too."""
        if params := self.asked.get(pending):
            self.forget(params)
            for key in keys_of(params):
                self.given_up[key] = self.asks
        pending.scope.cancel()

    def forget(self, params: Params) -> None:
        for name, lease in keys_of(params):
            self.beliefs.end(name, lease)

    def leave(self, *, clean: bool) -> None:
        for params in self.asked.values():
            self.forget(params)
        old, requests = self.client, self.pending
        self.connect()
        self.pending, self.asked = [], {}
        for name, lease in self.leases if not clean or self.chance.random() < 0.2 else []:
            self.ask(LeaseResume(name, lease))  # while the old one is still there
        (old.close if clean else old.drop)()
        for pending in requests:
            pending.scope.cancel()

    def ask(self, params: Params) -> None:
        pending = Pending()
        self.pending = [each for each in self.pending if not each.done.is_set()][-20:]
        self.pending.append(pending)
        self.asked[pending] = params
        self.asks += 1
        self.world.nursery.start_soon(self.carry_out, self.client, params, pending, self.asks)

    async def carry_out(
        self, client: Client, params: Params, pending: Pending, number: int
    ) -> None:
        sent_at = trio.current_time()
        with pending.scope:
            try:
                result = await client.keeper.handle(client.session, params)
            except RpcError as error:
                pending.error = error
                result = None
                if not isinstance(error, Unavailable) or isinstance(params, LeaseAcquireAll):
                    self.forget(params)
            if client is self.client and client.session.attached:
                self.believe(result, sent_at, number)
        pending.done.set()

    def believe(self, result: object, sent_at: float, number: int) -> None:
        grants = result.leases if isinstance(result, LeaseGrants) else [result]
        for grant in grants:
            if not isinstance(grant, LeaseGrant):
                continue
            key = grant.name, grant.lease
            if key in self.leases and number > self.given_up.get(key, 0):
                self.beliefs.begin(grant, sent_at)


def keys_of(params: Params) -> list[tuple[str, str]]:
    """What a request asks for, as (name, lease id)."""
    match params:
        case LeaseAcquire(name=name, lease=str(lease)) | LeaseResume(name, lease):
            return [(name, lease)]
        case LeaseAcquireAll(names=names, lease=str(lease)):
            return [(name, lease) for name in names]
        case _:
            return []


def check_no_ghosts(world: World, store: FlakyStore) -> None:
    """What the store has, a client knows of; what the service has, the store has."""
    leases = world.keeper.leases
    in_store = set()
    for name, lock in store.inner._locks.items():
        for lease in lock._holders:
            tenure = leases.tenures.find((name, lease))
            assert tenure is not None, f"{name} is held by nobody {lease}"
            assert tenure.stage is Stage.HELD, tenure
            assert tenure.told or tenure.requests, f"{name}: nobody was told {lease}"
            in_store.add((name, lease))
        for lease in lock._queue:
            tenure = leases.tenures.find((name, lease))
            assert tenure is not None, f"nobody waits for {name} {lease}"
            assert tenure.stage is Stage.WAITING, tenure
            assert tenure.requests, f"{name}: no request waits {lease}"
            in_store.add((name, lease))
    assert {tenure.key for tenure in leases.tenures} == in_store
    for name in NAMES:
        for tenure in leases.tenures.held(name):
            assert leases.tenures.find(tenure.key) is tenure
    assert not len(leases.unwanted)


@pytest.mark.parametrize("seed", range(4))
async def test_after_a_storm_nothing_is_left_of_what_nobody_wants(
    seed: int, clock: MockClock
) -> None:
    """L1, L3, L5, L6, L8, L9."""
    store, beliefs = FlakyStore(weather=Random(f"{seed}/weather")), Beliefs()
    async with open_world(Limits(), store) as world:
        actors = [Actor(world, beliefs, Random(f"{seed}/{i}")) for i in range(CLIENTS)]
        with trio.move_on_after(STORM_S):
            async with trio.open_nursery() as nursery:
                for actor in actors:
                    nursery.start_soon(actor.run)
        assert beliefs.grants > 100
        store.weather = None
        await trio.sleep(6)
        check_no_ghosts(world, store)
        for index, actor in enumerate(actors):
            for params in actor.asked.values():
                actor.forget(params)
            actor.client.close() if index % 2 else actor.client.drop()
        await trio.sleep(6)
        assert not len(world.keeper.leases.tenures)
        assert not world.keeper.sessions
        assert not store.inner._locks
        assert not store.inner._watched
