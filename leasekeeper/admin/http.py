"""One request and its response over a byte stream, as HTTP/1.1 has it; h11 knows the grammar.

    peer ── bytes ──> h11 ── Request ──> answer
         <─ bytes ───     <─ Response ──

A connection carries one request. Whoever asks every few seconds gains nothing from keeping it, and
what cannot be kept cannot pile up. A request's body is never read: no page here wants one.
"""

from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

import h11
import trio
from attrs import Factory, frozen

_READ_BYTES: Final = 4096
_HEAD_BYTES_MAX: Final = 16 * 1024
"""Of the request line and the headers together."""
_LINGER_S: Final = 1.0
_LINGER_BYTES: Final = 64 * 1024


@frozen
class Request:
    """What a page needs to know of a request."""

    method: str
    path: str
    """Without the query, which no page here has."""
    accept: str


@frozen
class Response:
    """What the peer is answered."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: Mapping[str, str] = Factory(dict)


Answer = Callable[[Request], Awaitable[Response]]


def text(status: HTTPStatus, line: str, **headers: str) -> Response:
    """A page of one line."""
    body = f"{line}\n".encode()
    return Response(status, "text/plain; charset=utf-8", body, headers)


async def exchange(stream: trio.abc.HalfCloseableStream, answer: Answer) -> None:
    """Reads a request, and sends its response; what is no request is told so.

    What it does not do: limit how long the peer takes, or close the stream.

    Raises:
        trio.BrokenResourceError: the peer went away.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES_MAX)
    try:
        request = await _read(connection, stream)
    except h11.RemoteProtocolError as error:
        response = text(HTTPStatus(error.error_status_hint), "this is no request")
        await _send(connection, stream, response, with_body=True)
    else:
        if request is None:
            return
        with_body = request.method != "HEAD"
        await _send(connection, stream, await answer(request), with_body=with_body)
    await _linger(stream)


async def _read(connection: h11.Connection, stream: trio.abc.ReceiveStream) -> Request | None:
    """None: the peer has nothing to ask."""
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(_READ_BYTES)))
        elif isinstance(event, h11.Request):
            accepted = b",".join(value for name, value in event.headers if name == b"accept")
            path = event.target.decode("ascii").partition("?")[0]
            return Request(event.method.decode("ascii"), path, accepted.decode("ascii", "ignore"))
        else:
            return None


async def _send(
    connection: h11.Connection,
    stream: trio.abc.SendStream,
    response: Response,
    *,
    with_body: bool,
) -> None:
    headers = [
        ("Date", formatdate(usegmt=True)),
        ("Content-Type", response.content_type),
        ("Content-Length", str(len(response.body))),
        ("Cache-Control", "no-store"),
        ("Connection", "close"),
        *response.headers.items(),
    ]
    status = response.status
    events: list[h11.Event] = [
        h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()),
        *([h11.Data(response.body)] if with_body else []),
        h11.EndOfMessage(),
    ]
    await stream.send_all(b"".join(connection.send(event) or b"" for event in events))


async def _linger(stream: trio.abc.HalfCloseableStream) -> None:
    """Lets the peer read: to close while something of it is unread would take the answer back."""
    await stream.send_eof()
    left = _LINGER_BYTES
    with trio.move_on_after(_LINGER_S):
        while left > 0 and (received := await stream.receive_some(_READ_BYTES)):
            left -= len(received)
