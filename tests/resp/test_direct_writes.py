"""Commands that who asks writes himself, without the writer, as far as a socket takes them."""

import socket
from random import Random

import hiredis
import trio
import trio.testing
from attrs import evolve

from leasekeeper.errors import Outcome
from leasekeeper.resp.connection import pack
from tests.resp.fake import OK, SETTINGS, bulk
from tests.resp.line import Line, asking, open_line


async def test_replies_never_cross_in_a_storm_over_sockets() -> None:
    """The same where the kernel takes commands in parts, and some go out without the writer."""
    random = Random(9)
    heard = 0

    async def echo(line: Line) -> None:
        reader = hiredis.Reader()
        while data := await line.receive():
            reader.feed(data)
            while words := reader.gets():
                await line.theirs.send_all(bulk(words[1]))
                if random.random() < 0.1:
                    await trio.lowlevel.checkpoint()

    async def ask(line: Line, name: int) -> None:
        nonlocal heard
        for number in range(30):
            nonce = f"{name}.{number}" * random.choice([1, 1, 1, 3000])
            with trio.move_on_after(random.choice([0, 0.01, 10])):
                assert await line.connection.ask(pack(("ECHO", nonce))) == [nonce.encode()]
                heard += 1
            await trio.sleep(random.choice([0, 0.001]))

    line_of = open_line(sockets=True, buffer_bytes=4096)
    async with line_of as line, trio.open_nursery() as server:
        server.start_soon(echo, line)
        async with trio.open_nursery() as callers:
            for name in range(20):
                callers.start_soon(ask, line, name)
        assert await line.connection.ask(pack(("ECHO", "last"))) == [b"last"]
        assert line.connection.load == 0
        server.cancel_scope.cancel()
    assert 100 < heard < 600


def written(line: Line) -> bytes:
    """What the other end has now, without waiting."""
    assert isinstance(line.theirs, trio.SocketStream)
    try:
        return line.theirs.socket._sock.recv(1 << 20, socket.MSG_DONTWAIT)  # type: ignore[attr-defined, no-any-return]
    except BlockingIOError:
        return b""


async def test_with_nothing_under_way_a_command_is_written_at_once() -> None:
    async with open_line(sockets=True) as line:
        await trio.testing.wait_all_tasks_blocked()
        first, second, third = (pack(("ECHO", word)) for word in ("1", "2", "3"))
        line.connection.tell(first)
        assert written(line) == first
        line.connection.tell(second)
        line.connection.tell(third)
        assert written(line) == b""
        await trio.testing.wait_all_tasks_blocked()
        assert written(line) == second + third
        await line.reply(3 * OK)
        assert line.connection.load == 0
        line.connection.tell(first)
        assert written(line) == first


async def test_a_caller_who_was_cancelled_before_he_asked_has_nothing_written() -> None:
    async with open_line(sockets=True) as line:
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await line.connection.ask(pack(("SET", "k", "v")))
        assert scope.cancelled_caught
        assert written(line) == b""
        assert line.connection.load == 0


async def test_the_rest_of_a_command_comes_before_the_next(nursery: trio.Nursery) -> None:
    async with open_line(sockets=True, buffer_bytes=4096) as line:
        await trio.testing.wait_all_tasks_blocked()
        long = asking(nursery, line, "SET", "k", "v" * 300_000)
        await trio.testing.wait_all_tasks_blocked()
        short = asking(nursery, line, "GET", "k")
        await line.expect(long.packed + short.packed)
        await line.reply(OK + bulk(b"v"))
        with trio.fail_after(30):
            await long.done.wait()
            await short.done.wait()
        assert (long.answers, short.answers) == ([b"OK"], [b"v"])


async def test_a_caller_who_is_gone_does_not_cut_his_command_short(nursery: trio.Nursery) -> None:
    async with open_line(sockets=True, buffer_bytes=4096) as line:
        await trio.testing.wait_all_tasks_blocked()
        long = asking(nursery, line, "SET", "k", "v" * 300_000)
        await trio.testing.wait_all_tasks_blocked()
        long.scope.cancel()
        short = asking(nursery, line, "GET", "k")
        await line.expect(long.packed + short.packed)
        await line.reply(OK + bulk(b"v"))
        with trio.fail_after(30):
            await short.done.wait()
        assert short.answers == [b"v"]


async def test_a_peer_that_is_gone_has_not_done_what_it_was_not_sent(nursery: trio.Nursery) -> None:
    async with open_line(sockets=True) as line:
        await trio.testing.wait_all_tasks_blocked()
        await line.theirs.aclose()
        one = asking(nursery, line, "GET", "k")
        with trio.fail_after(30):
            await one.done.wait()
        assert one.problem is not None
        assert line.connection.was_lost


async def test_a_rest_that_is_not_taken_in_time_ends_the_connection(nursery: trio.Nursery) -> None:
    settings = evolve(SETTINGS, write_ms=200, read_ms=60_000)
    async with open_line(settings, sockets=True, buffer_bytes=4096) as line:
        await trio.testing.wait_all_tasks_blocked()
        one = asking(nursery, line, "SET", "k", "v" * 300_000)
        with trio.fail_after(30):
            await one.done.wait()
        assert one.problem is not None
        assert one.problem.outcome is Outcome.UNKNOWN
        assert line.connection.was_silent
