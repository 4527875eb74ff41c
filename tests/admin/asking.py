"""A peer of the admin server that speaks HTTP by hand, and so can speak it badly."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson
import trio
from attrs import define, frozen

from leasekeeper.admin.app import Admin
from leasekeeper.server.config import TcpAddress

PATIENCE_S: Final = 30.0
GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)


@frozen
class Answer:
    """What a peer was answered."""

    status: int
    headers: Mapping[str, str]
    """By their names in lower case."""
    body: bytes

    def json(self) -> Any:  # noqa: ANN401 # it is whatever the server says
        return orjson.loads(self.body)


@define
class Asked:
    """An admin server, and how to ask it."""

    admin: Admin
    nursery: trio.Nursery
    port: int

    async def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """A request as it should be."""
        lines = [f"{method} {path} HTTP/1.1", "Host: here"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        answer = await self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))
        assert answer is not None
        return answer

    async def send(self, data: bytes) -> Answer | None:
        """What comes of these bytes; None: nothing."""
        with trio.fail_after(PATIENCE_S):
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                try:
                    await stream.send_all(data)
                except GONE:
                    return None
                return parsed(await read_to_end(stream))

    def connect(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Has the admin server serve this end of a stream."""
        self.nursery.start_soon(self.admin.serve_stream, stream)


@asynccontextmanager
async def looking_after(admin: Admin) -> AsyncIterator[Asked]:
    """Runs it on a free port until the block ends."""
    async with trio.open_nursery() as nursery:
        (url,) = await nursery.start(admin.run, TcpAddress("127.0.0.1", 0))
        yield Asked(admin, nursery, int(url.rpartition(":")[2]))
        nursery.cancel_scope.cancel()


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    """Everything, until the other side has no more or is gone."""
    received = b""
    try:
        while some := await stream.receive_some():
            received += some
    except GONE:
        pass
    return received


def parsed(received: bytes) -> Answer | None:
    """The one answer that these bytes are."""
    if not received:
        return None
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode("ascii").split("\r\n")
    headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
    return Answer(int(status.split()[1]), headers, body)
