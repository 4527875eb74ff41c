"""The store: where leases live. What every implementation owes the service.

Duties
    Each call is one atomic step on one name, by the rules of `leasekeeper.core.lock` and by the
    store's own clock. No caller's clock is ever sent to it.

Ordering
    What happens to a name reaches `on_event` in the order in which it happened. An event may come
    before the answer to the call that caused it: whoever asks for a lease is ready for its grant
    before it asks.

Events are for one reader
    `run` hands events to one function, synchronously. A grant for a waiter goes to the server
    named in its claim; a loss, or contention, to the servers that hold; changes to those that
    watch. Events are hints for speed: a store that may lose them makes up for it by time (law L5).

Idempotence
    Every call is named by a lease id and may be repeated. A repeat gives the same grant, never a
    second one; the second release says `Left.NOTHING`.

Failure
    Every call may raise `Unavailable`. With outcome "none" nothing happened; with "unknown" it may
    have, and the caller repeats it, or releases by the same lease id.

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
    Granted,
    HolderLost,
    Left,
    Mismatch,
    Missing,
    Queued,
    QueueFull,
    Renewed,
    WaiterGranted,
)
from leasekeeper.messages import Key, LeasePage, LeaseState


@frozen
class Changed:
    """The holders of a watched name changed; this is the state after it."""

    state: LeaseState


@frozen
class StoreEvent:
    """What happened to a name."""

    name: str
    what: WaiterGranted | HolderLost | Contended | Changed


@frozen
class Renewal:
    """One lease to renew; with `ttl_ms`, to a new TTL."""

    name: str
    lease: str = field(repr=False)
    ttl_ms: int | None = None


class Store(Protocol):
    """See the module's docstring for what all of these have in common."""

    @property
    def outlives_process(self) -> bool:
        """Whether leases are still there after this process has ended."""

    async def run(
        self,
        on_event: Callable[[StoreEvent], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Delivers events until cancelled. No other call is made before it has started."""

    async def acquire(
        self, name: str, claim: Claim, *, wait: bool
    ) -> Granted | Queued | Busy | QueueFull | Mismatch:
        """Asks for a name. `Queued` is followed by a `WaiterGranted`, unless it is released."""

    async def resume(
        self, name: str, lease: str, server: str, *, wait: bool
    ) -> Granted | Queued | Busy | Missing:
        """Asks again, from this server, for what the lease id holds or waits for."""

    async def renew(self, renewals: Sequence[Renewal]) -> Sequence[Renewed | Missing]:
        """Renews many leases in as few round trips as it can; one answer each, in order."""

    async def release(self, name: str, lease: str) -> Left:
        """Gives a lease back or leaves the queue. It serves as cancel, too (law L6)."""

    async def touch(self, waiters: Sequence[Key], alive_ms: int) -> Sequence[bool]:
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
