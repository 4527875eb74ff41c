"""An hour of leases, the whole server, in about a second: a virtual clock and memory streams.

A dozen clients take a few names in both modes, hold them, and then release them, leave, drop their
connection and come back, or freeze. What each believes to hold is checked against the laws.
"""

from random import Random

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from leasekeeper import errors
from leasekeeper.errors import CloseCode
from tests.harness import Peer, PeerGone, Refused, Served, serving

HOUR_S = 3600
CLIENTS = 5
NAMES = ("a", "b")
LIMIT = 3
BUSY, LOST = errors.Busy.code, errors.Lost.code


@define
class Beliefs:
    """Who believes to hold what, by name: lease ids, and whether they are shared."""

    holders: dict[str, dict[str, bool]] = field(factory=lambda: {name: {} for name in NAMES})
    last_exclusive: dict[str, int] = field(factory=lambda: dict.fromkeys(NAMES, 0))
    grants: int = 0
    resumed: int = 0
    losses: int = 0

    def begin(self, name: str, lease: str, fence: int, *, shared: bool) -> None:
        """L1 and L2, at the moment of a grant."""
        others = self.holders[name]
        assert not others or (shared and all(others.values())), f"{name}: two holders"
        assert len(others) < LIMIT, f"{name}: more than the limit"
        assert fence > self.last_exclusive[name], f"{name}: a fence fell"
        if not shared:
            self.last_exclusive[name] = fence
        others[lease] = shared
        self.grants += 1

    def end(self, name: str, lease: str) -> None:
        """It does not act on the lease any more."""
        del self.holders[name][lease]


@define
class Actor:
    """One client: a loop of cycles, each with a fate chosen by chance."""

    served: Served
    beliefs: Beliefs
    chance: Random

    async def run(self) -> None:
        peer = await self.served.connect()
        while True:
            try:
                peer = await self.cycle(peer)
            except Refused as refused:
                if refused.code != BUSY:
                    raise
            await trio.sleep(self.chance.uniform(0, 5))

    async def cycle(self, peer: Peer) -> Peer:
        """Takes a lease, holds it, and lets it go in one way or another."""
        name, shared = self.chance.choice(NAMES), self.chance.random() < 0.4
        ttl_ms = self.chance.choice([5_000, 30_000, 30_000])
        mode = {"mode": "shared", "limit": LIMIT} if shared else {}
        wait_ms = self.chance.choice([0, 1_000, 20_000, 50_000])
        grant = await peer.call("lease.acquire", name=name, ttl_ms=ttl_ms, wait_ms=wait_ms, **mode)
        lease, fence = grant["lease"], grant["fence"]
        self.beliefs.begin(name, lease, fence, shared=shared)
        await trio.sleep(self.chance.uniform(0, 20))
        assert not peer.notifications or peer.notifications[-1]["method"] != "lease.lost"
        self.beliefs.end(name, lease)
        match self.chance.choice(["release", "release", "release", "close", "drop", "freeze"]):
            case "release":
                assert (await peer.call("lease.release", name=name, lease=lease))["released"]
                return peer
            case "close":
                await peer.close()
            case "drop":
                await peer.drop()
                await trio.sleep(self.chance.choice([0.1, 1.0, 8.0]))
                return await self.come_back(name, lease, fence)
            case "freeze":
                peer.answers_pings = False
                await self.until_lost(peer, lease)
        return await self.served.connect()

    async def come_back(self, name: str, lease: str, fence: int) -> Peer:
        """Resumes on a new connection what is still there."""
        peer = await self.served.connect()
        try:
            grant = await peer.call("lease.resume", name=name, lease=lease)
        except Refused as refused:
            if refused.code != LOST:
                raise
            self.beliefs.losses += 1
        else:
            assert grant["fence"] == fence
            self.beliefs.resumed += 1
            await peer.call("lease.release", name=name, lease=lease)
        return peer

    async def until_lost(self, peer: Peer, lease: str) -> None:
        """A frozen client hears that it lost, or that its connection was given up."""
        try:
            while (await peer.notification("lease.lost"))["lease"] != lease:
                pass
        except PeerGone as gone:
            if gone.code != CloseCode.NO_SIGN_OF_LIFE:
                raise
        self.beliefs.losses += 1
        await peer.drop()


@pytest.mark.parametrize("seed", range(3))
async def test_an_hour_of_leases_obeys_the_laws(seed: int, autojump_clock: MockClock) -> None:
    """L1, L2, L8, L9."""
    beliefs = Beliefs()
    async with serving() as served:
        with trio.move_on_after(HOUR_S):
            async with trio.open_nursery() as nursery:
                for index in range(CLIENTS):
                    actor = Actor(served, beliefs, Random(f"{seed}/{index}"))
                    nursery.start_soon(actor.run)
        assert beliefs.grants > 500
        assert beliefs.resumed
        assert beliefs.losses
        served.peers.cancel_scope.cancel()
        await trio.sleep(60)
        assert len(served.server.keeper.leases.tenures) == 0
        assert not served.server.connections
