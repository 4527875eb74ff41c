"""Which node a command goes to, as sentinels name another master, and slots move."""

import pytest
import structlog.testing
import trio
import trio.testing
from attrs import define, evolve, field
from redis.crc import key_slot

from leasekeeper.errors import Outcome
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.scripts import Call, Script
from leasekeeper.resp.settings import Address, Settings, Topology
from tests.resp.fake import (
    HERE,
    OK,
    SETTINGS,
    THERE,
    FakeRedis,
    Network,
    Words,
    array,
    bulk,
    running_client,
    sent,
)

SCRIPT = Script("echo", "return ARGV[1]")
S1, S2 = Address("10.0.1.1", 26379), Address("10.0.1.2", 26379)
UNDER_SENTINELS = Settings(Topology.SENTINEL, (S1, S2), master_name="m", pool_min=1)
CLUSTER = Settings(Topology.CLUSTER, (HERE, THERE), pool_min=1)
LOW, HIGH = "b", "a"
"""Keys in the lower half of the slots, and in the upper one."""


def named(address: Address) -> bytes:
    """A sentinel's answer."""
    return array(bulk(address.host), bulk(str(address.port)))


def add_sentinel(network: Network, at: Address, master: Address) -> FakeRedis:
    """One that names this master."""
    return network.add(FakeRedis(at, lambda _: named(master), mode="sentinel"))


def identify(redis: FakeRedis) -> FakeRedis:
    """Has it answer everything with its host."""
    redis.answer = lambda _: bulk(redis.address.host)
    return redis


class TestSentinels:
    """A master that changes."""

    async def test_the_master_is_the_one_that_a_sentinel_names(
        self, network: Network, autojump_clock: trio.abc.Clock
    ) -> None:
        """The first one that answers: here, the first is gone."""
        add_sentinel(network, S2, HERE)
        identify(network.add(FakeRedis(HERE)))
        async with running_client(UNDER_SENTINELS) as connected:
            assert connected.client.masters == (HERE,)
            assert await connected.client.eval(SCRIPT, ["k"], []) == HERE.host.encode()

    async def test_when_the_sentinels_name_another_one_the_old_one_is_let_go(
        self, network: Network, autojump_clock: trio.abc.Clock
    ) -> None:
        """Though it still takes commands: it has been cut off, and does not know it."""
        sentinels = [add_sentinel(network, each, HERE) for each in (S1, S2)]
        old, new = (identify(network.add(FakeRedis(each))) for each in (HERE, THERE))
        async with running_client(UNDER_SENTINELS) as connected:
            assert await connected.client.eval(SCRIPT, ["k"], []) == HERE.host.encode()
            for each in sentinels:
                each.answer = lambda _: named(THERE)
            await trio.sleep(1.2)
            assert connected.client.masters == (THERE,)
            assert await connected.client.eval(SCRIPT, ["k"], []) == THERE.host.encode()
            assert not old.ends
            assert new.ends
            assert [each.address for each in connected.identities] == [HERE, THERE]

    async def test_a_lost_master_is_asked_about_at_once(
        self, network: Network, autojump_clock: trio.abc.Clock
    ) -> None:
        sentinels = [add_sentinel(network, each, HERE) for each in (S1, S2)]
        old = network.add(FakeRedis(HERE))
        identify(network.add(FakeRedis(THERE)))
        async with running_client(UNDER_SENTINELS) as connected:
            await trio.sleep(0.5)
            for each in sentinels:
                each.answer = lambda _: named(THERE)
            old.refuses = True
            await old.cut()
            started = trio.current_time()
            assert await connected.client.eval(SCRIPT, ["k"], []) == THERE.host.encode()
            assert trio.current_time() - started < 0.3

    async def test_while_the_master_is_lost_every_sentinel_gets_its_say(
        self, network: Network, autojump_clock: trio.abc.Clock
    ) -> None:
        """The first one may be as cut off as the master that it names."""
        add_sentinel(network, S1, HERE)
        second = add_sentinel(network, S2, HERE)
        old = network.add(FakeRedis(HERE))
        identify(network.add(FakeRedis(THERE)))
        async with running_client(UNDER_SENTINELS) as connected:
            second.answer = lambda _: named(THERE)
            old.refuses = True
            await old.cut()
            assert await connected.client.eval(SCRIPT, ["k"], []) == THERE.host.encode()

    async def test_a_master_that_turns_readonly_is_given_up_for_the_new_one(
        self, network: Network, autojump_clock: trio.abc.Clock
    ) -> None:
        sentinels = [add_sentinel(network, each, HERE) for each in (S1, S2)]
        old = network.add(FakeRedis(HERE))
        identify(network.add(FakeRedis(THERE)))
        async with running_client(UNDER_SENTINELS) as connected:
            for each in sentinels:
                each.answer = lambda _: named(THERE)
            old.answer, old.role = lambda _: b"-READONLY You can't write\r\n", "slave"
            assert await connected.client.eval(SCRIPT, ["k"], []) == THERE.host.encode()

    async def test_a_named_master_that_is_still_a_replica_is_not_used(
        self, network: Network, autojump_clock: trio.abc.Clock
    ) -> None:
        sentinels = [add_sentinel(network, each, HERE) for each in (S1, S2)]
        old = network.add(FakeRedis(HERE))
        new = network.add(FakeRedis(THERE, role="slave"))
        async with running_client(UNDER_SENTINELS) as connected:
            for each in sentinels:
                each.answer = lambda _: named(THERE)
            old.refuses = True
            await old.cut()
            with pytest.raises(Unanswered) as failed:
                await connected.client.eval(SCRIPT, ["k"], [])
            assert failed.value.outcome is Outcome.NONE
            assert not new.commands


@define(eq=False)
class FakeCluster:
    """Two masters that share the slots by halves; each says of the map what `slots` holds."""

    network: Network
    nodes: dict[Address, FakeRedis] = field(factory=dict)
    slots: bytes = b""
    asked: int = 0
    """How often somebody wanted to know the slots."""

    def __attrs_post_init__(self) -> None:
        self.share(HERE, THERE)

    def share(self, low: Address, high: Address) -> None:
        """Who has which half."""
        ranges = ((0, 8191, low), (8192, 16383, high))
        self.slots = array(*(slot_range(*each) for each in ranges))

    def add(self, address: Address) -> FakeRedis:
        """A node that answers scripts with its host."""

        def answer(words: Words) -> bytes:
            if words[0] == b"CLUSTER":
                self.asked += 1
                return self.slots
            return bulk(address.host)

        self.nodes[address] = FakeRedis(address, answer, mode="cluster")
        return self.network.add(self.nodes[address])


def slot_range(first: int, last: int, master: Address) -> bytes:
    """One entry of CLUSTER SLOTS."""
    host = bulk(master.host) if master.host else b"_\r\n"
    node = array(host, b":%d\r\n" % master.port, bulk("id"), array())
    return array(b":%d\r\n" % first, b":%d\r\n" % last, node)


def refusing_once(redis: FakeRedis, refusal: bytes) -> None:
    """Has it refuse the next script."""
    answer, left = redis.answer, 1

    def refuse(words: Words) -> bytes | None:
        nonlocal left
        if words[0] == b"EVALSHA" and left:
            left -= 1
            return refusal
        return answer(words)

    redis.answer = refuse


@pytest.fixture
def cluster(network: Network) -> FakeCluster:
    """Two masters."""
    both = FakeCluster(network)
    both.add(HERE)
    both.add(THERE)
    return both


def test_the_keys_are_in_different_halves() -> None:
    assert key_slot(LOW.encode()) < 8192 <= key_slot(HIGH.encode())


class TestCluster:
    """Slots that move."""

    async def test_a_key_goes_to_the_master_of_its_slot(
        self, cluster: FakeCluster, autojump_clock: trio.abc.Clock
    ) -> None:
        async with running_client(CLUSTER) as connected:
            assert connected.client.masters == (HERE, THERE)
            assert await connected.client.eval(SCRIPT, [LOW], []) == HERE.host.encode()
            assert await connected.client.eval(SCRIPT, [HIGH], []) == THERE.host.encode()
            assert await connected.client.command("GET", HIGH, key=HIGH) == THERE.host.encode()
            assert {each.address for each in connected.identities} == {HERE, THERE}

    async def test_a_plain_url_of_a_node_is_a_cluster(
        self, cluster: FakeCluster, autojump_clock: trio.abc.Clock
    ) -> None:
        async with running_client(SETTINGS) as connected:
            assert connected.client.masters == (HERE, THERE)

    async def test_many_calls_are_grouped_by_node(
        self, cluster: FakeCluster, autojump_clock: trio.abc.Clock
    ) -> None:
        async with running_client(CLUSTER) as connected:
            calls = [Call(SCRIPT, [key], []) for key in (LOW, HIGH, LOW)]
            answers = await connected.client.eval_many(calls)
        assert answers == [HERE.host.encode(), THERE.host.encode(), HERE.host.encode()]

    async def test_one_nodes_failure_is_only_its_calls_failure(
        self, cluster: FakeCluster, autojump_clock: trio.abc.Clock
    ) -> None:
        async with running_client(CLUSTER) as connected:
            cluster.nodes[HERE].answer = lambda _: None
            refusing_once(cluster.nodes[THERE], b"-TRYAGAIN\r\n")
            calls = [Call(SCRIPT, [key], []) for key in (LOW, HIGH)]
            lost, fine = await connected.client.eval_many(calls)
        assert isinstance(lost, Unanswered)
        assert lost.outcome is Outcome.UNKNOWN
        assert fine == THERE.host.encode()

    async def test_moved_is_followed_and_remembered(
        self, cluster: FakeCluster, autojump_clock: trio.abc.Clock
    ) -> None:
        slot = key_slot(LOW.encode())
        async with running_client(CLUSTER) as connected:
            refusing_once(cluster.nodes[HERE], f"-MOVED {slot} {THERE}\r\n".encode())
            cluster.share(THERE, THERE)
            assert await connected.client.eval(SCRIPT, [LOW], []) == THERE.host.encode()
            assert await connected.client.eval(SCRIPT, [LOW], []) == THERE.host.encode()
            assert len(cluster.nodes[HERE].scripts) == 1

    async def test_the_slots_are_looked_up_at_most_once_a_second(
        self, cluster: FakeCluster, autojump_clock: trio.abc.Clock
    ) -> None:
        async with running_client(CLUSTER) as connected:
            before = cluster.asked
            slot = key_slot(LOW.encode())
            for _ in range(50):
                refusing_once(cluster.nodes[HERE], f"-MOVED {slot} {HERE}\r\n".encode())
                await connected.client.eval(SCRIPT, [LOW], [])
                await trio.sleep(0.1)
            assert 4 <= cluster.asked - before <= 6

    async def test_moved_without_a_host_means_the_host_that_said_so(
        self, cluster: FakeCluster, autojump_clock: trio.abc.Clock
    ) -> None:
        neighbour = Address(HERE.host, 7000)
        cluster.add(neighbour).answer = lambda _: b":7000\r\n"
        async with running_client(CLUSTER) as connected:
            cluster.nodes[HERE].answer = lambda _: b"-MOVED %d :7000\r\n" % key_slot(b"b")
            assert await connected.client.eval(SCRIPT, [LOW], []) == 7000

    async def test_slots_without_a_host_are_at_the_host_that_was_asked(
        self, cluster: FakeCluster, autojump_clock: trio.abc.Clock
    ) -> None:
        cluster.share(Address("", HERE.port), THERE)
        async with running_client(SETTINGS) as connected:
            assert connected.client.masters == (HERE, THERE)

    async def test_ask_is_followed_once_with_asking_before(
        self, cluster: FakeCluster, autojump_clock: trio.abc.Clock
    ) -> None:
        slot = key_slot(LOW.encode())
        async with running_client(CLUSTER) as connected:
            refusing_once(cluster.nodes[HERE], f"-ASK {slot} {THERE}\r\n".encode())
            assert await connected.client.eval(SCRIPT, [LOW], []) == THERE.host.encode()
            assert await connected.client.eval(SCRIPT, [LOW], []) == HERE.host.encode()
        commands = sent(cluster.nodes[THERE].commands)
        assert commands[-2:] == ["ASKING", "EVALSHA"]

    async def test_noscript_after_ask_asks_again(
        self, cluster: FakeCluster, autojump_clock: trio.abc.Clock
    ) -> None:
        """The source goes where the slot is known to be, which sends it on once more."""
        slot = key_slot(LOW.encode())

        def here(_: Words) -> bytes:
            return f"-ASK {slot} {THERE}\r\n".encode()

        def there(words: Words) -> bytes:
            return b"-NOSCRIPT no\r\n" if words[0] == b"EVALSHA" else OK

        async with running_client(CLUSTER) as connected:
            cluster.nodes[HERE].answer, cluster.nodes[THERE].answer = here, there
            assert await connected.client.eval(SCRIPT, [LOW], []) == b"OK"
        assert sent(cluster.nodes[THERE].commands)[-4:] == ["ASKING", "EVALSHA", "ASKING", "EVAL"]

    async def test_nodes_that_quarrel_do_not_keep_a_command_busy(
        self, cluster: FakeCluster, autojump_clock: trio.abc.Clock
    ) -> None:
        slot = key_slot(LOW.encode())
        async with running_client(CLUSTER) as connected:
            cluster.nodes[HERE].answer = lambda _: f"-MOVED {slot} {THERE}\r\n".encode()
            cluster.nodes[THERE].answer = lambda _: f"-MOVED {slot} {HERE}\r\n".encode()
            with pytest.raises(Unanswered) as failed:
                await connected.client.eval(SCRIPT, [LOW], [])
        assert failed.value.outcome is Outcome.NONE
        assert len(cluster.nodes[HERE].scripts) < 100

    async def test_a_dead_masters_slots_are_found_at_whoever_took_them(
        self, cluster: FakeCluster, autojump_clock: trio.abc.Clock
    ) -> None:
        """Any node that is left says so."""
        heir = Address("10.0.0.3", 6379)
        cluster.add(heir)
        dead = cluster.nodes[HERE]
        async with running_client(CLUSTER) as connected:
            dead.refuses = True
            await dead.cut()
            await trio.sleep(3)
            cluster.share(heir, THERE)
            assert await connected.client.eval(SCRIPT, [LOW], []) == heir.host.encode()
            assert connected.client.masters == (heir, THERE)
            dials = dead.dials
            await trio.sleep(10)
            assert dead.dials == dials

    async def test_while_one_master_is_gone_the_others_serve(
        self, cluster: FakeCluster, autojump_clock: trio.abc.Clock
    ) -> None:
        dead = cluster.nodes[HERE]
        async with running_client(CLUSTER) as connected:
            dead.refuses = True
            await dead.cut()
            await trio.testing.wait_all_tasks_blocked()
            assert await connected.client.eval(SCRIPT, [HIGH], []) == THERE.host.encode()
            assert await connected.client.command("PUBLISH", "c", "m") == THERE.host.encode()
            with pytest.raises(Unanswered):
                await connected.client.eval(SCRIPT, [LOW], [])

    async def test_a_silent_node_does_not_hold_up_the_search(
        self, cluster: FakeCluster, autojump_clock: trio.abc.Clock
    ) -> None:
        """It takes connections, as a stopped process does, and says nothing."""
        heir = Address("10.0.0.3", 6379)
        cluster.add(heir)
        silent = cluster.nodes[HERE]
        async with running_client(evolve(CLUSTER, read_ms=500)) as connected:
            silent.answer = lambda _: None
            silent.greeting = b""
            with pytest.raises(Unanswered) as failed:
                await connected.client.eval(SCRIPT, [LOW], [])
            assert failed.value.outcome is Outcome.UNKNOWN
            cluster.share(heir, THERE)
            assert await connected.client.eval(SCRIPT, [LOW], []) == heir.host.encode()


async def test_no_log_line_repeats_itself_while_sentinels_are_gone(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    sentinel = add_sentinel(network, S1, HERE)
    redis = network.add(FakeRedis(HERE))
    with structlog.testing.capture_logs() as logs:
        async with running_client(UNDER_SENTINELS):
            sentinel.refuses = redis.refuses = True
            await sentinel.cut()
            await redis.cut()
            await trio.sleep(30)
            sentinel.refuses = redis.refuses = False
            await trio.sleep(10)
    assert sorted(each["event"] for each in logs) == [
        "a sentinel answers again",
        "no sentinel answers",
        "redis connection is back",
        "redis connection lost",
    ]
