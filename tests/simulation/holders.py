"""Raw clients that use leases as one should, and what becomes of them."""

from typing import Any, Final

import trio
from attrs import define

from leasekeeper import errors
from tests.harness import PeerGone, Refused
from tests.service.conftest import new_lease
from tests.simulation.laws import Belief, Violation
from tests.simulation.peers import GRACE_S, LOST_CONTACT, Held, RawActor, ask, is_lost

NAMES: Final = ("a", "b", "c")
LIMIT: Final = 2
FATES: Final = (
    "release",
    "release",
    "release",
    "close",
    "drop",
    "resume",
    "resume",
    "freeze",
    "die",
)


@define(eq=False)
class Holder(RawActor):
    """Takes one lease after the other, and believes in each for as long as it may."""

    async def live(self) -> None:
        while not self.world.stopping:
            await self.cycle()
            await trio.sleep(self.chance.choice([0, 0.1, 1, 3]))
        await self.leave()

    async def cycle(self) -> None:
        """One lease, from its beginning to its end."""
        name, lease, shared = self.chance.choice(NAMES), new_lease(), self.chance.random() < 0.4
        limit = self.chance.choice([None, LIMIT]) if shared else None
        mode: dict[str, Any] = {"mode": "shared"} if shared else {}
        if limit is not None:
            mode["limit"] = limit
        sent_at = trio.current_time()
        wait_ms = self.chance.choice([0, 500, 10_000, None])
        params = {"name": name, "lease": lease, "wait_ms": wait_ms, **mode}
        params["ttl_ms"] = self.chance.choice([500, 3_000, 20_000])
        grant = await self.get(params)
        if grant is None:
            return
        granted_at = min(sent_at + grant["waited_ms"] / 1000, trio.current_time())
        held = Held(granted_at + grant["ttl_ms"] / 1000, granted_at + GRACE_S)
        held.over = is_lost(self.peer, lease)
        self.log("holds", name, lease[:6], grant["fence"])
        belief = Belief(name, lease, grant["fence"], held.stands, shared, limit)
        self.world.beliefs.begin(belief)
        try:
            await self.hold(belief, held)
        finally:
            held.over = True
            self.world.beliefs.end(name, lease)

    async def get(self, params: dict[str, Any]) -> dict[str, Any] | None:
        """The grant; None if it is busy, refused or cancelled."""
        self.count("lease.acquire")
        request = await self.peer.ask("lease.acquire", **params)
        patience = self.chance.choice([0.05, 2, 20, 1_000])
        with trio.move_on_after(patience):
            await self.peer.until(lambda: self.peer.answered(request) or self.world.stopping)
        if not self.peer.answered(request) and self.chance.random() < 0.3:
            self.count("repeated")
            await ask(self.peer, "lease.acquire", **{**params, "wait_ms": 0})
        if not self.peer.answered(request):
            self.count("rpc.cancel")
            await ask(self.peer, "rpc.cancel", id=request)
            with trio.move_on_after(30):
                await self.peer.until(lambda: self.peer.answered(request))
            if not self.peer.answered(request) and not self.world.network.bad:
                raise Violation("L5", f"{self.name}: a cancelled request is not answered")
        try:
            return await self.peer.answer(request)
        except Refused as refused:
            self.count(f"refused {refused.code}")
            return None

    async def hold(self, belief: Belief, held: Held) -> None:
        """Renews it, until something else happens to it."""
        ends = trio.current_time() + self.chance.choice([0, 0.3, 3, 8])
        while trio.current_time() < ends and not self.world.stopping:
            await trio.sleep(self.chance.choice([0.1, 0.4, 1]))
            if not await self.renew(belief, held):
                return
        fate = "release" if self.world.stopping else self.chance.choice(FATES)
        self.log(fate, belief.name, belief.lease[:6])
        self.world.faults[fate] += fate in {"drop", "resume", "freeze", "die"}
        match fate:
            case "release":
                held.over = True
                self.count("lease.release")
                key = {"name": belief.name, "lease": belief.lease}
                await ask(self.peer, "lease.release", **key)
            case "close":
                held.over = True
                await self.leave()
                raise PeerGone(1000)
            case "resume":
                await self.come_back(belief, held)
            case "freeze":
                self.peer.pause()
                self.peer.answers_pings = False
                await trio.sleep(self.chance.choice([3, 12, 30]))
                await self.peer.drop()
                raise PeerGone(None)
            case _:  # "drop" believes for as long as it may, and "die" not at all
                held.over = fate == "die"
                await self.peer.drop()
                await trio.sleep(self.chance.choice([0, 2, 8]))
                raise PeerGone(None)

    async def renew(self, belief: Belief, held: Held) -> bool:
        """Whether it still stands."""
        sent_at = trio.current_time()
        key = {"name": belief.name, "lease": belief.lease}
        answer = await ask(self.peer, "lease.renew", **key)
        self.count("lease.renew")
        if is_lost(self.peer, belief.lease) or not held.stands():
            held.over = True
        if isinstance(answer, Refused):
            held.over |= answer.code == errors.Lost.code
        elif not held.over:
            held.confirm(sent_at, answer["ttl_ms"])
        return not held.over

    async def come_back(self, belief: Belief, held: Held) -> None:
        """Resumes on a new connection what is still there."""
        old = self.peer
        self.count("lease.resume")
        async with trio.open_nursery() as nursery:
            if self.chance.random() < 0.5:
                await old.drop()
            await trio.sleep(self.chance.choice([0, 0.1, 2, 6]))
            try:
                await self.connect(nursery)
                await self.resume(belief, held)
                held.over = True  # for what a session has is released when it leaves
                await self.leave()
            except LOST_CONTACT:
                pass  # and not a group of it
            finally:
                with trio.CancelScope(shield=True):
                    await old.drop()
                    await self.peer.drop()
                held.over = True
        raise PeerGone(None)

    async def resume(self, belief: Belief, held: Held) -> None:
        """On the new connection."""
        sent_at = trio.current_time()
        key = {"name": belief.name, "lease": belief.lease}
        answer = await ask(self.peer, "lease.resume", **key)
        if isinstance(answer, Refused):
            held.over |= answer.code == errors.Lost.code
            return
        if answer["fence"] != belief.fence and held.stands():
            raise Violation("L6", f"{belief.name}: resumed with another fence")
        if held.stands() and not is_lost(self.peer, belief.lease):
            held.confirm(sent_at + answer["waited_ms"] / 1000, answer["ttl_ms"])
            for _ in range(self.chance.choice([0, 1, 5])):
                await trio.sleep(1)
                if not await self.renew(belief, held):
                    break
        held.over = True
        await ask(self.peer, "lease.release", **key)
