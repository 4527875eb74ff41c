"""The master that the sentinels name.

One sentinel is listened to at a time: it is asked for the address every second, and at once when
there is trouble. While the master it names is out of reach, the next sentinel gets its say. When
the address changes, all connections to the old one are closed. That the new one is a master, its
pool verifies itself, on each connection.
"""

from itertools import cycle
from typing import Final

import structlog
import trio
from attrs import define, field

from leasekeeper.resp.asking import connected, first_answer
from leasekeeper.resp.connection import Connection, pack
from leasekeeper.resp.errors import CannotConnect, Unanswered
from leasekeeper.resp.handshake import Identity
from leasekeeper.resp.nodes import Fleet
from leasekeeper.resp.pool import Pool
from leasekeeper.resp.replies import Answer
from leasekeeper.resp.settings import Address, Settings

_POLL_S: Final = 1.0
_POLL_AT_MOST_S: Final = 0.1

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)


async def find_master(settings: Settings) -> Address:
    """The address of the master by the first sentinel that knows it.

    Raises:
        CannotConnect: none does.
    """

    async def ask(connection: Connection, identity: Identity) -> Address:
        return await _master_by(connection, identity, settings.master_name)

    return await first_answer(settings.addresses, settings.for_sentinels(), ask)


async def _master_by(connection: Connection, identity: Identity, name: str) -> Address:
    if identity.mode != "sentinel":
        raise CannotConnect(
            f"{connection.address} is a Redis and no sentinel: use redis://{connection.address}, "
            "or correct the port, which is 26379 for most sentinels"
        )
    [answer] = await connection.ask(pack(("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)))
    match answer:
        case [bytes(host), bytes(port)]:
            return Address(host.decode(), int(port))
        case None:
            [masters] = await connection.ask(pack(("SENTINEL", "MASTERS")))
            raise CannotConnect(
                f"the sentinel {connection.address} knows no master {name}; it knows "
                f"{', '.join(_names(masters)) or 'none'}: correct the Redis URL"
            )
    raise CannotConnect(
        f"the sentinel {connection.address} refused to name its master: grant its user +sentinel"
    )


def _names(masters: Answer) -> list[str]:
    """From a map each, in RESP3."""
    each = masters if isinstance(masters, list) else []
    names = [one.get(b"name") for one in each if isinstance(one, dict)]
    return sorted(name.decode(errors="replace") for name in names if isinstance(name, bytes))


@define(eq=False)
class Sentinels:
    """One master that may change. See the module."""

    fleet: Fleet
    settings: Settings
    address: Address
    """The master now."""
    _pool: Pool = field(init=False)
    _suspected: trio.Event = field(factory=trio.Event, init=False)
    _missed: int = field(default=0, init=False)
    """How many did not answer since one did."""

    @_pool.default
    def _pool_of_first(self) -> Pool:
        return self.fleet.use(self.address)

    @property
    def masters(self) -> tuple[Address, ...]:
        """The one."""
        return (self.address,)

    def pool_for(self, key: str | None) -> Pool:
        """That of the master now."""
        return self._pool

    def moved(self, slot: int, address: Address) -> None:
        """It has become a node of a cluster, which only a new start would take in."""

    def asked_to(self, address: Address) -> Pool:
        """As `moved`."""
        return self._pool

    def suspect(self) -> None:
        """Asks a sentinel soon."""
        self._suspected.set()

    async def run(self) -> None:
        """Asks the sentinels, one after the other, until cancelled."""
        sentinels = self.settings.for_sentinels()
        for sentinel in cycle(self.settings.addresses):
            try:
                async with connected(sentinel, sentinels) as (connection, identity):
                    await self._listen_to(connection, identity)
            except (CannotConnect, Unanswered) as problem:
                self._miss(sentinel, problem)
                await trio.sleep(_POLL_AT_MOST_S if not self._pool.is_up else _POLL_S)

    async def _listen_to(self, connection: Connection, identity: Identity) -> None:
        """As long as the master it names is within reach."""
        is_first = True
        while is_first or self._pool.is_up:
            is_first = False
            self._suspected = trio.Event()
            self._follow(await _master_by(connection, identity, self.settings.master_name))
            self._hear(connection.address)
            await trio.sleep(_POLL_AT_MOST_S)
            if self._pool.is_up:
                with trio.move_on_after(_POLL_S):
                    await self._suspected.wait()

    def _hear(self, sentinel: Address) -> None:
        if self._missed >= len(self.settings.addresses):
            _log.info("a sentinel answers again", address=str(sentinel))
        self._missed = 0

    def _miss(self, sentinel: Address, problem: Exception) -> None:
        self._missed += 1
        if self._missed == len(self.settings.addresses):
            _log.warning("no sentinel answers", address=str(sentinel), problem=str(problem))

    def _follow(self, address: Address) -> None:
        if address == self.address:
            return
        old, self.address = self.address, address
        self._pool = self.fleet.use(address)
        self.fleet.drop(old)
        self.fleet.events.news.ring()
