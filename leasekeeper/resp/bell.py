"""Something changed: whoever waits for that looks again."""

import trio
from attrs import define, field


@define(eq=False)
class Bell:
    """Wakes all who wait when it is rung."""

    _event: trio.Event = field(factory=trio.Event, init=False)

    def ring(self) -> None:
        """Wakes all who wait."""
        self._event.set()
        self._event = trio.Event()

    def next(self) -> trio.Event:
        """Set when it is rung from now on. Taken before one looks, no ring is missed."""
        return self._event
