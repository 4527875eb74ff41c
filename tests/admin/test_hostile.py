"""What strangers may do to the admin port: nothing that anybody else would notice (L13)."""

import math
import socket
import struct
from contextlib import suppress
from http import HTTPStatus

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from leasekeeper.admin.app import CONNECTION_S, CONNECTIONS_MAX, Admin
from leasekeeper.admin.http import Request, Response, exchange, text
from tests.admin.asking import Answer, Asked, looking_after, parsed, read_to_end
from tests.harness import Served

REQUEST = b"GET /health/live HTTP/1.1\r\nHost: here\r\n\r\n"


@pytest.fixture
def clock() -> MockClock:
    """Jumps ahead when nothing else is to do. A test that wants it must name it itself."""
    return MockClock(autojump_threshold=0)


async def answered(asked: Asked, data: bytes = REQUEST) -> Answer | None:
    """What a peer is answered without a network, and so on any clock."""
    theirs, ours = trio.testing.memory_stream_pair()
    asked.connect(ours)
    await theirs.send_all(data)
    return parsed(await read_to_end(theirs))


async def is_alive(asked: Asked) -> bool:
    """Whether somebody else is answered."""
    answer = await answered(asked)
    return answer is not None and answer.status == 200


# --- Too slow -------------------------------------------------------------------------------------


async def test_a_head_that_trickles_in_is_cut_off(asked: Asked, clock: MockClock) -> None:
    theirs, ours = trio.testing.memory_stream_pair()
    asked.connect(ours)
    sent = 0
    with suppress(trio.BrokenResourceError):
        for byte in b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100:
            await theirs.send_all(bytes([byte]))
            sent += 1
            await trio.sleep(0.9)
            assert await is_alive(asked)
    assert sent == math.ceil(CONNECTION_S / 0.9)


async def test_a_peer_that_says_nothing_is_dropped(asked: Asked, clock: MockClock) -> None:
    began_s = trio.current_time()
    theirs, ours = trio.testing.memory_stream_pair()
    asked.connect(ours)
    assert await read_to_end(theirs) == b""
    assert trio.current_time() - began_s == pytest.approx(CONNECTION_S, abs=0.1)


async def test_a_peer_that_does_not_read_is_dropped(asked: Asked, clock: MockClock) -> None:
    began_s = trio.current_time()
    theirs, ours = trio.testing.lockstep_stream_pair()
    asked.connect(ours)
    await theirs.send_all(REQUEST)
    with pytest.raises(trio.BrokenResourceError):
        await theirs.send_all(REQUEST)
    assert trio.current_time() - began_s == pytest.approx(CONNECTION_S, abs=0.1)
    assert await is_alive(asked)


async def test_a_peer_that_goes_on_after_its_answer_is_dropped(
    asked: Asked, clock: MockClock
) -> None:
    began_s = trio.current_time()
    theirs, ours = trio.testing.memory_stream_pair()
    asked.connect(ours)
    with suppress(trio.BrokenResourceError):
        while True:
            await theirs.send_all(REQUEST * 100)
            await trio.sleep(0.1)
    assert trio.current_time() - began_s < CONNECTION_S


# --- Too much -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"GET /" + b"a" * 1_000_000,
        b"GET / HTTP/1.1\r\nA: " + b"a" * 1_000_000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100_000,
    ],
    ids=["line", "header", "headers"],
)
async def test_an_oversized_head_is_refused(asked: Asked, data: bytes) -> None:
    answer = await answered(asked, data)
    assert answer is not None
    assert answer.status == 431
    assert await is_alive(asked)


async def test_a_body_that_is_not_wanted_does_not_cost_the_answer(asked: Asked) -> None:
    """A socket that is closed with something unread takes the answer back from the peer."""
    head = b"POST /metrics HTTP/1.1\r\nHost: here\r\nContent-Length: 30000\r\n\r\n"
    answer = await asked.send(head + b"x" * 30_000)
    assert answer is not None
    assert answer.status == 405
    assert len(answer.body) == int(answer.headers["content-length"])


async def test_many_silent_peers_keep_nobody_out(asked: Asked, clock: MockClock) -> None:
    """The oldest makes room, so there are never more than so many."""
    silent = []
    for _ in range(2 * CONNECTIONS_MAX):
        theirs, ours = trio.testing.memory_stream_pair()
        asked.connect(ours)
        await trio.testing.wait_all_tasks_blocked()
        silent.append(theirs)
    began_s = trio.current_time()
    assert await is_alive(asked)
    assert trio.current_time() == began_s
    for theirs in silent[: CONNECTIONS_MAX + 1]:
        assert await read_to_end(theirs) == b""
    assert trio.current_time() == began_s
    with trio.move_on_after(0.1) as scope:
        await read_to_end(silent[-1])
    assert scope.cancelled_caught


async def test_a_thousand_peers_at_once_are_all_dealt_with(asked: Asked) -> None:
    """Those that are pushed out get no answer; nobody gets a wrong one, and it goes on."""
    answers: list[Answer | None] = []

    async def ask() -> None:
        answers.append(await answered(asked))

    async with trio.open_nursery() as nursery:
        for _ in range(1000):
            nursery.start_soon(ask)
    assert {answer.status for answer in answers if answer} == {200}
    assert await is_alive(asked)


# --- Nonsense -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n",
        b"\0" * 100,
        b"garbage\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: here\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: here\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: here\r\nContent-Length: -1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: here\r\nno colon\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_nonsense_is_refused(asked: Asked, data: bytes) -> None:
    answer = await answered(asked, data)
    assert answer is None or answer.status in {400, 404, 501}
    assert await is_alive(asked)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300) | st.sampled_from([REQUEST[:at] for at in range(len(REQUEST))]))
async def test_no_bytes_harm_it(data: bytes) -> None:
    """Whatever comes, and wherever it ends: an answer or none, and nothing is raised."""

    async def answer(_: Request) -> Response:
        return text(HTTPStatus.OK, "fine")

    theirs, ours = trio.testing.memory_stream_pair()
    await theirs.send_all(data)
    await theirs.send_eof()
    with trio.fail_after(5):
        await exchange(ours, answer)


async def test_a_peer_that_resets_its_connection_is_no_news(asked: Asked) -> None:
    for sent in (b"", REQUEST[:10], REQUEST):
        stream = await trio.open_tcp_stream("127.0.0.1", asked.port)
        await stream.send_all(sent)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()
    assert (await asked.get("/health/live")).status == 200


async def test_a_page_that_fails_harms_nobody_else(
    served: Served, failures: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours is logged, and the peer of it gets no answer."""
    admin = Admin(served.server)

    async def fail(_: Request) -> Response:
        raise ZeroDivisionError

    monkeypatch.setitem(admin._pages._pages, "/health", fail)
    async with looking_after(admin) as asked:
        assert await answered(asked, REQUEST.replace(b"/health/live", b"/health")) is None
        assert await is_alive(asked)
    [failure] = failures
    failures.clear()
    assert "ZeroDivisionError" in failure
