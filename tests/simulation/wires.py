"""The simulated network: byte streams that are late, stall, lose one direction, or break.

A stream is two directions, each a line of chunks with the time at which they arrive. Nothing blocks
a writer: bounds of what may pile up are tested elsewhere.
"""

import math
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from random import Random

import anyio
import trio
from attrs import define, field

LATENCIES_S = (0.0, 0.0, 0.0, 0.0, 0.001, 0.02, 0.2)


@define(eq=False)
class Way:
    """One direction. `lost`: what is sent vanishes, and nobody notices."""

    latency: Callable[[], float]
    record: Callable[[bytes], None]
    lost: bool = False
    stalled_until: float = -math.inf
    _chunks: deque[tuple[float, bytes]] = field(factory=deque, init=False)
    _last: float = field(default=-math.inf, init=False)
    _ended: bool = field(default=False, init=False)
    _broken: bool = field(default=False, init=False)
    _closed: bool = field(default=False, init=False)
    _news: trio.Event = field(factory=trio.Event, init=False)

    def put(self, data: bytes) -> None:
        """Sends."""
        if self._broken or self._ended:
            raise trio.BrokenResourceError
        self.record(data)
        if not self.lost:
            self._last = max(self._last, trio.current_time() + self.latency())
            self._chunks.append((self._last, data))
            self._news.set()

    def end(self) -> None:
        """The sender has closed; what is on its way still arrives, if anything does."""
        if not self.lost:
            self._ended = True
            self._news.set()

    def wake(self) -> None:
        """Has the receiver look again."""
        self._news.set()

    def break_(self) -> None:
        """Both ends notice at once."""
        self._broken = True
        self._news.set()

    def close_reading(self) -> None:
        """The receiver has closed."""
        self._closed = True
        self.break_()

    async def take(self) -> bytes:
        """The next bytes; none at the end."""
        while True:
            if self._closed:
                raise trio.ClosedResourceError
            if self._broken:
                raise trio.BrokenResourceError
            now = trio.current_time()
            due = max(self._chunks[0][0] if self._chunks else math.inf, self.stalled_until)
            if due <= now:
                return self._take_due(now)
            if self._ended and not self._chunks and self.stalled_until <= now:
                return b""
            wake = min(due, self.stalled_until if self.stalled_until > now else math.inf)
            self._news = trio.Event()
            with trio.move_on_at(wake):
                await self._news.wait()

    def _take_due(self, now: float) -> bytes:
        parts = []
        while self._chunks and self._chunks[0][0] <= now:
            parts.append(self._chunks.popleft()[1])
        return b"".join(parts)


@define(eq=False)
class End(trio.abc.Stream):
    """One end of a stream."""

    out: Way
    into: Way
    closed: bool = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self.closed:
            raise trio.ClosedResourceError
        self.out.put(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.closed:
            raise trio.ClosedResourceError
        return await self.into.take()

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            self.out.end()
            self.into.close_reading()
        await trio.lowlevel.checkpoint()


@define(eq=False)
class Link:
    """A stream between a client and a server, and what may happen to it."""

    up: Way
    down: Way

    def cut(self) -> None:
        """Both ends notice."""
        self.up.break_()
        self.down.break_()

    def half_cut(self, *, down: bool) -> None:
        """One direction carries nothing any more, and nobody notices."""
        (self.down if down else self.up).lost = True

    def vanish(self) -> None:
        """Neither direction does."""
        self.up.lost = self.down.lost = True

    def stall(self, seconds: float) -> None:
        """Everything comes later, and then at once."""
        self.up.stalled_until = self.down.stalled_until = trio.current_time() + seconds

    def heal(self) -> None:
        """It works, or says that it does not."""
        self.up.stalled_until = self.down.stalled_until = -math.inf
        self.up.wake()
        self.down.wake()
        if self.up.lost or self.down.lost:
            self.cut()

    def ends(self) -> tuple[End, End]:
        """The client's, and the server's."""
        return End(self.up, self.down), End(self.down, self.up)


@define(eq=False)
class Network:
    """Makes links, and lets happen to them what chance wants while the weather is bad."""

    chance: Random
    nursery: trio.Nursery
    faults: Counter[str]
    record: Callable[[str, bytes], None]
    bad: bool = True
    slow_s: float = 0.0
    """How long everything takes while it is not."""
    servers: dict[str, Callable[[End], None]] = field(factory=dict)
    """Those that can be reached, by host."""
    _links: list[Link] = field(factory=list, init=False)

    def latency(self) -> float:
        """Of one chunk."""
        return self.chance.choice(LATENCIES_S) if self.bad else self.slow_s

    def dial(self, host: str) -> tuple[Link, End]:
        """A link to a server, and the client's end of it.

        Raises:
            OSError: nobody listens there.
        """
        serve = self.servers.get(host)
        if serve is None or (self.bad and self.chance.random() < 0.05):
            self.faults["dial refused"] += 1
            raise OSError("nobody listens")
        number = len(self._links)
        link = Link(
            Way(self.latency, partial(self.record, f"{number}>")),
            Way(self.latency, partial(self.record, f"{number}<")),
        )
        self._links.append(link)
        client, server = link.ends()
        serve(server)
        if self.bad and self.chance.random() < 0.5:
            self.nursery.start_soon(self._strike, link)
        return link, client

    def heal(self) -> None:
        """From now on everything arrives; and what has lost something says so."""
        self.bad = False
        for link in self._links:
            link.heal()

    async def _strike(self, link: Link) -> None:
        await trio.sleep(self.chance.choice([0.3, 2, 5, 10, 20]) * self.chance.random())
        if not self.bad:
            return
        match fault := self.chance.choice(["cut", "cut", "half-cut", "vanish", "stall", "stall"]):
            case "cut":
                link.cut()
            case "half-cut":
                link.half_cut(down=self.chance.random() < 0.5)
            case "vanish":
                link.vanish()
            case _:
                link.stall(self.chance.choice([0.2, 1, 4, 7, 12]))
        self.faults[fault] += 1
        if fault in {"half-cut", "vanish"}:  # in the end a network says so
            await trio.sleep(self.chance.choice([1, 10, 25]))
            link.cut()


@define(eq=False)
class AnyioEnd:
    """An end, as the client library wants it."""

    end: End

    async def send(self, item: bytes) -> None:
        try:
            await self.end.send_all(item)
        except trio.BrokenResourceError as exc:
            raise anyio.BrokenResourceError from exc
        except trio.ClosedResourceError as exc:
            raise anyio.ClosedResourceError from exc

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = await self.end.receive_some(max_bytes)
        except trio.BrokenResourceError as exc:
            raise anyio.BrokenResourceError from exc
        except trio.ClosedResourceError as exc:
            raise anyio.ClosedResourceError from exc
        if not data:
            raise anyio.EndOfStream
        return data

    async def aclose(self) -> None:
        await self.end.aclose()
