"""A Redis Cluster: which node has which of the 16,384 slots.

The map comes from whichever node answers CLUSTER SLOTS. It is asked for again when a node says
that a slot has moved, or a connection is lost, and as long as a master is out of reach, but at
most once a second. In between, each MOVED corrects the one slot.
"""

import random
import re
from typing import Final

import trio
from attrs import define, field, frozen
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from leasekeeper.resp.asking import first_answer
from leasekeeper.resp.connection import Connection, pack
from leasekeeper.resp.errors import CannotConnect
from leasekeeper.resp.handshake import Identity
from leasekeeper.resp.nodes import Fleet
from leasekeeper.resp.pool import Pool
from leasekeeper.resp.replies import Answer, Reply
from leasekeeper.resp.settings import Address, Settings

_REFRESH_S: Final = 1.0
_GUEST_S: Final = 60.0


@frozen
class SlotMap:
    """What a node says of its cluster."""

    ranges: tuple[tuple[int, int, Address], ...]
    """First and last slot, and the master that has them."""
    nodes: frozenset[Address]
    """Masters with slots, and their replicas."""

    @property
    def masters(self) -> tuple[Address, ...]:
        """Each master once, in the order of their slots."""
        return tuple(dict.fromkeys(master for _, _, master in self.ranges))


async def find_slots(addresses: tuple[Address, ...], settings: Settings) -> SlotMap:
    """The slots by the first node that answers.

    Raises:
        CannotConnect: none does.
    """
    return await first_answer(addresses, settings, _slots_by)


async def _slots_by(connection: Connection, identity: Identity) -> SlotMap:
    address = connection.address
    if identity.mode == "sentinel":
        raise CannotConnect(
            f"{address} is a sentinel: give its URL as redis+sentinel://{address}/MASTER"
        )
    if identity.mode != "cluster":
        raise CannotConnect(f"{address} is not a node of a cluster: use redis://{address}")
    [answer] = await connection.ask(pack(("CLUSTER", "SLOTS")))
    slots = _read_slots(answer, address)
    if not slots.ranges:
        raise CannotConnect(f"the cluster of {address} serves no slots: create it, or repair it")
    return slots


def _read_slots(answer: Answer, asked: Address) -> SlotMap:
    ranges: list[tuple[int, int, Address]] = []
    nodes: set[Address] = set()
    for each in answer if isinstance(answer, list) else []:
        match each:
            case [int(first), int(last), [*_] as master, *replicas]:
                ranges.append((first, last, _node(master, asked)))
                nodes.add(_node(master, asked))
                nodes |= {_node(replica, asked) for replica in replicas}
    return SlotMap(tuple(ranges), frozenset(nodes))


def _node(said: Reply, asked: Address) -> Address:
    """A node that does not know its own address is where we asked."""
    match said:
        case [bytes(host), int(port), *_]:
            return Address(_host(host.decode(), asked), port)
        case [None, int(port), *_]:
            return Address(asked.host, port)
    return asked


def _host(said: str, asked: Address) -> str:
    return asked.host if said in ("", "?") else said


def read_redirection(text: str, asked: Address) -> tuple[int, Address] | None:
    """Slot and node of a MOVED or ASK; None if it is neither."""
    said = re.fullmatch(r"(?:MOVED|ASK) (\d{1,5}) (.*):(\d{1,5})", text)
    if said is None or int(said[1]) >= REDIS_CLUSTER_HASH_SLOTS:
        return None
    return int(said[1]), Address(_host(said[2], asked), int(said[3]))


@define(eq=False)
class Cluster:
    """Many masters. See the module."""

    fleet: Fleet
    settings: Settings
    slots: SlotMap
    _owners: list[Pool | None] = field(factory=list, init=False)
    _masters: tuple[Address, ...] = field(default=(), init=False)
    _guests: dict[Address, float] = field(factory=dict, init=False)
    """Nodes that others have sent us to, and when last; the map may not have them yet."""
    _suspected: trio.Event = field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._install(self.slots)

    @property
    def masters(self) -> tuple[Address, ...]:
        """All that have slots."""
        return self._masters

    def pool_for(self, key: str | None) -> Pool | None:
        """That of the slot's master; without a key, of any master within reach."""
        if key is not None:
            return self._owners[key_slot(key.encode())]
        pools = [pool for each in self._masters if (pool := self.fleet.get(each)) is not None]
        return random.choice([pool for pool in pools if pool.is_up] or pools)

    def moved(self, slot: int, address: Address) -> None:
        """Corrects the slot, and has the rest looked up."""
        self._owners[slot] = self.asked_to(address)
        self.suspect()

    def asked_to(self, address: Address) -> Pool:
        """Takes the node in, if it is new."""
        self._guests[address] = trio.current_time()
        return self.fleet.use(address)

    def suspect(self) -> None:
        """Asks for the slots soon."""
        self._suspected.set()

    async def run(self) -> None:
        """Asks for the slots when it has to, until cancelled."""
        while True:
            if all(pool.is_up for pool in self.fleet):
                await self._suspected.wait()
            self._suspected = trio.Event()
            await self._refresh()
            await trio.sleep(_REFRESH_S)

    async def _refresh(self) -> None:
        nodes = list(self.slots.nodes.union(self.settings.addresses))
        random.shuffle(nodes)
        try:
            self._install(await find_slots(tuple(nodes), self.settings))
        except CannotConnect:
            # As long as it is so, `run` comes again.
            self.suspect()

    def _install(self, slots: SlotMap) -> None:
        self.slots = slots
        self._masters = slots.masters
        self._owners = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, master in slots.ranges:
            self._owners[first : last + 1] = [self.fleet.use(master)] * (last + 1 - first)
        late = trio.current_time() - _GUEST_S
        self._guests = {each: at for each, at in self._guests.items() if at > late}
        for pool in self.fleet:
            if pool.address not in self._masters and pool.address not in self._guests:
                self.fleet.drop(pool.address)
        self.fleet.events.news.ring()
