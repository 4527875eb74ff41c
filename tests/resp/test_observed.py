"""What a client tells of its scripts and commands: which they were, and how long each took."""

from collections.abc import AsyncIterator

import pytest
from redis.exceptions import ResponseError

from leasekeeper.resp.client import Client
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.scripts import Call, Script
from leasekeeper.resp.settings import parse_url
from tests.redis_groups import Redises
from tests.redises import running_redis
from tests.resp.fake import running_client

pytestmark = pytest.mark.system

ONE = Script("one", "return 1")
TWO = Script("two", "return 2")
SLOW = Script("slow", "local i = 0; while i < 3e6 do i = i + 1 end; return i")
BROKEN = Script("broken", "return redis.call('INCR', KEYS[1], 'too many')")


class Diary(list[tuple[str, float]]):
    """What was observed."""

    def note(self, operation: str, seconds: float) -> None:
        self.append((operation, seconds))

    @property
    def operations(self) -> list[str]:
        return [operation for operation, _ in self]


@pytest.fixture
def diary() -> Diary:
    return Diary()


@pytest.fixture
async def client(redises: Redises, diary: Diary) -> AsyncIterator[Client]:
    """One that is observed."""
    async with running_client(parse_url(redises.single().url)) as connected:
        connected.client.observe = diary.note
        yield connected.client


async def test_a_script_is_observed_under_its_name(client: Client, diary: Diary) -> None:
    await client.eval(ONE, ["k"], [])
    await client.eval(SLOW, ["k"], [])
    assert diary.operations == ["one", "slow"]
    assert diary[0][1] > 0
    assert 0.001 < diary[1][1] < 10


async def test_the_wait_for_replicas_is_part_of_it(client: Client, diary: Diary) -> None:
    await client.eval_and_wait(ONE, ["k"], [], replicas=1, timeout_ms=50)
    [(operation, seconds)] = diary
    assert operation == "one"
    assert seconds >= 0.05


async def test_scripts_that_are_sent_together_are_observed_once_each(
    client: Client, diary: Diary
) -> None:
    await client.eval_many([Call(script, ["k"], []) for script in (ONE, TWO, ONE, ONE)])
    assert sorted(diary.operations) == ["one", "two"]


async def test_nothing_that_is_sent_is_not_observed(client: Client, diary: Diary) -> None:
    assert await client.eval_many([]) == []
    assert diary == []


async def test_a_command_is_observed_without_its_arguments(client: Client, diary: Diary) -> None:
    """No key, and so no name of a lease, can become a label."""
    await client.command("SET", "secret", "value", key="secret")
    await client.command("GET", "secret", key="secret")
    assert diary.operations == ["set", "get"]


async def test_what_failed_is_observed_as_well(client: Client, diary: Diary) -> None:
    with pytest.raises(ResponseError):
        await client.eval(BROKEN, ["k"], [])
    await client.eval_many([Call(BROKEN, ["k"], [])])
    assert diary.operations == ["broken", "broken"]


async def test_what_has_no_answer_is_observed_as_well(diary: Diary) -> None:
    with running_redis() as redis:
        async with running_client(parse_url(redis.url)) as connected:
            connected.client.observe = diary.note
            redis.kill()
            for _ in range(2):  # on a connection that ends, and without one
                with pytest.raises(Unanswered):
                    await connected.client.eval(ONE, ["k"], [])
            assert diary.operations == ["one", "one"]
            assert not connected.client.is_up
