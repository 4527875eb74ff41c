"""The yardstick of P7: our server, in which a `cache.get` is one GET of Redis, and nothing more.

`python -m bench.getter redis://127.0.0.1:6379`. Sockets, frames, sessions, JSON and the connection
to Redis are those of leasekeeper. So what its hits cost beyond this is what the cache costs: who
may load a value, whether it is fresh, what was invalidated.
"""

import gc
import sys
from typing import Final

import trio
from attrs import define

from leasekeeper.messages import (
    CacheGet,
    CacheHit,
    CacheSet,
    CacheState,
    Done,
    Json,
    Params,
    Result,
)
from leasekeeper.resp.client import Client
from leasekeeper.resp.settings import parse_url
from leasekeeper.server.app import Server
from leasekeeper.server.config import ServerConfig, TcpAddress
from leasekeeper.service.keeper import Keeper
from leasekeeper.service.session import Session
from leasekeeper.service.waiting import Waiting
from leasekeeper.store.memory import MemoryStore

TTL_MS: Final = 3_600_000
"""Said of every value."""


@define(eq=False, kw_only=True)
class Getter(Keeper):
    """Answers `cache.get` and `cache.set` from Redis. It does not know of misses."""

    client: Client

    async def begin(self, session: Session, params: Params) -> Result | Waiting:
        """One command for one request; all that is not about the cache as ever."""
        match params:
            case CacheGet(key=key):
                value = await self.client.command("GET", key)
                assert isinstance(value, bytes), "the load asks only for what it has set"
                return CacheHit(CacheState.HIT, Json(value), age_ms=0, ttl_ms=TTL_MS)
            case CacheSet(key=key, value=Json(text)):
                await self.client.command("SET", key, text)
                return Done()
            case _:
                return await super().begin(session, params)


async def serve(url: str) -> None:
    """Serves until the process is told to stop, and says where in its first line of output."""
    client = Client(parse_url(url), on_connected=lambda _: None, on_flushed=lambda _: None)
    keeper = Getter(store=MemoryStore(), client=client)
    server = Server(ServerConfig(listen=(TcpAddress("127.0.0.1", 0),)), keeper)
    async with trio.open_nursery() as around:
        await around.start(client.run)
        async with trio.open_nursery() as nursery:
            [address] = await nursery.start(server.run)
            print(f"getter listening on {address}", flush=True)
        around.cancel_scope.cancel()


if __name__ == "__main__":
    # As `leasekeeper serve` does.
    gc.freeze()
    gc.set_threshold(20_000, 50, 1_000)
    trio.run(serve, sys.argv[1])
