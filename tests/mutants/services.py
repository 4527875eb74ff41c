"""Mistakes of the service and of the client library. Each is in force within its context."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from math import inf
from typing import Any, Final
from unittest.mock import patch

from leasekeeper_client._contact import Contact
from leasekeeper_client._hold import Hold

from leasekeeper.core.cache import Entry
from leasekeeper.core.lock import Left, Lock
from leasekeeper.errors import Cancelled, Lost
from leasekeeper.messages import Key
from leasekeeper.service.keeper import Keeper
from leasekeeper.service.leases import Leases
from leasekeeper.service.renewal import Renewals
from leasekeeper.service.session import Session, Tenure
from leasekeeper.service.turns import Turns
from leasekeeper.service.unwanted import Unwanted

Switch = Callable[[], AbstractContextManager[object]]


@contextmanager
def _all(*switches: AbstractContextManager[object]) -> Iterator[None]:
    """Several at once."""
    with switches[0]:
        if switches[1:]:
            with _all(*switches[1:]):
                yield
        else:
            yield


def lock(mutant: type[Lock]) -> Switch:
    """These rules, in the embedded store and in the machine that is to find them out."""

    def switch() -> AbstractContextManager[object]:
        return _all(
            patch("leasekeeper.store.memory.Lock", mutant),
            patch("tests.properties.test_lock_machine.Lock", mutant),
        )

    return switch


def entry(mutant: type[Entry]) -> Switch:
    """These rules of a cached key, in the embedded store."""
    return lambda: patch("leasekeeper.store.memory_cache.Entry", mutant)


# --- The service ------------------------------------------------------------------------------


def grace_releases_what_was_resumed() -> AbstractContextManager[object]:
    """At the end of a grace all that the dropped connection had is released, wherever it is."""
    had: dict[Session, list[Key]] = {}
    detach, end_grace = Keeper.detach, Keeper._end_grace

    def detaches(self: Keeper, session: Session, *, clean: bool) -> None:
        had[session] = list(session.tenures)
        detach(self, session, clean=clean)

    def ends(self: Keeper, session: Session) -> None:
        end_grace(self, session)
        self.leases.unwanted.is_wanted = lambda _: False
        for key in had[session]:
            self.leases.unwanted.add(key, None)

    return _all(patch.object(Keeper, "detach", detaches), patch.object(Keeper, "_end_grace", ends))


def losses_are_not_told() -> AbstractContextManager[object]:
    """A holder has to find out by itself."""

    def lose(self: Leases, tenure: Tenure, *_: object, **__: object) -> None:
        self.tenures.leave(tenure, Lost())

    return patch.object(Leases, "_lose", lose)


def cancelled_waits_stay() -> AbstractContextManager[object]:
    """What a cancelled request had asked for is not given back."""

    def abandon(self: Leases, tenure: Tenure) -> None:
        self.tenures.leave(tenure, Cancelled())

    return patch.object(Leases, "abandon", abandon)


def cancel_only_forgets() -> AbstractContextManager[object]:
    """What nobody wants is given back at the first try, or never."""

    async def release(self: Unwanted, key: Key, only_of: str | None = None, _: int = 0) -> Left:
        return await self.store.release(*key, only_of=only_of)

    return patch.object(Unwanted, "release", release)


def askings_overtake() -> AbstractContextManager[object]:
    """Several may ask the store for one lease id at the same time."""

    @asynccontextmanager
    async def of(self: Turns, key: Key) -> AsyncIterator[None]:
        yield

    return patch.object(Turns, "of", of)


def left_over_is_forgotten() -> AbstractContextManager[object]:
    """A resume that fails leaves alone what was asked for here before it."""
    return patch.object(Tenure, "is_ours", property(lambda _: False, lambda _, __: None))


def given_back_too_early() -> AbstractContextManager[object]:
    """A lease that was not renewed in time is released while its holder may believe in it."""
    last_call = Renewals._last_call

    def call(self: Renewals, tenure: Tenure) -> None:
        last_call(self, tenure)
        if tenure in self._ends._deadlines:
            self.on_over(tenure)

    return patch.object(Renewals, "_last_call", call)


# --- The client -------------------------------------------------------------------------------

_grant: Final = Hold.grant
_confirm: Final = Hold.confirm


def deadline_from_receipt() -> AbstractContextManager[object]:
    """A client counts from when it was answered, not from when it asked."""

    def grant(self: Hold, fence: int, **more: Any) -> None:  # noqa: ANN401
        _grant(self, fence, **{**more, "sent_at": more["received_at"]})

    def confirm(self: Hold, **more: Any) -> None:  # noqa: ANN401
        _confirm(self, **{**more, "sent_at": more["received_at"]})

    return _all(patch.object(Hold, "grant", grant), patch.object(Hold, "confirm", confirm))


def grace_is_not_counted() -> AbstractContextManager[object]:
    """A client believes for a whole TTL, though its connection may have ended long ago."""

    def confirm(self: Contact, at: float) -> None:
        self.confirmed_at, self.kept_until = at, inf

    return patch.object(Contact, "confirm", confirm)
