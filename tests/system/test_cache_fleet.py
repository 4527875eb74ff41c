"""Ten thousand callers of one missing key, on many connections and two servers: one load (L10)."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final

import attrs
import orjson
import pytest
import trio
from trio_websocket import WebSocketConnection, open_websocket_url

from tests.processes import RunningServer, running_server
from tests.redis_groups import Redises

pytestmark = pytest.mark.system

CONNECTIONS: Final = 10
CALLERS: Final = 1_000
WITHIN_S: Final = 120.0
KEY: Final = "report:today"
LAST: Final = -1
"""The id of a request whose answer shows that all before it have been begun."""


@pytest.fixture
def servers(redises: Redises) -> Iterator[list[RunningServer]]:
    """Two of them, on one Redis."""
    redis = redises.single()
    with ExitStack() as stack:
        yield [stack.enter_context(running_server(store=redis.url)) for _ in range(2)]


@attrs.define(eq=False)
class Crowd:
    """A thousand callers on one connection."""

    socket: WebSocketConnection
    answers: dict[int, dict[str, Any]] = attrs.field(factory=dict)

    async def ask(self, method: str, request_id: int, **params: object) -> None:
        """One request."""
        message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
        await self.socket.send_message(orjson.dumps(message).decode())

    async def all_ask(self) -> None:
        """Each of them wants the key; returns when the server has begun with all of them."""
        await self.ask("session.open", LAST - 1, batch=True)
        params = {"key": KEY, "wait_ms": None}
        requests = [
            {"jsonrpc": "2.0", "id": number, "method": "cache.get", "params": params}
            for number in range(CALLERS)
        ]
        await self.socket.send_message(orjson.dumps(requests).decode())
        await self.ask("lease.inspect", LAST, name="any")
        await self.read(lambda: LAST in self.answers)

    async def read(self, enough: Callable[[], bool]) -> None:
        """Takes answers until there are enough."""
        while not enough():
            message = orjson.loads(await self.socket.get_message())
            for answer in message if isinstance(message, list) else [message]:
                assert "error" not in answer, answer
                self.answers[answer["id"]] = answer["result"]

    @property
    def gets(self) -> list[dict[str, Any]]:
        """What the callers got."""
        return [answer for number, answer in self.answers.items() if number >= 0]


async def test_ten_thousand_callers_are_one_load(servers: list[RunningServer]) -> None:
    """L10: and each of them has the value that was loaded."""
    with trio.fail_after(WITHIN_S):
        async with trio.open_nursery() as nursery:
            crowds = []
            for number in range(CONNECTIONS):
                url = servers[number % len(servers)].url
                socket = await open_socket(nursery, url)
                crowds.append(Crowd(socket))
            async with trio.open_nursery() as asking:
                for crowd in crowds:
                    asking.start_soon(crowd.all_ask)
            told = [(crowd, get) for crowd in crowds for get in crowd.gets]
            [(filler, granted)] = told
            assert granted["state"] == "fill"
            value = {"rows": list(range(100))}
            params = {"key": KEY, "fill": granted["fill"], "value": value, "ttl_ms": 60_000}
            await filler.ask("cache.fill", LAST - 2, **params)
            async with trio.open_nursery() as reading:
                for crowd in crowds:
                    reading.start_soon(crowd.read, lambda each=crowd: len(each.gets) == CALLERS)
            others = [get for crowd in crowds for get in crowd.gets if get is not granted]
            assert len(others) == CONNECTIONS * CALLERS - 1
            assert {get["state"] for get in others} == {"hit"}
            assert all(get["value"] == value for get in others)
            nursery.cancel_scope.cancel()


async def open_socket(nursery: trio.Nursery, url: str) -> WebSocketConnection:
    """A connection that lasts as long as the nursery."""

    async def keep(*, task_status: trio.TaskStatus[WebSocketConnection]) -> None:
        async with open_websocket_url(url, max_message_size=1 << 24) as socket:
            task_status.started(socket)
            await trio.sleep_forever()

    socket: WebSocketConnection = await nursery.start(keep)
    return socket
