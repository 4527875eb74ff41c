"""The cache for programs without an event loop: `leasekeeper_client.sync`.

A loading function runs in the thread that asks, and no other; threads that ask for one key at the
same time have one of them load it. A thread cannot be cancelled from outside, so a function whose
time is over goes on to its end: `current_load().lost` tells it.
"""

import logging
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial, wraps
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Final, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

import anyio
from anyio import to_thread
from anyio.from_thread import BlockingPortal
from attrs import define, field

from leasekeeper_client._engine import Engine
from leasekeeper_client._flights import Abandoned, Rider
from leasekeeper_client._intents import Intent, WriteThrough
from leasekeeper_client._keys import KeyMaker
from leasekeeper_client._terms import FillOptions, Terms, as_tags
from leasekeeper_client.cache import RAISE, value_or
from leasekeeper_client.cache import Cache as AsyncCache
from leasekeeper_client.codecs import Codec
from leasekeeper_client.loads import LOADS, Load, Loaded, Said, enclosing_load
from leasekeeper_client.writes import Claim, Consumer, WriteView
from leasekeeper_client.writes import WriteBehind as AsyncWriteBehind

if TYPE_CHECKING:
    from concurrent.futures import Future

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
D = TypeVar("D")
_log: Final = logging.getLogger("leasekeeper_client")


class Caller(Protocol):
    """What runs a function in the background thread, and stops it if this one is interrupted."""

    def __call__(self, function: Callable[[], Awaitable[T]], /) -> T:
        """Return what it returns."""


class CachedFunction(Protocol[P, R_co]):
    """A function whose results are cached."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return the cached result for these arguments; call the function if there is none."""

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key of these arguments."""

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Make the result for these arguments invalid, as `Cache.invalidate` does."""


class CachedDecorator(Protocol):
    """What `Cache.cached` returns."""

    @overload
    def __call__(self, function: Callable[P, Said[R]], /) -> CachedFunction[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, Loaded[R]], /) -> CachedFunction[P, R]: ...

    def __call__(self, function: Callable[P, object], /) -> object:
        """Return the function whose results are cached."""


class Cache:
    """Values that are loaded once for the whole fleet: `keeper.cache`. Any thread may use it.

    A value that is returned may be shared with other threads: do not change it.
    """

    def __init__(
        self,
        cache: AsyncCache,
        engine: Engine,
        portal: BlockingPortal,
        call: Caller,
        check: Callable[[], None],
    ) -> None:
        self._cache = cache
        self._engine = engine
        self._portal = portal
        self._call = call
        self._check_process = check

    @property
    def codec(self) -> Codec:
        """How values travel."""
        return self._cache.codec

    def using(self, codec: Codec) -> "Cache":
        """Return the same cache, with values under another codec: `cache.Cache.using`."""
        cache = self._cache.using(codec)
        return Cache(cache, self._engine, self._portal, self._call, self._check_process)

    @property
    def value_bytes(self) -> int:
        """The longest value, as JSON in UTF-8, that the server takes; 0 while it is not known."""
        return self._cache.value_bytes

    @overload
    def get_or_fill(
        self, key: str, load: Callable[[], Said[T]], **options: Unpack[FillOptions]
    ) -> T: ...

    @overload
    def get_or_fill(
        self,
        key: str,
        load: Callable[[], Said[T]],
        *,
        default: D,
        **options: Unpack[FillOptions],
    ) -> T | D: ...

    @overload
    def get_or_fill(
        self, key: str, load: Callable[[], Loaded[T]], **options: Unpack[FillOptions]
    ) -> T: ...

    @overload
    def get_or_fill(
        self,
        key: str,
        load: Callable[[], Loaded[T]],
        *,
        default: D,
        **options: Unpack[FillOptions],
    ) -> T | D: ...

    def get_or_fill(
        self,
        key: str,
        load: Callable[[], object],
        *,
        default: object = RAISE,
        **options: Unpack[FillOptions],
    ) -> object:
        """Return the value of a key; if there is none, one caller in the whole fleet loads it.

        As `leasekeeper_client.Cache.get_or_fill`, but for what follows.

        Args:
            key: 1 to 255 characters of `[A-Za-z0-9._:/@+-]`.
            load: A function without arguments that returns the value, or `Fresh`, `NotModified`,
                `NotFound` or `Private`. It runs in this thread, whose time limit is only told by
                `current_load().lost`: what it returns too late is cached nevertheless if nothing
                newer is. A refresh runs in a worker thread, while this one has the present value.
            default: Returned if there is no such thing.
            **options: See `FillOptions`.

        Raises:
            ValueNotFound, Busy, FillFailed, Deadlock, Unavailable, ConnectionFailed, Overloaded,
                Draining, UnknownCodec, KeeperError, ValueError: As there.
            Exception: What `load` raised, to the caller whose function it was.

        Cancellation: an interrupt (Ctrl-C) gives the load up, so that somebody else loads at once.
        """
        within = enclosing_load(self._engine.lines, key)
        errand = LoadErrand(load, self._portal)
        rider = Rider(
            errand.run,
            partial(to_thread.run_sync, load, abandon_on_cancel=True),
            Terms(**options),
            self._cache.codec,
            self._engine.clock(),
            stoppable=False,
            on_leave=errand.abandon,
        )
        self._check_process()
        found = errand.wait(self._portal.start_task_soon(self._cache._fetch, key, rider, within))
        return value_or(found, key, default)

    def cached(self, template: str, **options: Unpack[FillOptions]) -> CachedDecorator:
        """Decorate a function whose results are cached: as `leasekeeper_client.Cache.cached`.

        Args:
            template: The key, such as `"user:{user_id}"`.
            **options: See `FillOptions`.

        Raises:
            ValueError: A template names what is no parameter, or an option is out of range.
            TypeError: When called: an argument cannot be part of a key.
            KeeperError: When called: as in `get_or_fill`, like everything else.
        """
        tags = as_tags(options.pop("tags", ()))
        Terms(**options)

        def decorate(function: Callable[P, Loaded[R]]) -> CachedFunction[P, R]:
            maker = KeyMaker(function, template, tags)

            def make_key(*args: P.args, **kwargs: P.kwargs) -> str:
                return maker.make(args, kwargs)[0]

            def invalidate(*args: P.args, **kwargs: P.kwargs) -> None:
                self.invalidate(make_key(*args, **kwargs))

            @wraps(function)
            def cached(*args: P.args, **kwargs: P.kwargs) -> R:
                key, made = maker.make(args, kwargs)
                more: FillOptions = {**options, "tags": made}

                def load() -> Loaded[R]:
                    return function(*args, **kwargs)

                return self.get_or_fill(key, load, **more)

            vars(cached).update(key=make_key, invalidate=invalidate)
            return cast("CachedFunction[P, R]", cached)

        return cast("CachedDecorator", decorate)

    def settled(self) -> None:
        """Wait until no refresh goes on in the background: before a script ends, for one."""
        self._call(self._cache.settled)

    def get(self, key: str, default: object = None, *, stale_ok: bool = True) -> object:
        """Return the value of a key if there is one: `leasekeeper_client.Cache.get`."""
        return self._call(partial(self._cache.get, key, default, stale_ok=stale_ok))

    def set(
        self,
        key: str,
        value: object,
        *,
        ttl: float,
        stale: float = 0.0,
        tags: Iterable[str] = (),
        etag: str | None = None,
    ) -> None:
        """Replace the value of a key: `leasekeeper_client.Cache.set`."""
        keep = partial(self._cache.set, key, value, ttl=ttl, stale=stale, tags=tags, etag=etag)
        self._call(keep)

    def invalidate(self, *keys: str, tags: Iterable[str] = (), soft: bool = False) -> None:
        """Make values invalid: `leasekeeper_client.Cache.invalidate`."""
        self._call(partial(self._cache.invalidate, *keys, tags=tags, soft=soft))

    @contextmanager
    def write_through(
        self, key: str, *, tags: Iterable[str] = (), ttl: float = 10.0
    ) -> Iterator[WriteThrough]:
        """Change what a key is loaded from: as `leasekeeper_client.Cache.write_through`.

        The body cannot be cancelled when `ttl` is over: call `write.ensure()` before the commit.
        Leaving the context too late raises `WriteExpired` in any case.
        """
        intent = Intent(self._engine, self.codec, key, as_tags(tags), ttl)
        write = self._call(intent.begin)
        try:
            yield write
        except BaseException:
            self._call(intent.abort)
            raise
        self._call(partial(intent.commit, write))

    def write_behind(self, queue: str) -> "WriteBehind":
        """Return what queues writes: see `leasekeeper_client.WriteBehind`."""
        return WriteBehind(self._cache.write_behind(queue), self._call)


class WriteBehind:
    """One queue of writes: as `leasekeeper_client.WriteBehind`."""

    def __init__(self, queue: AsyncWriteBehind, call: Caller) -> None:
        self._queue = queue
        self._call = call

    @property
    def queue(self) -> str:
        """The name of the queue."""
        return self._queue.queue

    def put(self, key: str, value: object, *, ttl: float | None = None) -> int:
        """Replace the value of a key, and queue the write of it, in one step."""
        return self._call(partial(self._queue.put, key, value, ttl=ttl))


class Write(WriteView):
    """A write to carry out: `with write:`, as `leasekeeper_client.Write`.

    The body cannot be cancelled: look at `write.remaining` before what takes long.
    """

    def __init__(self, claim: Claim, call: Caller) -> None:
        super().__init__(claim)
        self._call = call

    def ack(self) -> bool:
        """Say that it is carried out: `leasekeeper_client.Write.ack`."""
        return self._call(self._claim.ack)

    def retry(self, error: str = "", *, after: float | None = None) -> bool:
        """Say that it has failed: `leasekeeper_client.Write.retry`."""
        return self._call(partial(self._claim.retry, error, after))

    def __enter__(self) -> "Write":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if isinstance(error, Exception):
            _log.warning("writing %r failed", self.key, exc_info=error)
        self._call(partial(self._claim.settle_quietly, error, late=False))
        return isinstance(error, Exception)


def consume(consumer: Consumer, call: Caller) -> Generator[Write, None, None]:
    """Yield writes to carry out, for ever."""
    try:
        while True:
            yield Write(call(consumer.next), call)
    finally:
        call(consumer.leave_soon)


@define(eq=False)
class Job:
    """One run of a loading function that the background thread asks another thread for."""

    loads: tuple[Load, ...]
    done: anyio.Event = field(factory=anyio.Event)
    value: object = field(default=None, repr=False)
    error: Exception | None = None
    ended: bool = False


@define(eq=False)
class LoadErrand:
    """A thread that asks for a key, and loads it when it is its turn.

    Invariant: the function runs in that thread only, and never twice at a time.
    """

    function: Callable[[], object]
    portal: BlockingPortal
    _jobs: "SimpleQueue[Job | None]" = field(factory=SimpleQueue, init=False, repr=False)
    _job: Job | None = field(default=None, init=False)
    _left: bool = field(default=False, init=False)

    async def run(self) -> object:
        """Have the thread run the function, and return what it returns.

        Raises:
            Abandoned: The thread has gone.
            Exception: What the function raised.
        """
        if self._left:
            raise Abandoned
        self._job = job = Job(LOADS.get())
        self._jobs.put(job)
        await job.done.wait()
        if not job.ended:
            raise Abandoned
        if job.error is not None:
            raise job.error
        return job.value

    def abandon(self) -> None:
        """The thread does not wait any more."""
        self._left = True
        if self._job is not None:
            self._job.done.set()

    def wait(self, future: "Future[T]") -> T:
        """Wait in the thread for what the background thread finds, and load when asked to."""
        future.add_done_callback(lambda _: self._jobs.put(None))
        try:
            while (job := self._next_job()) is not None:
                self._carry_out(job)
            return future.result()
        except BaseException:
            future.cancel()  # nothing, where it is the future's own exception
            raise

    def _next_job(self) -> Job | None:
        return self._jobs.get()

    def _carry_out(self, job: Job) -> None:
        token = LOADS.set(job.loads)
        try:
            job.value = self.function()
        except Exception as exc:
            job.error = exc
        finally:
            LOADS.reset(token)
        job.ended = True
        with suppress(RuntimeError):  # The keeper was closed meanwhile.
            self.portal.start_task_soon(job.done.set)
