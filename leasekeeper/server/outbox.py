"""What waits to be written to one peer."""

from collections import deque
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field

_ENTRY_BYTES: Final = 1024
"""About what a message takes that waits for room, beside its value."""
_REFILL_BYTES: Final = 256 * 1024
_REFILL_MAX: Final = 256


@define(eq=False)
class Outbox:
    """A queue of encoded messages, bounded in bytes.

    `put` never blocks: past the bound it says no, and the one who put closes the slow peer.
    """

    bytes_max: int
    later_bytes_max: int
    """Of what `put_later` keeps besides."""
    _messages: list[bytes] = field(factory=list, init=False)
    _bytes: int = field(default=0, init=False)
    _later: deque[tuple[Callable[[], bytes], bytes, int]] = field(factory=deque, init=False)
    """How each is encoded, the value that it keeps, and what that counts for."""
    _later_bytes: int = field(default=0, init=False)
    _newest: dict[str, int] = field(factory=dict, init=False)
    """Where in the queue the newest message of a kind is."""
    _finished: bool = field(default=False, init=False)
    _held: bool = field(default=False, init=False)
    _filled: trio.Event = field(factory=trio.Event, init=False)

    def put(self, message: bytes, replaces: str | None = None) -> bool:
        """Queues a message; False if the peer has let too much pile up. Dropped once finished.

        While it is not half full, the next message may be as long as it likes.

        Args:
            message: encoded.
            replaces: a name for messages of which the newest says it all. It takes the place of
                the last of its name, if the outbox is more than half full.
        """
        if self._finished:
            return True
        fits = not self.is_half_full
        self._add(message, replaces)
        return fits or self._bytes <= self.bytes_max

    def put_later(self, encode: Callable[[], bytes], value: bytes, own_bytes: int) -> bool:
        """Queues a message that the others may overtake: it is encoded once there is room.

        Args:
            encode: makes the message.
            value: what is kept in memory for it until then; many in a row may share it.
            own_bytes: what it keeps beside that.

        Returns:
            False if too much is kept by now.
        """
        if self._finished:
            return True
        if not (self._later or self.is_half_full):
            self._add(encode(), None)
            return True
        is_shared = self._later and self._later[-1][1] is value
        kept_bytes = _ENTRY_BYTES + own_bytes + (0 if is_shared else len(value))
        self._later.append((encode, value, kept_bytes))
        self._later_bytes += kept_bytes
        return self._later_bytes <= self.later_bytes_max

    def _add(self, message: bytes, replaces: str | None) -> None:
        at = self._newest.get(replaces) if replaces else None
        if at is not None and self.is_half_full:
            self._bytes -= len(self._messages[at])
            self._messages[at] = message
        else:
            if replaces:
                self._newest[replaces] = len(self._messages)
            self._messages.append(message)
        self._bytes += len(message)
        if not self._held:
            self._filled.set()

    @property
    def is_half_full(self) -> bool:
        """Whether the peer lags."""
        return self._bytes > self.bytes_max // 2

    def finish(self, *, drop: bool) -> None:
        """Nothing more comes; with `drop`, what is queued is not worth writing either."""
        self._finished = True
        self._later.clear()  # there may be far more of it than can be written in time
        if drop:
            self._messages.clear()
        self._filled.set()

    @property
    def is_held(self) -> bool:
        """Whether somebody looks after it."""
        return self._held

    def hold(self) -> None:
        """From now on `put` wakes nobody: who says so looks after it until `let_go`."""
        self._held = True

    def let_go(self, send: Callable[[list[bytes]], bool]) -> None:
        """Ends `hold`. What is there is sent now, if `send` can, or who takes is woken."""
        self._held = False
        if self._messages and not self._filled.is_set():
            if not self._finished and send(self._messages):
                self._take()
            else:
                self._filled.set()

    def nudge(self) -> None:
        """Wakes who takes, if there is something else to write."""
        self._filled.set()

    async def take(self) -> list[bytes] | None:
        """Waits for messages, or a nudge, and takes all that there are; None is the end."""
        await self._filled.wait()
        if not self._finished:
            self._filled = trio.Event()
        messages = self._take()
        return None if self._finished and not messages else messages

    def _take(self) -> list[bytes]:
        messages, self._messages, self._bytes = self._messages, [], 0
        self._newest.clear()
        self._refill()
        return messages

    def _refill(self) -> None:
        """Encodes some of what waits for room: a little, for others are waiting for their turn."""
        room = min(_REFILL_BYTES, self.bytes_max // 2)
        while self._later:
            encode, value, kept_bytes = self._later[0]
            if self._messages and self._bytes + len(value) > room:
                break
            if len(self._messages) >= _REFILL_MAX:
                break
            self._later.popleft()
            self._later_bytes -= kept_bytes
            self._add(encode(), None)
