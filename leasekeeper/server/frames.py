"""The frames that a WebSocket client sends (RFC 6455, section 5), and those that it is sent.

A library's reader knows one bound, the size of a message. This one refuses what breaks a bound of
ours, or the protocol, by the header alone, before any of the payload is kept: sizes, the number of
fragments, the number of control frames in a time, lengths in a longer form than they need.
"""

from enum import IntEnum
from typing import Final

from attrs import define, field

from leasekeeper.errors import CloseCode

_FIN: Final = 0x80
_RESERVED: Final = 0x70
_MASKED: Final = 0x80
_CONTROL: Final = 0x08
_CONTROL_BYTES_MAX: Final = 125
_ONE_BYTE_MAX: Final = 125
_TWO_BYTES_MAX: Final = 0xFFFF
_CODES: Final = frozenset({1000, 1001, 1002, 1003, *range(1007, 1015), *range(3000, 5000)})
"""What a close frame may say."""


class Opcode(IntEnum):
    """What a frame is."""

    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


_OPCODES: Final = {each.value: each for each in Opcode}


class Violation(Exception):
    """The peer broke the protocol, or a bound. `code` and `reason` are for its close frame."""

    def __init__(self, code: CloseCode, reason: str) -> None:
        super().__init__(reason)
        self.code: Final = code
        self.reason: Final = reason


@define
class FrameReader:
    """Makes messages and control frames of a client's bytes, from the first after the handshake.

    Once there is a `violation` nothing more is read.
    """

    message_bytes_max: int
    fragments_max: int
    control_frames_per_second: int
    """On average; twice as many at once."""
    violation: Violation | None = field(default=None, init=False)
    _buffer: bytearray = field(factory=bytearray, init=False)
    _parts: list[bytes] = field(factory=list, init=False)
    """The fragments of a message that has not ended."""
    _parts_bytes: int = field(default=0, init=False)
    _control_budget: float = field(init=False)
    _budget_at_s: float = field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        self._control_budget = 2.0 * self.control_frames_per_second

    def feed(self, data: bytes | bytearray, now_s: float) -> list[tuple[Opcode, bytes]]:
        """Whole messages, as `TEXT`, and control frames, in the order in which they ended.

        Args:
            data: some bytes.
            now_s: any clock that does not step back.
        """
        found: list[tuple[Opcode, bytes]] = []
        if self.violation is None:
            self._buffer += data
            try:
                self._read(found, now_s)
            except Violation as violation:
                self.violation = violation
                self._buffer.clear()
        return found

    def _read(self, found: list[tuple[Opcode, bytes]], now_s: float) -> None:
        buffer, at = self._buffer, 0
        while len(buffer) >= at + 2:
            first, second = buffer[at], buffer[at + 1]
            length, start = second & ~_MASKED, at + 2
            if length > _ONE_BYTE_MAX:
                start += 2 if length == _ONE_BYTE_MAX + 1 else 8
                if len(buffer) < start:
                    break
                length = _long_length(bytes(buffer[at + 2 : start]))
            opcode = self._check(first, second, length)
            end = start + 4 + length
            if len(buffer) < end:
                break
            payload = _unmask(bytes(buffer[start + 4 : end]), bytes(buffer[start : start + 4]))
            at = end
            if opcode & _CONTROL:
                self._count_control(now_s)
                found.append((opcode, payload))
            elif first & _FIN:
                found.append((Opcode.TEXT, b"".join([*self._parts, payload])))
                self._parts.clear()
                self._parts_bytes = 0
            else:
                self._parts.append(payload)
                self._parts_bytes += length
        del buffer[:at]

    def _check(self, first: int, second: int, length: int) -> Opcode:
        """Looks at a header; as often as one likes."""
        opcode = _OPCODES.get(first & 0x0F)
        if opcode is None or first & _RESERVED or not second & _MASKED:
            raise Violation(CloseCode.PROTOCOL_ERROR, "not a frame of a client")
        if opcode & _CONTROL:
            if length > _CONTROL_BYTES_MAX or not first & _FIN:
                raise Violation(CloseCode.PROTOCOL_ERROR, "not a control frame")
            return opcode
        if opcode is Opcode.BINARY:
            raise Violation(CloseCode.UNSUPPORTED_DATA, "text frames only")
        if (opcode is Opcode.CONTINUATION) is not bool(self._parts):
            raise Violation(CloseCode.PROTOCOL_ERROR, "a fragment out of place")
        if self._parts_bytes + length > self.message_bytes_max:
            raise Violation(CloseCode.TOO_BIG, "the message is too long")
        if len(self._parts) >= self.fragments_max:
            raise Violation(CloseCode.POLICY, "too many fragments")
        return opcode

    def _count_control(self, now_s: float) -> None:
        """A bucket that drips: section 5.5 sets no bound."""
        rate = self.control_frames_per_second
        gained = (now_s - self._budget_at_s) * rate
        self._control_budget = min(2.0 * rate, self._control_budget + gained) - 1
        self._budget_at_s = now_s
        if self._control_budget < 0:
            raise Violation(CloseCode.POLICY, "too many control frames")


def frame(opcode: Opcode, payload: bytes) -> bytes:
    """A whole frame of a server."""
    length = len(payload)
    if length <= _ONE_BYTE_MAX:
        return bytes((_FIN | opcode, length)) + payload
    if length <= _TWO_BYTES_MAX:
        return bytes((_FIN | opcode, _ONE_BYTE_MAX + 1)) + length.to_bytes(2) + payload
    return bytes((_FIN | opcode, _ONE_BYTE_MAX + 2)) + length.to_bytes(8) + payload


def close_frame(code: int, reason: str) -> bytes:
    """The frame that says goodbye."""
    return frame(Opcode.CLOSE, code.to_bytes(2) + reason.encode()[: _CONTROL_BYTES_MAX - 2])


def close_code(payload: bytes) -> int:
    """What a peer's close frame says (section 7.4).

    Raises:
        Violation: it says what must not be said.
    """
    if not payload:
        return CloseCode.NO_STATUS
    code = int.from_bytes(payload[:2])
    if len(payload) == 1 or code not in _CODES:
        raise Violation(CloseCode.PROTOCOL_ERROR, "not a close code")
    text_of(payload[2:])
    return code


def text_of(payload: bytes) -> str:
    """
    Raises:
        Violation: it is not UTF-8.
    """
    try:
        return payload.decode()
    except UnicodeDecodeError:
        raise Violation(CloseCode.INVALID_DATA, "not UTF-8") from None


def _long_length(field: bytes) -> int:
    length = int.from_bytes(field)
    if length <= (_ONE_BYTE_MAX if len(field) == 2 else _TWO_BYTES_MAX):
        raise Violation(CloseCode.PROTOCOL_ERROR, "a length in the wrong form")
    return length


def _unmask(payload: bytes, key: bytes) -> bytes:
    """Section 5.3; as one long number, for Python is quick with these."""
    length = len(payload)
    keys = (key * (length // 4 + 1))[:length]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(keys, "little")).to_bytes(
        length, "little"
    )
