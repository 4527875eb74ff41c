"""Raw WebSocket clients in a simulated world, which can do everything wrong."""

from collections.abc import Callable
from random import Random
from typing import Any, Final

import trio
from attrs import define, field
from websockets.protocol import OPEN

from leasekeeper.errors import InternalError
from tests.harness import GONE, Peer, PeerGone, Refused
from tests.simulation.laws import Violation
from tests.simulation.wires import Link
from tests.simulation.world import World

GRACE_S: Final = 5.0
MARGIN_S: Final = 0.002
"""Servers count in milliseconds; the drift of clocks is not simulated."""
LOST_CONTACT: Final = (PeerGone, OSError, trio.TooSlowError, *GONE)


@define(eq=False, repr=False)
class SimPeer(Peer):
    """A peer that has all the time there is."""

    link: Link = field(kw_only=True)

    async def until(self, condition: Callable[[], bool]) -> None:
        """As in `Peer`."""
        while not condition():
            if self.ended.is_set():
                raise PeerGone(self.close_code)
            self._news = trio.Event()
            await self._news.wait()

    async def send_text(self, text: bytes) -> None:
        """As in `Peer`, where it is an error to send on what is closed."""
        if self._protocol.state is not OPEN:
            raise PeerGone(self.close_code)
        await super().send_text(text)

    async def drop(self) -> None:
        """As in `Peer`, also of one that does not read."""
        await trio.aclose_forcefully(self.stream)
        self.resume()
        await self.ended.wait()

    @property
    def unanswered(self) -> set[int]:
        """What has been asked and not been answered yet."""
        return self._asked

    def _sort(self, message: Any) -> None:  # noqa: ANN401 # any JSON
        super()._sort(message)
        for each in message if isinstance(message, list) else [message]:
            if each.get("error", {}).get("code") == InternalError.code:
                Violation("L13", f"the server has failed: {each}")  # and is found out by that

    def check_answers(self) -> None:
        """Nothing was answered twice, or without having been asked."""
        if self._unasked:
            raise Violation("L6", f"answered, and never asked: {self._unasked[0]}")


@define(eq=False)
class Actor:
    """One client after the other: connects, does what it does, until the world stops."""

    world: World
    name: str
    chance: Random = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.chance = Random(f"{self.world.seed}/{self.name}")

    def log(self, *what: object) -> None:
        """For those who want to know."""
        self.world.log(self.name, *what)

    def count(self, what: str) -> None:
        """An operation."""
        self.world.counts[what] += 1

    @property
    def hosts(self) -> list[str]:
        """The servers there may be."""
        return ["a"] if self.world.routes is None else ["a", "b"]


@define(eq=False)
class RawActor(Actor):
    """An actor that speaks the protocol by hand."""

    peer: SimPeer = field(init=False)

    async def run(self) -> None:
        """Until the world stops; what it still has then, it gives back."""
        async with trio.open_nursery() as nursery:
            while not self.world.stopping:
                try:
                    await self.connect(nursery)
                    await self.live()
                except LOST_CONTACT:
                    self.count("connections lost")
                    await trio.sleep(self.chance.choice([0.05, 0.3, 1]))
            nursery.cancel_scope.cancel()

    async def live(self) -> None:
        """On one connection, until that or the world ends."""
        raise NotImplementedError

    async def connect(self, nursery: trio.Nursery) -> None:
        """A new connection, with an open session.

        Raises:
            OSError, PeerGone, trio.TooSlowError: there is none.
        """
        link, end = self.world.network.dial(self.chance.choice(self.hosts))
        self.peer = SimPeer(end, link=link)
        nursery.start_soon(self.peer.run)
        with trio.fail_after(3):
            if await self.peer.open() != 101:
                raise PeerGone(None)
            liveness = self.chance.choice(["pong", "heartbeat"])
            await self.peer.call("session.open", client=self.name, liveness=liveness)
        self.count("connections")

    async def leave(self) -> None:
        """Closes cleanly; all that was asked must have been answered by then."""
        if self.peer.ended.is_set():
            return
        with trio.move_on_after(30):
            await self.peer.until(lambda: not self.peer.unanswered)
        if self.peer.unanswered:
            raise Violation("L5", f"{self.name}: not answered: {self.peer.unanswered}")
        self.peer.check_answers()
        await self.peer.close()


@define(eq=False)
class Held:
    """A lease as its holder may believe in it, by the times of what was sent and answered."""

    lasts_until: float
    kept_until: float
    over: bool = False

    def stands(self) -> bool:
        """Whether its holder may act on it now."""
        ends = min(self.lasts_until, self.kept_until) - MARGIN_S
        return not self.over and trio.current_time() < ends

    def confirm(self, sent_at: float, ttl_ms: int) -> None:
        """An answer to what was sent then has renewed it."""
        self.lasts_until = sent_at + ttl_ms / 1000
        self.kept_until = max(self.kept_until, sent_at + GRACE_S)


def is_lost(peer: Peer, lease: str) -> bool:
    """Whether the server has said so."""
    return any(
        note["method"] == "lease.lost" and note["params"]["lease"] == lease
        for note in peer.notifications
    )


async def ask(peer: SimPeer, method: str, **params: Any) -> dict[str, Any] | Refused:  # noqa: ANN401
    """A request, and what it is answered with."""
    try:
        return await peer.call(method, **params)
    except Refused as refused:
        return refused
