"""As much of Protocol Buffers as three messages of etcd need, so that none of its stubs has to be
generated, kept and brought up to date.
"""

from collections.abc import Iterator
from typing import Final

VARINT: Final = 0
TEXT: Final = 2


def varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(0x80 | value & 0x7F)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def number(field: int, value: int) -> bytes:
    """A field that is a number of at least zero."""
    return varint(field << 3 | VARINT) + varint(value)


def text(field: int, value: bytes) -> bytes:
    """A field that is a string, bytes or a message."""
    return varint(field << 3 | TEXT) + varint(len(value)) + value


def read_varint(message: bytes, start: int) -> tuple[int, int]:
    """A number, and where it ends."""
    value = shift = 0
    while True:
        byte = message[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, start
        shift += 7


def fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Those that are strings, bytes or messages; numbers are passed over.

    Raises:
        ValueError: there is something else in it.
    """
    at = 0
    while at < len(message):
        tag, at = read_varint(message, at)
        value, at = read_varint(message, at)
        match tag & 7:
            case 0:
                continue
            case 2:
                yield tag >> 3, message[at : at + value]
                at += value
            case kind:
                raise ValueError(f"a field of wire type {kind}")


def find(message: bytes, field: int) -> bytes:
    """The first of this number; nothing, if there is none."""
    return next((value for number, value in fields(message) if number == field), b"")
