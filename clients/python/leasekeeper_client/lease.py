"""A lease in the hands of its holder."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import anyio

from leasekeeper_client._hold import Hold
from leasekeeper_client.errors import LeaseLost, LossReason

if TYPE_CHECKING:
    from leasekeeper_client._engine import Engine


class LeaseView:
    """What there is to know of a lease without asking anyone. Safe to read from any thread."""

    def __init__(self, hold: Hold, engine: "Engine") -> None:
        self._hold = hold
        self._engine = engine

    @property
    def name(self) -> str:
        """The name it is held under."""
        return self._hold.name

    @property
    def fence(self) -> int:
        """The fencing token: it rises with every grant of this name.

        Give it along with every write, and have the resource refuse one that is lower than the
        highest it has seen. That, not the lock, is what makes a late writer harmless.
        """
        assert self._hold.fence is not None, "a lease is made of a grant"
        return self._hold.fence

    @property
    def ttl(self) -> float:
        """Seconds for which it outlives its last renewal."""
        return self._hold.ttl

    @property
    def remaining(self) -> float:
        """Seconds for which you may act on it if nothing more is heard; 0 when it is lost.

        At most the TTL, and at most the server's grace (5 s by default): if the connection has
        broken unnoticed, the server gives the lease to the next one after that.
        """
        return self._hold.remaining(self._engine.clock())

    @property
    def lost(self) -> bool:
        """Whether it is over. Once true, it stays true."""
        return not self._hold.believed(self._engine.clock())

    @property
    def lost_reason(self) -> LossReason | None:
        """Why it is over, or None while it is not."""
        return self._hold.loss().reason if self.lost else None

    @property
    def contended(self) -> int:
        """How many waited for it when the server last said so; 0 before that."""
        return self._hold.contended

    def ensure(self, margin: float = 0.0) -> None:
        """Check, without waiting, that you still hold it: right before what cannot be undone.

        Args:
            margin: Seconds that what you are about to do may take.

        Raises:
            LeaseLost: It is lost, or will be within the margin unless more is heard of the server;
                so always with a margin as long as the server's grace.
        """
        if not self._hold.believed(self._engine.clock() + margin):
            raise self._hold.loss()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} fence={self.fence} lost={self.lost}>"


class Lease(LeaseView):
    """A lease that is held while its context lasts.

    It is renewed in the background. When it is lost, the body of its context is cancelled.
    """

    def __init__(self, hold: Hold, engine: "Engine") -> None:
        super().__init__(hold, engine)
        self._contention = anyio.Event()
        self._callback = hold.when_contended
        hold.when_contended = self._on_contended

    async def renew(self) -> None:
        """Renew it now, before a stretch that will not let the event loop run.

        Raises:
            LeaseLost: It is lost.
            KeeperError: It could not be renewed; it still lasts for `remaining`.

        Cancellation: it may have been renewed, or not.
        """
        await self._engine.renew(self._hold)

    async def wait_contended(self) -> int:
        """Wait until others wait for it, and return how many.

        Returns at once if they did since the last call.
        """
        await self._contention.wait()
        self._contention = anyio.Event()
        return self._hold.contended

    def _on_contended(self, waiting: int) -> None:
        self._contention.set()
        if self._callback is not None:
            self._callback(waiting)


L = TypeVar("L", bound=LeaseView)


class LeaseGroup(Mapping[str, L], Generic[L]):
    """Several leases that are held together: all are there, or all are lost."""

    def __init__(self, leases: Sequence[L]) -> None:
        self._leases = {lease.name: lease for lease in leases}

    def __getitem__(self, name: str) -> L:
        return self._leases[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._leases)

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def fences(self) -> dict[str, int]:
        """The fencing token of each name."""
        return {name: lease.fence for name, lease in self._leases.items()}

    @property
    def remaining(self) -> float:
        """Seconds for which you may act on all of them if nothing more is heard."""
        return min(lease.remaining for lease in self._leases.values())

    @property
    def lost(self) -> bool:
        """Whether one of them is over."""
        return any(lease.lost for lease in self._leases.values())

    def ensure(self, margin: float = 0.0) -> None:
        """Check, without waiting, that you still hold all of them.

        Args:
            margin: Seconds that what you are about to do may take.

        Raises:
            LeaseLost: One is lost, or will be within the margin, as in `LeaseView.ensure`.
        """
        for lease in self._leases.values():
            lease.ensure(margin)


class LeaseSet(LeaseGroup[Lease]):
    """Several leases that are held together while their context lasts."""


def chain_loss(raised: BaseException, loss: LeaseLost | None) -> None:
    """Tell in a failure of the body that the lease was lost, too."""
    if loss is None or isinstance(raised, LeaseLost):
        return
    if raised.__cause__ is None and isinstance(raised, Exception | BaseExceptionGroup):
        raised.__cause__ = loss


def is_loss_of(error: LeaseLost, lease: LeaseView | None) -> bool:
    """Return whether an error tells the loss of this lease, and not of another."""
    return lease is not None and (error.name, error.fence) == (lease.name, lease.fence)
