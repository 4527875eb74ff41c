"""FrameReader: what a client's frames say, and which must not be."""

import time
from collections.abc import Generator
from itertools import pairwise
from typing import cast

from hypothesis import example, given
from hypothesis import strategies as st
from websockets.frames import Frame as TheirFrame
from websockets.frames import Opcode as TheirOpcode
from websockets.streams import StreamReader

from leasekeeper.errors import CloseCode
from leasekeeper.server.frames import FrameReader, Opcode, frame
from tests.harness import raw_frame

TEXT, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x0, 0x8, 0x9, 0xA
BYTES_MAX, FRAGMENTS_MAX, CONTROL_RATE = 300, 4, 3

Found = list[tuple[Opcode, bytes]]


def reader() -> FrameReader:
    return FrameReader(BYTES_MAX, FRAGMENTS_MAX, CONTROL_RATE)


def read(*chunks: bytes, now_s: float = 0.0) -> tuple[Found, CloseCode | None]:
    it, found = reader(), Found()
    for chunk in chunks:
        found += it.feed(chunk, now_s)
    return found, it.violation.code if it.violation else None


def violation(*chunks: bytes) -> CloseCode | None:
    return read(*chunks)[1]


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(min(each, len(data)) for each in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


frames = st.builds(
    raw_frame,
    st.integers(0, 15),
    st.binary(max_size=200),
    fin=st.booleans(),
    masked=st.booleans(),
    rsv=st.integers(0, 7),
    declared_length=st.none() | st.integers(0, 400) | st.integers(0, 2**63 - 1),
)
streams = st.one_of(st.binary(max_size=500), st.lists(frames, max_size=8).map(b"".join))
cuts = st.lists(st.integers(0, 600), max_size=12)


@given(data=streams, places=cuts)
def test_what_is_read_does_not_depend_on_how_the_bytes_are_cut(
    data: bytes, places: list[int]
) -> None:
    assert read(*cut(data, places)) == read(data)


@given(data=streams)
def test_it_is_the_same_byte_by_byte(data: bytes) -> None:
    assert read(*(data[at : at + 1] for at in range(len(data)))) == read(data)


@st.composite
def valid_streams(draw: st.DrawFn) -> tuple[bytes, Found]:
    """Messages within the bounds, cut into fragments, with a few control frames between those."""
    sent, meant, controls_left = list[bytes](), Found(), 2 * CONTROL_RATE
    for _ in range(draw(st.integers(0, 6))):
        message = draw(st.binary(max_size=BYTES_MAX))
        ends = sorted(draw(st.lists(st.integers(0, len(message)), max_size=FRAGMENTS_MAX - 1)))
        bounds = list(pairwise([0, *ends, len(message)]))
        for number, (start, end) in enumerate(bounds):
            if controls_left and draw(st.booleans()):
                controls_left -= 1
                control = draw(st.sampled_from([Opcode.PING, Opcode.PONG]))
                payload = draw(st.binary(max_size=125))
                sent.append(raw_frame(control, payload))
                meant.append((control, payload))
            opcode = CONTINUATION if number else TEXT
            sent.append(raw_frame(opcode, message[start:end], fin=number == len(bounds) - 1))
        meant.append((Opcode.TEXT, message))
    return b"".join(sent), meant


@given(said=valid_streams(), places=cuts)
@example(
    said=(raw_frame(TEXT, b"x" * BYTES_MAX) * 3, [(Opcode.TEXT, b"x" * BYTES_MAX)] * 3), places=[]
)
def test_what_a_client_says_is_what_is_read(said: tuple[bytes, Found], places: list[int]) -> None:
    data, meant = said
    assert read(*cut(data, places)) == (meant, None)


def _returned(parsing: Generator[None, None, TheirFrame]) -> TheirFrame:
    """What it comes to without a wait."""
    try:
        next(parsing)
    except StopIteration as done:
        return cast("TheirFrame", done.value)
    raise AssertionError("it waits for more")


@given(size=st.sampled_from([0, 1, 125, 126, 127, 65_535, 65_536, 70_000]), control=st.booleans())
def test_what_is_written_is_what_another_library_reads(size: int, *, control: bool) -> None:
    payload = bytes(each % 251 for each in range(min(size, 125) if control else size))
    opcode = Opcode.PONG if control else Opcode.TEXT
    stream = StreamReader()
    stream.feed_data(frame(opcode, payload))
    read_back = _returned(TheirFrame.parse(stream.read_exact, mask=False))
    assert (read_back.opcode, read_back.data, read_back.fin) == (TheirOpcode(opcode), payload, True)


def test_one_byte_too_many_is_seen_in_the_header() -> None:
    whole = raw_frame(TEXT, b"", declared_length=BYTES_MAX + 1)
    assert violation(whole[:4]) is CloseCode.TOO_BIG
    parts = raw_frame(TEXT, b"x" * BYTES_MAX, fin=False) + raw_frame(CONTINUATION, b"x")
    assert violation(parts) is CloseCode.TOO_BIG
    assert violation(raw_frame(TEXT, declared_length=2**63 - 1)) is CloseCode.TOO_BIG


def test_empty_fragments_count() -> None:
    first, more = raw_frame(TEXT, fin=False), raw_frame(CONTINUATION, fin=False)
    last = raw_frame(CONTINUATION)
    assert violation(first + more * (FRAGMENTS_MAX - 2) + last) is None
    assert violation(first + more * (FRAGMENTS_MAX - 1) + last) is CloseCode.POLICY


def test_a_new_message_starts_a_new_count() -> None:
    message = raw_frame(TEXT, b"x" * 200, fin=False) + raw_frame(CONTINUATION, b"x" * 100)
    assert violation(message * 20) is None


def test_fragments_have_their_place() -> None:
    assert violation(raw_frame(CONTINUATION, b"x")) is CloseCode.PROTOCOL_ERROR
    assert violation(raw_frame(TEXT, fin=False) + raw_frame(TEXT)) is CloseCode.PROTOCOL_ERROR


def test_control_frames_have_a_rate_and_a_burst() -> None:
    it, ping = reader(), raw_frame(PING)
    it.feed(ping * 2 * CONTROL_RATE, 100.0)
    assert it.violation is None
    it.feed(ping * CONTROL_RATE, 101.0)
    assert it.violation is None
    it.feed(ping, 101.0)
    assert it.violation is not None
    assert it.violation.code is CloseCode.POLICY


def test_after_the_first_violation_nothing_is_read() -> None:
    too_big = raw_frame(TEXT, b"x" * (BYTES_MAX + 1))
    hello = raw_frame(TEXT, b"hello")
    assert read(hello + too_big + hello) == ([(Opcode.TEXT, b"hello")], CloseCode.TOO_BIG)
    assert read(hello, too_big, hello) == ([(Opcode.TEXT, b"hello")], CloseCode.TOO_BIG)
    assert violation(too_big, raw_frame(PING) * 20) is CloseCode.TOO_BIG


def test_reading_is_linear_in_the_bytes() -> None:
    """A million bytes of six-byte frames, in the pieces that a socket yields; and one of them."""
    small, large = raw_frame(TEXT) * 170_000, raw_frame(TEXT, b"x" * 1_000_000)
    for data, messages in ((small, 170_000), (large, 1)):
        it, found = FrameReader(2_000_000, FRAGMENTS_MAX, CONTROL_RATE), 0
        started = time.perf_counter()
        for at in range(0, len(data), 16 * 1024):
            found += len(it.feed(data[at : at + 16 * 1024], 0.0))
        assert found == messages
        assert time.perf_counter() - started < 5
