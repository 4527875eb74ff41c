"""The part of the store that caches. What every implementation owes the service.

Duties
    Each call on a key is one atomic step by the rules of `leasekeeper.core.cache`, and by the
    store's own clock. A call on tags holds for every key, on every server, once it has returned
    (law L11), and costs the same however many keys have the tag.

Loss
    Where something may have been lost (values, invalidations, what is remembered of tags), what is
    older is not believed any more: the store fails closed.

Events
    `KeyNews` goes to the server that looked with `Ask.server`, when there is reason to look again.
    It is a hint, as all events are: whoever waits looks again after some time in any case.

Idempotence
    A look repeated with the same fill id has the same grant; a fill that was stored is stored when
    it is repeated, and one that was not is too late then; a write-through begun twice under one id
    is one. The others may be repeated freely.

Failure and cancellation
    As in `leasekeeper.store.api`. Whoever does not know whether a look was granted a fill gives
    that fill id up.
"""

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen

from leasekeeper.core.fills import Ask, Closed, Conflict, Content, Intent, Seen
from leasekeeper.messages import FillOutcome, Mark


@frozen
class KeyNews:
    """This server waits for a key, and should look again."""

    key: str


class CacheStore(Protocol):
    """See the module's docstring. All of these may raise `Unavailable`."""

    async def look(self, key: str, ask: Ask) -> Seen:
        """What there is of a key; grants the fill `ask.fill` if it is to be loaded. One round
        trip."""

    async def fill(
        self, key: str, fill: str, content: Content, *, not_modified: bool = False
    ) -> FillOutcome:
        """Stores what a fill has loaded, if it is not too old."""

    async def fail(
        self, key: str, fill: str, error: str, retry_after_ms: int | None, jitter: float
    ) -> None:
        """A load has failed; `jitter` in [0, 1] is chance for the back-off."""

    async def unshare(self, key: str, fill: str, ms: int) -> None:
        """What was loaded cannot be shared: for so long everybody loads for himself."""

    async def give_up(self, key: str, fill: str, *, died: bool, jitter: float) -> None:
        """Whoever had this fill is gone (`died`), or does not want it any more."""

    async def wait_for(self, key: str, fill: str, on: str | None) -> None:
        """Whoever has this fill waits for another key, or (None) waits no more."""

    async def waits_for(self, key: str) -> str | None:
        """What whoever loads this key waits for."""

    async def set(self, key: str, content: Content) -> int | Conflict:
        """Replaces a value; returns its fence."""

    async def invalidate(self, keys: Sequence[str], tags: Sequence[str], mark: Mark) -> None:
        """Makes values invalid. With outcome "unknown", some of it may hold and some not."""

    async def begin_write(
        self, key: str, write: str, tags: tuple[str, ...], ttl_ms: int
    ) -> Intent | Conflict:
        """A write-through begins: first for its tags, everywhere, and then for its key."""

    async def close_write(
        self, key: str, write: str, content: Content | None, tags: tuple[str, ...]
    ) -> Closed:
        """A write-through is over, for `tags` and those it was begun with, and then for its key.

        With `content` that is what is true now, and stored if no other write can have changed it.
        """
