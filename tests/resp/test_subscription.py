"""Channels: what is heard, and that it is known when something may have been missed."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import structlog.testing
import trio
import trio.testing
from attrs import define, evolve, field

from leasekeeper.errors import ConfigurationError
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.settings import parse_url
from tests.redis_groups import Redises, running_cluster, running_replicas
from tests.redises import running_redis
from tests.resp.fake import SETTINGS, Connected, FakeRedis, Network, bulk, running_client

CHANNELS = ("lk:server:1", "lk:servers")


@define(eq=False)
class Ear:
    """What is heard on the channels."""

    heard: list[tuple[str, bytes]] = field(factory=list)
    subscriptions: int = 0
    news: trio.Event = field(factory=trio.Event)

    def on_message(self, channel: str, data: bytes) -> None:
        """Notes a message."""
        self.heard.append((channel, data))
        self._ring()

    def on_subscribed(self) -> None:
        """Counts."""
        self.subscriptions += 1
        self._ring()

    def _ring(self) -> None:
        self.news.set()
        self.news = trio.Event()

    async def subscribed(self, times: int) -> None:
        """Waits until it was so often."""
        while self.subscriptions < times:
            await self.news.wait()

    async def messages(self, count: int) -> None:
        """Waits until so many were heard."""
        while len(self.heard) < count:
            await self.news.wait()


@asynccontextmanager
async def listening(connected: Connected) -> AsyncIterator[Ear]:
    """Subscribed as long as the block lasts."""
    ear = Ear()
    async with trio.open_nursery() as nursery:
        with trio.fail_after(5):
            await nursery.start(
                connected.client.subscribe, CHANNELS, ear.on_message, ear.on_subscribed
            )
        yield ear
        nursery.cancel_scope.cancel()


async def test_messages_come_in_order_as_bytes(redises: Redises) -> None:
    async with (
        running_client(parse_url(redises.single().url)) as connected,
        listening(connected) as ear,
    ):
        assert ear.subscriptions == 1
        for number in range(10):
            assert await connected.client.command("PUBLISH", "lk:servers", number) == 1
        await connected.client.command("PUBLISH", "other", "x")
        await connected.client.command("PUBLISH", "lk:server:1", b"\xff")
        with trio.fail_after(5):
            await ear.messages(11)
    expected = [("lk:servers", str(number).encode()) for number in range(10)]
    assert ear.heard == [*expected, ("lk:server:1", b"\xff")]


async def test_after_the_connection_was_killed_it_subscribes_again_and_says_so(
    redises: Redises,
) -> None:
    redis = redises.single()
    with structlog.testing.capture_logs() as logs:
        async with running_client(parse_url(redis.url)) as connected, listening(connected) as ear:
            redis.cli("CLIENT", "KILL", "TYPE", "pubsub")
            with trio.fail_after(5):
                await ear.subscribed(2)
            await connected.client.command("PUBLISH", "lk:servers", "again")
            with trio.fail_after(5):
                await ear.messages(1)
    assert [each["event"] for each in logs] == [
        "redis subscription lost",
        "redis subscription is back",
    ]


async def test_a_silent_line_is_noticed_within_twice_read_ms() -> None:
    with running_redis() as redis:
        settings = evolve(parse_url(redis.url), read_ms=200, dial_ms=200, pool_min=1)
        async with running_client(settings) as connected, listening(connected) as ear:
            redis.pause()
            await trio.sleep(0.7)
            redis.resume()
            with trio.fail_after(5):
                await ear.subscribed(2)


async def test_a_user_who_may_not_subscribe_is_refused_at_the_start() -> None:
    with running_redis() as redis:
        redis.cli("ACL", "SETUSER", "bob", "on", ">pw", "~*", "+@all", "resetchannels", "&x")
        async with running_client(parse_url(f"redis://bob:pw@{redis.address}")) as connected:
            with pytest.raises(ConfigurationError, match=r"refused SUBSCRIBE \(NOPERM\)"):
                await connected.client.subscribe(CHANNELS, lambda *_: None, lambda: None)


async def test_it_follows_the_master(network: Network, autojump_clock: trio.abc.Clock) -> None:
    """It waits while there is none, and does not ask for it meanwhile."""
    confirmed = b"".join(
        b">3\r\n" + bulk("subscribe") + bulk(each) + b":1\r\n" for each in CHANNELS
    )
    redis = network.add(FakeRedis(answer=lambda _: confirmed))
    async with running_client(SETTINGS) as connected, listening(connected) as ear:
        assert ear.subscriptions == 1
        redis.refuses = True
        await redis.cut()
        await trio.sleep(30)
        redis.refuses = False
        await trio.sleep(2)
        assert ear.subscriptions == 2


async def test_after_a_failover_it_listens_to_the_new_master() -> None:
    with running_replicas(1, sentinels=3) as group:
        async with (
            running_client(parse_url(group.url)) as connected,
            listening(connected) as ear,
        ):
            killed = group.kill_master()
            await trio.to_thread.run_sync(group.wait_until_promoted, killed)
            with trio.fail_after(5):
                await ear.subscribed(2)
                await connected.client.command("PUBLISH", "lk:servers", "new")
                await ear.messages(1)


async def test_in_a_cluster_any_master_will_do() -> None:
    with running_cluster(3, replicas_each=1) as cluster:
        async with (
            running_client(parse_url(cluster.url)) as connected,
            listening(connected) as ear,
        ):
            [listened_to] = [
                node for node in cluster.nodes if "flags=P" in str(node.cli("CLIENT", "LIST"))
            ]
            cluster.kill_node(listened_to)
            with trio.fail_after(5):
                await ear.subscribed(2)
            await publish(connected)
            with trio.fail_after(5):
                await ear.messages(1)


async def publish(connected: Connected) -> None:
    """On whatever node is left."""
    with trio.fail_after(5):
        while True:
            try:
                await connected.client.command("PUBLISH", "lk:servers", "x")
            except Unanswered:
                continue
            return
