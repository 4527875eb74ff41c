"""Redis servers that will forget: flushed, restarted with nothing, replaced by a stale replica."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import trio
from attrs import frozen

from tests.proxy import open_proxy
from tests.redis_groups import ReplicatedRedis, in_step, running_replicas
from tests.redises import RunningRedis, running_redis, until


@frozen
class Doomed:
    """What is written after `part` is gone after `lose`."""

    url: str
    part: Callable[[], None]
    lose: Callable[[], Awaitable[None]]
    is_replaced: bool = False
    """Whether it is then another Redis that answers, which does not look as if it were new."""


def cut_off(master: RunningRedis, replica: RunningRedis) -> None:
    """The replica gets nothing any more, however often it tries."""
    replica.cli("CONFIG", "SET", "masteruser", "nobody")
    replica.cli("CONFIG", "SET", "masterauth", "nothing")
    master.cli("CLIENT", "KILL", "TYPE", "replica")
    until(lambda: not in_step(replica), "the replica has noticed")


@asynccontextmanager
async def flushed() -> AsyncIterator[Doomed]:
    """FLUSHALL."""
    with running_redis() as redis:

        async def lose() -> None:
            redis.cli("FLUSHALL")

        yield Doomed(redis.url, lambda: None, lose)


@asynccontextmanager
async def restarted() -> AsyncIterator[Doomed]:
    """SIGKILL, and a start without persistence."""
    with running_redis() as redis:
        yield Doomed(redis.url, lambda: None, lambda: trio.to_thread.run_sync(redis.restart))


@asynccontextmanager
async def replaced() -> AsyncIterator[Doomed]:
    """Somebody promotes a replica that was behind, and gives it the master's address."""
    with running_replicas() as group:
        master, [replica] = group.master(), group.replicas()
        async with open_proxy(master.port) as proxy:

            async def lose() -> None:
                master.kill()
                group.promote(replica)
                proxy.upstream_port = replica.port
                proxy.cut()

            yield Doomed(proxy.url, lambda: cut_off(master, replica), lose, is_replaced=True)


@asynccontextmanager
async def failed_over() -> AsyncIterator[Doomed]:
    """Sentinels promote a replica that was behind."""
    with sentinels() as group:
        master = group.master()

        def part() -> None:
            for each in group.replicas():
                cut_off(master, each)

        async def lose() -> None:
            master.kill()
            await trio.to_thread.run_sync(group.wait_until_promoted, master)

        yield Doomed(group.url, part, lose, is_replaced=True)


@contextmanager
def sentinels() -> Iterator[ReplicatedRedis]:
    """A master, a replica, and three sentinels that are quick to notice."""
    with running_replicas(sentinels=3, down_after_ms=300) as group:
        yield group


LOSSES: Final = {each.__name__: each for each in (flushed, restarted, replaced, failed_over)}
