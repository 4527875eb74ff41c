"""What a request is while it waits for its answer, and no task waits with it."""

from collections.abc import Callable

from leasekeeper.errors import RpcError
from leasekeeper.messages import Result


class Waiting:
    """A request that was begun and has no answer yet."""

    __slots__ = ()

    def when_answered(self, tell: Callable[[Result | RpcError], object]) -> None:
        """Has one told of the answer, once. `tell` may neither block nor raise."""
        raise NotImplementedError

    def withdraw(self) -> None:
        """The answer is not wanted any more, and nobody will be told."""
        raise NotImplementedError
