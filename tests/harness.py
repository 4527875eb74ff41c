"""A server in the process, and a small WebSocket client that can also misbehave.

The client stands on `websockets`' sans-IO protocol, so that it shares no code with the server.

    async def test_a_dropped_peer_keeps_its_lease(autojump_clock: MockClock) -> None:
        async with serving() as served:
            peer, other = await served.connect(), await served.connect()
            grant = await peer.call("lease.acquire", name="a")
            await peer.drop()
            with pytest.raises(Refused) as refused:
                await other.call("lease.acquire", name="a")
            assert refused.value.code == -32001
            await other.send([{"jsonrpc": "2.0", "id": 1, "method": "nonsense"}])
            assert (await other.receive())[0]["error"]["code"] == -32601

`serving(config)` needs no signals and no sockets: `connect()` feeds the server one end of a memory
stream, so Trio's autojump clock may be used. `connect(wire="lockstep")` is a memory stream whose
writer waits for its reader, for peers that do not read (`peer.pause()`). `connect(wire="tcp")` is a
real loopback connection: no autojump clock with it.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Literal

import orjson
import trio
import trio.testing
from attrs import define, field
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.typing import Origin, Subprotocol
from websockets.uri import parse_uri

from leasekeeper.server.app import Server
from leasekeeper.server.config import ServerConfig
from leasekeeper.service.keeper import Keeper
from leasekeeper.store.api import Store
from leasekeeper.store.memory import MemoryStore

Wire = Literal["memory", "lockstep", "tcp"]
GONE: Final = (trio.BrokenResourceError, trio.ClosedResourceError)
_MASK: Final = b"\x12\x34\x56\x78"
_PATIENCE_S: Final = 60.0
"""Nothing in a test takes longer; past it something hangs, and the test fails."""


class Refused(Exception):
    """A request was answered with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.code: Final[int] = error["code"]
        self.data: Final[dict[str, Any]] = error["data"]


class PeerGone(Exception):
    """The connection ended while something was awaited. `code` is the server's, if it said one."""

    def __init__(self, code: int | None) -> None:
        super().__init__(f"the server closed with {code}")
        self.code: Final = code


class _Protocol(ClientProtocol):
    """The library's, but it need not answer pings."""

    answers_pings: bool = True

    def send_frame(self, frame: Frame) -> None:
        if self.answers_pings or frame.opcode is not Opcode.PONG:
            super().send_frame(frame)


@define(eq=False, repr=False)
class Peer:
    """A WebSocket client over any Trio stream. `run` reads, in a nursery; `open` shakes hands."""

    stream: trio.abc.Stream
    host: str = "127.0.0.1:7420"
    notifications: list[dict[str, Any]] = field(factory=list, init=False)
    """What the server told unasked, in order."""
    frames: list[str] = field(factory=list, init=False)
    """Every text frame, as it came."""
    close_code: int | None = field(default=None, init=False)
    """What the server's close frame says; 1005 if it names no code, None if there was none."""
    close_reason: str = field(default="", init=False)
    ended: trio.Event = field(factory=trio.Event, init=False)
    """The byte stream is at its end."""
    response: Response | None = field(default=None, init=False)
    pongs: list[bytes] = field(factory=list, init=False)
    pings: int = field(default=0, init=False)
    """How many pings came."""
    _protocol: _Protocol = field(init=False)
    _answers: dict[int, dict[str, Any]] = field(factory=dict, init=False)
    _asked: set[int] = field(factory=set, init=False)
    _last_id: int = field(default=0, init=False)
    _unasked: list[Any] = field(factory=list, init=False)
    _news: trio.Event = field(factory=trio.Event, init=False)
    _writing: trio.Lock = field(factory=trio.Lock, init=False)
    _may_read: trio.Event = field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._protocol = _Protocol(parse_uri(f"ws://{self.host}/"), max_size=None)
        self._may_read.set()

    # --- Life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Reads until the stream ends, and answers pings and the closing handshake."""
        try:
            while True:
                await self._may_read.wait()
                data = bytes(await self.stream.receive_some(65536))
                if not data:
                    self._protocol.receive_eof()
                    break
                self._protocol.receive_data(data)
                self._take_events()
                with suppress(*GONE):
                    await self._flush()
        except GONE:
            pass
        finally:
            self.ended.set()
            self._news.set()
            await trio.aclose_forcefully(self.stream)

    async def open(
        self,
        *,
        headers: Mapping[str, str] | None = None,
        origin: str | None = None,
        subprotocols: tuple[str, ...] = (),
    ) -> int:
        """Shakes hands. Returns the HTTP status; 0 if the stream ended without one."""
        self._protocol.origin = Origin(origin) if origin is not None else None
        self._protocol.available_subprotocols = [Subprotocol(each) for each in subprotocols] or None
        request = self._protocol.connect()
        for name, value in (headers or {}).items():
            request.headers[name] = value
        self._protocol.send_request(request)
        with suppress(*GONE):  # who is refused unread may be told before the request is written
            await self._flush()
        with suppress(PeerGone):
            await self.until(lambda: self.response is not None)
        return self.response.status_code if self.response else 0

    @property
    def subprotocol(self) -> str | None:
        """What was agreed on."""
        return self._protocol.subprotocol

    @property
    def answers_pings(self) -> bool:
        """A switch. True unless set."""
        return self._protocol.answers_pings

    @answers_pings.setter
    def answers_pings(self, value: bool) -> None:
        self._protocol.answers_pings = value

    def pause(self) -> None:
        """Reads no more; what is being read now is the last."""
        self._may_read = trio.Event()

    def resume(self) -> None:
        """Reads again."""
        self._may_read.set()

    async def close(self, code: int | None = 1000) -> None:
        """The closing handshake, begun by us, to its end. None sends a close frame without code."""
        if self._protocol.state is OPEN:
            self._protocol.send_close(code)
            with suppress(*GONE):
                await self._flush()
        with trio.fail_after(_PATIENCE_S):
            await self.ended.wait()
        await trio.aclose_forcefully(self.stream)

    async def drop(self) -> None:
        """Ends the byte stream with no close frame."""
        await trio.aclose_forcefully(self.stream)
        await self.ended.wait()

    async def closed(self) -> int | None:
        """Waits until the server has ended the connection; the code of its close frame."""
        with trio.fail_after(_PATIENCE_S):
            await self.ended.wait()
        return self.close_code

    # --- Requests -----------------------------------------------------------------------------

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """A request and its result.

        Raises:
            Refused: it was answered with an error.
            PeerGone: it was not answered.
        """
        return await self.answer(await self.ask(method, **params))

    async def ask(self, method: str, **params: object) -> int:
        """Sends a request; `answer` of what this returns is its result."""
        request = self.request(method, **params)
        await self.send(request)
        return int(request["id"])

    def request(self, method: str, **params: object) -> dict[str, Any]:
        """A request that is not sent yet, with an id of its own that `answer` takes."""
        self._last_id += 1
        self._asked.add(self._last_id)
        return {"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": params}

    async def answer(self, request: int) -> dict[str, Any]:
        """The result of an earlier `ask` or `request`. As `call`."""
        await self.until(lambda: request in self._answers)
        answer = self._answers.pop(request)
        if "error" in answer:
            raise Refused(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def answered(self, request: int) -> bool:
        """Whether an answer is there and was not fetched yet."""
        return request in self._answers

    async def notification(self, method: str) -> dict[str, Any]:
        """Waits for one of this method, takes it out of `notifications`, returns its params."""

        def found() -> list[dict[str, Any]]:
            return [note for note in self.notifications if note["method"] == method]

        await self.until(lambda: bool(found()))
        note = found()[0]
        self.notifications.remove(note)
        params: dict[str, Any] = note["params"]
        return params

    async def send(self, message: object) -> None:
        """Sends any JSON value as one text frame."""
        await self.send_text(orjson.dumps(message))

    async def send_text(self, text: bytes) -> None:
        """Sends these bytes as one text frame."""
        self._protocol.send_text(text)
        await self._flush()

    async def receive(self) -> Any:  # noqa: ANN401 # any JSON
        """The next frame that is neither a notification nor an answer to `ask`.

        Of an array only what is neither of the two.
        """
        await self.until(lambda: bool(self._unasked))
        return self._unasked.pop(0)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something that frames from the server bring about.

        Raises:
            PeerGone: the connection ended before.
        """
        with trio.fail_after(_PATIENCE_S):
            while not condition():
                if self.ended.is_set():
                    raise PeerGone(self.close_code)
                self._news = trio.Event()
                await self._news.wait()

    # --- Misbehaviour -------------------------------------------------------------------------

    async def send_raw_frame(
        self,
        opcode: int,
        payload: bytes = b"",
        *,
        fin: bool = True,
        masked: bool = True,
        rsv: int = 0,
        declared_length: int | None = None,
    ) -> None:
        """Writes a hand-made frame, right or wrong."""
        await self.send_raw(
            raw_frame(
                opcode, payload, fin=fin, masked=masked, rsv=rsv, declared_length=declared_length
            )
        )

    async def send_raw(self, data: bytes) -> None:
        """Writes these bytes.

        Raises:
            trio.BrokenResourceError: the server is gone.
        """
        async with self._writing:
            await self.stream.send_all(data)

    # --- Inside -------------------------------------------------------------------------------

    async def _flush(self) -> None:
        async with self._writing:
            if data := b"".join(self._protocol.data_to_send()):
                await self.stream.send_all(data)

    def _take_events(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, Response):
                self.response = event
            elif isinstance(event, Frame):
                self._take_frame(event)
        if (close := self._protocol.close_rcvd) is not None:
            self.close_code, self.close_reason = int(close.code), close.reason
        self._news.set()

    def _take_frame(self, frame: Frame) -> None:
        assert frame.fin, "the server does not fragment"
        if frame.opcode is Opcode.TEXT:
            text = bytes(frame.data)
            self.frames.append(text.decode())
            self._sort(orjson.loads(text))
        elif frame.opcode is Opcode.PONG:
            self.pongs.append(bytes(frame.data))
        elif frame.opcode is not Opcode.CLOSE:
            self.pings += 1

    def _sort(self, message: Any) -> None:  # noqa: ANN401 # any JSON
        members = message if isinstance(message, list) else [message]
        left = []
        for each in members:
            if "method" in each:
                self.notifications.append(each)
            elif each["id"] in self._asked:
                self._asked.remove(each["id"])
                self._answers[each["id"]] = each
            else:
                left.append(each)
        if left:
            self._unasked.append(left if isinstance(message, list) else message)


def raw_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    masked: bool = True,
    rsv: int = 0,
    declared_length: int | None = None,
) -> bytes:
    """The bytes of one frame (RFC 6455, section 5.2), right or wrong. `rsv` is 0 to 7."""
    length = len(payload) if declared_length is None else declared_length
    first, mask_bit = fin << 7 | rsv << 4 | opcode, masked << 7
    if length < 126:
        header = bytes([first, mask_bit | length])
    elif length < 1 << 16:
        header = bytes([first, mask_bit | 126]) + length.to_bytes(2)
    else:
        header = bytes([first, mask_bit | 127]) + length.to_bytes(8)
    if not masked:
        return header + payload
    key = int.from_bytes((_MASK * (len(payload) // 4 + 1))[: len(payload)])
    return header + _MASK + (int.from_bytes(payload) ^ key).to_bytes(len(payload))


@define(eq=False, repr=False)
class Served:
    """A running server, and what connects peers to it."""

    server: Server
    connections: trio.Nursery
    """Has one task for each connection and nothing else."""
    peers: trio.Nursery
    _pairing: trio.Lock = field(factory=trio.Lock, init=False)
    _listener: trio.SocketListener | None = field(default=None, init=False)

    @property
    def keeper(self) -> Keeper:
        """The service."""
        return self.server.keeper

    @property
    def config(self) -> ServerConfig:
        """What the server was told."""
        return self.server.config

    async def stream(self, wire: Wire = "memory", *, port: int = 7420) -> trio.abc.Stream:
        """The client's end of a fresh byte stream whose other end the server serves.

        Args:
            wire: see the module.
            port: what the server believes to have been connected to, for its check of origins.
        """
        theirs, ours = await self._pair(wire)
        self.connections.start_soon(self.server.serve_stream, ours)
        return theirs

    async def connect(
        self,
        wire: Wire = "memory",
        *,
        headers: Mapping[str, str] | None = None,
        **session: object,
    ) -> Peer:
        """A peer that has shaken hands; with further arguments, `session.open` has them."""
        peer = await self.peer(wire)
        status = await peer.open(headers=headers)
        assert status == 101, f"the handshake was answered with {status}"
        if session:
            await peer.call("session.open", **session)
        return peer

    async def peer(self, wire: Wire = "memory") -> Peer:
        """A peer that has not shaken hands yet."""
        return run_peer(await self.stream(wire), self.peers)

    async def idle(self, connections: int = 0) -> None:
        """Waits until the server has no more than so many connections, handshakes included."""
        with trio.fail_after(_PATIENCE_S):
            while len(self.connections.child_tasks) > connections:  # noqa: ASYNC110
                # A nursery does not say when a task of it ends.
                await trio.sleep(0.01)

    async def _pair(self, wire: Wire) -> tuple[trio.abc.Stream, trio.abc.Stream]:
        if wire == "memory":
            return trio.testing.memory_stream_pair()
        if wire == "lockstep":
            return trio.testing.lockstep_stream_pair()
        async with self._pairing:
            if self._listener is None:
                (self._listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            port = self._listener.socket.getsockname()[1]
            theirs = await trio.open_tcp_stream("127.0.0.1", port)
            return theirs, await self._listener.accept()

    async def _end(self) -> None:
        if self._listener is not None:
            await self._listener.aclose()


def run_peer(stream: trio.abc.Stream, nursery: trio.Nursery) -> Peer:
    """A peer on this stream, whose reader runs in the nursery."""
    peer = Peer(stream)
    nursery.start_soon(peer.run)
    return peer


async def dial(url: str, nursery: trio.Nursery) -> Peer:
    """A peer of a real server, at the URL of its listening line; it has shaken hands."""
    if url.startswith("ws+unix://"):
        stream: trio.abc.Stream = await trio.open_unix_socket(url.removeprefix("ws+unix://"))
    else:
        host, _, port = url.removeprefix("ws://").rpartition(":")
        stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
    peer = run_peer(stream, nursery)
    status = await peer.open()
    assert status == 101, f"the handshake was answered with {status}"
    return peer


@asynccontextmanager
async def serving(
    config: ServerConfig | None = None, *, store: Store | None = None
) -> AsyncIterator[Served]:
    """A server with its service, without listeners and signals, until the block ends."""
    config = config or ServerConfig()
    keeper = Keeper(store or MemoryStore(waiting_max=config.limits.waiters_per_name), config.limits)
    server = Server(config, keeper)
    failed: Exception | None = None
    async with trio.open_nursery() as service:
        await service.start(keeper.run)
        async with trio.open_nursery() as peers, trio.open_nursery() as connections:
            served = Served(server, connections, peers)
            try:
                yield served
            except Exception as error:
                failed = error  # and not a group of groups: it is the test's own
            finally:
                connections.cancel_scope.cancel()
                peers.cancel_scope.cancel()
                await served._end()
        service.cancel_scope.cancel()
    if failed is not None:
        raise failed
