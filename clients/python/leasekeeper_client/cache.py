"""The cache: values that are loaded once for the whole fleet."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import wraps
from typing import Final, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from anyio import move_on_after

from leasekeeper_client._engine import Engine
from leasekeeper_client._fills import Kept, Nothing
from leasekeeper_client._flights import Rider, Route
from leasekeeper_client._intents import Intent, WriteThrough, expired
from leasekeeper_client._json import as_object, text
from leasekeeper_client._keys import KeyMaker
from leasekeeper_client._plan import check_name
from leasekeeper_client._rpc import constant
from leasekeeper_client._terms import FillOptions, Terms, as_tags, keeping
from leasekeeper_client.codecs import Codec, JsonCodec, check_codec, check_size, from_wire, to_wire
from leasekeeper_client.errors import Busy, FillFailed, ProtocolError, ValueNotFound
from leasekeeper_client.loads import Loaded, Loader, Said, enclosing_load
from leasekeeper_client.writes import WriteBehind

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
D = TypeVar("D")

KEYS_AT_ONCE: Final = 200
TAGS_AT_ONCE: Final = 100
JSON: Final = JsonCodec()


class _Raise:
    """Stands for no default."""


RAISE: Final = _Raise()


class CachedFunction(Protocol[P, R_co]):
    """An async function whose results are cached."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return the cached result for these arguments; call the function if there is none."""

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key of these arguments."""

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Make the result for these arguments invalid, as `Cache.invalidate` does."""


class CachedDecorator(Protocol):
    """What `Cache.cached` returns."""

    @overload
    def __call__(self, function: Callable[P, Awaitable[Said[R]]], /) -> CachedFunction[P, R]: ...

    @overload
    def __call__(self, function: Callable[P, Awaitable[Loaded[R]]], /) -> CachedFunction[P, R]: ...

    def __call__(self, function: Callable[P, Awaitable[object]], /) -> object:
        """Return the function whose results are cached."""


class Cache:
    """Values that are loaded once for the whole fleet: `keeper.cache`.

    A value that is returned may be shared with other tasks: do not change it. Who loads a value
    gets it as it is; others get it as the codec makes it, so a tuple may become a list.
    """

    def __init__(self, engine: Engine, codec: Codec = JSON) -> None:
        check_codec(codec)
        self._engine = engine
        self._codec = codec

    @property
    def codec(self) -> Codec:
        """How values travel."""
        return self._codec

    def using(self, codec: Codec) -> "Cache":
        """Return the same cache, with values under another codec.

        Whatever the codec, values that travel as JSON are read as well.

        Raises:
            ValueError: The tag of the codec is none.
        """
        return Cache(self._engine, codec)

    @property
    def value_bytes(self) -> int:
        """The longest value, as JSON in UTF-8, that the server takes; 0 while it is not known."""
        connection = self._engine.session.connection
        return connection.info.value_bytes if connection is not None else 0

    @overload
    async def get_or_fill(
        self, key: str, load: Callable[[], Awaitable[Said[T]]], **options: Unpack[FillOptions]
    ) -> T: ...

    @overload
    async def get_or_fill(
        self,
        key: str,
        load: Callable[[], Awaitable[Said[T]]],
        *,
        default: D,
        **options: Unpack[FillOptions],
    ) -> T | D: ...

    @overload
    async def get_or_fill(self, key: str, load: Loader[T], **options: Unpack[FillOptions]) -> T: ...

    @overload
    async def get_or_fill(
        self, key: str, load: Loader[T], *, default: D, **options: Unpack[FillOptions]
    ) -> T | D: ...

    async def get_or_fill(
        self,
        key: str,
        load: Callable[[], Awaitable[object]],
        *,
        default: object = RAISE,
        **options: Unpack[FillOptions],
    ) -> object:
        """Return the value of a key; if there is none, one caller in the whole fleet loads it.

        Everybody else waits for that value. When it is stale, or about to be, one caller is chosen
        to load it anew in the background, and all of them have the present one at once. Tasks of
        this program that ask for one key at the same time make one request together.

        What is returned was true after this call began: a value whose load began before an
        invalidation is never returned to a caller who came after it.

        Args:
            key: 1 to 255 characters of `[A-Za-z0-9._:/@+-]`.
            load: An async function without arguments that returns the value, or `Fresh`,
                `NotModified`, `NotFound` or `Private`. It runs in a task of its own, in its
                caller's context (`contextvars`), and is cancelled when `fill` is over, or when the
                connection to the server is lost; then this call asks again, as long as it waits.
                `current_load()` tells it its fence, the etag of the old value, and its time.
            default: Returned if there is no such thing.
            **options: See `FillOptions`.

        Raises:
            ValueNotFound: There is no such thing, and no `default`.
            Busy: `wait` is over.
            FillFailed: Whoever loaded it has failed, and it is not to be tried again yet.
            Deadlock: It is being loaded by one who waits, in turn, for what this call is loading.
            Unavailable, ConnectionFailed, Overloaded, Draining: The cache cannot be asked. See
                `on_error`.
            UnknownCodec: The value is there, under a codec that is not in use here.
            KeeperError: The server refused.
            ValueError: An argument is out of range.
            Exception: What `load` raised, to the caller whose function it was. Others get
                `FillFailed` with its type and message, for the time of a back-off.

        Cancellation: the load goes on if another task of this program waits for it. Otherwise it
            is cancelled and waited for, and the server is told, for two seconds at most, so that
            somebody else loads at once.
        """
        lines = self._engine.lines
        rider = Rider(load, load, Terms(**options), self._codec, self._engine.clock())
        found = await self._fetch(key, rider, enclosing_load(lines, key))
        return value_or(found, key, default)

    async def _fetch(
        self, key: str, rider: Rider, within: tuple[str, str] | None
    ) -> Kept | Nothing:
        check_name(key)
        route = Route(
            key=key,
            codec_id=id(self._codec),
            stale_ok=rider.terms.stale_ok,
            at_once=rider.terms.wait == 0,
            within=within,
        )
        return await self._engine.lines.fetch(route, rider)

    def cached(self, template: str, **options: Unpack[FillOptions]) -> CachedDecorator:
        """Decorate an async function whose results are cached.

        In the template, and in `tags`, `{parameter}` stands for that argument of the call, however
        it is passed, and `{parameter.attribute}` for a part of it. What is filled in is quoted, so
        that two calls never have one key by accident; 7 and "7" are the same there. Numbers, text,
        dates, UUIDs, enumerations and None can be filled in, nothing else.

        The function may return what a `load` may, and use `current_load()`. The decorated one has
        `key(...)` and `invalidate(...)`, which take its arguments; those of a method begin with the
        object.

        Args:
            template: The key, such as `"user:{user_id}"`. Two fields need a `:`, `/` or `@`
                between them.
            **options: See `FillOptions`.

        Raises:
            ValueError: A template names what is no parameter, or an option is out of range.
            TypeError: When called: an argument cannot be part of a key.
            KeeperError: When called: as in `get_or_fill`, like everything else.
        """
        tags = as_tags(options.pop("tags", ()))
        Terms(**options)

        def decorate(function: Callable[P, Awaitable[Loaded[R]]]) -> CachedFunction[P, R]:
            maker = KeyMaker(function, template, tags)

            def make_key(*args: P.args, **kwargs: P.kwargs) -> str:
                return maker.make(args, kwargs)[0]

            async def invalidate(*args: P.args, **kwargs: P.kwargs) -> None:
                await self.invalidate(make_key(*args, **kwargs))

            @wraps(function)
            async def cached(*args: P.args, **kwargs: P.kwargs) -> R:
                key, made = maker.make(args, kwargs)
                more: FillOptions = {**options, "tags": made}

                async def load() -> Loaded[R]:
                    return await function(*args, **kwargs)

                return await self.get_or_fill(key, load, **more)

            vars(cached).update(key=make_key, invalidate=invalidate)
            return cast("CachedFunction[P, R]", cached)

        return cast("CachedDecorator", decorate)

    async def settled(self) -> None:
        """Wait until no refresh goes on in the background: before a script ends, for one.

        Leaving `connect` gives up those that do.
        """
        await self._engine.lines.settled()

    async def get(self, key: str, default: object = None, *, stale_ok: bool = True) -> object:
        """Return the value of a key if there is one. Nobody loads it, and nobody waits.

        Args:
            key: The key.
            default: Returned if there is none.
            stale_ok: Whether a stale value will do.

        Raises:
            UnknownCodec: It is there, under a codec that is not in use here.
            KeeperError: The server refused, or could not be asked.
            ValueError: The key is none.
        """
        check_name(key)
        params = constant(key=key, wait_ms=0, can_fill=False, stale_ok=stale_ok)
        try:
            answer = await self._engine.ask("cache.get", params)
        except (Busy, FillFailed):
            return default
        obj = as_object(answer.result)
        if text(obj, "state") not in ("hit", "stale"):
            return default
        if "value" not in obj:
            raise ProtocolError("a hit without its value")
        return from_wire(self._codec, obj["value"])

    async def set(
        self,
        key: str,
        value: object,
        *,
        ttl: float,
        stale: float = 0.0,
        tags: Iterable[str] = (),
        etag: str | None = None,
    ) -> None:
        """Replace the value of a key. What is being loaded is not cached any more.

        Two who do this at the same time are not put in the order of what they read. Rather
        invalidate, or use `write_through`.

        Args:
            key: The key.
            value: The value.
            ttl: Seconds for which it is fresh.
            stale: Seconds after that for which it may be served while somebody loads it anew.
            tags: By which it can be invalidated, at most 16.
            etag: What the next load is shown.

        Raises:
            Unavailable: With `outcome == "unknown"`, it may or may not have happened; it is not
                repeated, because that could replace what was set after it.
            ValueTooLarge: It is longer than the server takes.
            KeeperError: The server refused, or could not be asked.
            ValueError, TypeError: It cannot be said in the codec, or an argument is out of range.

        Cancellation: it may have been set, or not.
        """
        check_name(key)
        wire = self._to_wire(value)
        params = constant(key=key, **keeping(ttl, stale, as_tags(tags), etag))
        await self._engine.ask("cache.set", params, repeatable=False, value=wire)

    async def invalidate(self, *keys: str, tags: Iterable[str] = (), soft: bool = False) -> None:
        """Make values invalid: whoever asks after this has returned gets none of them.

        What is being loaded now is not cached either, for it may have been read before. More than
        200 keys or 100 tags are more than one request, and not one step.

        Args:
            *keys: The keys.
            tags: Every value that has one of these.
            soft: They are only stale from now on, and are served as such while their `stale` lasts.

        Raises:
            KeeperError: The server refused, or could not be asked: some of it may hold.
            ValueError: A key or tag is none.

        Cancellation: some of it may hold.
        """
        marks = as_tags(tags)
        for name in (*keys, *marks):
            check_name(name)
        mode = "soft" if soft else None
        for start in range(0, max(len(keys), 1), KEYS_AT_ONCE):
            some = list(keys[start : start + KEYS_AT_ONCE])
            if some:
                await self._engine.ask("cache.invalidate", constant(keys=some, mode=mode))
        for start in range(0, len(marks), TAGS_AT_ONCE):
            some = list(marks[start : start + TAGS_AT_ONCE])
            await self._engine.ask("cache.invalidate", constant(tags=some, mode=mode))

    @asynccontextmanager
    async def write_through(
        self, key: str, *, tags: Iterable[str] = (), ttl: float = 10.0
    ) -> AsyncIterator[WriteThrough]:
        """Change what a key is loaded from, in the body of the context.

        From its beginning until it is left, nothing that was read before is cached under the key
        or the tags: who asks meanwhile loads for himself. On leaving, all that is older is invalid,
        and the value that was given to `write.set`, if any, takes its place. If this program dies,
        the same happens after `ttl`; so the transaction must be over by then.

        Args:
            key: The key.
            tags: Values that have one of these change with it, at most 16.
            ttl: Seconds that the write may take (0.1 to 600).

        Raises:
            WriteExpired: The write took longer than `ttl`, and the body was cancelled; or it was
                too late when it was done. Whatever was written is written.
            Busy: A write-behind of this key is under way.
            Unavailable: On leaving: the server could not be told. It finds out after `ttl`.
            KeeperError: The server refused, or could not be asked.
            ValueError: An argument is out of range.
            Exception: What the body raised. The key and the tags are invalid then, too.

        Cancellation: the key and the tags are made invalid; leaving takes at most five seconds.
        """
        intent = Intent(self._engine, self._codec, key, as_tags(tags), ttl)
        write = await intent.begin()
        try:
            with move_on_after(write.remaining) as scope:
                yield write
        except BaseException:
            await intent.abort()
            raise
        if scope.cancelled_caught:
            await intent.abort()
            raise expired(key)
        await intent.commit(write)

    def write_behind(self, queue: str) -> WriteBehind:
        """Return what queues writes: see `WriteBehind`.

        Raises:
            ValueError: The name of the queue is none.
        """
        return WriteBehind(self._engine, self._codec, queue)

    def _to_wire(self, value: object) -> str:
        wire = to_wire(self._codec, value)
        if self.value_bytes:
            check_size(wire, self.value_bytes)
        return wire


def value_or(found: Kept | Nothing, key: str, default: object) -> object:
    """Return the value that was found, or the default.

    Raises:
        ValueNotFound: There is neither.
    """
    if isinstance(found, Kept):
        return found.value
    if default is RAISE:
        raise ValueNotFound(f"there is no {key!r}", key=key, retry_after=found.retry_after)
    return default
