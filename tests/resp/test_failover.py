"""Real sentinels and a real cluster whose master dies, or that moves slots, under load."""

import trio
from attrs import define, evolve, field

from leasekeeper.errors import Outcome
from leasekeeper.resp.client import Client
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.scripts import Call, Script
from leasekeeper.resp.settings import parse_url
from tests.redis_groups import RedisCluster, running_cluster, running_replicas
from tests.resp.fake import running_client

COUNT = Script("count", "return redis.call('INCR', KEYS[1])")
ECHO = Script("echo", "return ARGV[1]")

CALL_S = 5.0
"""No call takes longer, whatever happens."""


@define(eq=False)
class Load:
    """Calls one after the other, and what became of them."""

    client: Client
    keys: list[str]
    fine: int = 0
    problems: list[Unanswered] = field(factory=list)
    longest_s: float = 0
    _recovered: trio.Event = field(factory=trio.Event)

    async def run(self) -> None:
        """Until cancelled."""
        number = 0
        while True:
            number += 1
            key = self.keys[number % len(self.keys)]
            started = trio.current_time()
            try:
                reply = await self.client.eval(ECHO, [key], [number])
            except Unanswered as problem:
                self.problems.append(problem)
            else:
                assert reply == str(number).encode()
                self.fine += 1
                self._recovered.set()
            self.longest_s = max(self.longest_s, trio.current_time() - started)
            await trio.sleep(0.002)

    async def works(self, times: int = 20) -> None:
        """Waits for so many answers from now on."""
        for _ in range(times):
            self._recovered = trio.Event()
            await self._recovered.wait()


async def test_sentinels_lead_to_the_new_master() -> None:
    with running_replicas(1, sentinels=3, down_after_ms=500) as group:
        settings = evolve(parse_url(group.url), read_ms=1000)
        async with running_client(settings) as connected, trio.open_nursery() as nursery:
            load = Load(connected.client, ["n"])
            nursery.start_soon(load.run)
            await load.works()
            killed = group.kill_master()
            new = await trio.to_thread.run_sync(group.wait_until_promoted, killed)
            with trio.fail_after(3):
                await load.works()
            assert [str(each) for each in connected.client.masters] == [new.address]
            assert connected.identities[-1].run_id == new.info("server")["run_id"]
            assert load.longest_s < CALL_S
            nursery.cancel_scope.cancel()


async def test_a_master_that_is_cut_off_is_left_though_it_answers() -> None:
    """It was stopped for a while, and the sentinels have chosen another one."""
    with running_replicas(1, sentinels=3, down_after_ms=500) as group:
        settings = evolve(parse_url(group.url), read_ms=500, dial_ms=500)
        async with running_client(settings) as connected, trio.open_nursery() as nursery:
            load = Load(connected.client, ["n"])
            nursery.start_soon(load.run)
            await load.works()
            old = group.master()
            old.pause()
            new = await trio.to_thread.run_sync(group.wait_until_promoted, old)
            with trio.fail_after(3):
                await load.works()
            old.resume()
            await load.works(100)
            assert [str(each) for each in connected.client.masters] == [new.address]
            assert load.longest_s < CALL_S
            nursery.cancel_scope.cancel()


async def test_a_demoted_master_is_left_when_it_says_readonly() -> None:
    """No sentinel: the address stays, and becomes a master again."""
    with running_replicas(1) as group:
        master, replica = group.servers
        async with running_client(parse_url(master.url)) as connected:
            assert await connected.client.eval(COUNT, ["n"], []) == 1
            await trio.to_thread.run_sync(group.promote, replica)
            problem = await failure(connected.client)
            assert problem.outcome is Outcome.NONE
            await trio.to_thread.run_sync(group.promote, master)
            with trio.fail_after(5):
                while not await succeeds(connected.client):
                    pass


async def failure(client: Client) -> Unanswered:
    """How a call fails."""
    try:
        await client.eval(COUNT, ["n"], [])
    except Unanswered as problem:
        return problem
    raise AssertionError("it works")


async def succeeds(client: Client) -> bool:
    """Whether a call works."""
    try:
        await client.eval(COUNT, ["n"], [])
    except Unanswered:
        return False
    return True


async def test_a_cluster_gets_over_a_dead_master() -> None:
    with running_cluster(3, replicas_each=1, node_timeout_ms=1000) as cluster:
        keys = [f"{{{number}}}" for number in range(30)]
        settings = evolve(parse_url(cluster.url), read_ms=1000)
        async with running_client(settings) as connected, trio.open_nursery() as nursery:
            load = Load(connected.client, keys)
            nursery.start_soon(load.run)
            await load.works(30)
            dead = cluster.node_of(keys[0])
            cluster.kill_node(dead)
            await trio.to_thread.run_sync(cluster.wait_until_ok)
            with trio.fail_after(3):
                assert await connected.client.eval(ECHO, [keys[0]], ["x"]) == b"x"
                await load.works(60)
            answers = await connected.client.eval_many([Call(ECHO, [key], [key]) for key in keys])
            assert answers == [key.encode() for key in keys]
            assert dead.address not in [str(each) for each in connected.client.masters]
            assert len(connected.client.masters) == 3
            assert load.longest_s < CALL_S
            nursery.cancel_scope.cancel()


async def test_slots_may_move_under_load() -> None:
    """ASK while a slot is on its way, and MOVED once it has arrived: no call fails."""
    with running_cluster(2) as cluster:
        async with running_client(parse_url(cluster.url)) as connected:
            async with trio.open_nursery() as nursery:
                load = Load(connected.client, ["n", "m", "o"])
                nursery.start_soon(load.run)
                await load.works()
                for key in ("n", "m", "n"):
                    await trio.to_thread.run_sync(move_slot, cluster, key)
                    await load.works()
                nursery.cancel_scope.cancel()
            assert not load.problems


def move_slot(cluster: RedisCluster, key: str) -> None:
    """To the other node, with a rest on the way."""
    source = cluster.node_of(key)
    [target] = [node for node in cluster.nodes if node is not source]
    slot = source.cli("CLUSTER", "KEYSLOT", key)
    assert isinstance(slot, int)
    source_id, target_id = (str(node.cli("CLUSTER", "MYID")) for node in (source, target))
    target.cli("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
    source.cli("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
    trio.from_thread.run(trio.sleep, 0.2)
    source.cli("MIGRATE", "127.0.0.1", target.port, key, 0, 1000)
    trio.from_thread.run(trio.sleep, 0.2)
    target.cli("CLUSTER", "SETSLOT", slot, "NODE", target_id)
    source.cli("CLUSTER", "SETSLOT", slot, "NODE", target_id)
