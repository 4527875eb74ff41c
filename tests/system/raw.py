"""Clients that say just what they are told, on connections of their own, many in one process."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Final, TypeAlias

import attrs
import orjson
import trio

from tests.conformance.peer import Peer
from tests.conformance.vectors import Json, as_int, as_object
from tests.polling import eventually

WITHIN_S: Final = 60.0


class Refused(Exception):
    """An error was the answer; or the connection ended, code 0."""

    def __init__(self, code: int, message: str, data: dict[str, Json] | None = None) -> None:
        super().__init__(f"{code} {message}")
        self.code: Final = code
        self.data: Final[dict[str, Json]] = data or {}


@attrs.define(eq=False)
class Raw:
    """One connection."""

    peer: Peer
    _ids: Iterator[int] = attrs.field(factory=lambda: count(1))

    async def ask(self, method: str, **params: Json) -> int:
        """Sends a request; returns its id."""
        request_id = next(self._ids)
        message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
        await self.peer.send_text(orjson.dumps(message).decode())
        return request_id

    async def answer(self, request_id: int, within_s: float = WITHIN_S) -> dict[str, Json]:
        """Waits for its result.

        Raises:
            Refused: an error came instead, or nothing will come any more.
        """
        answers: list[dict[str, Json]] = []

        def holds() -> bool:
            if not answers and (answer := self.peer.take_answer(request_id)):
                answers.append(answer)
            return bool(answers) or self.peer.closed is not None

        with trio.fail_after(within_s):
            await self.peer.until(holds)
        if not answers:
            raise Refused(0, f"the connection ended with {self.peer.closed}")
        if "error" in answers[0]:
            error = as_object(answers[0]["error"])
            data = as_object(error["data"]) if "data" in error else None
            raise Refused(as_int(error["code"]), str(error["message"]), data)
        return as_object(answers[0]["result"])

    async def call(self, method: str, **params: Json) -> dict[str, Json]:
        """Asks, and waits for the result."""
        return await self.answer(await self.ask(method, **params))

    async def waiting(self, name: str) -> int:
        """How many wait for a name."""
        return as_int((await self.call("lease.inspect", name=name))["waiting_total"])

    async def until_waiting(self, name: str, number: int) -> None:
        """Waits until so many wait for a name."""

        async def so_many() -> bool:
            return await self.waiting(name) == number

        await eventually(so_many)

    async def drop(self) -> None:
        """Ends the connection without a word."""
        await self.peer.drop()


Dial: TypeAlias = Callable[[str], Awaitable[Raw]]


@asynccontextmanager
async def dialling() -> AsyncIterator[Dial]:
    """What makes connections, all dropped on the way out."""
    async with trio.open_nursery() as nursery:

        async def dial(url: str) -> Raw:
            peer = Peer(url, ignore=("lease.contended",))
            accepted = await peer.connect(nursery, ["leasekeeper.v1"], {})
            assert accepted.status == 101
            return Raw(peer)

        yield dial
        nursery.cancel_scope.cancel()
