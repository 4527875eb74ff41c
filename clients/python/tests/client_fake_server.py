"""A small leasekeeper in the test's own event loop, which can be told to misbehave."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskGroup
from attrs import define, field
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

Message = dict[str, Any]


class Refused(Exception):
    """An error answer."""

    def __init__(self, code: int, data: Message | None = None) -> None:
        super().__init__(code)
        self.code = code
        self.data = data or {}


class Protocol(ServerProtocol):
    """WebSocket, with pongs that can be kept back."""

    keeping_pongs = False

    def __init__(self) -> None:
        super().__init__(subprotocols=[Subprotocol("leasekeeper.v1")])
        self.kept_pongs: list[Frame] = []

    def send_frame(self, frame: Frame) -> None:
        if frame.opcode is Opcode.PONG and self.keeping_pongs:
            self.kept_pongs.append(frame)
        else:
            super().send_frame(frame)


@define(eq=False)
class Peer:
    """One connection, as the server sees it."""

    server: "FakeServer"
    stream: SocketStream
    protocol: Protocol
    frames: list[Any] = field(factory=list)
    opened: Message = field(factory=dict)
    close_code: int | None = None
    origin: str | None = None
    pings: int = 0
    pongs: int = 0
    gone: anyio.Event = field(factory=anyio.Event)
    muted: bool = False
    wake: anyio.Event = field(factory=anyio.Event)

    def send(self, message: Any) -> None:
        if self.protocol.state is not State.OPEN:
            return
        self.protocol.send_text(json.dumps(message).encode())
        self.wake.set()

    def notify(self, method: str, **params: Any) -> None:
        self.send({"jsonrpc": "2.0", "method": method, "params": params})

    def answer(self, request_id: Any, result: Any) -> None:
        if not self.muted:
            self.send({"jsonrpc": "2.0", "id": request_id, "result": result})

    def refuse(self, request_id: Any, code: int, data: Message) -> None:
        if not self.muted:
            error = {"code": code, "message": f"error {code}", "data": data}
            self.send({"jsonrpc": "2.0", "id": request_id, "error": error})

    def ping(self) -> None:
        self.protocol.send_ping(b"?")
        self.wake.set()

    def pong_late(self) -> None:
        """Send the oldest of the pongs that were kept back."""
        frame = self.protocol.kept_pongs.pop(0)
        ServerProtocol.send_frame(self.protocol, frame)
        self.wake.set()

    def close(self, code: int) -> None:
        self.protocol.send_close(code)
        self.wake.set()

    async def drop(self) -> None:
        """Cut the line."""
        await anyio.aclose_forcefully(self.stream)
        self.gone.set()


@define
class Holder:
    lease: str
    fence: int
    peer: Peer | None
    ttl_ms: int


@define
class Waiter:
    lease: str
    peer: Peer
    request_id: Any
    ttl_ms: int
    since: float


@define(eq=False)
class FakeServer:
    """Leases in memory. What it does can be overridden by method."""

    url: str = ""
    tasks: TaskGroup = field(default=None)
    grace_ms: int | None = 5000
    heartbeat_ms: int = 10000
    fence: int = 100
    holders: dict[str, Holder] = field(factory=dict)
    queues: dict[str, list[Waiter]] = field(factory=dict)
    watched: dict[str, list[Peer]] = field(factory=dict)
    peers: list[Peer] = field(factory=list)
    requests: list[Message] = field(factory=list)
    hooks: dict[str, Callable[[Peer, Message], Any]] = field(factory=dict)
    refusing: bool = False
    silent: bool = False
    """Whether nothing is read or written any more, as behind a line that was cut without a word."""
    opening: Refused | None = None
    changed: anyio.Event = field(factory=anyio.Event)

    @property
    def peer(self) -> Peer:
        """The latest connection."""
        return self.peers[-1]

    def asked(self, method: str) -> list[Message]:
        """The parameters of every request of a method, oldest first."""
        return [r["params"] for r in self.requests if r["method"] == method]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so; looked at whenever anything happens here."""
        with anyio.fail_after(5):
            while not condition():
                await self.changed.wait()
                self.changed = anyio.Event()

    def seen(self) -> None:
        self.changed.set()

    # --- leases ---

    def grant(self, name: str, lease: str, peer: Peer, ttl_ms: int, waited_ms: int) -> Message:
        self.fence += 1
        self.holders[name] = Holder(lease, self.fence, peer, ttl_ms)
        return self.granted(name, waited_ms)

    def granted(self, name: str, waited_ms: int = 0) -> Message:
        h = self.holders[name]
        return {
            "name": name,
            "lease": h.lease,
            "fence": h.fence,
            "ttl_ms": h.ttl_ms,
            "waited_ms": waited_ms,
        }

    def advance(self, name: str) -> None:
        queue = self.queues.get(name, [])
        while queue and name not in self.holders:
            w = queue.pop(0)
            waited_ms = int((anyio.current_time() - w.since) * 1000)
            w.peer.answer(w.request_id, self.grant(name, w.lease, w.peer, w.ttl_ms, waited_ms))
        self.tell_watchers(name)

    def lose(self, name: str, reason: str, detail: str | None = None) -> None:
        h = self.holders.pop(name)
        if h.peer is not None:
            h.peer.notify(
                "lease.lost", name=name, lease=h.lease, fence=h.fence, reason=reason, detail=detail
            )
        self.advance(name)

    def occupy(self, name: str) -> None:
        """Somebody else takes a name."""
        self.holders[name] = Holder("f" * 32, 1, self.peers[0] if self.peers else None, 1000)

    def free(self, name: str) -> None:
        del self.holders[name]
        self.advance(name)

    def tell_watchers(self, name: str) -> None:
        for peer in self.watched.get(name, []):
            peer.notify("lease.changed", **self.state(name))

    def state(self, name: str) -> Message:
        h = self.holders.get(name)
        one = {"mode": "exclusive", "held_ms": 1, "client": None, "foreign": False}
        holders = [{"fence": h.fence, "ttl_ms": h.ttl_ms, "label": None, **one}] if h else []
        waiting = [
            {"position": i, "mode": "exclusive", "waiting_ms": 0}
            for i, _ in enumerate(self.queues.get(name, []), 1)
        ]
        return {
            "name": name,
            "holders": holders,
            "waiting": waiting,
            "waiting_total": len(waiting),
        }

    # --- methods ---

    def do(self, peer: Peer, request: Message) -> None:
        method, params, request_id = request["method"], request["params"], request["id"]
        self.requests.append(request)
        try:
            hook = self.hooks.get(method)
            result = hook(peer, params) if hook else NotImplemented
            if result is NotImplemented:
                result = getattr(self, "do_" + method.replace(".", "_"))(peer, request_id, **params)
        except Refused as exc:
            peer.refuse(request_id, exc.code, exc.data)
        else:
            if result is not None:
                peer.answer(request_id, result)
        self.seen()

    def do_session_open(self, peer: Peer, _: Any, **params: Any) -> Message:
        if self.opening is not None:
            raise self.opening
        peer.opened = params
        return {
            "session": "s",
            "server": "fake",
            "version": "0",
            "protocol": 1,
            "heartbeat_ms": self.heartbeat_ms,
            "limits": {
                "message_bytes": 65536,
                "batch_requests": 1000,
                **({} if self.grace_ms is None else {"grace_ms": self.grace_ms}),
            },
        }

    def do_session_heartbeat(self, peer: Peer, _: Any) -> Message:
        renewed = sum(h.peer is peer for h in self.holders.values())
        return {"lost": [], "renewed": renewed}

    def do_lease_acquire(
        self, peer: Peer, request_id: Any, *, name: str, lease: str, ttl_ms: int, **more: Any
    ) -> Message | None:
        holder = self.holders.get(name)
        if holder and holder.lease == lease:
            holder.peer = peer
            return self.granted(name)
        queue = self.queues.setdefault(name, [])
        for w in queue:
            if w.lease == lease:
                w.peer, w.request_id, w.since = peer, request_id, anyio.current_time()
                return None
        if holder is None and not queue:
            return self.grant(name, lease, peer, ttl_ms, 0)
        if more.get("wait_ms", 0) == 0:
            data = {"holders": self.state(name)["holders"], "waiting": 0, "retry_after_ms": 70}
            raise Refused(-32001, data)
        queue.append(Waiter(lease, peer, request_id, ttl_ms, anyio.current_time()))
        return None

    def do_lease_acquire_all(
        self, peer: Peer, _: Any, *, names: list[str], lease: str, ttl_ms: int, **more: Any
    ) -> Message:
        if any(name in self.holders for name in names):
            raise Refused(-32001)
        return {"leases": [self.grant(n, lease, peer, ttl_ms, 0) for n in sorted(names)]}

    def do_lease_release(self, peer: Peer, _: Any, *, name: str, lease: str) -> Message:
        for w in self.queues.get(name, []):
            if w.lease == lease:
                self.queues[name].remove(w)
                return {"released": False}
        holder = self.holders.get(name)
        if holder is None or holder.lease != lease:
            return {"released": False}
        self.free(name)
        return {"released": True}

    def do_lease_resume(self, peer: Peer, _: Any, *, name: str, lease: str) -> Message:
        holder = self.holders.get(name)
        if holder is None or holder.lease != lease:
            raise Refused(-32002)
        holder.peer = peer
        return self.granted(name)

    def do_lease_renew(self, peer: Peer, _: Any, *, name: str, lease: str) -> Message:
        holder = self.holders.get(name)
        if holder is None or holder.lease != lease:
            raise Refused(-32002)
        return {"ttl_ms": holder.ttl_ms}

    def do_rpc_cancel(self, peer: Peer, _: Any, *, id: Any) -> Message:
        for queue in self.queues.values():
            for w in queue:
                if w.peer is peer and w.request_id == id:
                    queue.remove(w)
                    return {"cancelled": True}
        return {"cancelled": False}

    def do_lease_inspect(self, peer: Peer, _: Any, *, name: str) -> Message:
        return self.state(name)

    def do_lease_list(self, peer: Peer, _: Any, *, prefix: str = "", cursor: Any = None) -> Message:
        names = sorted(n for n in self.holders if n.startswith(prefix) and n > (cursor or ""))
        page = [{"name": n, "waiting": 0, **self.state(n)["holders"][0]} for n in names[:2]]
        return {"leases": page, "cursor": names[1] if len(names) > 2 else None}

    def do_lease_break(
        self, peer: Peer, _: Any, *, name: str, reason: str | None = None
    ) -> Message:
        if name not in self.holders:
            return {"broken": 0}
        self.lose(name, "broken", reason)
        return {"broken": 1}

    def do_lease_watch(self, peer: Peer, _: Any, *, name: str) -> Message:
        self.watched.setdefault(name, []).append(peer)
        return self.state(name)

    def do_lease_unwatch(self, peer: Peer, _: Any, *, name: str) -> Message:
        self.watched[name].remove(peer)
        return {}

    # --- connections ---

    async def serve(self, stream: SocketStream) -> None:
        if self.refusing:
            await anyio.aclose_forcefully(stream)
            return
        protocol = Protocol()
        peer = Peer(self, stream, protocol)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.write, peer)
            try:
                await self.read(peer)
            finally:
                close = protocol.close_rcvd
                peer.close_code = close.code if close else None
                peer.gone.set()
                tasks.cancel_scope.cancel()
                self.seen()
                with anyio.CancelScope(shield=True):
                    await anyio.aclose_forcefully(stream)

    async def write(self, peer: Peer) -> None:
        while True:
            await peer.wake.wait()
            peer.wake = anyio.Event()
            data = b"".join(peer.protocol.data_to_send())
            try:
                if data and not self.silent:
                    await peer.stream.send(data)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

    async def read(self, peer: Peer) -> None:
        parts = b""
        while True:
            try:
                data = await peer.stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                return
            if self.silent:
                continue
            peer.protocol.receive_data(data)
            for event in peer.protocol.events_received():
                if isinstance(event, Request):
                    peer.origin = event.headers.get("Origin")
                    peer.protocol.send_response(peer.protocol.accept(event))
                    self.peers.append(peer)
                elif isinstance(event, Frame) and event.opcode is Opcode.PING:
                    peer.pings += 1
                elif isinstance(event, Frame) and event.opcode is Opcode.PONG:
                    peer.pongs += 1
                elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                    parts = bytes(event.data)
                    self.take(peer, json.loads(parts))
            peer.wake.set()
            self.seen()

    def take(self, peer: Peer, value: Any) -> None:
        peer.frames.append(value)
        for request in value if isinstance(value, list) else [value]:
            self.do(peer, request)


S = TypeVar("S", bound=FakeServer)


@asynccontextmanager
async def fake_server(**options: Any) -> AsyncIterator[FakeServer]:
    """Serve on a free port of the loopback until the body is done."""
    async with serving(FakeServer(**options)) as server:
        yield server


@asynccontextmanager
async def serving(server: S) -> AsyncIterator[S]:
    """Have this server serve on a free port of the loopback until the body is done."""
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(SocketAttribute.local_port)
    server.url = f"ws://127.0.0.1:{port}/"
    async with listener, anyio.create_task_group() as tasks:
        server.tasks = tasks
        tasks.start_soon(listener.serve, server.serve)
        try:
            yield server
        finally:
            tasks.cancel_scope.cancel()
