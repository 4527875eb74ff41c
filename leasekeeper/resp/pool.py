"""The connections to one address.

One task dials, one connection at a time, so that a Redis that comes back is not stormed. Few
connections are best, as each joins what is queued on it: the first that is not busy gets the
command, and a further one is opened only when all are.

Commands that were under way on a connection which was lost may still be on their way to Redis, and
come after what is asked of it later, such as to undo them. So every other connection has Redis end
the lost one, ahead of all that is asked on it from then on.

What it does not do: know what other addresses there are.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import structlog
import trio
from attrs import define, field
from redis.backoff import FullJitterBackoff

from leasekeeper.resp.bell import Bell
from leasekeeper.resp.connection import Connection, pack
from leasekeeper.resp.errors import CannotConnect
from leasekeeper.resp.handshake import Identity, open_connection
from leasekeeper.resp.replies import Reply
from leasekeeper.resp.settings import Address, Settings

BUSY: Final = 64
"""A connection with so many commands under way is busy."""

_IDLE_S: Final = 60.0
_STRAYS_MAX: Final = 100
_SHORT_LIFE_S: Final = 1.0
_FAILURES_MAX: Final = 6
_BACKOFF: Final = FullJitterBackoff(cap=0.5, base=0.02)

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)


_ClientName: TypeAlias = tuple[str, int]
"""The run id of a Redis, and the number that it gave to a connection."""


@define(eq=False)
class Events:
    """What the pools of a client tell it, synchronously."""

    on_connected: Callable[[Identity], None]
    """Before the connection is used."""
    on_flushed: Callable[[Address], None]
    """By each connection, before any reply that came after it."""
    on_trouble: Callable[[], None]
    """A connection was lost, or could not be made."""
    news: Bell
    """Rung when a connection is there."""


@define(eq=False)
class Pool:
    """See the module. Only masters are connected to."""

    address: Address
    settings: Settings
    events: Events
    problem: str = field(init=False)
    """Why there is no connection, if there is none."""
    used_at: float = field(factory=trio.current_time, init=False)
    _connections: list[Connection] = field(factory=list, init=False)
    _wanted: int = field(init=False)
    _more: trio.Event = field(factory=trio.Event, init=False)
    _is_lost: bool = field(default=False, init=False)
    """Whether a loss was logged, and nothing better since."""
    _failures: int = field(default=0, init=False)
    """How often it went wrong lately. One that ends at once counts more than one that comes up."""
    _scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _names: dict[Connection, _ClientName] = field(factory=dict, init=False, repr=False)
    _strays: deque[_ClientName] = field(
        factory=lambda: deque(maxlen=_STRAYS_MAX), init=False, repr=False
    )
    """Connections that were lost with commands under way, which may reach Redis yet."""

    @problem.default
    def _no_problem(self) -> str:
        return f"no connection to {self.address} yet"

    @_wanted.default
    def _wanted_at_least(self) -> int:
        return self.settings.pool_min

    @property
    def is_up(self) -> bool:
        """Whether it has a connection."""
        return bool(self._connections)

    def pick(self) -> Connection | None:
        """The connection for a command; None while there is none."""
        for connection in self._connections:
            if connection.load < BUSY and not connection.blocked:
                return connection
        is_coming = self._is_another_coming()
        best = _least_busy(self._connections)
        return None if best is not None and best.blocked and is_coming else best

    def pick_idle(self) -> Connection | None:
        """One for a command that holds up those behind it. The first one is kept free of them."""
        for connection in self._connections[1:]:
            if not connection.load:
                return connection
        is_coming = self._is_another_coming()
        return None if is_coming else _least_busy(self._connections[1:] or self._connections)

    def _is_another_coming(self) -> bool:
        """Has a further connection opened, if there may be one; whether it is worth waiting for."""
        open_now = len(self._connections)
        if self._wanted == open_now < self.settings.pool_max:
            self._wanted += 1
            self._more.set()
        return self._wanted > open_now and not self._failures

    def retire_all(self, reason: str) -> None:
        """Uses its connections no more, and dials again: at their other end is no master.

        What is under way on them may still be answered.
        """
        retired, self._connections = self._connections, []
        for connection in retired:
            connection.retire(reason)
        if retired:
            self._more.set()
            self._miss(reason)

    def close(self) -> None:
        """Ends it for good. Whoever waits for a reply is told."""
        self._scope.cancel()
        self.problem = f"{self.address} is not in use any more"
        for connection in tuple(self._connections):
            connection.end(self.problem)

    async def run(self) -> None:
        """Keeps its connections until it is closed."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._close_surplus)
                while True:
                    if len(self._connections) >= self._wanted:
                        self._more = trio.Event()
                        await self._more.wait()
                        continue
                    if self._failures:
                        await trio.sleep(_BACKOFF.compute(self._failures))
                    try:
                        await self._open_one(nursery)
                    except CannotConnect as problem:
                        self._failures = min(_FAILURES_MAX, self._failures + 1)
                        self._miss(str(problem))

    async def _open_one(self, nursery: trio.Nursery) -> None:
        connection, identity = await open_connection(
            nursery, self.address, self.settings, on_push=self._on_push, on_end=self._on_end
        )
        if not identity.is_master:
            connection.end(f"{self.address} is no master")
            raise CannotConnect(why_no_master(identity))
        self.events.on_connected(identity)
        if connection.reason is not None:
            raise CannotConnect(connection.reason)
        self._names[connection] = identity.run_id, identity.client_id
        for stray in self._strays:
            self._have_ended(stray, connection)
        self._connections.append(connection)
        self.problem = f"every connection to {self.address} waits for replicas"
        self._failures = max(0, self._failures - 1)
        if self._is_lost:
            self._is_lost = False
            _log.info("redis connection is back", address=str(self.address))
        self.events.news.ring()

    def _on_push(self, push: Sequence[Reply]) -> None:
        if list(push) == [b"invalidate", None]:
            self.events.on_flushed(self.address)

    def _have_ended(self, stray: _ClientName, by: Connection) -> None:
        """Nothing of it is carried out any more once a later command on this connection is."""
        run_id, client_id = stray
        if client_id and self._names[by][0] == run_id:  # another run numbers its own
            by.tell(pack(("CLIENT", "KILL", "ID", client_id)))

    def _on_end(self, connection: Connection) -> None:
        name = self._names.pop(connection, None)
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        if not connection.was_lost:
            return
        if connection.load and name is not None:
            self._strays.append(name)
            for other in self._connections:
                self._have_ended(name, other)
        assert connection.reason is not None
        if trio.current_time() - connection.opened_at < _SHORT_LIFE_S:
            self._failures = min(_FAILURES_MAX, self._failures + 2)
        if connection.was_silent:
            # Its neighbours go the same way through the network, and nobody waits for them.
            for other in tuple(self._connections):
                if not other.load:
                    self._connections.remove(other)
                    other.end(connection.reason)
        self._more.set()
        self._miss(connection.reason)

    def _miss(self, problem: str) -> None:
        self.problem = problem
        if not self._is_lost:
            self._is_lost = True
            _log.warning("redis connection lost", address=str(self.address), problem=problem)
        self.events.on_trouble()

    async def _close_surplus(self) -> None:
        while True:
            await trio.sleep(_IDLE_S / 4)
            idle_since = trio.current_time() - _IDLE_S
            for connection in self._connections[self.settings.pool_min :]:
                if not connection.load and connection.used_at <= idle_since:
                    self._wanted -= 1
                    self._connections.remove(connection)
                    connection.end("it was idle")


def _least_busy(connections: Sequence[Connection]) -> Connection | None:
    return min(connections, key=lambda each: (each.blocked, each.load), default=None)


def why_no_master(identity: Identity) -> str:
    """One line about a node that is not what the URL says."""
    if identity.mode == "sentinel":
        return (
            f"{identity.address} is a sentinel: give its URL as "
            f"redis+sentinel://{identity.address}/MASTER"
        )
    return (
        f"{identity.address} is a read-only replica of {identity.master}: name the master, or use "
        "redis+sentinel://SENTINEL:26379/MASTER"
    )
