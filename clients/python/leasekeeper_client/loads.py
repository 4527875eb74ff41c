"""What a load may return, and what it can know of itself."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Final, Generic, TypeAlias, TypeVar

from attrs import define, field, frozen

from leasekeeper_client.errors import Deadlock

T = TypeVar("T")


@frozen
class Fresh(Generic[T]):
    """A value, and how to keep it: what is given here goes before what the call says.

    Attributes:
        value: The value.
        ttl: Seconds for which it is fresh.
        stale: Seconds after that for which it may be served while somebody loads it anew.
        tags: By which it can be invalidated, at most 16.
        etag: What the next load is shown (`current_load().etag`), 1 to 255 characters.
    """

    value: T
    ttl: float | None = field(default=None, kw_only=True)
    stale: float | None = field(default=None, kw_only=True)
    tags: tuple[str, ...] | None = field(default=None, kw_only=True)
    etag: str | None = field(default=None, kw_only=True)


@frozen(kw_only=True)
class NotModified:
    """The value under `current_load().etag` is as good as new; an error where that is None.

    Attributes:
        ttl: As in `Fresh`.
        stale: As in `Fresh`.
        tags: As in `Fresh`; those it had are kept if None or empty.
        etag: As in `Fresh`; None keeps the present one.
    """

    ttl: float | None = None
    stale: float | None = None
    tags: tuple[str, ...] | None = None
    etag: str | None = None


@frozen(kw_only=True)
class NotFound:
    """There is no such thing. That is remembered, and all who ask are told so.

    Attributes:
        ttl: Seconds for which it is believed; None: as long as a value would be fresh.
        tags: By which it can be invalidated; None: those of the call.
    """

    ttl: float | None = None
    tags: tuple[str, ...] | None = None


@frozen
class Private(Generic[T]):
    """A value for this caller alone. Nobody else gets it, and nobody waits for it.

    Attributes:
        value: The value.
        for_: Seconds for which everybody who asks is told to load it for himself, all at once.
    """

    value: T
    for_: float = field(default=60.0, kw_only=True)


Said: TypeAlias = Fresh[T] | NotModified | NotFound | Private[T]
"""What a load returns that says more than a value. For overloads: mypy infers no T without it."""

Loaded: TypeAlias = T | Fresh[T] | NotModified | NotFound | Private[T]
"""What a load returns: the value itself, or one of the classes that say more about it."""

Loader: TypeAlias = Callable[[], Awaitable[Loaded[T]]]
"""An async function without arguments that loads a value."""


@define(eq=False)
class Load:
    """A load that is under way: `current_load()` returns it inside of a loading function.

    It has no methods that wait, and may be read from any thread.

    Attributes:
        key: What is loaded.
        fence: Rises with every load of the key. A table that is derived from what was read can
            refuse a lower one.
        etag: That of the value which `NotModified` would make new, or None.
        shared: Whether others get the value. They do not while a write-through of it is open, or
            after `Private`.
        background: Whether its caller has gone on with the present value: it is a refresh.
        lost: Whether its time is over, or the connection is gone: somebody else may load it now.
            An async load is cancelled then; one in a thread should look here now and then.
    """

    key: str
    fence: int
    etag: str | None
    shared: bool
    background: bool
    _until: float = field(repr=False)
    _clock: Callable[[], float] = field(repr=False)
    _fill: str = field(repr=False)
    _cache: object = field(repr=False)
    """Whose load it is."""
    lost: bool = field(default=False, init=False)
    over: bool = field(default=False, init=False, repr=False)
    """Whether the function has returned."""

    @property
    def remaining(self) -> float:
        """Seconds until its time is over; 0 when it is lost."""
        return 0.0 if self.lost else max(0.0, self._until - self._clock())


LOADS: Final[ContextVar[tuple[Load, ...]]] = ContextVar("leasekeeper_loads", default=())
"""The loads that this code runs inside of, outermost first."""


def current_load() -> Load:
    """Return the load that this code runs inside of.

    Raises:
        LookupError: None. The cache did not call this function.
    """
    load = _innermost(None)
    if load is None:
        raise LookupError("current_load() outside of a load")
    return load


def enclosing_load(cache: object, key: str) -> tuple[str, str] | None:
    """Return the key and fill of the load that asks, in turn, for this key of the same cache.

    Raises:
        Deadlock: It is that key, or one further out, so that this wait would never end.
    """
    keys = [load.key for load in LOADS.get() if load._cache is cache and not load.over]
    if key in keys:
        cycle = tuple(keys[keys.index(key) :])
        raise Deadlock(f"the load of {key!r} asks for {key!r}", cycle=cycle)
    load = _innermost(cache)
    return (load.key, load._fill) if load is not None else None


def _innermost(cache: object | None) -> Load | None:
    loads = [
        load for load in LOADS.get() if not load.over and (cache is None or load._cache is cache)
    ]
    return loads[-1] if loads else None
