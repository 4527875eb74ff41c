"""How values travel: as JSON by default, or as bytes in base64 with the name of their codec.

A value that JSON can say travels as itself, so that any other client reads it. What another codec
made travels as `{"$lk": "msgpack", "b": "<base64>"}`. Nothing here ever runs code that it reads:
there is no pickle.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Final, Protocol

from leasekeeper_client.errors import UnknownCodec, ValueTooLarge

if TYPE_CHECKING:
    from types import ModuleType

LEVELS_MAX: Final = 250
"""How deep lists and objects may be nested; the server takes a few more."""
INTEGER_MIN: Final = -(2**63)
INTEGER_MAX: Final = 2**64 - 1
"""What every reader of JSON that we know of keeps exactly."""
TAG: Final = "$lk"
_BYTES: Final = "b"
_VALUE: Final = "v"
_LONG_NUMBER: Final = re.compile(r"\d{19}")
_TAGS: Final = re.compile(r"[a-z0-9.+_-]{1,50}")
_JSON: Final = "json"
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"), allow_nan=False, ensure_ascii=False)


class Codec(Protocol):
    """Values to bytes and back. Your own is one, too, if it has these; it must be thread-safe.

    Attributes:
        tag: Its name on the wire: 1 to 50 characters of `[a-z0-9.+_-]`.
    """

    @property
    def tag(self) -> str:
        """Its name on the wire."""

    def dumps(self, value: object) -> bytes:
        """Return the value as bytes.

        Raises:
            ValueError, TypeError: It cannot be said in this codec.
        """

    def loads(self, data: bytes) -> object:
        """Return the value of bytes that `dumps` has made, here or in another program.

        Raises:
            ValueError: They are no such bytes.
        """


class JsonCodec:
    """The default: the value travels as JSON itself.

    What comes back is what JSON makes of it: tuples are lists, and keys of objects are strings.
    It refuses what readers would not get back as it was: integers beyond 64 bits, infinities, NaN,
    and lists and objects nested more than 250 deep.
    """

    @property
    def tag(self) -> str:
        """`json`."""
        return _JSON

    def dumps(self, value: object) -> bytes:
        """Return compact JSON in UTF-8.

        Raises:
            TypeError: It is nothing that JSON can say.
            ValueError: JSON could say it, but not every reader would get it back.
        """
        try:
            text = _ENCODER.encode(value)
        except RecursionError as exc:
            raise ValueError("a value that is nested too deep, or contains itself") from exc
        # The walk is slow, and almost never needed.
        if text.count("[") + text.count("{") > LEVELS_MAX or _LONG_NUMBER.search(text):
            _check(value)
        return text.encode()

    def loads(self, data: bytes) -> object:
        """Return the value of JSON in UTF-8.

        Raises:
            ValueError: It is none.
        """
        value: object = json.loads(data)
        return value


class MsgpackCodec:
    """MessagePack: bytes stay bytes. Needs `leasekeeper-client[msgpack]`.

    Tuples are lists afterwards. There are no extension types, and so no dates.

    Raises:
        ImportError: msgpack is not installed.
    """

    def __init__(self) -> None:
        self._msgpack: ModuleType = import_module("msgpack")

    @property
    def tag(self) -> str:
        """`msgpack`."""
        return "msgpack"

    def dumps(self, value: object) -> bytes:
        """Return the value as MessagePack.

        Raises:
            TypeError, ValueError, OverflowError: MessagePack cannot say it.
        """
        data: bytes = self._msgpack.packb(value)
        return data

    def loads(self, data: bytes) -> object:
        """Return the value of MessagePack.

        Raises:
            ValueError: It is none.
        """
        try:
            value: object = self._msgpack.unpackb(data, strict_map_key=False)
        except ValueError as exc:
            raise ValueError(f"no MessagePack: {exc}") from exc
        return value


class ZstdCodec:
    """What another codec makes, compressed if it is long. Needs `leasekeeper-client[zstd]`.

    Args:
        inner: The other codec.
        threshold: Shorter values (bytes) travel as the inner codec has them.
        level: 1, fast, to 22, small.
        bytes_max: The longest value that is read: a short one may say that it is terabytes long.

    Raises:
        ImportError: zstandard is not installed.
    """

    def __init__(
        self,
        inner: Codec | None = None,
        *,
        threshold: int = 1024,
        level: int = 3,
        bytes_max: int = 64 * 1024 * 1024,
    ) -> None:
        self._zstandard: ModuleType = import_module("zstandard")
        self.inner: Codec = JsonCodec() if inner is None else inner
        self.threshold: int = threshold
        self._level = level
        self._bytes_max = bytes_max

    @property
    def tag(self) -> str:
        """`zstd+` and that of the inner codec."""
        return f"zstd+{self.inner.tag}"

    def dumps(self, value: object) -> bytes:
        """Return the value compressed, however short it is.

        Raises:
            ValueError, TypeError: As the inner codec.
        """
        return self.compress(self.inner.dumps(value))

    def compress(self, data: bytes) -> bytes:
        """Return what the inner codec has made, compressed."""
        compressed: bytes = self._zstandard.ZstdCompressor(level=self._level).compress(data)
        return compressed

    def loads(self, data: bytes) -> object:
        """Return the value of what `dumps` has made.

        Raises:
            ValueError: It is no such thing, or longer than `bytes_max`.
        """
        try:
            size: int = self._zstandard.frame_content_size(data)
            if not 0 <= size <= self._bytes_max:
                raise ValueError(f"a compressed value of {size} bytes; at most {self._bytes_max}")
            plain: bytes = self._zstandard.ZstdDecompressor().decompress(data)
        except self._zstandard.ZstdError as exc:
            raise ValueError(f"no compressed value: {exc}") from exc
        return self.inner.loads(plain)


def check_codec(codec: Codec) -> None:
    """Check the tag of a codec.

    Raises:
        ValueError: It cannot be written on the wire.
    """
    if not _TAGS.fullmatch(codec.tag):
        raise ValueError(f"{codec.tag!r} is not 1 to 50 characters of [a-z0-9.+_-]")


def to_wire(codec: Codec, value: object) -> str:
    """Return a value as the JSON text that goes into a request.

    Raises:
        ValueError, TypeError: The codec cannot say it.
    """
    data = None
    if isinstance(codec, ZstdCodec):
        data = codec.inner.dumps(value)
        if len(data) < codec.threshold:
            codec = codec.inner
        else:
            data = codec.compress(data)
    if data is None:
        data = codec.dumps(value)
    if codec.tag != _JSON:
        return f'{{"{TAG}":"{codec.tag}","{_BYTES}":"{base64.b64encode(data).decode()}"}}'
    text = data.decode()
    if isinstance(value, Mapping) and TAG in value:  # or it would be taken for another codec's
        return f'{{"{TAG}":"{_JSON}","{_VALUE}":{text}}}'
    return text


def from_wire(codec: Codec, value: object) -> object:
    """Return the value that another client, or this one, has cached.

    Raises:
        UnknownCodec: This codec does not read it.
        ValueError: It is damaged.
    """
    if not isinstance(value, dict) or TAG not in value:
        return value
    tag = value[TAG]
    if tag == _JSON and _VALUE in value:
        return value[_VALUE]
    reader: Codec | None = codec
    while reader is not None and (reader.tag == _JSON or reader.tag != tag):
        reader = reader.inner if isinstance(reader, ZstdCodec) else None
    data = value.get(_BYTES)
    if reader is None or not isinstance(data, str):
        raise UnknownCodec(f"a value under the codec {tag!r}, which is not in use here", tag=tag)
    try:
        return reader.loads(base64.b64decode(data, validate=True))
    except binascii.Error as exc:
        raise ValueError(f"a damaged value under the codec {tag!r}: {exc}") from exc


def check_size(text: str, bytes_max: int) -> None:
    """Check the length of a value on the wire.

    Raises:
        ValueTooLarge: It is longer than the server would take.
    """
    size = len(text) if text.isascii() else len(text.encode())
    if size > bytes_max:
        raise ValueTooLarge(
            f"a value of {size} bytes; the server takes {bytes_max}",
            limit="value_bytes",
            max=bytes_max,
        )


def _check(value: object) -> None:
    """Check, without recursion, what JSON can say and not every reader gets back.

    Raises:
        ValueError: There is such a thing.
    """
    level: list[object] = [value]
    for _ in range(LEVELS_MAX):
        deeper: list[object] = []
        for each in level:
            if isinstance(each, int) and not INTEGER_MIN <= each <= INTEGER_MAX:
                raise ValueError("an integer of more than 64 bits")
            if isinstance(each, Mapping):
                deeper += each.values()
            elif isinstance(each, list | tuple):
                deeper += each
        if not deeper:
            return
        level = deeper
    if any(isinstance(each, Mapping | list | tuple) for each in level):
        raise ValueError(f"lists and objects nested more than {LEVELS_MAX} deep")
