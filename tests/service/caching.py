"""Clients of the cache without sockets, and a count of what they load."""

from attrs import define, field

from leasekeeper.messages import (
    CacheFill,
    CacheFilled,
    CacheGet,
    CacheHit,
    CacheToFill,
    FillOutcome,
    Json,
)
from tests.service.conftest import Client, Pending, World

KEY = "user:42"


@define(eq=False)
class Reader:
    """A client that asks for cached keys."""

    world: World
    client: Client = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.client = self.world.client()

    async def get(self, key: str = KEY, **fields: object) -> object:
        """`cache.get`, to its end."""
        return await self.client.keeper.handle(
            self.client.session,
            CacheGet(key, **fields),  # type: ignore[arg-type]
        )

    async def load(self, key: str = KEY, **fields: object) -> CacheToFill:
        """A get that must come to the fill."""
        answer = await self.get(key, **fields)
        assert isinstance(answer, CacheToFill), answer
        return answer

    async def hit(self, key: str = KEY, **fields: object) -> CacheHit:
        """A get that must come to a value."""
        answer = await self.get(key, **fields)
        assert isinstance(answer, CacheHit), answer
        return answer

    async def begin(self, key: str = KEY, **fields: object) -> Pending:
        """A get that is left to wait."""
        return await self.world.start(self.client, CacheGet(key, **fields))  # type: ignore[arg-type]

    async def fill(
        self, granted: str, value: bytes = b"1", key: str = KEY, **fields: object
    ) -> FillOutcome:
        """`cache.fill`."""
        params = {"ttl_ms": 60_000} | fields
        ask = CacheFill(key, granted, value=Json(value), **params)  # type: ignore[arg-type]
        return (await self.client.ask(ask, CacheFilled)).outcome


def value_of(pending: Pending) -> bytes:
    """The value that a get came to."""
    assert isinstance(pending.result, CacheHit), pending
    return pending.result.value.text


def fill_of(pending: Pending) -> str:
    """The fill that a get came to."""
    assert isinstance(pending.result, CacheToFill), pending
    return pending.result.fill
