"""The server: listeners, connections, and an orderly end.

One nursery holds it all: the service, the listeners, and under them one task and one nursery for
each connection, which contains every failure of that connection (law L13).
"""

import random
import signal
from collections.abc import AsyncIterator
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

import structlog
import trio
from attrs import define, field

from leasekeeper.errors import CloseCode
from leasekeeper.server.config import ServerConfig
from leasekeeper.server.connection import Connection, token_fits
from leasekeeper.server.listening import accept_from, listen, remove, url
from leasekeeper.server.transport import HandshakeFailed, accept
from leasekeeper.service.keeper import Keeper

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

_DRAIN_CHECK_S: Final = 0.02


@define(eq=False)
class Server:
    """Serves one keeper on any number of listeners."""

    config: ServerConfig
    keeper: Keeper
    connections: set[Connection] = field(factory=set, init=False)
    accepting: bool = field(default=False, init=False)
    """Whether it has begun to accept connections; it has not stopped unless it is `draining`."""
    _handshakes: int = field(default=0, init=False)
    _all_gone: trio.Event = field(factory=trio.Event, init=False)
    _stopping: trio.Event = field(factory=trio.Event, init=False)
    _accepting: trio.CancelScope = field(factory=trio.CancelScope, init=False)

    def __attrs_post_init__(self) -> None:
        self.keeper.metrics.connections.set_function(lambda: len(self.connections))

    async def run(
        self, *, task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serves until `stop`, SIGTERM or SIGINT, and drains; a second signal ends it at once.

        Reports the URLs it listens on once it accepts connections.

        Raises:
            ConfigurationError: it cannot listen there.
        """
        self.config.check()
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.keeper.run)
                listeners, files = await listen(self.config)
                try:
                    nursery.start_soon(self._accept, listeners)
                    self.accepting = True
                    nursery.start_soon(self._obey, signals, nursery.cancel_scope)
                    task_status.started([url(listener.socket) for listener in listeners])
                    await self._stopping.wait()
                    await self.drain()
                finally:
                    remove(files)
                nursery.cancel_scope.cancel()

    @property
    def draining(self) -> bool:
        """Whether its orderly end has begun."""
        return self._stopping.is_set()

    def stop(self) -> None:
        """Begins its orderly end, unless that has begun: what the first signal does, too."""
        self._stopping.set()

    async def _obey(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        await anext(signals)
        self.stop()
        await anext(signals)
        scope.cancel()

    async def drain(self) -> None:
        """Tells clients, stops accepting, lets holders finish, closes what is left with 4000."""
        self._accepting.cancel()
        outlives = self.keeper.store.outlives_process
        grace_ms = self.config.wire.drain_grace_ms
        _log.info("draining", connections=len(self.connections))
        self.keeper.drain(lambda: random.randrange(grace_ms // 10, grace_ms + 1))
        with trio.move_on_after(grace_ms / 1000):
            while self.connections and (outlives or self.keeper.holding):  # noqa: ASYNC110
                # Leases end in many ways; for these few seconds a look now and then is simplest.
                await trio.sleep(_DRAIN_CHECK_S)
        if not outlives:
            self.keeper.leases.lose_all()
        spread_s = self.config.wire.drain_spread_ms / 1000 if outlives else 0.0
        left = list(self.connections)
        self._all_gone = trio.Event()
        if not left:
            return
        for connection in left:
            connection.close_soon(CloseCode.DRAINING, "this server is going away")
            await trio.sleep(spread_s / len(left))
        with trio.move_on_after(2 * self.config.wire.close_ms / 1000):
            await self._all_gone.wait()

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serves one fresh byte stream to its end, closes it, and lets no failure of it out.

        Cancellation:
            The peer is dropped.
        """
        try:
            await self._serve(stream)
        except* HandshakeFailed as refused:
            _log.debug("handshake failed", why=str(refused.exceptions[0]))
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            _log.debug("connection broken")
        except* Exception:
            _log.warning("connection failed", exc_info=True)
        finally:
            await trio.aclose_forcefully(stream)

    async def _serve(self, stream: trio.abc.Stream) -> None:
        if self._handshakes >= self.config.wire.handshakes:
            raise HandshakeFailed("too many handshakes at once")
        self._handshakes += 1
        try:
            socket = await accept(stream, self.config.wire, admit=self._admit)
            if self._accepting.cancel_called:
                await socket.close(CloseCode.DRAINING, "this server is going away")
                return
            if len(self.connections) >= self.config.wire.connections:
                await socket.close(CloseCode.LIMIT, "too many connections")
                return
        finally:
            self._handshakes -= 1
        scheme, _, token = socket.headers.get("authorization", "").partition(" ")
        authenticated = token_fits(self.config, token if scheme.lower() == "bearer" else None)
        connection = Connection(socket, self.keeper, self.config, authenticated=authenticated)
        self.connections.add(connection)
        try:
            await connection.run()
        finally:
            self.connections.discard(connection)
            if not self.connections:
                self._all_gone.set()

    def _admit(self, headers: dict[str, str]) -> int | None:
        """An HTTP status that refuses the client, or None. A page of another site is refused."""
        origin = headers.get("origin")
        listed = origin is None or origin in self.config.allowed_origins
        return None if listed or _is_ours(origin, headers["host"]) else 403

    async def _accept(self, listeners: list[trio.SocketListener]) -> None:
        async with trio.open_nursery() as nursery:
            with self._accepting:
                for listener in listeners:
                    nursery.start_soon(accept_from, listener, self.serve_stream, nursery)
                await trio.sleep_forever()
            for listener in listeners:
                await listener.aclose()


def _is_ours(origin: str | None, host: str) -> bool:
    """A page that this very address served. No name: a foreign name server can make up any."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name != "localhost":
            ip_address(name)
    except ValueError:
        return False
    return origin in {f"http://{host}", f"https://{host}"}
