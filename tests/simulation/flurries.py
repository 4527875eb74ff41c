"""Raw clients that do anything at any time, with lease ids used over and over: nothing of it may
stay. What they believe is not asked; they share their names with those who do."""

from typing import Any, Final

import trio
from attrs import define, field

from leasekeeper.messages import ORIGINAL_WAIT
from tests.harness import Refused
from tests.service.conftest import new_lease
from tests.simulation.database import KEYS
from tests.simulation.holders import NAMES
from tests.simulation.peers import RawActor

TTLS_MS: Final = (100, 400, 3_000, 10_000)


@define(eq=False)
class Flurry(RawActor):
    """See the module."""

    leases: list[tuple[str, str]] = field(factory=list)
    fills: list[tuple[str, str]] = field(factory=list)

    async def live(self) -> None:
        for name, lease in self.leases if self.chance.random() < 0.7 else []:
            await self.send("lease.resume", name=name, lease=lease)
        until = trio.current_time() + self.chance.choice([1, 5, 20])
        while not self.world.stopping and trio.current_time() < until:
            await trio.sleep(self.chance.choice([0, 0.001, 0.05, 0.3, 1]))
            await self.act()
        if self.world.stopping:
            for request in sorted(self.peer.unanswered):
                await self.send("rpc.cancel", id=request)
            await self.leave()
        elif self.chance.random() < 0.3:
            await self.peer.close()
        else:
            await self.peer.drop()

    async def act(self) -> None:
        """Does anything."""
        chance = self.chance
        name, lease = chance.choice(self.leases or [(chance.choice(NAMES), new_lease())])
        match chance.randrange(18):
            case 0 | 1 | 2 | 3:
                await self.acquire(chance.choice(NAMES), new_lease())
            case 4 | 5:
                await self.acquire(name, lease)
            case 6:
                await self.acquire_all(lease)
            case 7 | 8 | 9:
                await self.send("lease.release", name=name, lease=lease)
            case 10 if self.peer.unanswered:
                await self.send("rpc.cancel", id=chance.choice(sorted(self.peer.unanswered)))
            case 11:
                await self.send(
                    "lease.renew", name=name, lease=lease, ttl_ms=chance.choice(TTLS_MS)
                )
            case 12:
                wait_ms = chance.choice([ORIGINAL_WAIT, 0, 2_000])
                await self.send("lease.resume", name=name, lease=lease, wait_ms=wait_ms)
            case 13:
                await self.send("session.heartbeat")
            case 14:
                await self.send(chance.choice(["lease.watch", "lease.unwatch"]), name=name)
            case 15 if chance.random() < 0.2:
                await self.send("lease.break", name=name)
            case _:
                await self.cache()

    async def acquire(self, name: str, lease: str) -> None:
        self.remember(name, lease)
        mode: dict[str, Any] = {"mode": "shared"} if self.chance.random() < 0.2 else {}
        await self.send(
            "lease.acquire",
            name=name,
            lease=lease,
            ttl_ms=self.chance.choice(TTLS_MS),
            wait_ms=self.chance.choice([0, 0, 200, 2_000, None]),
            auto_renew=self.chance.random() < 0.5,
            on_drop=self.chance.choice(["keep", "release"]),
            max_hold_ms=self.chance.choice([None, 500]),
            **mode,
        )

    async def acquire_all(self, lease: str) -> None:
        names = self.chance.sample(NAMES, 2)
        for name in names:
            self.remember(name, lease)
        wait_ms = self.chance.choice([0, 500, None])
        await self.send(
            "lease.acquire_all", names=names, lease=lease, ttl_ms=3_000, wait_ms=wait_ms
        )

    async def cache(self) -> None:
        """Asks for what it never hands over, and hands over what it was never asked for."""
        key = self.chance.choice(KEYS)
        match self.chance.randrange(3):
            case 0:
                await self.send("cache.get", key=key, wait_ms=0, fill_ms=100, can_fill=False)
            case 1:
                await self.send("cache.get", key="k3", wait_ms=self.chance.choice([0, 500]))
            case _:
                await self.send("cache.fill", key="k3", fill=new_lease(), ttl_ms=100, value=1)

    def remember(self, name: str, lease: str) -> None:
        self.leases = [(name, lease), *self.leases][:6]

    async def send(self, method: str, **params: object) -> None:
        self.count(method)
        self.log(method, params)
        params = {key: value for key, value in params.items() if key != "max_hold_ms" or value}
        try:
            await self.peer.ask(method, **params)
        except Refused:  # pragma: no cover
            raise AssertionError("nobody has waited for the answer") from None
