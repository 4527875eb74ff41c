"""Write-behind into a real database while Redis, servers and writers are killed.

Every acknowledged write reaches the database with the latest value of its key, and in order. The
number of writes is LEASEKEEPER_TEST_WRITES, 20,000 unless it is set.
"""

import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import orjson
import pytest
from attrs import define, field
from websockets.sync.client import ClientConnection, connect

from tests.processes import RunningServer, first_line, running_server, started
from tests.redises import RunningRedis, running_redis
from tests.system.ledger import Ledger, Row
from tests.system.scribe import GONE, call

pytestmark = pytest.mark.system

WRITES: Final = int(os.environ.get("LEASEKEEPER_TEST_WRITES", "20000"))
QUEUE: Final = "orders"
PRODUCERS: Final = 3
AT_ONCE: Final = 100
"""Puts in one batch."""
REWRITES: Final = 20
"""How often each key is put."""
STALLS: Final = (0, 4)
"""Of the two writers, one is too slow now and then."""
FAULT_EVERY_S: Final = 1.0
DRAINED_S: Final = 120.0
# SIGKILL loses what Redis has not handed to the system yet. It hands everything over before it
# answers with `always`; with `everysec` not while it waits for the disk, for up to two seconds.
AOF: Final = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """An empty database."""
    made = Ledger(tmp_path / "ledger.sqlite")
    made.create()
    return made


@pytest.fixture
def redis() -> Iterator[RunningRedis]:
    """A Redis that keeps what it is told."""
    with running_redis(options=AOF) as running:
        yield running


@define
class Producer:
    """A thread that puts ever higher values of its own keys, until each put is acknowledged."""

    number: int
    puts: int
    urls: list[str]
    latest: dict[str, int] = field(factory=dict)
    """The last acknowledged value of each key."""
    repeated: int = 0
    """Batches that were sent again, for their connection had gone."""
    refused: list[str] = field(factory=list)
    """What was answered otherwise than expected; nothing."""

    def run(self) -> None:
        batches = self.batches()
        batch = next(batches, None)
        chance = random.Random(self.number)
        while batch:
            with (
                suppress(*GONE),
                connect(
                    chance.choice(self.urls), compression=None, ping_interval=None
                ) as connection,
            ):
                while batch:
                    batch = self.send(connection, batch) or next(batches, None)
            if batch:
                self.repeated += 1
                time.sleep(0.1)

    def batches(self) -> Iterator[dict[str, int]]:
        """In each batch, different keys."""
        keys = max(1, self.puts // REWRITES)
        numbers = range(self.puts)
        for start in range(0, self.puts, min(AT_ONCE, keys)):
            some = numbers[start : start + min(AT_ONCE, keys)]
            yield {f"{self.number}:{each % keys}": each // keys + 1 for each in some}

    def send(self, connection: ClientConnection, batch: dict[str, int]) -> dict[str, int]:
        """Puts these, and returns those that were not acknowledged."""
        connection.send(
            orjson.dumps(
                [
                    {
                        "jsonrpc": "2.0",
                        "id": key,
                        "method": "writes.put",
                        "params": {"queue": QUEUE, "key": key, "value": value},
                    }
                    for key, value in batch.items()
                ]
            ).decode()
        )
        answers: Any = None
        while not isinstance(answers, list):  # one alone is a notification
            answers = orjson.loads(connection.recv(timeout=30))
        left = dict(batch)
        for answer in answers:
            if "result" in answer:
                self.latest[answer["id"]] = left.pop(answer["id"])
            elif answer["error"]["code"] != -32020:  # unavailable: it is put again
                self.refused.append(str(answer["error"]))
        if left:
            time.sleep(0.1)
        return left


@define
class Stage:
    """What is killed: the Redis, two servers on it, and two writers."""

    redis: RunningRedis
    ledger: Ledger
    stack: ExitStack
    servers: list[RunningServer] = field(factory=list)
    writers: list[Any] = field(factory=list)
    kills: int = 0

    def __attrs_post_init__(self) -> None:
        for _ in range(2):
            self.servers.append(self.stack.enter_context(running_server(store=self.redis.url)))
        for stall in STALLS:
            self.writers.append(self.start_writer(stall))

    @property
    def urls(self) -> list[str]:
        return [server.url for server in self.servers]

    def start_writer(self, stall: int) -> object:
        arguments = (QUEUE, str(self.ledger.path), str(stall), *self.urls)
        command = [sys.executable, "-m", "tests.system.scribe", *arguments]
        process = self.stack.enter_context(started(command))
        assert process.stdout is not None
        assert first_line(process.stdout) == "writing\n"
        return process

    def kill_redis(self) -> None:
        self.redis.restart()

    def kill_a_server(self) -> None:
        """It is replaced at the same address."""
        at = self.kills % 2
        old = self.servers[at]
        old.process.kill()
        old.process.wait()
        self.servers[at] = self.stack.enter_context(
            running_server(store=self.redis.url, listen=old.address)
        )

    def kill_a_writer(self) -> None:
        """In the midst of whatever it does."""
        at = self.kills % 2
        self.writers[at].kill()
        self.writers[at].wait()
        self.writers[at] = self.start_writer(STALLS[at])

    def kill_something(self) -> None:
        """Everything has its turn."""
        faults = (self.kill_redis, self.kill_a_writer, self.kill_a_server)
        faults[self.kills % len(faults)]()
        self.kills += 1


def test_every_acknowledged_write_reaches_the_database_whatever_is_killed(
    redis: RunningRedis, ledger: Ledger
) -> None:
    """L2, L8: at least once, the latest value, and never an older one after a newer one."""
    with ExitStack() as stack:
        stage = Stage(redis, ledger, stack)
        share = WRITES // PRODUCERS
        producers = [Producer(number, share, stage.urls) for number in range(PRODUCERS)]
        threads = [threading.Thread(target=each.run, daemon=True) for each in producers]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) or stage.kills < 6:
            time.sleep(FAULT_EVERY_S)  # between faults, something has to go well
            stage.kill_something()
        took_s = time.monotonic() - began
        latest = {key: value for each in producers for key, value in each.latest.items()}
        deadline = time.monotonic() + DRAINED_S
        while ledger.rows != latest and time.monotonic() < deadline:
            time.sleep(0.2)
        assert ledger.complaints(latest) == []
        assert [each for producer in producers for each in producer.refused] == []
        assert len(latest) == PRODUCERS * max(1, share // REWRITES)
        with connect(stage.urls[0], compression=None) as connection:
            assert call(connection, "writes.dead", queue=QUEUE)["writes"] == []
        print(
            f"{PRODUCERS * share} puts of {len(latest)} keys in {took_s:.1f} s, "
            f"{stage.kills} kills, {sum(each.repeated for each in producers)} batches repeated; "
            f"the database took {ledger.taken} writes and refused {ledger.refused}"
        )


@pytest.mark.parametrize("fenced", [True, False])
def test_a_writer_who_was_too_slow_is_refused_by_its_fence(
    fenced: bool, redis: RunningRedis, tmp_path: Path
) -> None:
    """L2: and a database that does not look at fences is found out by what this file checks."""
    ledger = Ledger(tmp_path / "ledger.sqlite", fenced=fenced)
    ledger.create()
    with (
        running_server(store=redis.url) as server,
        connect(server.url, compression=None) as slow,
        connect(server.url, compression=None) as other,
    ):

        def claim(connection: ClientConnection, claim_ms: int) -> dict[str, Any]:
            wanted = {"queue": QUEUE, "claim_ms": claim_ms, "wait_ms": None}
            [write] = call(connection, "writes.claim", **wanted)["writes"]
            assert isinstance(write, dict)
            return write

        def carry_out(connection: ClientConnection, write: dict[str, Any]) -> int:
            ledger.write([Row(write["key"], write["value"], write["seq"], write["fence"])])
            ids = [write["id"]]
            return int(call(connection, "writes.ack", queue=QUEUE, ids=ids)["settled"])

        call(other, "writes.put", queue=QUEUE, key="k", value=1)
        late = claim(slow, 100)
        assert carry_out(other, claim(other, 30_000)) == 1
        call(other, "writes.put", queue=QUEUE, key="k", value=2)
        assert carry_out(other, claim(other, 30_000)) == 1
        assert carry_out(slow, late) == 0
    assert ledger.refused == (1 if fenced else 0)
    assert bool(ledger.complaints({"k": 2})) is not fenced
    assert ledger.rows == {"k": 2 if fenced else 1}
