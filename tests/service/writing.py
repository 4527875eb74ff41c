"""Clients of write-behind without sockets: those that put, and those that write."""

from attrs import define, field

from leasekeeper.messages import (
    ClaimedWrite,
    DeadPage,
    Json,
    WriteQueued,
    WritesAck,
    WritesClaim,
    WritesClaimed,
    WritesDead,
    WritesPut,
    WritesRetry,
    WritesRevive,
    WritesRevived,
    WritesSettled,
)
from tests.service.conftest import Client, Pending, World

QUEUE = "orders"


@define(eq=False)
class Writer:
    """A client that puts, claims and settles."""

    world: World
    client: Client = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.client = self.world.client()

    async def put(self, key: str, value: bytes = b"1", queue: str = QUEUE) -> int:
        """`writes.put`; its number."""
        return (await self.client.ask(WritesPut(queue, key, Json(value)), WriteQueued)).seq

    async def claim(self, **fields: object) -> tuple[ClaimedWrite, ...]:
        """`writes.claim`, to its end."""
        ask = WritesClaim(QUEUE, **fields)  # type: ignore[arg-type]
        return (await self.client.ask(ask, WritesClaimed)).writes

    async def claim_one(self, **fields: object) -> ClaimedWrite:
        """The one write that can be claimed."""
        [write] = await self.claim(**fields)
        return write

    async def begin(self, **fields: object) -> Pending:
        """A claim that is left to wait, for ever unless told otherwise."""
        ask = WritesClaim(QUEUE, **({"wait_ms": None} | fields))  # type: ignore[arg-type]
        return await self.world.start(self.client, ask)

    async def ack(self, *writes: ClaimedWrite) -> int:
        """`writes.ack`; how many were held."""
        ids = tuple(each.id for each in writes)
        return (await self.client.ask(WritesAck(QUEUE, ids), WritesSettled)).settled

    async def retry(self, *writes: ClaimedWrite, **fields: object) -> int:
        """`writes.retry`; how many were held."""
        ids = tuple(each.id for each in writes)
        ask = WritesRetry(QUEUE, ids, **fields)  # type: ignore[arg-type]
        return (await self.client.ask(ask, WritesSettled)).settled

    async def dead(self, **fields: object) -> DeadPage:
        """`writes.dead`."""
        return await self.client.ask(WritesDead(QUEUE, **fields), DeadPage)  # type: ignore[arg-type]

    async def revive(self, *keys: str) -> int:
        """`writes.revive`; how many."""
        return (await self.client.ask(WritesRevive(QUEUE, keys), WritesRevived)).revived


def writes_of(pending: Pending) -> tuple[ClaimedWrite, ...]:
    """What a claim came to."""
    assert isinstance(pending.result, WritesClaimed), pending
    return pending.result.writes


def claimed(pending: Pending) -> list[str]:
    """The keys that a claim came to."""
    return [write.key for write in writes_of(pending)]
