"""The part of the store that queues writes. What every implementation owes the service.

Duties
    Each call on a key is one atomic step by the rules of `leasekeeper.core.writes`, on its queue
    and its cached value together, and by the store's own clock. A claim is one such step in each
    partition of the queue. A put that was answered is not lost while the store keeps its data;
    `refusal` says whether it can promise that.

Order
    Writes of one key are claimed in the order of their puts, with rising fences, if they are all
    put into the same queue. Between keys there is none but that those are claimed first that have
    waited longest, and between partitions not even that.

Events
    `QueueNews` goes to the server that claimed with `Take.server` in vain, when there is something
    to claim, now or sooner than it was told. It is a hint, as all events are: whoever waits claims
    again after some time in any case.

Idempotence
    A put repeated is another write of the same value. A claim repeated is another claim. What is
    settled is settled once: a repeat answers `NOT_HELD`.

Failure and cancellation
    As in `leasekeeper.store.api`. A claim whose outcome is unknown ends by its time.
"""

from collections.abc import Sequence
from typing import Protocol

from attrs import frozen

from leasekeeper.core.fills import Conflict, Content
from leasekeeper.core.writes import Bounds, Full, Settled, Take, Taken
from leasekeeper.errors import InvalidParams
from leasekeeper.messages import DeadPage


@frozen
class QueueNews:
    """This server waits for writes of a queue, and should claim again."""

    queue: str


class WriteStore(Protocol):
    """See the module's docstring. All of these may raise `Unavailable`."""

    @property
    def refusal(self) -> str | None:
        """Why nothing is to be queued here, and what to do about it; None: it may be.

        Costs nothing. May raise `Unavailable`, too: it is not known yet.
        """

    async def put(
        self, queue: str, key: str, content: Content, bounds: Bounds
    ) -> int | Conflict | Full:
        """Replaces a cached value and queues the write of it; returns its number.

        `bounds` are those of the queue as a whole; of several partitions each has its share.
        """

    async def claim(self, queue: str, take: Take) -> Taken:
        """Claims writes. Those that are `spent` have been buried: they are dead."""

    async def ack(self, queue: str, ids: Sequence[str]) -> Sequence[Settled]:
        """Claimed values are written. One answer for each claim, in order."""

    async def retry(
        self,
        queue: str,
        ids: Sequence[str],
        error: str,
        after_ms: int | None,
        jitters: Sequence[float],
        attempts_max: int,
    ) -> Sequence[Settled]:
        """Claimed values could not be written. `jitters` in [0, 1]: chance for each back-off."""

    async def give_back(self, queue: str, ids: Sequence[str], *, unseen: bool) -> Sequence[Settled]:
        """Whoever has these claims is gone, or (`unseen`) has never heard of them."""

    async def dead(self, queue: str, limit: int, cursor: str | None) -> DeadPage:
        """A page of dead writes, in the order in which they died, in each partition.

        Raises:
            InvalidParams: the cursor is none of ours.
        """

    async def revive(self, queue: str, keys: Sequence[str]) -> int:
        """Queues dead writes again, and says how many they were."""


def dead_cursor(partition: int, after: str) -> str:
    """Where to go on with dead writes: in this partition, after this one."""
    return f"{partition}.{after}"


def parse_dead_cursor(cursor: str | None, partitions: int) -> tuple[int, str]:
    """The partition, and after which one there; "": from the first on.

    Raises:
        InvalidParams: it is none of ours.
    """
    if cursor is None:
        return 0, ""
    partition, _, after = cursor.partition(".")
    if partition.isdecimal() and int(partition) < partitions:
        return int(partition), after
    raise InvalidParams("$.cursor", "expected a cursor from an earlier page")
