"""Several servers over one Redis, as processes: one queue, and no server that cannot be spared."""

import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from typing import ClassVar, Final

import attrs
import leasekeeper_client.sync as keepers
import pytest
import trio
from leasekeeper_client import Keeper, LeaseLost, connect
from redis import Redis
from redis.lock import Lock

from tests.conformance.vectors import as_int, as_list, as_object
from tests.polling import eventually
from tests.processes import RunningServer, running_server
from tests.redis_groups import Redises
from tests.redises import HOST, RunningRedis, until
from tests.system.raw import Raw, Refused, dialling

pytestmark = pytest.mark.system

WAITERS: Final = 60
WITHIN_S: Final = 60.0
STALLED_S: Final = 16.0
GRACE_S: Final = 5.0
"""For so long at most a dead server's waiters stall a queue: its word (QUE-6), and a moment."""
FORGETFUL: Final = ["--fence-memory-ms", "1000"]
LOST: Final = -32002
WORKERS: Final = 10
ROUNDS: Final = 5


@pytest.fixture
def redis(redises: Redises) -> RunningRedis:
    """The Redis that the servers share."""
    return redises.single()


@pytest.fixture
def servers(redis: RunningRedis) -> Iterator[list[RunningServer]]:
    """Three of them."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(running_server(store=redis.url, options=FORGETFUL))
            for _ in range(3)
        ]


def kill(server: RunningServer) -> None:
    """SIGKILL."""
    server.process.kill()
    server.process.wait(WITHIN_S)


def lease_id(number: int) -> str:
    return f"{number:032x}"


# --- The queue ------------------------------------------------------------------------------------


async def test_sixty_waiters_of_three_servers_are_granted_in_queue_order(
    servers: list[RunningServer], redis: RunningRedis
) -> None:
    """L1, L2, L4, QUE-1: and nothing remains in Redis after the work (L9)."""
    granted: list[int] = []
    fences: list[int] = []

    async def work(client: Raw, request_id: int, number: int) -> None:
        grant = await client.answer(request_id)
        granted.append(number)
        fences.append(as_int(grant["fence"]))
        state = await client.call("lease.inspect", name="n")
        assert [as_object(each)["fence"] for each in as_list(state["holders"])] == [fences[-1]]
        await client.call("lease.release", name="n", lease=lease_id(number))

    async with dialling() as dial:
        first = await dial(servers[0].url)
        held = await first.call("lease.acquire", name="n")
        async with trio.open_nursery() as nursery:
            for number in range(WAITERS):
                client = await dial(servers[number % 3].url)
                request_id = await client.ask(
                    "lease.acquire", name="n", wait_ms=None, lease=lease_id(number)
                )
                await client.until_waiting("n", number + 1)
                nursery.start_soon(work, client, request_id, number)
            await first.call("lease.release", name="n", lease=held["lease"])
    assert granted == list(range(WAITERS))
    assert fences == sorted({as_int(held["fence"]), *fences})[1:]
    until(lambda: redis.cli("KEYS", "*") == [], "nothing remains")


# --- A server that dies ---------------------------------------------------------------------------


async def test_clients_of_a_killed_server_resume_on_another(servers: list[RunningServer]) -> None:
    """L8, RES-5: leases with their fences, waiters in their places."""
    doomed, other, third = servers
    async with dialling() as dial:
        holder, late, client = [await dial(each.url) for each in (other, third, doomed)]
        held = await client.call("lease.acquire", name="a", lease=lease_id(1), label="mine")
        await holder.call("lease.acquire", name="b", lease=lease_id(2))
        await client.ask("lease.acquire", name="b", lease=lease_id(3), wait_ms=None)
        await holder.until_waiting("b", 1)
        behind = await late.ask("lease.acquire", name="b", lease=lease_id(4), wait_ms=None)
        await holder.until_waiting("b", 2)
        kill(doomed)
        client = await dial(third.url)
        resumed = await client.call("lease.resume", name="a", lease=lease_id(1))
        assert resumed["fence"] == held["fence"]
        waits = await client.ask("lease.resume", name="b", lease=lease_id(3))
        await holder.call("lease.release", name="b", lease=lease_id(2))
        first = await client.answer(waits)
        await client.call("lease.release", name="b", lease=lease_id(3))
        assert as_int((await late.answer(behind))["fence"]) > as_int(first["fence"])
        assert (await client.call("lease.release", name="a", lease=lease_id(1)))["released"]
        with pytest.raises(Refused) as refused:
            await client.call("lease.resume", name="a", lease=lease_id(1))
        assert refused.value.code == LOST


async def test_the_waiters_of_a_killed_server_stall_nobody_for_long(
    servers: list[RunningServer],
) -> None:
    """QUE-6, L4: for no longer than its word, whatever their TTL; and nobody waits for ever."""
    doomed, other, third = servers
    async with dialling() as dial:
        holder = await dial(other.url)
        await holder.call("lease.acquire", name="n", lease=lease_id(0))
        waits: list[tuple[Raw, int]] = []
        for number in range(1, 13):
            client = await dial((doomed if number % 2 else third).url)
            ask = {"name": "n", "lease": lease_id(number), "wait_ms": None, "ttl_ms": 3_600_000}
            waits.append((client, await client.ask("lease.acquire", **ask)))
            await holder.until_waiting("n", number)
        kill(doomed)
        deadline = trio.current_time() + STALLED_S
        await holder.call("lease.release", name="n", lease=lease_id(0))
        for number, (client, request_id) in enumerate(waits, start=1):
            if number % 2:
                with pytest.raises(Refused):
                    await client.answer(request_id)
            else:
                await client.answer(request_id, within_s=deadline - trio.current_time())
                await client.call("lease.release", name="n", lease=lease_id(number))
        assert await holder.waiting("n") == 0


async def test_our_client_goes_on_at_another_server(servers: list[RunningServer]) -> None:
    """L8: what it holds stays held, past its TTL, with the same fence."""
    doomed, other, _ = servers
    async with (
        connect([doomed.url, other.url]) as keeper,
        connect(other.url) as witness,
        keeper.lease("n", ttl=3) as lease,
    ):
        kill(doomed)
        for _ in range(12):
            await trio.sleep(0.5)
            lease.ensure()
            (holder,) = (await witness.inspect("n")).holders
            assert holder.fence == lease.fence


async def test_our_waiting_client_goes_on_at_another_server(servers: list[RunningServer]) -> None:
    """L8: it keeps its place."""
    doomed, other, third = servers
    order: list[str] = []

    async def queue_up(keeper: Keeper, label: str) -> None:
        async with keeper.lease("n", label=label):
            order.append(label)

    async def waits(keeper: Keeper, label: str) -> bool:
        return label in [each.label for each in (await keeper.inspect("n")).waiting]

    async with (
        connect(third.url) as holding,
        connect([doomed.url, other.url]) as moving,
        connect(other.url) as staying,
        trio.open_nursery() as nursery,
        holding.lease("n"),
    ):
        for keeper, label in ((moving, "first"), (staying, "second")):
            nursery.start_soon(queue_up, keeper, label)
            await eventually(partial(waits, holding, label))
        kill(doomed)
    assert order == ["first", "second"]


async def test_a_server_that_is_replaced_loses_nothing(redis: RunningRedis) -> None:
    """DRAIN-4: a holder goes on at its successor, with no other server there, if that comes within
    the grace: a client believes for no longer without a connection."""
    draining = ["--drain-grace-ms", "500", "--drain-spread-ms", "1", *FORGETFUL]
    gone_s = math.inf
    with ExitStack() as stack:
        first = stack.enter_context(running_server(store=redis.url, options=draining))
        try:
            async with connect(first.url) as keeper, keeper.lease("n") as lease:
                first.drain()
                began_at = trio.current_time()
                successor = running_server(store=redis.url, listen=first.address, options=draining)
                with trio.CancelScope(shield=True):
                    assert await trio.to_thread.run_sync(first.process.wait, WITHIN_S) == 0
                    await trio.to_thread.run_sync(stack.enter_context, successor)
                gone_s = trio.current_time() - began_at
                async with connect(first.url) as witness:
                    (holder,) = (await witness.inspect("n")).holders
                    assert holder.fence == lease.fence
                await eventually(partial(is_connected, keeper))
                lease.ensure()
        except* LeaseLost:
            assert math.isfinite(gone_s)
            assert gone_s > GRACE_S - 1, "its successor was there in time"


async def is_connected(keeper: Keeper) -> bool:
    return keeper.connected


# --- Programs without a server --------------------------------------------------------------------


def test_our_leases_and_foreign_locks_exclude_each_other(
    servers: list[RunningServer], redis: RunningRedis
) -> None:
    """L1, KEY-1: ten workers of each, through three servers, on what only exclusion protects."""
    bench = Bench(redis.port)

    def with_leases(number: int) -> None:
        with keepers.connect(servers[number % 3].url) as keeper:
            for _ in range(ROUNDS):
                with keeper.lease("n", ttl=10):
                    bench.work("lease")

    def with_locks(number: int) -> None:
        with Redis(HOST, redis.port) as client:
            for _ in range(ROUNDS):
                with Lock(client, "lk:{n}:lock", timeout=10, sleep=0.01):
                    bench.work("lock")

    with ThreadPoolExecutor(2 * WORKERS) as threads:
        work = [
            threads.submit(each, n) for n in range(WORKERS) for each in (with_leases, with_locks)
        ]
        for each in work:
            each.result(WITHIN_S)
    assert bench.overlaps() == []
    assert bench.count() == 2 * WORKERS * ROUNDS
    assert {kind for kind, _, _ in bench.spans} == {"lease", "lock"}
    redis.cli("DEL", bench.KEY)
    until(lambda: redis.cli("KEYS", "*") == [], "nothing remains")


@attrs.define(eq=False)
class Bench:
    """Work that two at once would spoil, and that shows if they were two."""

    KEY: ClassVar[str] = "counter"
    _port: int
    spans: list[tuple[str, float, float]] = attrs.field(factory=list)

    def work(self, kind: str) -> None:
        """Reads, sleeps and writes."""
        began = time.monotonic()
        with Redis(HOST, self._port, decode_responses=True) as client:
            number = int(str(client.get(self.KEY) or 0))
            time.sleep(0.01)
            client.set(self.KEY, number + 1)
        self.spans.append((kind, began, time.monotonic()))

    def count(self) -> int:
        """What was written last."""
        with Redis(HOST, self._port, decode_responses=True) as client:
            return int(str(client.get(self.KEY)))

    def overlaps(self) -> list[tuple[str, str]]:
        """Who worked while another did."""
        spans = sorted(self.spans, key=lambda span: span[1])
        return [(one[0], other[0]) for one, other in pairwise(spans) if other[1] < one[2]]
