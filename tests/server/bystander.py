"""Somebody else on the same server, who must not notice what a hostile peer does (law L13)."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio
from trio.testing import MockClock

from tests.harness import Peer, Served, Wire

TTL_MS: Final = 300
"""Shorter than most attacks here last: a bystander whose pings go unserved loses its lease."""
_REAL_TTL_MS: Final = 3_000
"""On a real clock, where the other workers of the suite share the processors with the attack."""
_ROUND_TRIP_S: Final = 2.0


@asynccontextmanager
async def bystander(served: Served, wire: Wire = "memory") -> AsyncIterator[Peer]:
    """A peer with a short lease that lives by pongs; it is served and keeps it, to the end."""
    peer = await served.connect(wire)
    virtual = isinstance(trio.lowlevel.current_clock(), MockClock)
    ttl_ms = TTL_MS if virtual else _REAL_TTL_MS
    grant = await peer.call("lease.acquire", name="bystander", ttl_ms=ttl_ms)
    yield peer
    with trio.fail_after(_ROUND_TRIP_S):
        state = await peer.call("lease.inspect", name="bystander")
        assert [holder["fence"] for holder in state["holders"]] == [grant["fence"]]
        released = await peer.call("lease.release", name="bystander", lease=grant["lease"])
        assert released == {"released": True}
        assert not peer.notifications
        await peer.close()
