"""Which nodes there are, and which of them a command goes to: one Redis, sentinels, a cluster.

`Fleet` is what they have in common: a pool for each node in use.
"""

from collections.abc import Iterator
from typing import Protocol

import trio
from attrs import define, field

from leasekeeper.resp.pool import Events, Pool
from leasekeeper.resp.settings import Address, Settings


class Nodes(Protocol):
    """Where commands go, as far as is known. `run` keeps it up to date."""

    @property
    def masters(self) -> tuple[Address, ...]:
        """The nodes that take commands."""
        ...

    def pool_for(self, key: str | None) -> Pool | None:
        """The pool of the node that has the key; without a key, of any. None while unknown."""
        ...

    def moved(self, slot: int, address: Address) -> None:
        """A node says that the slot is another one's now."""
        ...

    def asked_to(self, address: Address) -> Pool:
        """A node says that another one may have the key already; the pool of that one."""
        ...

    def suspect(self) -> None:
        """What is known may be out of date: look soon."""
        ...

    async def run(self) -> None:
        """Keeps it up to date until cancelled."""
        ...


@define(eq=False)
class Fleet:
    """The pools in use, each with its task in `nursery`."""

    settings: Settings
    events: Events
    nursery: trio.Nursery
    _pools: dict[Address, Pool] = field(factory=dict, init=False)

    def __iter__(self) -> Iterator[Pool]:
        return iter(tuple(self._pools.values()))

    def get(self, address: Address) -> Pool | None:
        """The pool of an address, if it is in use."""
        return self._pools.get(address)

    def use(self, address: Address) -> Pool:
        """The pool of an address, from now on in use."""
        pool = self._pools.get(address)
        if pool is None:
            pool = self._pools[address] = Pool(address, self.settings, self.events)
            self.nursery.start_soon(pool.run)
        return pool

    def drop(self, address: Address) -> None:
        """Closes the pool of an address, with all its connections."""
        self._pools.pop(address).close()


@define(eq=False)
class SingleNode:
    """One Redis at one address."""

    fleet: Fleet
    address: Address
    _pool: Pool = field(init=False)

    @_pool.default
    def _its_pool(self) -> Pool:
        return self.fleet.use(self.address)

    @property
    def masters(self) -> tuple[Address, ...]:
        """The one."""
        return (self.address,)

    def pool_for(self, key: str | None) -> Pool:
        """Its pool."""
        return self._pool

    def moved(self, slot: int, address: Address) -> None:
        """It has become a node of a cluster, which only a new start would take in."""

    def asked_to(self, address: Address) -> Pool:
        """As `moved`."""
        return self._pool

    def suspect(self) -> None:
        """There is nothing to look up."""

    async def run(self) -> None:
        """There is nothing to look up."""
        await trio.sleep_forever()
