"""Turns: who asks the store for one key does so after those who have begun to."""

import trio
from attrs import define, field

from leasekeeper.messages import Key


@define(eq=False)
class Turns:
    """One caller at a time for each key, in the order in which they come.

    So no answer is older than another's, and no call that is late moves or gives back what was
    asked for after it. It does not know what is asked.
    """

    _queues: dict[Key, trio.lowlevel.ParkingLot | None] = field(
        factory=dict, init=False, repr=False
    )
    """Those who wait for each key that somebody asks for; None: nobody has waited."""

    def __contains__(self, key: Key) -> bool:
        """Whether somebody asks for this key now."""
        return key in self._queues

    def of(self, key: Key) -> "Turn":
        """A context whose body has its turn."""
        return Turn(self._queues, key)


@define(eq=False)
class Turn:
    """One caller's.

    Cancellation: while it waits, it leaves its place.
    """

    _queues: dict[Key, trio.lowlevel.ParkingLot | None]
    _key: Key

    async def __aenter__(self) -> None:
        if self._key not in self._queues:
            self._queues[self._key] = None
            return
        queue = self._queues[self._key]
        if queue is None:
            queue = self._queues[self._key] = trio.lowlevel.ParkingLot()
        await queue.park()  # and has the turn that was handed on to it

    async def __aexit__(self, *_: object) -> None:
        queue = self._queues[self._key]
        if queue is None or not queue.unpark():
            del self._queues[self._key]
