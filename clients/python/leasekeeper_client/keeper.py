"""The client for Trio and asyncio."""

import ssl
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from typing import Final, ParamSpec, TypeVar, Unpack

import anyio
from anyio import CancelScope

from leasekeeper_client._engine import Engine, running
from leasekeeper_client._hold import Hold
from leasekeeper_client._json import as_list, as_object, integer, text_or_none
from leasekeeper_client._names import name_maker
from leasekeeper_client._plan import LeaseOptions, Plan, check_name
from leasekeeper_client._rpc import constant
from leasekeeper_client._settings import Settings
from leasekeeper_client._websocket import parse_address
from leasekeeper_client.cache import Cache
from leasekeeper_client.codecs import Codec
from leasekeeper_client.errors import Busy, LeaseLost
from leasekeeper_client.lease import Lease, LeaseSet, chain_loss, is_loss_of
from leasekeeper_client.model import ListedLease, NameState, listed_from, name_state_from
from leasekeeper_client.writes import Consumer, DeadWrite, Write, consume, list_dead, revive

P = ParamSpec("P")
R = TypeVar("R")

CAMPAIGN_PAUSE: Final = 1.0
"""At most so many seconds after losing, a candidate queues again."""


@asynccontextmanager
async def connect(
    urls: str | Sequence[str],
    *,
    client: str | None = None,
    token: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    connect_timeout: float = 10.0,
    answer_timeout: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator["Keeper"]:
    """Connect to a leasekeeper server, and stay connected while the context lasts.

    Args:
        urls: One address or several, tried in turn: `ws://host:port`, `wss://host:port` or
            `ws+unix:///absolute/path`. Several are of servers that share a store: when one is gone
            or drains, what it had is resumed on the next.
        client: A name for this program, shown to others.
        token: The secret, if the servers want one. It is sent in the session, never in a URL.
        ssl_context: For wss; the system's certificates by default.
        connect_timeout: Seconds within which one of the servers must be reached at first. Later,
            a lost connection is made again for as long as it takes.
        answer_timeout: Seconds that a server may take for what it should answer at once.
        clock: Monotonic time in seconds. `time.monotonic` stands still while Linux is suspended;
            on machines that sleep, give one that does not.

    Raises:
        ConnectionFailed: No server could be reached in time.
        Unauthenticated, Forbidden, LimitReached: A server does not want us.
        ValueError: One of the addresses is none.

    Cancellation: leaving takes at most two seconds. What is still held is released.
    """
    settings = make_settings(
        urls, client, token, ssl_context, connect_timeout, answer_timeout, clock
    )
    async with running(settings) as engine:
        yield Keeper(engine)


def make_settings(
    urls: str | Sequence[str],
    client: str | None,
    token: str | None,
    ssl_context: ssl.SSLContext | None,
    connect_timeout: float,
    answer_timeout: float,
    clock: Callable[[], float],
) -> Settings:
    """Return the settings that the arguments of `connect` make."""
    addresses = tuple(map(parse_address, [urls] if isinstance(urls, str) else urls))
    if not addresses:
        raise ValueError("connect needs at least one address")
    return Settings(
        addresses=addresses,
        clock=clock,
        client=client,
        token=token,
        ssl_context=ssl_context,
        connect_timeout=connect_timeout,
        answer_timeout=answer_timeout,
    )


class Keeper:
    """A connection to leasekeeper. Make it with `connect`; any number of tasks may share it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cache = Cache(engine)

    @property
    def cache(self) -> Cache:
        """The cache; see `Cache`."""
        return self._cache

    @property
    def connected(self) -> bool:
        """Whether there is a connection right now. Leases outlive short interruptions."""
        connection = self._engine.session.connection
        return connection is not None and connection.alive

    def lease(
        self,
        name: str,
        *,
        shared: bool = False,
        limit: int | None = None,
        **options: Unpack[LeaseOptions],
    ) -> AbstractAsyncContextManager[Lease]:
        """Hold a lease while the context lasts.

        When it is lost, the body is cancelled and `LeaseLost` comes out of the context. An
        exception that the body raises itself comes out as it is, with the loss as its cause.

        Args:
            name: 1 to 255 characters of `[A-Za-z0-9._:/@+-]`.
            shared: Share it with others who do, but not with an exclusive holder.
            limit: Share it among so many holders at most.
            **options: See `LeaseOptions`.

        Raises:
            Busy: On entering: the wait is over.
            LeaseLost: On leaving: it was lost, even if the body noticed nothing.
            KeeperError: On entering: the server refused, or could not be reached in time.
            ValueError: An argument is out of range.

        Cancellation: while waiting, what may have been granted is given back. While held, the
            lease is released, which takes at most 5 s, and not longer than it lasts.
        """
        plan = Plan(names=(name,), shared=shared, limit=limit, **options)
        return self._hold_one(plan)

    def shared(
        self, name: str, **options: Unpack[LeaseOptions]
    ) -> AbstractAsyncContextManager[Lease]:
        """Hold a lease together with other readers: `lease(name, shared=True)`."""
        return self.lease(name, shared=True, **options)

    def semaphore(
        self, name: str, limit: int, **options: Unpack[LeaseOptions]
    ) -> AbstractAsyncContextManager[Lease]:
        """Be one of at most `limit` holders: `lease(name, shared=True, limit=limit)`."""
        return self.lease(name, shared=True, limit=limit, **options)

    def lease_all(
        self, names: Iterable[str], *, shared: bool = False, **options: Unpack[LeaseOptions]
    ) -> AbstractAsyncContextManager[LeaseSet]:
        """Hold 2 to 16 leases together: all or none, in an order that cannot deadlock.

        The loss of one is the loss of all. Everything else is as in `lease`.
        """
        plan = Plan(names=tuple(names), together=True, shared=shared, **options)
        return self._hold_all(plan)

    def try_lease(
        self,
        name: str,
        *,
        shared: bool = False,
        limit: int | None = None,
        **options: Unpack[LeaseOptions],
    ) -> AbstractAsyncContextManager[Lease | None]:
        """Hold a lease if it is free, or becomes free within `wait` (0 by default).

        The context yields None where `lease` would raise `Busy`, and nothing else: a server that
        cannot be reached is no busy lease.
        """
        options.setdefault("wait", 0.0)
        plan = Plan(names=(name,), shared=shared, limit=limit, **options)
        return self._try_one(plan)

    def locked(
        self,
        template: str,
        *,
        shared: bool = False,
        limit: int | None = None,
        **options: Unpack[LeaseOptions],
    ) -> Callable[[Callable[P, Awaitable[R]]], Callable[P, Awaitable[R]]]:
        """Decorate an async function that runs under a lease.

        Args:
            template: The name, in which `{parameter}` stands for that argument of the call.
            shared: As in `lease`.
            limit: As in `lease`.
            **options: See `LeaseOptions`.

        Raises:
            ValueError: When called: the name that the arguments make is none.
            KeeperError: When called: as in `lease`.
        """

        def decorate(function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
            make_name = name_maker(template, function)

            @wraps(function)
            async def under_lease(*args: P.args, **kwargs: P.kwargs) -> R:
                name = make_name(*args, **kwargs)
                async with self.lease(name, shared=shared, limit=limit, **options):
                    return await function(*args, **kwargs)

            return under_lease

        return decorate

    async def campaign(
        self,
        name: str,
        body: Callable[[Lease], Awaitable[R]],
        **options: Unpack[LeaseOptions],
    ) -> R:
        """Run `body` whenever we are the leader, until it returns.

        It is called with the lease. When leadership is lost it is cancelled, and called again
        once we lead again.

        Returns:
            What `body` returned.

        Raises:
            KeeperError: The server refused, or the wait of one campaign is over.
            Exception: What `body` raised.

        Cancellation: `body` is cancelled, and the lease released.
        """
        while True:
            lease: Lease | None = None
            try:
                async with self.lease(name, **options) as lease:
                    return await body(lease)
            except LeaseLost as exc:
                if lease is not None and not is_loss_of(exc, lease):
                    raise
            await anyio.sleep(self._engine.settings.jitter(CAMPAIGN_PAUSE))

    def watch(self, name: str) -> AsyncGenerator[NameState, None]:
        """Iterate over the states of a name: the present one, then each change of its holders.

        A slow consumer misses states in between, never the latest.

        Raises:
            LimitReached: Too many names are watched.
            KeeperError: The server refused.
            ValueError: The name is none.
        """
        check_name(name)
        return self._engine.watch(name)

    async def inspect(self, name: str) -> NameState:
        """Return who holds a name, and who waits.

        Raises:
            KeeperError: The server refused, or could not be reached in time.
        """
        check_name(name)
        answer = await self._engine.ask("lease.inspect", constant(name=name))
        return name_state_from(answer.result)

    async def list(self, prefix: str | None = None) -> AsyncGenerator[ListedLease, None]:
        """Iterate over what is held, by anyone: once through, while it may change.

        Args:
            prefix: Only names that begin with this.

        Raises:
            KeeperError: The server refused, or could not be reached in time.
        """
        cursor: str | None = None
        while True:
            answer = await self._engine.ask("lease.list", constant(prefix=prefix, cursor=cursor))
            page = as_object(answer.result)
            for item in as_list(page.get("leases")):
                yield listed_from(item)
            cursor = text_or_none(page, "cursor")
            if cursor is None:
                return

    async def break_lease(self, name: str, reason: str | None = None) -> int:
        """Put out whoever holds a name; they are told so. Return how many they were.

        Args:
            name: The name.
            reason: Words for those who are put out.

        Raises:
            Unavailable: With `outcome == "unknown"`, it may or may not have happened; it is not
                repeated, because that could put out the next holder.
            KeeperError: The server refused, or could not be reached in time.
        """
        check_name(name)
        params = constant(name=name, reason=reason)
        answer = await self._engine.ask("lease.break", params, repeatable=False)
        return integer(as_object(answer.result), "broken")

    def writes(
        self, queue: str, *, max: int = 16, claim: float = 30.0, codec: Codec | None = None
    ) -> AsyncGenerator[Write, None]:
        """Iterate over the queued writes of a queue, for ever: each is to be carried out.

        Each is yielded to one program of the fleet at a time, the longest-waiting first, with the
        latest value of its key. Several are claimed at once, and their time runs while they wait
        here; those that are left over are given back. An outage is waited for.

        Args:
            queue: The name that `keeper.cache.write_behind` was given.
            max: How many to claim at once.
            claim: Seconds after which others may claim the same write (0.1 to 600).
            codec: How values travel; those that travel as JSON are always read.

        Raises:
            Forbidden, LimitReached, KeeperError: The server refused.
            ConnectionFailed: This keeper is closed, or no server wants it any more.
            ValueError: An argument is out of range.

        Cancellation: what was claimed and not yielded is given back.
        """
        return consume(Consumer(self._engine, codec or self._cache.codec, queue, max, claim))

    def writes_dead(
        self, queue: str, *, codec: Codec | None = None
    ) -> AsyncGenerator[DeadWrite, None]:
        """Iterate over the writes of a queue that have failed too often: once through.

        Raises:
            KeeperError: The server refused, or could not be asked.
            ValueError: The name of the queue is none.
        """
        check_name(queue)
        return list_dead(self._engine, codec or self._cache.codec, queue)

    async def writes_revive(self, queue: str, *keys: str) -> int:
        """Queue writes again that have failed too often.

        Returns:
            How many: a key that was written since is not among them.

        Raises:
            KeeperError: The server refused, or could not be asked: some may be queued.
            ValueError: A name is none.
        """
        return await revive(self._engine, queue, keys)

    @asynccontextmanager
    async def _hold_one(self, plan: Plan) -> AsyncIterator[Lease]:
        holds = await self._engine.acquire(plan)
        async with _guarded(self._engine, holds):
            yield Lease(holds[0], self._engine)

    @asynccontextmanager
    async def _hold_all(self, plan: Plan) -> AsyncIterator[LeaseSet]:
        holds = await self._engine.acquire(plan)
        async with _guarded(self._engine, holds):
            yield LeaseSet([Lease(hold, self._engine) for hold in holds])

    @asynccontextmanager
    async def _try_one(self, plan: Plan) -> AsyncIterator[Lease | None]:
        try:
            holds = await self._engine.acquire(plan)
        except Busy:
            holds = ()
        if not holds:
            yield None
            return
        async with _guarded(self._engine, holds):
            yield Lease(holds[0], self._engine)


@asynccontextmanager
async def _guarded(engine: Engine, holds: tuple[Hold, ...]) -> AsyncIterator[None]:
    """Cancel the body when a lease is lost, and give the leases back after it."""
    scope = CancelScope()
    for hold in holds:
        hold.when_lost = scope.cancel
    try:
        with scope:
            yield
    except BaseException as exc:
        chain_loss(exc, await engine.finish(holds))
        raise
    loss = await engine.finish(holds)
    if loss is not None:
        raise loss
