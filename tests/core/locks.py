"""How the tests of one name speak of it."""

from collections.abc import Callable, ItemsView, Iterator, ValuesView
from typing import NoReturn, TypeVar

from leasekeeper.core.lock import (
    Claim,
    Event,
    Granted,
    Lock,
    Now,
    Queued,
    WaiterGranted,
)
from leasekeeper.messages import Mode

ANN, BEN, CID, DEE = ("a" * 32, "b" * 32, "c" * 32, "d" * 32)
TTL_MS = 1000
START_US = 1_700_000_000_000_000

Call = Callable[[Lock, Now], object]
T = TypeVar("T")


class Unwalked(dict[str, T]):
    """Many things that may be looked up by their lease, but not walked through."""

    def _refuse(self) -> NoReturn:
        raise AssertionError("a call walks through all of them")

    def __iter__(self) -> Iterator[str]:
        self._refuse()

    def values(self) -> ValuesView[T]:  # type: ignore[override]
        self._refuse()

    def items(self) -> ItemsView[str, T]:  # type: ignore[override]
        self._refuse()


def at(ms: int, us: int | None = None) -> Now:
    """A moment of the store's clock, `ms` after the start of a test."""
    return Now(ms, START_US + 1000 * ms if us is None else us)


def exclusive(
    lease: str,
    *,
    max_hold_ms: int | None = None,
    alive_ms: int = 10_000,
    owner: str | None = None,
    wait_ms: int | None = None,
) -> Claim:
    """Asks for the name alone."""
    return Claim(
        lease, TTL_MS, owner=owner, max_hold_ms=max_hold_ms, alive_ms=alive_ms, wait_ms=wait_ms
    )


def shared(
    lease: str, limit: int | None = None, *, alive_ms: int = 10_000, owner: str | None = None
) -> Claim:
    """Asks for the name together with others, `limit` in all."""
    return Claim(lease, TTL_MS, Mode.SHARED, limit, owner=owner, alive_ms=alive_ms)


def hold(lock: Lock, claim: Claim, ms: int = 0) -> Granted:
    """Takes the name, which must be possible at once."""
    grant = lock.acquire(claim, wait=False, now=at(ms))
    assert isinstance(grant, Granted)
    return grant


def queue(lock: Lock, *claims: Claim, ms: int = 0) -> None:
    """Lets these wait, in this order."""
    for claim in claims:
        assert isinstance(lock.acquire(claim, wait=True, now=at(ms)), Queued)
    lock.events.clear()


def take_events(lock: Lock) -> list[Event]:
    """What happened since they were last taken."""
    events, lock.events = lock.events, []
    return events


def granted(lock: Lock) -> list[str]:
    """The waiters that got it since events were last taken."""
    return [each.lease for each in take_events(lock) if isinstance(each, WaiterGranted)]
