"""A connection to Redis whose other end is the test, and tasks that ask over it."""

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
import trio.testing
from attrs import define, field

from leasekeeper.resp.connection import Connection, pack
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.replies import Answer, Reply
from leasekeeper.resp.settings import Settings
from tests.resp.fake import HERE, SETTINGS


@define(eq=False)
class Line:
    """A connection whose other end is the test."""

    connection: Connection
    theirs: trio.abc.Stream
    pushes: list[Sequence[Reply]] = field(factory=list)

    async def receive(self) -> bytes:
        """What was written since."""
        return bytes(await self.theirs.receive_some())

    async def expect(self, expected: bytes) -> None:
        """Returns when exactly this has been written."""
        data = b""
        with trio.fail_after(30):
            while len(data) < len(expected):
                data += await self.receive()
        assert data == expected

    async def reply(self, data: bytes) -> None:
        """Replies, and lets the reply arrive."""
        await self.theirs.send_all(data)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def open_line(
    settings: Settings = SETTINGS, *, sockets: bool = False, buffer_bytes: int | None = None
) -> AsyncIterator[Line]:
    """A connection that is served; over sockets, which are written to without waiting."""
    ours, theirs = socket_pair(buffer_bytes) if sockets else trio.testing.memory_stream_pair()
    pushes: list[Sequence[Reply]] = []
    connection = Connection(HERE, ours, settings, pushes.append, lambda _: None)
    async with theirs, trio.open_nursery() as nursery:
        nursery.start_soon(connection.serve)
        yield Line(connection, theirs, pushes)
        nursery.cancel_scope.cancel()


def socket_pair(buffer_bytes: int | None) -> tuple[trio.SocketStream, trio.SocketStream]:
    """Two ends of a stream; ours takes no more at once than about so much."""
    ours, theirs = socket.socketpair()
    if buffer_bytes is not None:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    ours_, theirs_ = (trio.socket.from_stdlib_socket(each) for each in (ours, theirs))
    return trio.SocketStream(ours_), trio.SocketStream(theirs_)


@define(eq=False)
class Asking:
    """A task that asks, and what came of it."""

    connection: Connection
    packed: bytes
    count: int = 1
    extra_ms: int = 0
    answers: list[Answer] | None = None
    problem: Unanswered | None = None
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    done: trio.Event = field(factory=trio.Event)

    async def run(self) -> None:
        """Asks once."""
        with self.scope:
            try:
                self.answers = await self.connection.ask(self.packed, self.count, self.extra_ms)
            except Unanswered as problem:
                self.problem = problem
        self.done.set()


def asking(
    nursery: trio.Nursery, line: Line, *words: str, count: int = 1, extra_ms: int = 0
) -> Asking:
    """Starts to ask."""
    one = Asking(line.connection, pack(words) * count, count, extra_ms)
    nursery.start_soon(one.run)
    return one
