"""The pages: what they say, and what they never say."""

from collections.abc import Iterable

import pytest
import trio
import trio.testing
from attrs import define, field
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from trio.testing import MockClock

from leasekeeper.admin.http import Request
from leasekeeper.admin.pages import Pages
from leasekeeper.store.api import Health
from leasekeeper.store.memory import MemoryStore
from leasekeeper.version import VERSION
from tests.admin.asking import Answer, Asked
from tests.harness import Served, serving

PAGES = ("/metrics", "/health", "/health/live")
OPEN_METRICS = "application/openmetrics-text"


@define(eq=False)
class Ailing(MemoryStore):
    """A store that is as the test says."""

    how: Health = field(factory=lambda: Health("redis"))

    @property
    def health(self) -> Health:
        return self.how


async def health_of(store: Ailing) -> Answer:
    """The health page of a server on this store."""
    async with serving(store=store) as served:
        served.server.accepting = True
        response = await Pages(served.server).answer(Request("GET", "/health", ""))
        return Answer(response.status, {}, response.body)


# --- Metrics --------------------------------------------------------------------------------------


async def test_prometheus_can_read_the_metrics(served: Served, asked: Asked) -> None:
    peer = await served.connect()
    await peer.call("lease.acquire", name="n")
    answer = await asked.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {each.name: each for each in text_string_to_metric_families(answer.body.decode())}
    (held,) = families["leases_held"].samples
    (connections,) = families["connections"].samples
    assert (held.value, connections.value) == (1, 1)
    assert families["process_cpu_seconds"].samples
    assert families["python_info"].samples


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (f"{OPEN_METRICS};version=1.0.0;q=0.5,text/plain;q=0.1", OPEN_METRICS),
        ("text/plain;version=0.0.4", "text/plain"),
        ("*/*", "text/plain"),
        # Nothing that a peer accepts is an error of ours, nor comes back as a header.
        (f"{OPEN_METRICS};version=x", "text/plain; version=0.0.4"),
        (f"{OPEN_METRICS};version=\xa01.0.0", OPEN_METRICS),
        (f"{OPEN_METRICS};version=2.\xa0\ty", OPEN_METRICS),
        (f"{OPEN_METRICS};version={'1' * 5000}", "text/plain; version=0.0.4"),
        (f"{OPEN_METRICS};version=;escaping=", OPEN_METRICS),
        (",;=,;;==" * 100, "text/plain; version=0.0.4"),
    ],
)
async def test_the_format_is_the_one_that_is_accepted(
    asked: Asked, accept: str, content_type: str
) -> None:
    answer = await asked.get("/metrics", Accept=accept)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith(content_type)
    is_open = content_type == OPEN_METRICS
    assert answer.body.endswith(b"# EOF\n") is is_open


class Slow(Collector):
    """Takes half a second to collect."""

    def __init__(self, clock: MockClock) -> None:
        self.clock = clock

    def collect(self) -> Iterable[Metric]:
        self.clock.jump(0.5)
        return ()


async def test_metrics_take_a_tenth_of_the_time_however_many_ask(
    served: Served, clock: MockClock
) -> None:
    """Whoever asks first is answered at once; the next ones leave time for the leases."""
    registry: CollectorRegistry = served.server.keeper.metrics.registry
    registry.register(Slow(clock))
    pages, answered_s = Pages(served.server), []

    async def ask() -> None:
        await pages.answer(Request("GET", "/metrics", ""))
        answered_s.append(trio.current_time())

    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert [at - began_s for at in answered_s] == pytest.approx([0.5, 5.5, 10.5], abs=0.01)


async def test_a_blocked_event_loop_shows(served: Served, asked: Asked, clock: MockClock) -> None:
    registry = served.server.keeper.metrics.registry
    before = registry.get_sample_value("event_loop_lag_seconds_sum")
    assert before == pytest.approx(0, abs=0.01)
    await trio.testing.wait_all_tasks_blocked()
    clock.jump(5.1)
    await trio.testing.wait_all_tasks_blocked()
    after = registry.get_sample_value("event_loop_lag_seconds_sum")
    assert after == pytest.approx(5, abs=0.1)


@pytest.fixture
def clock() -> MockClock:
    """Stands still, unless nothing at all is to do."""
    return MockClock(autojump_threshold=0.2)


# --- Health ---------------------------------------------------------------------------------------


async def test_a_server_at_work_is_healthy(served: Served, asked: Asked) -> None:
    await served.connect()
    answer = await asked.get("/health")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {
        "status": "ok",
        "version": VERSION,
        "server": served.server.keeper.server,
        "connections": 1,
        "store": {"kind": "memory", "reachable": True},
        "grants": {"paused": False, "paused_ms": 0, "reason": None},
    }


async def test_a_draining_server_sends_clients_elsewhere_and_lives(
    served: Served, asked: Asked
) -> None:
    served.server.stop()
    answer = await asked.get("/health")
    assert (answer.status, answer.json()["status"]) == (503, "draining")
    assert (await asked.get("/health/live")).status == 200


async def test_a_server_that_does_not_listen_yet_is_unavailable(
    served: Served, asked: Asked
) -> None:
    served.server.accepting = False
    answer = await asked.get("/health")
    assert (answer.status, answer.json()["status"]) == (503, "unavailable")
    assert (await asked.get("/health/live")).status == 200


async def test_a_server_without_its_store_is_unavailable() -> None:
    answer = await health_of(Ailing(how=Health("redis", reachable=False)))
    said = answer.json()
    assert (answer.status, said["status"]) == (503, "unavailable")
    assert said["store"] == {"kind": "redis", "reachable": False}


async def test_paused_grants_are_told_and_are_no_reason_to_stay_away() -> None:
    """Every server of that store pauses; holders are renewed and resumed all the same."""
    answer = await health_of(Ailing(how=Health("redis", True, 4200, "it was flushed")))
    said = answer.json()
    assert (answer.status, said["status"]) == (200, "ok")
    assert said["grants"] == {"paused": True, "paused_ms": 4200, "reason": "it was flushed"}


# --- What all of them have in common --------------------------------------------------------------


async def test_no_page_says_what_the_server_is_used_for(served: Served, asked: Asked) -> None:
    """L7, and more: whoever may look at the numbers need not know of the names."""
    peer = await served.connect(client="canary-client")
    grant = await peer.call("lease.acquire", name="canary-name", label="canary-label")
    await peer.call("lease.watch", name="canary-watched")
    for path in (*PAGES, "/", "/nothing"):
        answer = await asked.get(path)
        shown = f"{answer.headers} {answer.body.decode()}"
        assert "canary" not in shown
        assert grant["lease"] not in shown


@pytest.mark.parametrize("path", PAGES)
async def test_head_is_get_without_the_body(asked: Asked, path: str) -> None:
    got, head = await asked.get(path), await asked.get(path, "HEAD")
    assert (head.status, head.body) == (200, b"")
    kinds = [answer.headers["content-type"] for answer in (got, head)]
    assert kinds[0] == kinds[1]
    assert int(got.headers["content-length"]) == len(got.body)
    assert int(head.headers["content-length"]) > 0


@pytest.mark.parametrize("path", ["/", "/metric", "/metrics/", "/health/", "//metrics", "*"])
async def test_anything_else_is_not_found(asked: Asked, path: str) -> None:
    answer = await asked.get(path)
    assert answer.status == 404
    assert b"/metrics" in answer.body


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"])
async def test_other_methods_are_not_allowed(asked: Asked, method: str) -> None:
    answer = await asked.get("/metrics", method)
    assert (answer.status, answer.headers["allow"]) == (405, "GET, HEAD")


async def test_a_query_is_no_part_of_the_path(asked: Asked) -> None:
    assert (await asked.get("/health?verbose=1")).status == 200
