"""The admin server: a small HTTP server beside a server, for what looks after it.

    run
    ├── _watch_loop        how late tasks are run
    └── accept_from        one task for each connection, which contains its failures (law L13)

It has no token, and may be reached from elsewhere if it is told so: a Prometheus seldom runs on the
machine that it watches, and nothing that is shown here says what the server is used for.
"""

from collections.abc import Sequence
from typing import Final

import structlog
import trio
from attrs import define, field

from leasekeeper.admin.http import exchange
from leasekeeper.admin.pages import Pages
from leasekeeper.server.app import Server
from leasekeeper.server.config import TcpAddress
from leasekeeper.server.listening import accept_from, listen_all, url
from leasekeeper.service.meters import Histogram

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

OPTION: Final = "--admin"
"""What says on the command line where it listens."""
CONNECTIONS_MAX: Final = 32
CONNECTION_S: Final = 5.0
_LOOP_WATCH_S: Final = 0.1


@define(eq=False)
class Admin:
    """Serves the pages of one server.

    At most `CONNECTIONS_MAX` peers are heard at once, each for `CONNECTION_S` at most. One more
    takes the place of the oldest, so that peers that say nothing keep nobody out for long.
    """

    server: Server
    _pages: Pages = field(init=False, repr=False)
    _open: dict[trio.CancelScope, None] = field(factory=dict, init=False, repr=False)
    """In the order in which they came."""

    def __attrs_post_init__(self) -> None:
        self._pages = Pages(self.server)

    async def run(
        self,
        address: TcpAddress,
        *,
        task_status: trio.TaskStatus[Sequence[str]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serves until cancelled. Reports the URLs it listens on, which are logged, too.

        Raises:
            ConfigurationError: it cannot listen there.
        """
        listeners = await listen_all([address], OPTION)
        urls = [url(listener.socket, "http") for listener in listeners]
        for each in urls:
            _log.info("admin listening", url=each)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch_loop, self.server.keeper.metrics.event_loop_lag)
                for listener in listeners:
                    nursery.start_soon(accept_from, listener, self.serve_stream, nursery)
                task_status.started(urls)
        finally:
            for listener in listeners:
                listener.socket.close()

    async def serve_stream(self, stream: trio.abc.HalfCloseableStream) -> None:
        """Serves one fresh byte stream to its end, closes it, and lets no failure of it out.

        Cancellation:
            The peer is dropped.
        """
        scope = trio.move_on_after(CONNECTION_S)
        try:
            with scope:
                self._make_room_for(scope)
                await exchange(stream, self._pages.answer)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except Exception:
            _log.warning("admin request failed", exc_info=True)
        finally:
            self._open.pop(scope, None)
            await trio.aclose_forcefully(stream)

    def _make_room_for(self, scope: trio.CancelScope) -> None:
        if len(self._open) >= CONNECTIONS_MAX:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.cancel()
        self._open[scope] = None


async def _watch_loop(lag: Histogram) -> None:
    """Asks to be run at a certain time, over and over, and sees how late that is done."""
    while True:
        due_s = trio.current_time() + _LOOP_WATCH_S
        await trio.sleep_until(due_s)
        lag.observe(max(0.0, trio.current_time() - due_s))
