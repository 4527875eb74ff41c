"""What a heartbeat that failed renewed all the same, and what it did not."""

import time
from typing import Any

import anyio
import pytest
from leasekeeper_client import LeaseLost, connect

from client_fake_server import FakeServer, Message, Peer, Refused, fake_server
from client_helpers import Clock, on_both


def renewing(server: FakeServer, *names: str) -> Any:
    """The store answers for these names only."""

    def refuse(peer: Peer, _: Message) -> Any:
        renewed = [server.holders[name].lease for name in names if name in server.holders]
        raise Refused(-32020, {"outcome": "none", "retry_after_ms": 50, "renewed": renewed})

    return refuse


@on_both
async def test_what_a_failed_heartbeat_renewed_is_held_and_the_rest_is_lost_in_time() -> None:
    """L3, L8: by its own deadline, which the heartbeats that failed for it did not move."""
    async with fake_server() as server, connect(server.url) as keeper:
        began = time.monotonic()
        server.hooks["session.heartbeat"] = renewing(server, "good")
        async with keeper.lease("good", ttl=0.9) as good:
            with pytest.raises(LeaseLost) as caught:
                async with keeper.lease("bad", ttl=0.9):
                    await anyio.sleep_forever()
            assert caught.value.reason == "deadline"
            assert caught.value.name == "bad"
            assert 0.7 < time.monotonic() - began < 1.5
            await anyio.sleep(0.9)
            good.ensure()


@on_both
async def test_what_a_failed_heartbeat_renewed_counts_from_its_sending() -> None:
    """L3: an answer that was long on its way brings nothing back."""
    clock = Clock()
    async with fake_server() as server, connect(server.url, clock=clock) as keeper:
        refuse = renewing(server, "orders")

        def refuse_late(peer: Peer, params: Message) -> Any:
            clock.ahead += 60
            refuse(peer, params)

        server.hooks["session.heartbeat"] = refuse_late
        with pytest.raises(LeaseLost) as caught:
            async with keeper.lease("orders", ttl=0.9):
                await anyio.sleep_forever()
        assert caught.value.reason == "deadline"


@pytest.mark.parametrize("data", [{}, {"renewed": None}, {"renewed": "orders"}, {"renewed": []}])
@on_both
async def test_a_failed_heartbeat_that_names_nothing_renews_nothing(data: Message) -> None:
    """L3, L14: whatever a server puts there."""

    def refuse(peer: Peer, _: Message) -> Any:
        raise Refused(-32020, {"outcome": "unknown", "retry_after_ms": 50, **data})

    async with fake_server() as server, connect(server.url) as keeper:
        server.hooks["session.heartbeat"] = refuse
        with pytest.raises(LeaseLost):
            async with keeper.lease("orders", ttl=0.4):
                with anyio.fail_after(5):
                    await anyio.sleep_forever()
        assert len(server.peers) == 1, "the connection is good"


@on_both
async def test_a_lease_is_resumed_on_the_next_server_when_one_is_gone() -> None:
    """L8: the servers share a store; the fence stays, and the wait of another goes on there."""
    async with fake_server() as one, fake_server() as two:
        two.holders, two.queues = one.holders, one.queues
        async with connect([one.url, two.url]) as keeper:
            async with keeper.lease("orders") as lease:
                fence = lease.fence
                one.refusing = True
                await one.peer.drop()
                await two.until(lambda: len(two.asked("lease.resume")) == 1)
                await keeper.inspect("orders")
                lease.ensure()
                assert lease.fence == fence
            assert len(two.asked("lease.release")) == 1
        assert not one.asked("lease.release")
