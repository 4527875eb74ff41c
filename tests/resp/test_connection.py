"""One connection: order, cancellation, silence and nonsense."""

from random import Random

import pytest
import trio
import trio.testing
from attrs import evolve
from redis.exceptions import ResponseError

from leasekeeper.errors import Outcome
from leasekeeper.resp.connection import UNANSWERED_MAX, Connection, pack
from leasekeeper.resp.errors import NotWritten, Unanswered
from tests.resp.fake import HERE, OK, SETTINGS, bulk
from tests.resp.line import Line, asking, open_line


async def test_replies_go_to_those_who_asked_in_order(nursery: trio.Nursery) -> None:
    async with open_line() as line:
        first = asking(nursery, line, "A")
        await trio.testing.wait_all_tasks_blocked()
        pair = asking(nursery, line, "B", count=2)
        await trio.testing.wait_all_tasks_blocked()
        await line.reply(bulk("a") + bulk("b1"))
        assert (first.answers, pair.answers) == ([b"a"], None)
        assert line.connection.load == 2
        await line.reply(bulk("b2"))
        assert pair.answers == [b"b1", b"b2"]
        assert line.connection.load == 0


async def test_an_error_reply_is_an_answer(nursery: trio.Nursery) -> None:
    async with open_line() as line:
        one = asking(nursery, line, "A")
        await line.receive()
        await line.reply(b"-WRONGTYPE no\r\n")
        assert one.answers is not None
        [error] = one.answers
        assert isinstance(error, ResponseError)
        assert str(error) == "WRONGTYPE no"


async def test_commands_are_joined_while_a_write_is_under_way(nursery: trio.Nursery) -> None:
    """A slow reader takes one command; the next 100 come in one write behind it."""
    # This pair hands over one write at a time, and only when it is received.
    ours, theirs = trio.testing.lockstep_stream_pair()
    connection = Connection(HERE, ours, SETTINGS, lambda _: None, lambda _: None)
    nursery.start_soon(connection.serve)
    line = Line(connection, theirs)
    asking(nursery, line, "A")
    await trio.testing.wait_all_tasks_blocked()
    for _ in range(100):
        asking(nursery, line, "B")
    await trio.testing.wait_all_tasks_blocked()
    assert await line.receive() == pack(("A",))
    assert await line.receive() == pack(("B",)) * 100
    nursery.cancel_scope.cancel()


async def test_commands_of_one_moment_are_one_write(nursery: trio.Nursery) -> None:
    async with open_line() as line:
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(50):
            asking(nursery, line, "A")
        await trio.testing.wait_all_tasks_blocked()
        assert await line.receive() == pack(("A",)) * 50


async def test_a_cancelled_caller_leaves_its_place_and_its_reply_is_dropped(
    nursery: trio.Nursery,
) -> None:
    """CVE-2023-28858: the next caller must not get the reply of the one before."""
    async with open_line() as line:
        gone = asking(nursery, line, "GONE")
        await line.receive()
        gone.scope.cancel()
        stays = asking(nursery, line, "STAYS")
        await line.receive()
        await line.reply(bulk("for gone"))
        assert stays.answers is None
        await line.reply(bulk("for stays"))
        assert stays.answers == [b"for stays"]
        assert gone.answers is None


async def test_a_command_whose_caller_is_gone_before_the_write_is_never_written(
    nursery: trio.Nursery,
) -> None:
    async with open_line() as line:
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await line.connection.ask(pack(("NEVER",)))
        assert line.connection.load == 0
        asking(nursery, line, "B")
        assert await line.receive() == pack(("B",))


async def test_half_a_reply_is_no_reply(nursery: trio.Nursery) -> None:
    async with open_line() as line:
        one = asking(nursery, line, "A")
        await line.receive()
        await line.reply(b"$5\r\nhel")
        assert one.answers is None
        await line.reply(b"lo\r\n")
        assert one.answers == [b"hello"]


async def test_when_the_connection_ends_what_was_written_is_unknown(nursery: trio.Nursery) -> None:
    async with open_line() as line:
        one = asking(nursery, line, "A")
        await line.receive()
        await line.theirs.send_all(b"$5\r\nhel")
        await trio.aclose_forcefully(line.theirs)
        await trio.testing.wait_all_tasks_blocked()
        assert one.problem is not None
        assert one.problem.outcome is Outcome.UNKNOWN
        assert line.connection.was_lost
        with pytest.raises(NotWritten, match="was lost"):
            await line.connection.ask(pack(("B",)))


async def test_what_was_not_written_when_the_connection_ended_had_no_effect(
    nursery: trio.Nursery,
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    connection = Connection(HERE, ours, SETTINGS, lambda _: None, lambda _: None)
    nursery.start_soon(connection.serve)
    line = Line(connection, theirs)
    first = asking(nursery, line, "A")
    await trio.testing.wait_all_tasks_blocked()
    second = asking(nursery, line, "B")
    await trio.testing.wait_all_tasks_blocked()
    await trio.aclose_forcefully(theirs)
    await trio.testing.wait_all_tasks_blocked()
    assert first.problem is not None
    assert second.problem is not None
    assert first.problem.outcome is Outcome.UNKNOWN
    assert isinstance(second.problem, NotWritten)
    assert second.problem.outcome is Outcome.NONE


@pytest.mark.parametrize("nonsense", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+one too many\r\n"])
async def test_nonsense_ends_the_connection(nursery: trio.Nursery, nonsense: bytes) -> None:
    async with open_line() as line:
        one = asking(nursery, line, "A")
        await line.receive()
        await line.reply(OK + nonsense)
        assert one.answers == [b"OK"]
        assert line.connection.reason == "10.0.0.1:6379 sent what is not RESP"


async def test_a_command_without_a_reply_ends_the_connection_after_read_ms(
    nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    async with open_line() as line:
        started = trio.current_time()
        asking(nursery, line, "A")
        await trio.sleep(2)
        second = asking(nursery, line, "B")
        await second.done.wait()
        assert trio.current_time() - started == pytest.approx(3, abs=0.05)
        assert second.problem is not None
        assert second.problem.outcome is Outcome.UNKNOWN
        assert second.problem.reason == "10.0.0.1:6379 did not answer within 3000 ms"
        assert line.connection.was_silent


async def test_a_command_may_take_longer_by_design(
    nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    """So may the commands behind it, which Redis does not look at before."""
    async with open_line() as line:
        wait = asking(nursery, line, "WAIT", extra_ms=2000)
        await trio.testing.wait_all_tasks_blocked()
        behind = asking(nursery, line, "BEHIND")
        await trio.sleep(4.9)
        await line.reply(OK)
        await trio.sleep(0.05)
        await line.reply(OK)
        assert (wait.answers, behind.answers) == ([b"OK"], [b"OK"])
        last = asking(nursery, line, "LAST")
        await trio.sleep(3.1)
        assert last.problem is not None


async def test_a_write_that_does_not_end_ends_the_connection(
    nursery: trio.Nursery, autojump_clock: trio.abc.Clock
) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    settings = evolve(SETTINGS, write_ms=1000)
    connection = Connection(HERE, ours, settings, lambda _: None, lambda _: None)
    nursery.start_soon(connection.serve)
    line = Line(connection, theirs)
    written = asking(nursery, line, "A")
    await trio.testing.wait_all_tasks_blocked()
    queued = asking(nursery, line, "B")
    await trio.sleep(1.1)
    assert written.problem is not None
    assert queued.problem is not None
    assert written.problem.outcome is Outcome.UNKNOWN
    assert isinstance(queued.problem, NotWritten)


async def test_a_reply_that_came_while_we_stood_still_counts(
    nursery: trio.Nursery, mock_clock: trio.testing.MockClock
) -> None:
    async with open_line() as line:
        one = asking(nursery, line, "A")
        await line.receive()
        await trio.testing.wait_all_tasks_blocked()
        await line.theirs.send_all(OK)
        mock_clock.jump(10)
        await trio.testing.wait_all_tasks_blocked()
        assert one.answers == [b"OK"]


async def test_an_idle_line_is_pinged_and_silence_is_noticed_within_twice_read_ms(
    autojump_clock: trio.abc.Clock,
) -> None:
    async with open_line() as line:
        await trio.sleep(3.1)
        assert await line.receive() == pack(("PING",))
        await line.reply(b"+PONG\r\n")
        heard_at = trio.current_time()
        assert await line.receive() == pack(("PING",))
        assert await line.receive() == b""
        assert trio.current_time() - heard_at <= 6.01
        assert line.connection.was_silent


async def test_pushes_come_in_order_with_replies(nursery: trio.Nursery) -> None:
    async with open_line() as line:
        one = asking(nursery, line, "A")
        await line.receive()
        await line.reply(b">2\r\n$10\r\ninvalidate\r\n_\r\n" + OK)
        assert line.pushes == [[b"invalidate", None]]
        assert one.answers == [b"OK"]


async def test_no_more_than_a_bounded_number_of_commands_is_under_way(
    nursery: trio.Nursery,
) -> None:
    async with open_line() as line:
        asking(nursery, line, "A", count=UNANSWERED_MAX)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Unanswered, match="too many commands under way") as refused:
            await line.connection.ask(pack(("B",)))
        assert refused.value.outcome is Outcome.NONE
        assert line.connection.reason is None


async def test_a_retired_connection_ends_when_its_last_reply_is_there(
    nursery: trio.Nursery,
) -> None:
    async with open_line() as line:
        one = asking(nursery, line, "A")
        await line.receive()
        line.connection.retire("no master any more")
        assert line.connection.reason is None
        await line.reply(OK)
        assert one.answers == [b"OK"]
        assert line.connection.reason == "no master any more"
        assert not line.connection.was_lost


async def test_a_closed_connection_leaves_no_socket(nursery: trio.Nursery) -> None:
    async with open_line() as line:
        one = asking(nursery, line, "A")
        await line.receive()
        line.connection.end("enough")
        assert await line.receive() == b""
        await trio.testing.wait_all_tasks_blocked()
        assert one.problem is not None
        assert one.problem.reason == "enough"


async def test_replies_never_cross_in_a_storm_of_cancelled_callers(
    autojump_clock: trio.abc.Clock,
) -> None:
    """Each of 200 tasks asks with nonces and is cancelled at random; what it hears is its own."""
    random = Random(8)
    heard = 0

    async def echo(line: Line) -> None:
        while data := await line.receive():
            await trio.sleep(random.random() / 100)
            words = data.split(b"\r\n")
            for nonce in words[4::5]:
                await line.theirs.send_all(bulk(nonce))

    async def ask(line: Line, name: int) -> None:
        nonlocal heard
        for number in range(30):
            nonce = f"{name}.{number}"
            with trio.move_on_after(random.random() / 50):
                assert await line.connection.ask(pack(("ECHO", nonce))) == [nonce.encode()]
                heard += 1

    async with open_line() as line, trio.open_nursery() as server:
        server.start_soon(echo, line)
        async with trio.open_nursery() as callers:
            for name in range(200):
                callers.start_soon(ask, line, name)
        assert await line.connection.ask(pack(("ECHO", "last"))) == [b"last"]
        assert line.connection.load == 0
        server.cancel_scope.cancel()
    assert 500 < heard < 5500
