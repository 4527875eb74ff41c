"""The locks of the peers, as their authors mean them to be used.

Each is opened for some workers. `apart` gives each worker a connection of its own; otherwise all
share one client, which has as many connections as it likes. What is not in the `bench` group of
dependencies is imported when it is used, and so is `Any` to the type checker.
"""

import importlib
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
    asynccontextmanager,
    contextmanager,
)
from typing import Any, Final

import redis
import redis.asyncio
from attrs import define, frozen

from bench.peers import protobuf, tasks, threads
from bench.redises import HOST
from bench.shapes import Unexpected

TTL_S: Final = 30
"""As ours have. No run is so long that a lock would have to be renewed."""
LEASE_TTL_S: Final = 600
"""Of etcd, where a lease is the worker's and not the lock's."""

OpenTasks = Callable[[int, Sequence[str], bool], AbstractAsyncContextManager[Sequence[tasks.Lock]]]
"""The locks of these names, over a port."""
OpenThreads = Callable[[int, Sequence[str], bool], AbstractContextManager[Sequence[threads.Lock]]]


def spread(clients: list[Any], names: Sequence[str]) -> Iterator[tuple[Any, str]]:
    """A client for each name: one for all, or one for each."""
    return zip(clients * (len(names) // len(clients)), names, strict=True)


# --- redis-py -----------------------------------------------------------------------------------


@frozen
class RedisPyLock:
    """`SET NX PX`, again each tenth of a second while somebody else holds it."""

    lock: Any

    async def acquire(self) -> None:
        """See `tasks.Lock`."""
        if not await self.lock.acquire():
            raise Unexpected("redis-py: not acquired")

    async def release(self) -> None:
        """See `tasks.Lock`; it raises if the lock is somebody else's."""
        await self.lock.release()


@asynccontextmanager
async def redis_py(
    port: int, names: Sequence[str], apart: bool
) -> AsyncIterator[Sequence[tasks.Lock]]:
    """`redis.asyncio.lock.Lock`, with its defaults."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                redis.asyncio.Redis(host=HOST, port=port, single_connection_client=apart)
            )
            for _ in (names if apart else names[:1])
        ]
        yield [
            RedisPyLock(client.lock(name, timeout=TTL_S)) for client, name in spread(clients, names)
        ]


# --- python-redis-lock --------------------------------------------------------------------------


@frozen
class PythonRedisLock:
    """`SET NX EX`; waiters are woken by `BLPOP` of a list, and try again."""

    lock: Any

    def acquire(self) -> None:
        """See `threads.Lock`."""
        if not self.lock.acquire():
            raise Unexpected("python-redis-lock: not acquired")

    def release(self) -> None:
        """See `threads.Lock`; it raises if the lock is somebody else's."""
        self.lock.release()


@contextmanager
def python_redis_lock(
    port: int, names: Sequence[str], apart: bool
) -> Iterator[Sequence[threads.Lock]]:
    """`redis_lock.Lock`, without renewal, which would cost a thread for each acquisition."""
    redis_lock = importlib.import_module("redis_lock")
    with ExitStack() as stack:
        clients = [
            stack.enter_context(redis.Redis(host=HOST, port=port))
            for _ in (names if apart else names[:1])
        ]
        yield [
            PythonRedisLock(redis_lock.Lock(client, name, expire=TTL_S))
            for client, name in spread(clients, names)
        ]


# --- etcd ---------------------------------------------------------------------------------------

NAME, LEASE = 1, 2
"""Fields of a LockRequest."""
KEY_IN_ANSWER, KEY = 2, 1
"""Field of a LockResponse, and of an UnlockRequest."""
SECONDS, LEASE_ID = 1, 2
"""Fields of a LeaseGrantRequest."""


@define
class EtcdLock:
    """The lock service of etcd's v3 API, over gRPC: the server waits, the client has one call."""

    lock: Any
    unlock: Any
    request: bytes
    key: bytes = b""

    async def acquire(self) -> None:
        """See `tasks.Lock`."""
        self.key = protobuf.find(await self.lock(self.request), KEY_IN_ANSWER)

    async def release(self) -> None:
        """See `tasks.Lock`."""
        await self.unlock(protobuf.text(KEY, self.key))


@asynccontextmanager
async def etcd(port: int, names: Sequence[str], apart: bool) -> AsyncIterator[Sequence[tasks.Lock]]:
    """A lease for each worker, granted beforehand."""
    grpc_aio = importlib.import_module("grpc.aio")
    # Else channels to the same server would share a connection.
    settings = [("grpc.use_local_subchannel_pool", 1)]
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(
                grpc_aio.insecure_channel(f"{HOST}:{port}", options=settings)
            )
            for _ in (names if apart else names[:1])
        ]
        locks: list[tasks.Lock] = []
        for channel, name in spread(channels, names):
            lease = random.getrandbits(62) | 1
            grant = channel.unary_unary("/etcdserverpb.Lease/LeaseGrant")
            await grant(protobuf.number(SECONDS, LEASE_TTL_S) + protobuf.number(LEASE_ID, lease))
            locks.append(
                EtcdLock(
                    channel.unary_unary("/v3lockpb.Lock/Lock"),
                    channel.unary_unary("/v3lockpb.Lock/Unlock"),
                    protobuf.text(NAME, name.encode()) + protobuf.number(LEASE, lease),
                )
            )
        yield locks


# --- ZooKeeper ----------------------------------------------------------------------------------


@frozen
class ZooKeeperLock:
    """The recipe: a sequential node, and a watch on the one before it."""

    lock: Any

    def acquire(self) -> None:
        """See `threads.Lock`."""
        if not self.lock.acquire():
            raise Unexpected("kazoo: not acquired")

    def release(self) -> None:
        """See `threads.Lock`."""
        if not self.lock.release():
            raise Unexpected("kazoo: not released")


@contextmanager
def zookeeper(port: int, names: Sequence[str], apart: bool) -> Iterator[Sequence[threads.Lock]]:
    """`kazoo.recipe.lock.Lock`, over one session or over one for each worker."""
    kazoo = importlib.import_module("kazoo.client")
    clients: list[Any] = []
    try:
        for _ in names if apart else names[:1]:
            clients.append(kazoo.KazooClient(hosts=f"{HOST}:{port}", timeout=TTL_S))
            clients[-1].start()
        yield [ZooKeeperLock(client.Lock("/" + name)) for client, name in spread(clients, names)]
    finally:
        for client in clients:
            client.stop()
            client.close()


IN_TASKS: Final[dict[str, OpenTasks]] = {"redis-py": redis_py, "etcd": etcd}
IN_THREADS: Final[dict[str, OpenThreads]] = {
    "python-redis-lock": python_redis_lock,
    "zookeeper": zookeeper,
}
HOLD_S: Final = {"redis-py": 0.005, "python-redis-lock": 0.005}
"""How long the lock of P3 is held, where there is no queue to stand in.

Whoever released asks again while the next holds the lock, and so becomes a waiter like the others.
Without that he would find the lock free again and again, between two looks of all others: two of
the twenty would play it to each other, and a hand-off would be as short as a free lock.
"""
