"""Turns: who asks the store for one key does so after those who have begun to."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import define, field

from leasekeeper.messages import Key


@define(eq=False)
class Turns:
    """One caller at a time for each key, in the order in which they come.

    So no answer is older than another's, and no call that is late moves or gives back what was
    asked for after it. It does not know what is asked.
    """

    _queues: dict[Key, trio.lowlevel.ParkingLot] = field(factory=dict, init=False, repr=False)

    def __contains__(self, key: Key) -> bool:
        """Whether somebody asks for this key now."""
        return key in self._queues

    @asynccontextmanager
    async def of(self, key: Key) -> AsyncIterator[None]:
        """The body of the context has its turn.

        Cancellation: while it waits, it leaves its place.
        """
        if (queue := self._queues.get(key)) is not None:
            await queue.park()  # and has the turn that was handed on to it
        else:
            queue = self._queues[key] = trio.lowlevel.ParkingLot()
        try:
            yield
        finally:
            if not queue.unpark():
                del self._queues[key]
