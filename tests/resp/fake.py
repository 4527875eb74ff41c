"""Redis servers that say what a test wants them to say, on streams in memory and in virtual time.

They parse what they are sent, so that a command that was cut short, or mixed with another, fails
the test that caused it.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeAlias

import hiredis
import trio
import trio.testing
from attrs import define, field

from leasekeeper.resp.client import Client
from leasekeeper.resp.errors import CannotConnect
from leasekeeper.resp.handshake import Identity
from leasekeeper.resp.settings import Address, Settings, Topology

Words: TypeAlias = list[bytes]
MemoryStream: TypeAlias = trio.StapledStream[
    trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream
]

HERE: Final = Address("10.0.0.1", 6379)
THERE: Final = Address("10.0.0.2", 6379)
SETTINGS: Final = Settings(Topology.SINGLE, (HERE,), pool_min=1)

OK: Final = b"+OK\r\n"
PONG: Final = b"+PONG\r\n"


class Cut(Exception):
    """Raised by an answer: the connection is cut instead."""


def bulk(text: str | bytes) -> bytes:
    """A string as a reply."""
    data = text.encode() if isinstance(text, str) else text
    return b"$%d\r\n%b\r\n" % (len(data), data)


def array(*items: bytes) -> bytes:
    """Replies as one reply."""
    return b"*%d\r\n" % len(items) + b"".join(items)


def answer_ok(_: Words) -> bytes | None:
    """To everything."""
    return OK


@define(eq=False)
class FakeRedis:
    """A server. `answer` says what it replies to all but the handshake; None is no reply at all."""

    address: Address = HERE
    answer: Callable[[Words], bytes | None] = answer_ok
    role: str = "master"
    mode: str = "standalone"
    run_id: str = "r1"
    greeting: bytes | None = None
    """Instead of the reply to HELLO."""
    delay_s: float = 0
    """How long a script takes."""
    refuses: bool = False
    """Whether nobody can connect."""
    commands: list[Words] = field(factory=list, init=False)
    """What it was sent, without handshakes."""
    handshakes: int = field(default=0, init=False)
    dials: int = field(default=0, init=False)
    ends: list[MemoryStream] = field(factory=list, init=False)
    """Its ends of the open connections."""

    @property
    def scripts(self) -> list[Words]:
        """The commands that run scripts."""
        return [each for each in self.commands if each[0] in (b"EVALSHA", b"EVAL")]

    async def serve(self, end: MemoryStream) -> None:
        """One connection, until it ends."""
        reader = hiredis.Reader()
        self.ends.append(end)
        try:
            while data := await end.receive_some():
                reader.feed(bytes(data))
                while (command := reader.gets()) is not False:
                    assert isinstance(command, list), command
                    reply = self._reply(command)
                    if self.delay_s and command[0] in (b"EVALSHA", b"EVAL"):
                        await trio.sleep(self.delay_s)
                    if reply is not None:
                        await end.send_all(reply)
        except (Cut, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.ends.remove(end)
            await trio.aclose_forcefully(end)

    async def push(self, data: bytes) -> None:
        """Says something of its own accord on every connection."""
        for end in self.ends:
            await end.send_all(data)

    async def cut(self) -> None:
        """Ends every connection."""
        for end in tuple(self.ends):
            await trio.aclose_forcefully(end)

    def _reply(self, command: Words) -> bytes | None:
        match command[0]:
            case b"HELLO":
                self.handshakes += 1
                if self.greeting is not None:
                    return self.greeting
                return b"%%1\r\n%b%b" % (bulk("mode"), bulk(self.mode))
            case b"CLIENT":
                return OK
            case b"INFO":
                return bulk(self._info())
            case b"PING":
                return PONG
        self.commands.append(command)
        return self.answer(command)

    def _info(self) -> str:
        lines = {
            "redis_version": "7.0.0",
            "run_id": self.run_id,
            "role": self.role,
            "master_replid": "p1",
            "master_replid2": "p0",
            "maxmemory": "0",
            "maxmemory_policy": "noeviction",
        }
        if self.role != "master":
            lines |= {"master_host": THERE.host, "master_port": str(THERE.port)}
        return "".join(f"{name}:{value}\r\n" for name, value in lines.items())


@define(eq=False)
class Network:
    """Where the fakes are reached."""

    nursery: trio.Nursery
    redises: dict[Address, FakeRedis] = field(factory=dict, init=False)

    def add(self, redis: FakeRedis) -> FakeRedis:
        """From now on it is there."""
        self.redises[redis.address] = redis
        return redis

    async def dial(self, address: Address, _: Settings) -> trio.abc.Stream:
        """In place of `leasekeeper.resp.dialling.dial`."""
        await trio.lowlevel.checkpoint()
        redis = self.redises.get(address)
        if redis is not None:
            redis.dials += 1
        if redis is None or redis.refuses:
            raise CannotConnect(f"nothing listens at {address}")
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(redis.serve, theirs)
        return ours


@define(eq=False)
class Connected:
    """A client that runs, and what it was told."""

    client: Client
    identities: list[Identity] = field(factory=list)
    flushed: list[Address] = field(factory=list)


@asynccontextmanager
async def running_client(settings: Settings) -> AsyncIterator[Connected]:
    """A client that is connected."""
    identities: list[Identity] = []
    flushed: list[Address] = []
    client = Client(settings, identities.append, flushed.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        yield Connected(client, identities, flushed)
        nursery.cancel_scope.cancel()


def sent(commands: Sequence[Words]) -> list[str]:
    """The first words of commands."""
    return [each[0].decode() for each in commands]
