"""Servers over a Redis that is about to be mistreated, and clients that write down what they see.

A `Station` is a whole server, with its own connections to Redis and its own listening socket. It
runs in the test's process, so that a test can have three of them for the price of none; a test
that is about processes takes `tests.processes.running_server`.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from secrets import token_hex
from typing import Any, Final

import trio
from attrs import define, field, frozen

from leasekeeper.resp.settings import parse_url
from leasekeeper.server.app import Server
from leasekeeper.server.config import ServerConfig
from leasekeeper.service.keeper import Keeper
from leasekeeper.service.limits import Limits
from leasekeeper.store.redis.store import Options, RedisStore
from tests.harness import Peer, Refused, dial
from tests.redises import HOST

BUSY: Final = -32001
LOST: Final = -32002
UNAVAILABLE: Final = -32020
ANSWER_S: Final = 5.0
"""Whatever Redis does, a request that need not wait is answered within this."""
LATE_S: Final = 1.0
"""And a busy machine may take so much longer."""
WITHIN_S: Final = 30.0
"""How long a test waits for what has to come, and has no deadline of its own."""
POLL_S: Final = 0.02

now = trio.current_time


@frozen
class Station:
    """A server that accepts connections."""

    url: str
    store: RedisStore
    server: Server
    peers: trio.Nursery

    async def dial(self) -> Peer:
        """A client of it."""
        return await dial(self.url, self.peers)


@asynccontextmanager
async def station(
    redis_url: str, options: Options | None = None, limits: Limits | None = None
) -> AsyncIterator[Station]:
    """A server on this Redis, until the block ends."""
    name, limits = token_hex(4), limits or Limits()
    store = RedisStore(parse_url(redis_url), name, options or Options())
    server = Server(ServerConfig(limits=limits), Keeper(store, limits, name))
    async with trio.open_nursery() as peers, trio.open_nursery() as nursery:
        await nursery.start(server.keeper.run)
        serve = partial(trio.serve_tcp, host=HOST)
        [listener] = await nursery.start(serve, server.serve_stream, 0)
        port = listener.socket.getsockname()[1]
        try:
            yield Station(f"ws://{HOST}:{port}", store, server, peers)
        finally:
            nursery.cancel_scope.cancel()
            peers.cancel_scope.cancel()


@frozen
class Held:
    """A lease as its client knows it, which may believe in it until `until`."""

    name: str
    lease: str
    fence: int
    sent_at: float
    until: float


async def take(peer: Peer, name: str, *, ttl_ms: int, **params: object) -> Held:
    """Takes a lease. By default nothing renews it, so that its end is known."""
    asked = {"auto_renew": False, "lease": token_hex(16), **params}
    sent_at = now()
    grant = await peer.call("lease.acquire", name=name, ttl_ms=ttl_ms, **asked)
    until = sent_at + (grant["waited_ms"] + grant["ttl_ms"]) / 1000
    return Held(name, grant["lease"], grant["fence"], sent_at, until)


@define
class Attempt:
    """One request, and how it was answered: `code` None is success."""

    began_at: float
    ended_at: float
    code: int | None
    answer: dict[str, Any]
    """The result, or the `data` of the error."""

    @property
    def took_s(self) -> float:
        return self.ended_at - self.began_at


async def attempt(peer: Peer, method: str, **params: object) -> Attempt:
    """One request, whatever its answer."""
    began_at = now()
    try:
        result = await peer.call(method, **params)
    except Refused as refused:
        return Attempt(began_at, now(), refused.code, refused.data)
    return Attempt(began_at, now(), None, result)


@define(eq=False)
class Rival:
    """Asks for a name again and again until it gets it, and writes down every answer."""

    peer: Peer
    name: str
    ttl_ms: int = 200
    params: dict[str, object] = field(factory=dict)
    attempts: list[Attempt] = field(factory=list)

    async def run(self) -> None:
        while not self.is_done:
            self.attempts.append(await self._ask())
            await trio.sleep(POLL_S)

    async def _ask(self) -> Attempt:
        return await attempt(
            self.peer,
            "lease.acquire",
            name=self.name,
            ttl_ms=self.ttl_ms,
            auto_renew=False,
            **self.params,
        )

    @property
    def is_done(self) -> bool:
        """Whether it got it."""
        return bool(self.attempts) and self.attempts[-1].code is None

    async def begun(self) -> None:
        """Waits until it has been refused."""
        await eventually(lambda: bool(self.attempts))

    async def done(self) -> None:
        """Waits until it has it."""
        await eventually(lambda: self.is_done)

    @property
    def got(self) -> Attempt:
        """The grant."""
        assert self.attempts[-1].code is None, self.attempts[-1]
        return self.attempts[-1]

    @property
    def fence(self) -> int:
        return int(self.got.answer["fence"])

    def codes(self) -> set[int | None]:
        return {each.code for each in self.attempts}


def check_refusals(attempts: list[Attempt], wait_s: float = 0.0) -> None:
    """An outage is told as such, in time, and with when to come back (HOLD-3, L14)."""
    for each in attempts:
        assert each.code in {None, BUSY, UNAVAILABLE}, each
        if each.code == UNAVAILABLE:
            assert each.answer["outcome"] in {"none", "unknown"}, each
            assert each.answer["retry_after_ms"] > 0, each
        assert each.took_s <= wait_s + ANSWER_S + LATE_S, each


async def eventually(true: Callable[[], bool], within_s: float = WITHIN_S) -> float:
    """Waits until it is true; returns how long that took."""
    began_at = now()
    with trio.fail_after(within_s):
        while not true():  # noqa: ASYNC110 # it is about what other processes do
            await trio.sleep(POLL_S)
    return now() - began_at


async def works_again(peer: Peer, name: str, within_s: float = WITHIN_S) -> float:
    """Asks until a lease on a fresh name is granted; gives it back. Returns how long that took."""
    began_at = now()
    with trio.fail_after(within_s):
        while True:
            asked = await attempt(peer, "lease.acquire", name=name, ttl_ms=10_000)
            if asked.code is None:
                break
            await trio.sleep(POLL_S)
    taken_s = now() - began_at
    await peer.call("lease.release", name=name, lease=asked.answer["lease"])
    return taken_s


async def holders(peer: Peer, name: str) -> list[int]:
    """The fences of those who hold a name."""
    state = await peer.call("lease.inspect", name=name)
    return [each["fence"] for each in state["holders"]]


async def nobody_but(peer: Peer, names: set[str]) -> None:
    """Waits until only these are held, by anyone.

    Raises:
        AssertionError: others are, for good.
    """
    held: set[str] = set()
    with trio.move_on_after(WITHIN_S):
        while True:
            page = await peer.call("lease.list")
            held = {each["name"] for each in page["leases"]}
            if held == names:
                return
            await trio.sleep(POLL_S)
    raise AssertionError(f"held are {held}, and not {names}")
