"""FrameMeter: the bounds of a byte stream, seen from its frame headers alone."""

import time
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from leasekeeper.errors import CloseCode
from leasekeeper.server.frames import FrameMeter
from tests.harness import raw_frame

TEXT, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x0, 0x8, 0x9, 0xA
HANDSHAKE = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
BYTES_MAX, FRAGMENTS_MAX, CONTROL_RATE = 300, 4, 3


def meter() -> FrameMeter:
    return FrameMeter(BYTES_MAX, FRAGMENTS_MAX, CONTROL_RATE)


def verdict(*chunks: bytes, now_s: float = 0.0) -> tuple[CloseCode | None, bool]:
    it = meter()
    for chunk in chunks:
        it.feed(chunk, now_s)
    return it.violation, it.close_seen


def violation(*chunks: bytes) -> CloseCode | None:
    return verdict(HANDSHAKE, *chunks)[0]


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
streams = st.one_of(
    st.binary(max_size=500),
    st.lists(frames, max_size=8).map(lambda sent: HANDSHAKE + b"".join(sent)),
)
cuts = st.lists(st.integers(0, 600), max_size=12)


@given(data=streams, places=cuts)
def test_the_verdict_does_not_depend_on_how_the_bytes_are_cut(
    data: bytes, places: list[int]
) -> None:
    assert verdict(*cut(data, places)) == verdict(data)


@given(data=streams)
def test_the_verdict_is_the_same_byte_by_byte(data: bytes) -> None:
    assert verdict(*(data[at : at + 1] for at in range(len(data)))) == verdict(data)


def test_a_handshake_is_bounded_however_it_is_cut() -> None:
    head = b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n"
    by_pieces = verdict(*(head[at : at + 1000] for at in range(0, len(head), 1000)))
    assert by_pieces == verdict(head) == (CloseCode.POLICY, False)


@st.composite
def valid_streams(draw: st.DrawFn) -> bytes:
    """Messages within the bounds, cut into fragments, with a few control frames between those."""
    sent, controls_left = [], 2 * CONTROL_RATE
    for _ in range(draw(st.integers(0, 6))):
        size = draw(st.integers(0, BYTES_MAX))
        ends = sorted(draw(st.lists(st.integers(0, size), max_size=FRAGMENTS_MAX - 1)))
        bounds = list(pairwise([0, *ends, size]))
        for number, (start, end) in enumerate(bounds):
            if controls_left and draw(st.booleans()):
                controls_left -= 1
                control = draw(st.sampled_from([PING, PONG]))
                sent.append(raw_frame(control, b"!" * draw(st.integers(0, 125))))
            opcode = CONTINUATION if number else TEXT
            fin = number == len(bounds) - 1
            sent.append(raw_frame(opcode, b"x" * (end - start), fin=fin))
    return HANDSHAKE + b"".join(sent)


@given(data=valid_streams(), places=cuts)
@example(data=HANDSHAKE + raw_frame(TEXT, b"x" * BYTES_MAX) * 50, places=[])
def test_what_stays_within_the_bounds_is_no_violation(data: bytes, places: list[int]) -> None:
    assert verdict(*cut(data, places)) == (None, False)


def test_one_byte_too_many_is_seen_in_the_header() -> None:
    whole = raw_frame(TEXT, b"", declared_length=BYTES_MAX + 1)
    assert violation(whole[:4]) is CloseCode.TOO_BIG or violation(whole) is CloseCode.TOO_BIG
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


def test_control_frames_have_a_rate_and_a_burst() -> None:
    it, ping = meter(), raw_frame(PING)
    it.feed(HANDSHAKE + ping * 2 * CONTROL_RATE, 100.0)
    assert it.violation is None
    it.feed(ping * CONTROL_RATE, 101.0)
    assert it.violation is None
    it.feed(ping, 101.0)
    assert it.violation is CloseCode.POLICY


def test_the_first_violation_stays() -> None:
    too_big = raw_frame(TEXT, b"x" * (BYTES_MAX + 1))
    pings = raw_frame(PING) * 20
    assert violation(too_big, pings) is CloseCode.TOO_BIG
    assert violation(pings, too_big) is CloseCode.POLICY


def test_a_close_frame_is_noticed_even_after_a_violation() -> None:
    assert verdict(HANDSHAKE, raw_frame(CLOSE)) == (None, True)
    too_big = raw_frame(TEXT, b"x" * (BYTES_MAX + 1))
    assert verdict(HANDSHAKE, too_big, raw_frame(CLOSE)) == (CloseCode.TOO_BIG, True)


def test_metering_is_linear_in_the_bytes() -> None:
    """A million bytes of six-byte frames, in the pieces that a socket yields, in about a second."""
    data, it = raw_frame(TEXT) * 170_000, meter()
    it.feed(HANDSHAKE, 0.0)
    started = time.perf_counter()
    for at in range(0, len(data), 16 * 1024):
        it.feed(data[at : at + 16 * 1024], 0.0)
    assert time.perf_counter() - started < 3
    assert it.violation is None
