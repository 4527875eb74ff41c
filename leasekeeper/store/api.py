"""The store: where leases live. What every implementation owes the service.

Duties
    Each call is one atomic step on one name, by the rules of `leasekeeper.core.lock` and by the
    store's own clock. No caller's clock is ever sent to it.

Ordering
    Calls that are under way at the same time may take effect in any order; so may those of one
    name. An event may come before the answer to the call that caused it, or long after: whoever
    asks for a lease is ready for its grant before it asks. Events of one lease id are told apart
    by their fences, which only rise; `Queued.fence` says which grants are older than the wait.

Events are for one reader
    `run` hands events to one function, synchronously. A grant for a waiter goes to the server
    of its owner; a loss, or contention, to the servers that hold; `Moved` to the server
    that had it before; changes to those that watch. Events are hints for speed: a store that may
    lose them makes up for it by time (law L5).

Idempotence
    Every call is named by a lease id and may be repeated. A repeat gives the same grant, never a
    second one; the second release says `Left.NOTHING`.

Failure
    Every call may raise `Unavailable`. With outcome "none" nothing happened; with "unknown" it may
    have, and the caller repeats it, or releases by the same lease id. Calls for many names answer
    with `Unavailable` for those names alone that the store cannot speak for.

Cancellation
    A cancelled call is one of unknown outcome.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import trio
from attrs import field, frozen

from leasekeeper.core.lock import (
    Busy,
    Claim,
    Contended,
    Elsewhere,
    Granted,
    HolderLost,
    Left,
    Mismatch,
    Missing,
    Moved,
    Queued,
    QueueFull,
    Renewed,
    Resumed,
    WaiterGranted,
)
from leasekeeper.errors import Unavailable
from leasekeeper.messages import Key, LeasePage, LeaseState
from leasekeeper.store.caches import CacheStore, KeyNews
from leasekeeper.store.writes import QueueNews, WriteStore


@frozen
class Changed:
    """The holders of a watched name changed; this is the state after it."""

    state: LeaseState


@frozen
class StoreEvent:
    """What happened to a name."""

    name: str
    what: WaiterGranted | HolderLost | Contended | Moved | Changed


Event = StoreEvent | KeyNews | QueueNews


@frozen
class Renewal:
    """One lease to renew; with `ttl_ms`, to a new TTL."""

    name: str
    lease: str = field(repr=False)
    ttl_ms: int | None = None

    @property
    def key(self) -> Key:
        """Whose."""
        return self.name, self.lease


@frozen
class Health:
    """How a store is, as far as is known without asking it."""

    kind: str
    reachable: bool = True
    paused_ms: int = 0
    """When to ask again, while something may not be granted; 0: grants are not paused."""
    reason: str | None = None
    """Why they are. It names neither leases nor who has them."""


class Store(Protocol):
    """See the module's docstring for what all of these have in common."""

    @property
    def cache(self) -> CacheStore:
        """The part of it that caches."""

    @property
    def writes(self) -> WriteStore:
        """The part of it that queues writes."""

    @property
    def outlives_process(self) -> bool:
        """Whether leases are still there after this process has ended."""

    @property
    def answers_at_once(self) -> bool:
        """Whether no call of it waits."""

    @property
    def health(self) -> Health:
        """Whether it can be reached and grants leases. Costs nothing, and may be asked any time."""

    async def run(
        self,
        on_event: Callable[[Event], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Delivers events until cancelled. No other call is made before it has started."""

    async def acquire(
        self, name: str, claim: Claim, *, wait: bool, take_over: bool = True
    ) -> Granted | Queued | Busy | QueueFull | Mismatch | Elsewhere:
        """Asks for a name. `Queued` is followed by a `WaiterGranted`, unless it is released.

        With `take_over` false, what the lease id has on another server stays there.
        """

    async def resume(
        self, name: str, lease: str, owner: str, *, wait_ms: int | None
    ) -> Resumed | Busy | Missing:
        """Takes over, for this owner, what the lease id holds or waits for.

        `wait_ms` as in `Lock.resume`.
        """

    async def renew(self, renewals: Sequence[Renewal]) -> Sequence[Renewed | Missing | Unavailable]:
        """Renews many leases in as few round trips as it can; one answer each, in order."""

    async def release(self, name: str, lease: str, *, only_of: str | None = None) -> Left:
        """Gives a lease back or leaves the queue. It serves as cancel, too (law L6).

        With `only_of`, only if it belongs to that server: it may have been resumed on another.
        """

    async def touch(self, waiters: Sequence[Key], alive_ms: int) -> Sequence[bool | Unavailable]:
        """Vouches for waiters for another `alive_ms`. False: that one is not in its queue."""

    async def break_(self, name: str, detail: str | None) -> int:
        """Puts all holders out, and says how many they were."""

    async def inspect(self, name: str, *, holders_max: int, waiting_max: int) -> LeaseState:
        """What others may see of a name."""

    async def list_leases(self, prefix: str, limit: int, cursor: str | None) -> LeasePage:
        """A page of held leases.

        Raises:
            InvalidParams: the cursor is none of ours.
        """

    async def watch(self, name: str) -> None:
        """From now on there are `Changed` events for this name. A second watch adds nothing."""

    def unwatch(self, name: str) -> None:
        """`Changed` events for this name are not wanted any more; some may still come."""
