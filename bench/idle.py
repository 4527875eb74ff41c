"""P6: very many connections with nothing to say. What does the server take for each?"""

import selectors
import socket
import time
from typing import Final

from attrs import frozen

from bench.descriptors import at_most
from bench.observed import Figures, Observed
from bench.shapes import Target, answer_on, ask_session, receive
from bench.wire import WebSocketWire, ask_upgrade, await_upgrade, connect

AT_ONCE: Final = 100
"""So many are on their way at a time; a server refuses more than 256 handshakes at once."""
FIRST: Final = 100
"""They are there before memory is looked at: what a server makes but once is made for them."""


@frozen
class Idle:
    """One connection with a session."""

    connection: socket.socket
    wire: WebSocketWire

    def attend(self) -> None:
        """Reads what has come, and answers if it was a ping."""
        self.wire.feed(receive(self.connection))
        if owed := self.wire.replies():
            self.connection.sendall(owed)


class Crowd:
    """Idle connections, which answer pings as long as somebody attends to them."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._selector = selectors.DefaultSelector()

    def grow(self, count: int) -> None:
        """Returns when so many more are there, each with its session open."""
        for first in range(0, count, AT_ONCE):
            self._dial(min(AT_ONCE, count - first))
            self.attend(0)

    def attend(self, timeout_s: float | None) -> None:
        """Answers the pings that are there, or the next that come; None: waits for ever."""
        for key, _ in self._selector.select(timeout_s):
            key.data.attend()

    def close(self) -> None:
        """Hangs up."""
        for key in list(self._selector.get_map().values()):
            key.data.connection.close()
        self._selector.close()

    def _dial(self, count: int) -> None:
        """Every step for all of them, so that the server always has something to do."""
        host, port = self._target.host, self._target.port
        dialled = [Idle(connect(host, port), WebSocketWire()) for _ in range(count)]
        for each in dialled:
            ask_upgrade(each.connection, host, port)
        for each in dialled:
            await_upgrade(each.connection)
            ask_session(each.connection, each.wire, batch=False)
        for each in dialled:
            answer_on(each.connection, each.wire)
            self._selector.register(each.connection, selectors.EVENT_READ, each)


def idle_connections(target: Target, observed: Observed, wanted: int) -> Figures:
    """P6: connections accepted, each with a session opened, and the memory that they take."""
    count = at_most(wanted + FIRST) - FIRST
    crowd = Crowd(target)
    crowd.grow(FIRST)
    before = observed.servers_bytes
    observed.begin()
    began = time.monotonic()
    crowd.grow(count)
    rate = count / (time.monotonic() - began)
    figures = observed.shares()
    figures["connection_bytes"] = (observed.servers_bytes - before) / count
    crowd.close()
    return figures | {"connections": float(count), "rate": rate}
