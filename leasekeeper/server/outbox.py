"""What waits to be written to one peer."""

import trio
from attrs import define, field


@define(eq=False)
class Outbox:
    """A queue of encoded messages, bounded in bytes.

    `put` never blocks: past the bound it says no, and the one who put closes the slow peer.
    """

    bytes_max: int
    _messages: list[bytes] = field(factory=list, init=False)
    _bytes: int = field(default=0, init=False)
    _finished: bool = field(default=False, init=False)
    _filled: trio.Event = field(factory=trio.Event, init=False)

    def put(self, message: bytes) -> bool:
        """Queues a message; False if the peer has let too much pile up. Dropped once finished."""
        if self._finished:
            return True
        self._messages.append(message)
        self._bytes += len(message)
        self._filled.set()
        return self._bytes <= self.bytes_max

    def finish(self, *, drop: bool) -> None:
        """Nothing more comes; with `drop`, what is queued is not worth writing either."""
        self._finished = True
        if drop:
            self._messages.clear()
        self._filled.set()

    async def take(self) -> list[bytes]:
        """Waits for messages and takes all of them; an empty list is the end."""
        await self._filled.wait()
        if not self._finished:
            self._filled = trio.Event()
        messages, self._messages, self._bytes = self._messages, [], 0
        return messages
