"""The pages: what a scraper, a load balancer and an operator ask a server about itself.

    GET /metrics        for Prometheus; OpenMetrics, if that is what it accepts
    GET /health         JSON: 200 while clients should come here, 503 while they should not
    GET /health/live    200 as long as this process gets to answer at all

None of them shows a name, a lease id, a client or an address of the store: whoever may look at
them learns how the server is, and not what it is used for.
"""

from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Final

import orjson
import trio
from attrs import define, field
from prometheus_client.exposition import choose_encoder

from leasekeeper.admin.http import Request, Response, text
from leasekeeper.server.app import Server
from leasekeeper.version import VERSION

_ALLOWED: Final = ("GET", "HEAD")
_REST_PER_RENDERING: Final = 9
"""To render the metrics takes a few milliseconds, in which nothing else is done. So however many
ask for them, it takes a tenth of the time at most."""


@define(eq=False)
class Pages:
    """Answers requests for the pages of one server.

    It knows no sockets, and asks nothing of the store: so it answers while the store does not.
    """

    server: Server
    _rendering: trio.Lock = field(factory=trio.Lock, init=False, repr=False)
    _next_rendering_s: float = field(default=0, init=False)
    _pages: Mapping[str, Callable[[Request], Awaitable[Response]]] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._pages = {
            "/metrics": self._metrics,
            "/health": self._health,
            "/health/live": self._live,
        }

    async def answer(self, request: Request) -> Response:
        """The page that was asked for, or why there is none."""
        page = self._pages.get(request.path)
        if page is None:
            return text(HTTPStatus.NOT_FOUND, f"there are {', '.join(self._pages)}")
        if request.method not in _ALLOWED:
            allowed = ", ".join(_ALLOWED)
            return text(HTTPStatus.METHOD_NOT_ALLOWED, f"only {allowed}", Allow=allowed)
        return await page(request)

    async def _metrics(self, request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(request.accept)
        except (TypeError, ValueError):  # a version that is no number
            encode, content_type = choose_encoder("")
        async with self._rendering:
            await trio.sleep_until(self._next_rendering_s)
            began_s = trio.current_time()
            body = encode(self.server.keeper.metrics.registry)
            now_s = trio.current_time()
            self._next_rendering_s = now_s + _REST_PER_RENDERING * (now_s - began_s)
        return Response(HTTPStatus.OK, content_type, body)

    async def _health(self, _: Request) -> Response:
        """Paused grants are no reason to stay away: they pause on every server of that store, and
        holders are renewed and resumed here meanwhile."""
        store = self.server.keeper.store.health
        if self.server.draining:
            status = "draining"
        elif self.server.accepting and store.reachable:
            status = "ok"
        else:
            status = "unavailable"
        body = {
            "status": status,
            "version": VERSION,
            "server": self.server.keeper.server,
            "connections": len(self.server.connections),
            "store": {"kind": store.kind, "reachable": store.reachable},
            "grants": {
                "paused": store.paused_ms > 0,
                "paused_ms": store.paused_ms,
                "reason": store.reason,
            },
        }
        code = HTTPStatus.OK if status == "ok" else HTTPStatus.SERVICE_UNAVAILABLE
        return Response(code, "application/json", orjson.dumps(body) + b"\n")

    async def _live(self, _: Request) -> Response:
        return text(HTTPStatus.OK, "alive")
