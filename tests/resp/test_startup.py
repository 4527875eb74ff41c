"""What the server says when it cannot start: one line, what is wrong and what to do about it."""

import pytest
import trio
from attrs import evolve

from leasekeeper.errors import ConfigurationError
from leasekeeper.resp.client import Client
from leasekeeper.resp.settings import Address, Settings, Topology, parse_url
from tests.redis_groups import Redises, running_replicas
from tests.redises import free_port, running_redis
from tests.resp.fake import HERE, OK, SETTINGS, FakeRedis, Network, Words, array, bulk

SECRET = "S3cret"


async def refusal(settings: Settings) -> str:
    """What a client says that cannot start."""
    client = Client(settings, lambda _: None, lambda _: None)
    with trio.fail_after(10), pytest.raises(ConfigurationError) as refused:
        await client.run()
    text = str(refused.value)
    assert "\n" not in text
    assert SECRET not in text
    return text


class TestRealRedis:
    """Redis' own ways to say no."""

    async def test_nothing_listens(self) -> None:
        port = free_port()
        assert await refusal(parse_url(f"redis://:{SECRET}@127.0.0.1:{port}")) == (
            f"nothing listens at 127.0.0.1:{port}: start Redis there, or correct the Redis URL"
        )

    async def test_no_socket(self) -> None:
        assert await refusal(parse_url("unix:///none/redis.sock")) == (
            "there is no socket unix:/none/redis.sock: start Redis, or correct the Redis URL"
        )

    @pytest.mark.parametrize("host", ["no-such-host.invalid", 64 * "a"])
    async def test_an_unknown_host(self, host: str) -> None:
        assert await refusal(parse_url(f"redis://{host}")) == (
            f"the host {host} is not known: correct the name in the Redis URL"
        )

    async def test_a_silent_host(self) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        settings = parse_url(f"redis://:{SECRET}@127.0.0.1:{port}?dial_ms=100")
        assert await refusal(settings) == (
            f"127.0.0.1:{port} did not answer within 100 ms: check the address and the network, "
            "and that it is a Redis without TLS"
        )
        await listeners[0].aclose()

    async def test_a_missing_password(self) -> None:
        with running_redis(password=SECRET) as redis:
            said = await refusal(parse_url(f"redis://{redis.address}"))
        assert said == (
            f"{redis.address} wants a password: put it into the Redis URL, "
            "as in redis://:PASSWORD@HOST"
        )

    async def test_a_wrong_password(self) -> None:
        with running_redis(password="another") as redis:
            said = await refusal(parse_url(f"redis://bob:{SECRET}@{redis.address}"))
        assert said == (
            f"{redis.address} refused the user name or the password: correct them in the Redis URL"
        )

    async def test_a_user_who_may_not_look_around(self) -> None:
        with running_redis() as redis:
            redis.cli("ACL", "SETUSER", "bob", "on", f">{SECRET}", "~*", "+@all", "-info")
            said = await refusal(parse_url(f"redis://bob:{SECRET}@{redis.address}"))
        assert said == (
            f"{redis.address} refused INFO server (NOPERM): grant its user +@connection and +info"
        )

    async def test_a_database_that_is_not_there(self, redises: Redises) -> None:
        address = redises.single().address
        assert await refusal(parse_url(f"redis://{address}/999")) == (
            f"{address} has no database 999: choose another in the Redis URL"
        )

    async def test_no_room(self) -> None:
        with running_redis(options=("--maxclients", "1")) as redis:
            async with await trio.open_tcp_stream("127.0.0.1", redis.port):
                said = await refusal(parse_url(redis.url))
        assert said == (f"{redis.address} has as many clients as it may have: raise its maxclients")

    async def test_a_database_of_a_cluster(self, redises: Redises) -> None:
        address = redises.cluster().nodes[0].address
        assert await refusal(parse_url(f"redis://{address}/1")) == (
            f"{address} is a node of a cluster, which has only database 0: "
            "leave it out of the Redis URL"
        )

    async def test_no_cluster(self, redises: Redises) -> None:
        address = redises.single().address
        assert await refusal(parse_url(f"redis+cluster://{address}")) == (
            f"{address} is not a node of a cluster: use redis://{address}"
        )

    async def test_tls_where_there_is_none(self, redises: Redises) -> None:
        address = redises.single().address
        said = await refusal(parse_url(f"rediss://{address}?dial_ms=100"))
        assert said.endswith("and that it is a Redis with TLS")

    async def test_replicas_and_sentinels_are_told_apart(self) -> None:
        with running_replicas(1, sentinels=1, quorum=1) as group:
            master, replica = (each.address for each in group.servers)
            [sentinel] = (each.address for each in group.sentinels)
            assert await refusal(parse_url(f"redis://{replica}")) == (
                f"{replica} is a read-only replica of {master}: name the master, or use "
                "redis+sentinel://SENTINEL:26379/MASTER"
            )
            assert await refusal(parse_url(f"redis://{sentinel}")) == (
                f"{sentinel} is a sentinel: give its URL as redis+sentinel://{sentinel}/MASTER"
            )
            assert await refusal(parse_url(f"redis+cluster://{sentinel}")) == (
                f"{sentinel} is a sentinel: give its URL as redis+sentinel://{sentinel}/MASTER"
            )
            assert await refusal(parse_url(f"redis+sentinel://{sentinel}/other")) == (
                f"the sentinel {sentinel} knows no master other; it knows mymaster: "
                "correct the Redis URL"
            )
            assert (await refusal(parse_url(f"redis+sentinel://{master}/mymaster"))).startswith(
                f"{master} is a Redis and no sentinel: use redis://{master}"
            )
            assert await refusal(
                parse_url(f"redis+sentinel://:{SECRET}@{sentinel}/mymaster/99")
            ) == (f"{master} has no database 99: choose another in the Redis URL")
            gone = Address("127.0.0.1", free_port())
            assert await refusal(parse_url(f"redis+sentinel://{gone}/mymaster")) == (
                f"nothing listens at {gone}: start Redis there, or correct the Redis URL"
            )


class TestFakeRedis:
    """What no Redis of these days says."""

    @pytest.mark.parametrize(
        "greeting",
        [
            b"-ERR unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `S3cret`, \r\n",
            b"-NOPROTO sorry, this protocol version is not supported.\r\n",
        ],
    )
    async def test_a_redis_without_resp3(
        self, network: Network, autojump_clock: trio.abc.Clock, greeting: bytes
    ) -> None:
        """Redis 5 repeats what it did not understand, the password included."""
        network.add(FakeRedis(greeting=greeting))
        assert await refusal(evolve(SETTINGS, password=SECRET)) == (
            "10.0.0.1:6379 does not speak RESP3: use Redis 6 or newer"
        )

    async def test_another_refusal_is_not_quoted(
        self, network: Network, autojump_clock: trio.abc.Clock
    ) -> None:
        network.add(FakeRedis(greeting=b"-ERR S3cret is not welcome\r\n"))
        assert await refusal(evolve(SETTINGS, password=SECRET)) == (
            "10.0.0.1:6379 refused HELLO (ERR): grant its user +@connection and +info"
        )

    async def test_a_busy_redis(self, network: Network, autojump_clock: trio.abc.Clock) -> None:
        network.add(FakeRedis(greeting=b"-BUSY Redis is busy running a script.\r\n"))
        assert await refusal(SETTINGS) == (
            "10.0.0.1:6379 has no time for us now (BUSY): wait until it is done"
        )

    async def test_something_else_listens(
        self, network: Network, autojump_clock: trio.abc.Clock
    ) -> None:
        network.add(FakeRedis(greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n"))
        assert (await refusal(SETTINGS)).startswith(
            "10.0.0.1:6379 closed the connection, or said nothing"
        )

    async def test_a_cluster_without_slots(
        self, network: Network, autojump_clock: trio.abc.Clock
    ) -> None:
        network.add(FakeRedis(mode="cluster", answer=lambda _: array()))
        assert await refusal(SETTINGS) == (
            "the cluster of 10.0.0.1:6379 serves no slots: create it, or repair it"
        )

    async def test_a_cluster_with_a_master_out_of_reach(
        self, network: Network, autojump_clock: trio.abc.Clock
    ) -> None:
        def slots(_: Words) -> bytes:
            node = array(bulk("10.0.0.9"), b":6379\r\n", bulk("id"), array())
            return array(array(b":0\r\n", b":16383\r\n", node))

        network.add(FakeRedis(mode="cluster", answer=slots))
        assert await refusal(SETTINGS) == "nothing listens at 10.0.0.9:6379"

    async def test_a_sentinel_whose_user_may_not_ask(
        self, network: Network, autojump_clock: trio.abc.Clock
    ) -> None:
        network.add(FakeRedis(mode="sentinel", answer=lambda _: b"-NOPERM no\r\n"))
        settings = Settings(Topology.SENTINEL, (HERE,), master_name="m")
        assert "grant its user +sentinel" in await refusal(settings)

    async def test_a_sentinel_that_names_a_replica(
        self, network: Network, autojump_clock: trio.abc.Clock
    ) -> None:
        sentinel = Address("10.0.1.1", 26379)
        named = array(bulk(HERE.host), bulk(str(HERE.port)))
        network.add(FakeRedis(sentinel, lambda _: named, mode="sentinel"))
        network.add(FakeRedis(role="slave", answer=lambda _: OK))
        settings = Settings(Topology.SENTINEL, (sentinel,), master_name="m")
        assert "which is no master at present" in await refusal(settings)
