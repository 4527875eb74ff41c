"""Channels, on a connection of their own.

Messages may be missed while there is no connection, and nobody can say which; `on_subscribed` is
called after every subscription, so that whoever listens looks for itself. A line that has gone
silent is noticed by the connection's own ping.
"""

from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio
from attrs import define, field
from redis.backoff import FullJitterBackoff
from redis.exceptions import ResponseError

from leasekeeper.errors import ConfigurationError
from leasekeeper.resp.asking import connected
from leasekeeper.resp.connection import pack
from leasekeeper.resp.errors import CannotConnect, Unanswered
from leasekeeper.resp.nodes import Fleet, Nodes
from leasekeeper.resp.pool import why_no_master
from leasekeeper.resp.replies import Reply, code_of
from leasekeeper.resp.settings import Address, Settings

_BACKOFF: Final = FullJitterBackoff(cap=0.5, base=0.02)
_FAILURES_MAX: Final = 6

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)


class _Refused(Exception):
    """Redis does not let this user subscribe; the text says what to do."""


@define(eq=False)
class Subscription:
    """Keeps subscribed, at whatever master there is. See the module."""

    settings: Settings
    nodes: Nodes
    fleet: Fleet
    channels: Sequence[str]
    on_message: Callable[[str, bytes], None]
    on_subscribed: Callable[[], None]
    _was_subscribed: bool = field(default=False, init=False)
    _unconfirmed: int = field(default=0, init=False)
    """How many channels Redis has still to confirm on this connection."""
    _failures: int = field(default=0, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Subscribes again and again until cancelled; started() after the first time.

        Raises:
            ConfigurationError: before that, if Redis does not let us.
        """
        while True:
            news = self.fleet.events.news.next()
            pool = self.nodes.pool_for(None)
            if pool is None or not pool.is_up:
                await news.wait()
                continue
            try:
                await self._listen(pool.address, task_status)
            except _Refused as refused:
                if not self._was_subscribed:
                    raise ConfigurationError(str(refused)) from None
                self._fail(pool.address, str(refused))
            except CannotConnect as problem:
                self._fail(pool.address, str(problem))
            except Unanswered as problem:
                self._fail(pool.address, problem.reason)
            await trio.sleep(_BACKOFF.compute(self._failures))

    async def _listen(self, address: Address, task_status: trio.TaskStatus[None]) -> None:
        """Until the connection ends, or the node is no master any more; then raises."""
        news = self.fleet.events.news
        self._unconfirmed = len(self.channels)
        async with connected(
            address, self.settings, on_push=self._on_push, on_end=lambda _: news.ring()
        ) as (connection, identity):
            if not identity.is_master:
                raise CannotConnect(why_no_master(identity))
            self.fleet.events.on_connected(identity)
            # The pong comes after the confirmations, which are pushes; a refusal before it.
            [pong] = await connection.ask(pack(("SUBSCRIBE", *self.channels)) + pack(("PING",)))
            if isinstance(pong, ResponseError):
                raise _Refused(
                    f"{address} refused SUBSCRIBE ({code_of(pong)}): "
                    "grant its user +subscribe and the channels"
                )
            if not self._was_subscribed:
                self._was_subscribed = True
                task_status.started()
            while connection.reason is None and address in self.nodes.masters:
                await news.next().wait()
            raise CannotConnect(connection.reason or f"{address} is no master any more")

    def _on_push(self, push: Sequence[Reply]) -> None:
        match push:
            case [b"message", bytes(channel), bytes(data)]:
                self.on_message(channel.decode(), data)
            case [b"subscribe", *_]:
                self._unconfirmed -= 1
                if not self._unconfirmed:
                    self._succeed()

    def _succeed(self) -> None:
        if self._failures:
            self._failures = 0
            _log.info("redis subscription is back")
        self.on_subscribed()

    def _fail(self, address: Address, problem: str) -> None:
        if not self._failures:
            _log.warning("redis subscription lost", address=str(address), problem=problem)
        self._failures = min(_FAILURES_MAX, self._failures + 1)
