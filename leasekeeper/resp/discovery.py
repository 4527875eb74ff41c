"""What is at the Redis URL when the server starts: all it needs, or one line that says why not.

Each master is connected to once, and let go. From then on it is the business of the pools, which
try again for ever.
"""

from collections.abc import Callable
from functools import partial

import trio

from leasekeeper.errors import ConfigurationError
from leasekeeper.resp.asking import connected
from leasekeeper.resp.cluster import Cluster, find_slots
from leasekeeper.resp.errors import CannotConnect
from leasekeeper.resp.handshake import Identity
from leasekeeper.resp.nodes import Fleet, Nodes, SingleNode
from leasekeeper.resp.pool import why_no_master
from leasekeeper.resp.sentinel import Sentinels, find_master
from leasekeeper.resp.settings import Address, Settings, Topology


async def discover(settings: Settings) -> Callable[[Fleet], Nodes]:
    """Looks at what the settings name, and says how to keep up with it.

    Raises:
        ConfigurationError: it is not there, not what the URL says, or wants another password.
    """
    try:
        match settings.topology:
            case Topology.SINGLE:
                return await _one(settings)
            case Topology.SENTINEL:
                return await _named_by_sentinels(settings)
            case Topology.CLUSTER:
                return await _cluster(settings)
    except CannotConnect as problem:
        raise ConfigurationError(str(problem)) from None


async def _one(settings: Settings) -> Callable[[Fleet], Nodes]:
    [address] = settings.addresses
    identity = await _look_at(address, settings)
    if identity.mode == "cluster":
        return await _cluster(settings)
    if not identity.is_master:
        raise CannotConnect(why_no_master(identity))
    return partial(SingleNode, address=address)


async def _named_by_sentinels(settings: Settings) -> Callable[[Fleet], Nodes]:
    address = await find_master(settings)
    identity = await _look_at(address, settings)
    if not identity.is_master:
        raise CannotConnect(
            f"the sentinels name {address}, which is no master at present: wait for their "
            "failover to end, and start again"
        )
    return partial(Sentinels, settings=settings, address=address)


async def _cluster(settings: Settings) -> Callable[[Fleet], Nodes]:
    slots = await find_slots(settings.addresses, settings)
    problems: list[CannotConnect] = []

    async def look_at(address: Address) -> None:
        try:
            await _look_at(address, settings)
        except CannotConnect as problem:
            problems.append(problem)

    async with trio.open_nursery() as nursery:
        for address in slots.masters:
            nursery.start_soon(look_at, address)
    if problems:
        raise problems[0]
    return partial(Cluster, settings=settings, slots=slots)


async def _look_at(address: Address, settings: Settings) -> Identity:
    async with connected(address, settings) as (_, identity):
        return identity
