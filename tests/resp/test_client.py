"""Each thing that Redis, or the way to it, may have against a command, and what becomes of it."""

from collections.abc import Callable

import pytest
import structlog.testing
import trio
import trio.testing
from attrs import evolve
from redis.exceptions import ResponseError

from leasekeeper.errors import Outcome
from leasekeeper.resp.client import Client
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.scripts import Call, Script
from tests.resp.fake import (
    HERE,
    OK,
    SETTINGS,
    THERE,
    Connected,
    Cut,
    FakeRedis,
    Network,
    Words,
    array,
    bulk,
    running_client,
    sent,
)

SCRIPT = Script("echo", "return ARGV[1]")
PATIENCE_S = SETTINGS.patience_ms / 1000
READ_S = SETTINGS.read_ms / 1000


def first(reply: bytes, then: bytes = OK, times: int = 1) -> Callable[[Words], bytes]:
    """Answers a script with this so many times, and then with that."""
    left = times

    def answer(_: Words) -> bytes:
        nonlocal left
        left -= 1
        return reply if left >= 0 else then

    return answer


async def unanswered(connected: Connected) -> Unanswered:
    """How a script call fails."""
    with pytest.raises(Unanswered) as failed:
        await connected.client.eval(SCRIPT, ["k"], ["v"])
    return failed.value


async def test_a_script_is_called_by_its_digest(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = network.add(FakeRedis(answer=lambda words: bulk(words[-1])))
    async with running_client(SETTINGS) as connected:
        assert await connected.client.eval(SCRIPT, ["k"], [7]) == b"7"
    assert redis.commands == [[b"EVALSHA", SCRIPT.sha.encode(), b"1", b"k", b"7"]]


async def test_noscript_sends_the_source_once(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = network.add(FakeRedis(answer=first(b"-NOSCRIPT No matching script.\r\n")))
    async with running_client(SETTINGS) as connected:
        assert await connected.client.eval(SCRIPT, ["k"], ["v"]) == b"OK"
    assert sent(redis.commands) == ["EVALSHA", "EVAL"]
    assert redis.commands[1] == [b"EVAL", SCRIPT.source.encode(), b"1", b"k", b"v"]


async def test_noscript_for_ever_is_an_error(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = network.add(FakeRedis(answer=lambda _: b"-NOSCRIPT No matching script.\r\n"))
    async with running_client(SETTINGS) as connected:
        with pytest.raises(ResponseError, match="NOSCRIPT"):
            await connected.client.eval(SCRIPT, ["k"], ["v"])
    assert sent(redis.commands) == ["EVALSHA", "EVAL"]


@pytest.mark.parametrize(
    "reply",
    [
        b"-TRYAGAIN Multiple keys request during rehashing of slot\r\n",
        b"-CLUSTERDOWN The cluster is down\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-MASTERDOWN Link with MASTER is down\r\n",
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-ERR Error running script (call to f_00): @user_script:1: -READONLY You can't write "
        b"against a read only replica. \r\n",
    ],
)
class TestNotNow:
    """Errors that pass."""

    async def test_it_is_tried_again_until_it_works(
        self, network: Network, autojump_clock: trio.abc.Clock, reply: bytes
    ) -> None:
        redis = network.add(FakeRedis(answer=first(reply, times=3)))
        async with running_client(SETTINGS) as connected:
            assert await connected.client.eval(SCRIPT, ["k"], ["v"]) == b"OK"
        assert len(redis.scripts) == 4

    async def test_past_the_patience_it_had_no_effect(
        self, network: Network, autojump_clock: trio.abc.Clock, reply: bytes
    ) -> None:
        network.add(FakeRedis(answer=lambda _: reply))
        async with running_client(SETTINGS) as connected:
            started = trio.current_time()
            problem = await unanswered(connected)
            assert trio.current_time() - started == pytest.approx(PATIENCE_S, abs=0.3)
        assert problem.outcome is Outcome.NONE


@pytest.mark.parametrize(
    "reply",
    [
        b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
        b"-BUSY Redis is busy running a script.\r\n",
        b"-MISCONF Redis is configured to save RDB snapshots\r\n",
        b"-NOREPLICAS Not enough good replicas to write.\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b"-WRONGPASS invalid username-password pair or user is disabled.\r\n",
        b"-NOPERM this user has no permissions to run the 'evalsha' command\r\n",
        b"-ERR Error running script (call to f_00): @user_script:1: -OOM command not allowed when "
        b"used memory > 'maxmemory'. \r\n",
    ],
)
async def test_what_redis_refuses_had_no_effect_and_is_not_repeated(
    network: Network, autojump_clock: trio.abc.Clock, reply: bytes
) -> None:
    redis = network.add(FakeRedis(answer=lambda _: reply))
    async with running_client(SETTINGS) as connected:
        problem = await unanswered(connected)
    assert problem.outcome is Outcome.NONE
    assert len(redis.scripts) == 1


async def test_missing_rights_are_logged_but_not_for_every_command(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    network.add(FakeRedis(answer=lambda _: b"-NOPERM this user has no permissions\r\n"))
    with structlog.testing.capture_logs() as logs:
        async with running_client(SETTINGS) as connected:
            for _ in range(5):
                await unanswered(connected)
    assert [each["code"] for each in logs] == ["NOPERM"]


async def test_other_errors_are_the_commands_own(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    network.add(FakeRedis(answer=lambda _: b"-WRONGTYPE Operation against a key\r\n"))
    async with running_client(SETTINGS) as connected:
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await connected.client.command("LPUSH", "k", "v")


async def test_a_redirection_to_nowhere_is_an_error(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    network.add(FakeRedis(answer=lambda _: b"-MOVED 99999 nowhere\r\n"))
    async with running_client(SETTINGS) as connected:
        with pytest.raises(ResponseError, match="MOVED 99999 nowhere"):
            await connected.client.eval(SCRIPT, ["k"], ["v"])


async def test_readonly_drops_the_connections_of_that_master(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    """A new connection says what it is; the old ones are used no more."""
    redis = network.add(FakeRedis(answer=first(b"-READONLY You can't write\r\n")))
    async with running_client(SETTINGS) as connected:
        assert await connected.client.eval(SCRIPT, ["k"], ["v"]) == b"OK"
        assert len(connected.identities) == 2
    assert redis.handshakes == 3  # the first look, and two connections


async def test_a_master_that_became_a_replica_is_not_used(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = network.add(FakeRedis())
    async with running_client(SETTINGS) as connected:
        redis.role = "slave"
        await redis.cut()
        problem = await unanswered(connected)
        assert problem.outcome is Outcome.NONE
        assert "read-only replica" in problem.reason
        assert len(connected.identities) == 1
        redis.role = "master"
        assert await connected.client.eval(SCRIPT, ["k"], ["v"]) == b"OK"


async def test_a_dropped_reply_is_unknown_within_read_ms(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = network.add(FakeRedis(answer=lambda _: None))
    async with running_client(SETTINGS) as connected:
        started = trio.current_time()
        problem = await unanswered(connected)
        assert trio.current_time() - started == pytest.approx(READ_S, abs=0.05)
    assert problem.outcome is Outcome.UNKNOWN
    assert len(redis.scripts) == 1


async def test_a_late_noscript_does_not_make_a_call_longer(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    """Past its patience nothing is tried again, so no call takes more than that and a reply."""
    redis = network.add(FakeRedis(answer=lambda _: b"-NOSCRIPT no\r\n", delay_s=2.5))
    async with running_client(SETTINGS) as connected:
        started = trio.current_time()
        problem = await unanswered(connected)
        assert trio.current_time() - started == pytest.approx(2.5, abs=0.05)
    assert problem.outcome is Outcome.NONE
    assert len(redis.scripts) == 1


async def test_half_a_reply_and_the_end_is_unknown(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = FakeRedis(answer=lambda _: b"$5\r\nhel")
    network.add(redis)
    async with running_client(SETTINGS) as connected, trio.open_nursery() as nursery:

        async def cut_soon() -> None:
            await trio.sleep(1)
            await redis.cut()

        nursery.start_soon(cut_soon)
        problem = await unanswered(connected)
    assert problem.outcome is Outcome.UNKNOWN
    assert len(redis.scripts) == 1


async def test_a_connection_cut_by_the_command_is_unknown_and_not_repeated(
    network: Network,
    autojump_clock: trio.abc.Clock,
) -> None:
    def cut(_: Words) -> bytes:
        raise Cut

    redis = network.add(FakeRedis(answer=cut))
    async with running_client(SETTINGS) as connected:
        problem = await unanswered(connected)
        assert problem.outcome is Outcome.UNKNOWN
        assert len(redis.scripts) == 1


async def test_garbage_is_unknown(network: Network, autojump_clock: trio.abc.Clock) -> None:
    network.add(FakeRedis(answer=lambda _: b"HTTP/1.1 400\r\n"))
    async with running_client(SETTINGS) as connected:
        problem = await unanswered(connected)
    assert problem.outcome is Outcome.UNKNOWN
    assert problem.reason == "10.0.0.1:6379 sent what is not RESP"


async def test_without_a_connection_a_call_waits_as_long_as_its_patience(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = network.add(FakeRedis())
    async with running_client(SETTINGS) as connected:
        redis.refuses = True
        await redis.cut()
        started = trio.current_time()
        problem = await unanswered(connected)
        assert trio.current_time() - started == pytest.approx(PATIENCE_S, abs=0.05)
        assert problem.outcome is Outcome.NONE
        assert problem.reason == "nothing listens at 10.0.0.1:6379"


async def test_a_connection_that_is_back_in_time_serves_those_who_wait(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = network.add(FakeRedis())
    async with running_client(SETTINGS) as connected, trio.open_nursery() as nursery:
        redis.refuses = True
        await redis.cut()

        async def allow_soon() -> None:
            await trio.sleep(1)
            redis.refuses = False
            redis.run_id = "r2"

        nursery.start_soon(allow_soon)
        assert await connected.client.eval(SCRIPT, ["k"], ["v"]) == b"OK"
        assert [each.run_id for each in connected.identities] == ["r1", "r2"]


async def test_a_lost_connection_is_logged_once_and_once_when_it_is_back(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = network.add(FakeRedis())
    with structlog.testing.capture_logs() as logs:
        async with running_client(evolve(SETTINGS, pool_min=3)):
            await trio.sleep(1)
            redis.refuses = True
            await redis.cut()
            await trio.sleep(60)
            assert redis.dials > 60
            redis.refuses = False
            await trio.sleep(5)
    assert [(each["log_level"], each["address"]) for each in logs] == [
        ("warning", str(HERE)),
        ("info", str(HERE)),
    ]


async def test_one_write_carries_many_calls_and_their_answers_keep_order(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = network.add(FakeRedis(answer=lambda words: bulk(words[-1])))
    async with running_client(SETTINGS) as connected:
        calls = [Call(SCRIPT, [f"k{number}"], [number]) for number in range(2500)]
        answers = await connected.client.eval_many(calls)
    assert answers == [str(number).encode() for number in range(2500)]
    assert len(redis.scripts) == 2500


async def test_of_many_calls_each_has_its_own_answer(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    def answer(words: Words) -> bytes:
        return {
            b"bad": b"-WRONGTYPE no\r\n",
            b"full": b"-OOM no\r\n",
            b"new": b"-NOSCRIPT no\r\n" if words[0] == b"EVALSHA" else bulk("new"),
        }.get(words[-1], OK)

    network.add(FakeRedis(answer=answer))
    async with running_client(SETTINGS) as connected:
        calls = [Call(SCRIPT, ["k"], [arg]) for arg in ("bad", "full", "new", "good")]
        bad, full, new, good = await connected.client.eval_many(calls)
        assert await connected.client.eval_many([]) == []
    assert isinstance(bad, ResponseError)
    assert isinstance(full, Unanswered)
    assert full.outcome is Outcome.NONE
    assert (new, good) == (b"new", b"OK")


async def test_eval_and_wait_asks_for_both_at_once(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    redis = network.add(FakeRedis(answer=lambda words: b":2\r\n" if words[0] == b"WAIT" else OK))
    async with running_client(SETTINGS) as connected:
        answer = await connected.client.eval_and_wait(
            SCRIPT, ["k"], ["v"], replicas=2, timeout_ms=50
        )
    assert answer == (b"OK", 2)
    assert redis.commands[1] == [b"WAIT", b"2", b"50"]


async def test_a_script_that_failed_is_not_waited_for(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    network.add(FakeRedis(answer=lambda words: b":2\r\n" if words[0] == b"WAIT" else b"-ERR x\r\n"))
    async with running_client(SETTINGS) as connected:
        with pytest.raises(ResponseError, match="ERR x"):
            await connected.client.eval_and_wait(SCRIPT, ["k"], [], replicas=2, timeout_ms=50)


async def test_a_redis_that_does_not_wait_has_run_the_script(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    network.add(FakeRedis(answer=lambda words: b"-ERR x\r\n" if words[0] == b"WAIT" else OK))
    async with running_client(SETTINGS) as connected:
        assert await connected.client.eval_and_wait(
            SCRIPT, ["k"], [], replicas=2, timeout_ms=50
        ) == (b"OK", 0)


async def test_a_flush_is_told_of_before_any_later_reply(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    flushed_at: list[int] = []

    def answer(words: Words) -> bytes:
        return b">2\r\n$10\r\ninvalidate\r\n_\r\n" + OK

    network.add(FakeRedis(answer=answer))
    async with running_client(SETTINGS) as connected:
        assert not connected.flushed
        await connected.client.eval(SCRIPT, ["k"], ["v"])
        flushed_at.append(len(connected.flushed))
    assert flushed_at == [1]


async def test_a_command_may_go_to_a_certain_master(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    network.add(FakeRedis(answer=lambda _: array(b":1\r\n", bulk("x"))))
    async with running_client(SETTINGS) as connected:
        assert connected.client.masters == (HERE,)
        assert await connected.client.command("X", address=HERE) == [1, b"x"]
        with pytest.raises(Unanswered, match=r"10\.0\.0\.2:6379 is no master in use"):
            await connected.client.command("X", address=THERE)


async def test_a_client_that_does_not_run_knows_no_answers() -> None:
    client = Client(SETTINGS, lambda _: None, lambda _: None)
    with pytest.raises(Unanswered) as failed:
        await client.eval(SCRIPT, ["k"], [])
    assert failed.value.outcome is Outcome.NONE
    [answer] = await client.eval_many([Call(SCRIPT, ["k"], [])])
    assert isinstance(answer, Unanswered)
    assert client.masters == ()


async def test_who_waits_is_told_when_the_client_ends(
    network: Network, autojump_clock: trio.abc.Clock
) -> None:
    network.add(FakeRedis(answer=lambda _: None))
    problems: list[Unanswered] = []
    async with trio.open_nursery() as nursery:

        async def ask(connected: Connected) -> None:
            problems.append(await unanswered(connected))

        async with running_client(SETTINGS) as connected:
            nursery.start_soon(ask, connected)
            await trio.testing.wait_all_tasks_blocked()
    assert [each.outcome for each in problems] == [Outcome.UNKNOWN]
