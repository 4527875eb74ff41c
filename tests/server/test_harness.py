"""The harness itself: its example, on each kind of wire."""

import pytest
from trio.testing import MockClock

from tests.harness import Refused, Wire, serving


@pytest.mark.parametrize("wire", ["memory", "lockstep"])
async def test_a_dropped_peer_keeps_its_lease(wire: Wire, autojump_clock: MockClock) -> None:
    async with serving() as served:
        peer, other = await served.connect(wire), await served.connect(wire)
        await peer.call("lease.acquire", name="a")
        await peer.drop()
        with pytest.raises(Refused) as refused:
            await other.call("lease.acquire", name="a")
        assert refused.value.code == -32001
        await other.send([{"jsonrpc": "2.0", "id": 1, "method": "nonsense"}])
        assert (await other.receive())[0]["error"]["code"] == -32601
        await other.close()


async def test_a_real_connection_is_served_too() -> None:
    async with serving() as served:
        peer = await served.connect("tcp", batch=True)
        await peer.call("lease.acquire", name="a")
        await peer.close()
        await served.idle()
        assert not served.keeper.sessions
