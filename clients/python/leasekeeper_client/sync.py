"""The client for programs without an event loop: Django, Celery, scripts.

One background thread runs the async client, renews leases and sees them lost. A thread cannot be
cancelled from outside, so here the holder must look: `lease.ensure()` before what cannot be undone,
or `lease.lost_event` in a loop. Leaving the context of a lost lease raises `LeaseLost` in any case.

Connect after forking (in Celery's `worker_process_init`, in gunicorn's `post_fork`): threads do not
survive a fork.
"""

import os
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial, wraps
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar, Unpack

from anyio import CancelScope
from anyio.from_thread import BlockingPortal, start_blocking_portal
from attrs import define, field

from leasekeeper_client._engine import Engine, running
from leasekeeper_client._hold import Hold
from leasekeeper_client._names import name_maker
from leasekeeper_client._plan import LeaseOptions, Plan, check_name
from leasekeeper_client.codecs import Codec
from leasekeeper_client.errors import Busy, LeaseLost
from leasekeeper_client.keeper import CAMPAIGN_PAUSE, make_settings
from leasekeeper_client.keeper import Keeper as AsyncKeeper
from leasekeeper_client.lease import LeaseGroup, LeaseView, chain_loss, is_loss_of
from leasekeeper_client.model import ListedLease, NameState
from leasekeeper_client.sync_cache import Cache, CachedFunction, Write, WriteBehind, consume
from leasekeeper_client.writes import Consumer, DeadWrite

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = [
    "Cache",
    "CachedFunction",
    "Keeper",
    "Lease",
    "LeaseSet",
    "Write",
    "WriteBehind",
    "connect",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


@contextmanager
def connect(
    urls: str | Sequence[str],
    *,
    client: str | None = None,
    token: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    connect_timeout: float = 10.0,
    answer_timeout: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
    backend: Literal["asyncio", "trio"] = "asyncio",
) -> Iterator["Keeper"]:
    """Connect, and stay connected while the context lasts, in a background thread.

    Args:
        urls: As in `leasekeeper_client.connect`, like everything but the last.
        client: A name for this program, shown to others.
        token: The secret, if the servers want one.
        ssl_context: For wss; the system's certificates by default.
        connect_timeout: Seconds within which one of the servers must be reached at first.
        answer_timeout: Seconds that a server may take for what it should answer at once.
        clock: Monotonic time in seconds; called from several threads.
        backend: Which event loop runs in the background thread.

    Raises:
        ConnectionFailed, Unauthenticated, Forbidden, LimitReached, ValueError: As in
            `leasekeeper_client.connect`.
    """
    settings = make_settings(
        urls, client, token, ssl_context, connect_timeout, answer_timeout, clock
    )
    with (
        start_blocking_portal(backend) as portal,
        portal.wrap_async_context_manager(running(settings)) as engine,
    ):
        yield Keeper(portal, engine)


class Lease(LeaseView):
    """A lease that is held while its context lasts.

    Attributes:
        lost_event: Set when the lease is lost.
    """

    def __init__(self, hold: Hold, engine: Engine, keeper: "Keeper") -> None:
        super().__init__(hold, engine)
        self._keeper = keeper
        self.lost_event: threading.Event = threading.Event()

    def renew(self) -> None:
        """Renew it now.

        Raises:
            LeaseLost: It is lost.
            KeeperError: It could not be renewed; it still lasts for `remaining`.
        """
        self._keeper._call(partial(self._engine.renew, self._hold))


class LeaseSet(LeaseGroup[Lease]):
    """Several leases that are held together while their context lasts.

    Attributes:
        lost_event: Set when one of them is lost.
    """

    def __init__(self, leases: Sequence[Lease], lost_event: threading.Event) -> None:
        super().__init__(leases)
        self.lost_event: threading.Event = lost_event


class Keeper:
    """A connection to leasekeeper. Make it with `connect`; any number of threads may share it."""

    def __init__(self, portal: BlockingPortal, engine: Engine) -> None:
        self._portal = portal
        self._engine = engine
        self._keeper = AsyncKeeper(engine)
        self._process = os.getpid()
        cache = self._keeper.cache
        self._cache = Cache(cache, engine, portal, self._call, self._check_process)

    @property
    def cache(self) -> Cache:
        """The cache; see `Cache`."""
        return self._cache

    @property
    def connected(self) -> bool:
        """Whether there is a connection right now. Leases outlive short interruptions."""
        return self._keeper.connected

    def lease(
        self,
        name: str,
        *,
        shared: bool = False,
        limit: int | None = None,
        **options: Unpack[LeaseOptions],
    ) -> AbstractContextManager[Lease]:
        """Hold a lease while the context lasts.

        Args:
            name: 1 to 255 characters of `[A-Za-z0-9._:/@+-]`.
            shared: Share it with others who do, but not with an exclusive holder.
            limit: Share it among so many holders at most.
            **options: See `LeaseOptions`.

        Raises:
            Busy: On entering: the wait is over.
            LeaseLost: On leaving: it was lost, even if the body noticed nothing. An exception of
                the body comes out instead, with the loss as its cause.
            KeeperError: On entering: the server refused, or could not be reached in time.
            ValueError: An argument is out of range.

        Cancellation: an interrupt (Ctrl-C) while waiting gives back what may have been granted.
        """
        return self._hold_one(Plan(names=(name,), shared=shared, limit=limit, **options))

    def shared(self, name: str, **options: Unpack[LeaseOptions]) -> AbstractContextManager[Lease]:
        """Hold a lease together with other readers: `lease(name, shared=True)`."""
        return self.lease(name, shared=True, **options)

    def semaphore(
        self, name: str, limit: int, **options: Unpack[LeaseOptions]
    ) -> AbstractContextManager[Lease]:
        """Be one of at most `limit` holders: `lease(name, shared=True, limit=limit)`."""
        return self.lease(name, shared=True, limit=limit, **options)

    @contextmanager
    def lease_all(
        self, names: Iterable[str], *, shared: bool = False, **options: Unpack[LeaseOptions]
    ) -> Iterator[LeaseSet]:
        """Hold 2 to 16 leases together: all or none. Everything else is as in `lease`."""
        plan = Plan(names=tuple(names), together=True, shared=shared, **options)
        leases, lost = self._acquire(plan)
        with self._guarded(leases):
            yield LeaseSet(leases, lost)

    @contextmanager
    def try_lease(
        self,
        name: str,
        *,
        shared: bool = False,
        limit: int | None = None,
        **options: Unpack[LeaseOptions],
    ) -> Iterator[Lease | None]:
        """Hold a lease if it is free, or becomes free within `wait` (0 by default).

        The context yields None where `lease` would raise `Busy`, and nothing else.
        """
        options.setdefault("wait", 0.0)
        try:
            leases, _ = self._acquire(Plan(names=(name,), shared=shared, limit=limit, **options))
        except Busy:
            leases = []
        if not leases:
            yield None
            return
        with self._guarded(leases):
            yield leases[0]

    def locked(
        self,
        template: str,
        *,
        shared: bool = False,
        limit: int | None = None,
        **options: Unpack[LeaseOptions],
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Decorate a function that runs under a lease.

        Args:
            template: The name, in which `{parameter}` stands for that argument of the call.
            shared: As in `lease`.
            limit: As in `lease`.
            **options: See `LeaseOptions`.
        """

        def decorate(function: Callable[P, R]) -> Callable[P, R]:
            make_name = name_maker(template, function)

            @wraps(function)
            def under_lease(*args: P.args, **kwargs: P.kwargs) -> R:
                name = make_name(*args, **kwargs)
                with self.lease(name, shared=shared, limit=limit, **options):
                    return function(*args, **kwargs)

            return under_lease

        return decorate

    def campaign(self, name: str, body: Callable[[Lease], R], **options: Unpack[LeaseOptions]) -> R:
        """Run `body` whenever we are the leader, until it returns; return what it returned.

        It is called with the lease, and must look at `lease.lost_event`; when leadership was lost
        and `body` has returned or raised `LeaseLost`, it is called again once we lead again.

        Raises:
            KeeperError: The server refused, or the wait of one campaign is over.
            Exception: What `body` raised.
        """
        while True:
            lease: Lease | None = None
            try:
                with self.lease(name, **options) as lease:
                    return body(lease)
            except LeaseLost as exc:
                if lease is not None and not is_loss_of(exc, lease):
                    raise
            time.sleep(self._engine.settings.jitter(CAMPAIGN_PAUSE))

    def watch(self, name: str) -> Generator[NameState, None, None]:
        """Iterate over the states of a name: the present one, then each change of its holders.

        Raises:
            KeeperError: The server refused.
            ValueError: The name is none.
        """
        check_name(name)
        states = self._engine.watch(name)
        try:
            while True:
                yield self._call(states.__anext__)
        finally:
            with suppress(RuntimeError):  # An interrupted step is still on its way out.
                self._call(states.aclose)

    def inspect(self, name: str) -> NameState:
        """Return who holds a name, and who waits.

        Raises:
            KeeperError: The server refused, or could not be reached in time.
        """
        return self._call(partial(self._keeper.inspect, name))

    def list(self, prefix: str | None = None) -> Iterator[ListedLease]:
        """Iterate over what is held, by anyone: once through, while it may change.

        Raises:
            KeeperError: The server refused, or could not be reached in time.
        """
        listing = self._keeper.list(prefix)
        while True:
            try:
                yield self._call(listing.__anext__)
            except StopAsyncIteration:
                return

    def break_lease(self, name: str, reason: str | None = None) -> int:
        """Put out whoever holds a name; return how many they were.

        Raises:
            Unavailable: With `outcome == "unknown"`, it may or may not have happened.
            KeeperError: The server refused, or could not be reached in time.
        """
        return self._call(partial(self._keeper.break_lease, name, reason))

    def writes(
        self, queue: str, *, max: int = 16, claim: float = 30.0, codec: Codec | None = None
    ) -> Generator[Write, None, None]:
        """Iterate over the queued writes of a queue, for ever: `leasekeeper_client.Keeper.writes`.

        Each is to be carried out in `with write:`.
        """
        consumer = Consumer(self._engine, codec or self._cache.codec, queue, max, claim)
        return consume(consumer, self._call)

    def writes_dead(self, queue: str, *, codec: Codec | None = None) -> Iterator[DeadWrite]:
        """Iterate over the writes of a queue that have failed too often: once through.

        Raises:
            KeeperError: The server refused, or could not be asked.
            ValueError: The name of the queue is none.
        """
        letters = self._keeper.writes_dead(queue, codec=codec)
        while True:
            try:
                yield self._call(letters.__anext__)
            except StopAsyncIteration:
                return

    def writes_revive(self, queue: str, *keys: str) -> int:
        """Queue writes again that have failed too often; return how many."""
        return self._call(partial(self._keeper.writes_revive, queue, *keys))

    @contextmanager
    def _hold_one(self, plan: Plan) -> Iterator[Lease]:
        leases, _ = self._acquire(plan)
        with self._guarded(leases):
            yield leases[0]

    @contextmanager
    def _guarded(self, leases: Sequence[Lease]) -> Iterator[None]:
        """Give the leases back after the body, and tell if they were lost."""
        finish = partial(self._engine.finish, [lease._hold for lease in leases])
        try:
            yield
        except BaseException as exc:
            chain_loss(exc, self._call(finish))
            raise
        loss = self._call(finish)
        if loss is not None:
            raise loss

    def _acquire(self, plan: Plan) -> tuple[Sequence[Lease], threading.Event]:
        """Wait for the leases in the background thread; an interrupt gives them back."""
        errand = Errand(self._engine, plan)
        holds = self._call(errand.run, errand.give_up)
        leases = [Lease(hold, self._engine, self) for hold in holds]
        for lease in leases:
            lease.lost_event = errand.lost
        return leases, errand.lost

    def _call(
        self,
        function: Callable[[], Awaitable[T]],
        give_up: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """Run a function in the background thread, and stop it if this thread is interrupted."""
        self._check_process()
        future: Future[T] | None = None
        try:
            future = self._portal.start_task_soon(function)
            return future.result()
        except BaseException:
            if future is None or not _failed(future):
                # It is this thread that was interrupted, perhaps before it knew of the future.
                if future is not None:
                    future.cancel()
                if give_up is not None:
                    self._portal.start_task_soon(give_up)
            raise

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise RuntimeError("this keeper was made before a fork; connect in each process")


@define
class Errand:
    """One acquire that the background thread does for another thread.

    Invariant: whoever comes last, the grant or the giving up, gives back what was granted.
    """

    engine: Engine
    plan: Plan
    holds: tuple[Hold, ...] = ()
    given_up: bool = False
    lost: threading.Event = field(factory=threading.Event)
    scope: CancelScope | None = None

    async def run(self) -> tuple[Hold, ...]:
        """Acquire; return nothing when it was given up."""
        if self.given_up:
            return ()
        with CancelScope() as self.scope:
            self.holds = await self.engine.acquire(self.plan)
        for hold in self.holds:
            hold.when_lost = self.lost.set
        if self.given_up:
            await self.engine.finish(self.holds)
        return self.holds

    async def give_up(self) -> None:
        """Nobody wants it any more."""
        self.given_up = True
        if self.scope is not None:
            self.scope.cancel()
        if self.holds:
            await self.engine.finish(self.holds)


def _failed(future: "Future[T]") -> bool:
    """Return whether the exception at hand may be the future's own."""
    return future.done() and (future.cancelled() or future.exception() is not None)
