"""Counts the frames of a WebSocket byte stream before anything buffers them.

The library counts a message in characters, and not at all while its fragments are empty. This
reads only the headers (RFC 6455, section 5.2), so that a message's declared size and its number of
fragments are known while its first bytes arrive.
"""

import re
from enum import Enum
from typing import Final

from attrs import define, field

from leasekeeper.errors import CloseCode

_CONTINUATION: Final = 0x0
_CLOSE: Final = 0x8


class _State(Enum):
    HANDSHAKE = "handshake"
    HEADER = "header"
    PAYLOAD = "payload"


_HANDSHAKE_BYTES_MAX: Final = 16 * 1024
_END_OF_HANDSHAKE: Final = re.compile(rb"\n\r?\n")
"""An empty line, with the bare newlines that HTTP parsers put up with."""


@define
class FrameMeter:
    """Reads what a client sends, handshake first. `violation` is set once, and stays.

    It keeps no payload, checks no masks, opcodes or UTF-8: the library does.
    """

    message_bytes_max: int
    fragments_max: int
    control_frames_per_second: int
    violation: CloseCode | None = None
    close_seen: bool = False
    """The peer has sent a close frame."""
    _state: _State = _State.HANDSHAKE
    _header: bytearray = field(factory=bytearray)
    _payload_left: int = 0
    _handshake_bytes: int = 0
    _message_bytes: int = 0
    _fragments: int = 0
    _control_budget: float = field(init=False)
    _budget_at_s: float = 0.0

    def __attrs_post_init__(self) -> None:
        self._control_budget = 2.0 * self.control_frames_per_second

    def feed(self, data: bytes, now_s: float) -> None:
        """Counts these bytes. `now_s` is any clock that does not step back."""
        at = 0
        if self._state is _State.HANDSHAKE:
            at = self._feed_handshake(data)
        while at < len(data):
            if self._state is _State.PAYLOAD:
                step = min(self._payload_left, len(data) - at)
                self._payload_left -= step
                at += step
            else:
                wanted = _header_bytes(self._header) - len(self._header)
                self._header += data[at : at + wanted]
                at += wanted
                if len(self._header) >= 2 and len(self._header) == _header_bytes(self._header):
                    self._count_frame(now_s)
            if self._state is _State.PAYLOAD and not self._payload_left:
                self._state = _State.HEADER

    def _feed_handshake(self, data: bytes) -> int:
        """How many of these bytes belong to the handshake."""
        tail = bytes(self._header)
        end = _END_OF_HANDSHAKE.search(tail + data)
        mine = end.end() - len(tail) if end else len(data)
        self._handshake_bytes += mine
        if self._handshake_bytes > _HANDSHAKE_BYTES_MAX:
            self._violate(CloseCode.POLICY)
        self._header = bytearray() if end else bytearray((tail + data)[-2:])
        if end:
            self._state = _State.HEADER
        return mine

    def _count_frame(self, now_s: float) -> None:
        first, second = self._header[0], self._header[1]
        opcode, is_last, length = first & 0x0F, first & 0x80, second & 0x7F
        if length >= 126:
            length = int.from_bytes(self._header[2 : 4 if length == 126 else 10])
        self._header.clear()
        self._state, self._payload_left = _State.PAYLOAD, length
        if opcode >= _CLOSE:
            self.close_seen = self.close_seen or opcode == _CLOSE
            self._count_control(now_s)
            return
        if opcode != _CONTINUATION:
            self._message_bytes = self._fragments = 0
        self._message_bytes += length
        self._fragments += 1
        if self._message_bytes > self.message_bytes_max:
            self._violate(CloseCode.TOO_BIG)
        elif self._fragments > self.fragments_max:
            self._violate(CloseCode.POLICY)
        elif is_last:
            self._message_bytes = self._fragments = 0

    def _count_control(self, now_s: float) -> None:
        rate = self.control_frames_per_second
        gained = (now_s - self._budget_at_s) * rate
        self._control_budget = min(2.0 * rate, self._control_budget + gained) - 1
        self._budget_at_s = now_s
        if self._control_budget < 0:
            self._violate(CloseCode.POLICY)

    def _violate(self, code: CloseCode) -> None:
        if self.violation is None:
            self.violation = code


def _header_bytes(start: bytearray) -> int:
    """How long the header that starts like this is; 2 while that is all one can say."""
    if len(start) < 2:
        return 2
    length = start[1] & 0x7F
    extended = {126: 2, 127: 8}.get(length, 0)
    return 2 + extended + (4 if start[1] & 0x80 else 0)
