"""What becomes of those who wait when whoever loads is killed, stopped, cut off, fails, or is slow.

Loads are counted: never more than one, and one for each filler that died or failed (L10).
"""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
import trio

from tests.conformance.vectors import as_int
from tests.polling import eventually
from tests.processes import LEASEKEEPER, RunningServer, first_line, running_server, started
from tests.proxy import running_proxy
from tests.redis_groups import Redises
from tests.system.filler import VALUE
from tests.system.raw import Raw, Refused, dialling

if TYPE_CHECKING:
    import subprocess

pytestmark = pytest.mark.system

KEY: Final = "report"
WAITING: Final = 4
WITHIN_S: Final = 120.0
FILL_S: Final = 5
"""Of loads whose time is to be over."""
DRAINED_S: Final = 15
"""A server has closed all its connections so long after it began to drain."""
MOMENT_S: Final = 20.0
"""For what is to happen at once, on a machine that is busy."""


@pytest.fixture(params=["embedded", "redis"])
def urls(request: pytest.FixtureRequest, redises: Redises) -> Iterator[list[str]]:
    """Of one server, or of two on one Redis."""
    with ExitStack() as stack:
        if request.param == "embedded":
            yield [stack.enter_context(running_server()).url]
        else:
            store = redises.single().url
            yield [stack.enter_context(running_server(store=store)).url for _ in range(2)]


on_redis = pytest.mark.parametrize("urls", ["redis"], indirect=True)
"""For what takes long, and is the same on one server."""


@pytest.fixture
def loads(tmp_path: Path) -> Path:
    """A line for each load."""
    path = tmp_path / "loads"
    path.touch()
    return path


def caller(
    url: str, fate: str, loads: Path, *more: str
) -> AbstractContextManager["subprocess.Popen[bytes]"]:
    return started([sys.executable, "-m", "tests.system.filler", url, KEY, fate, str(loads), *more])


@contextmanager
def crowd(urls: list[str], loads: Path) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Others who ask for the same key, and would load it."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(caller(urls[number % len(urls)], "serve", loads))
            for number in range(WAITING)
        ]


def said(process: "subprocess.Popen[bytes]") -> list[str]:
    out, err = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 0, err.decode()
    return out.decode().split("\n")[:-1]


def count(loads: Path) -> int:
    return len(loads.read_text().splitlines())


def is_loading(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdout is not None
    assert first_line(process.stdout) == "loading\n"


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_filler_that_is_killed_is_replaced_by_one(
    end: signal.Signals, urls: list[str], loads: Path
) -> None:
    """L8, L10: at once, not when its time is over."""
    with caller(urls[0], "hang", loads) as filler:
        is_loading(filler)
        with crowd(urls, loads) as others:
            until_they_wait(urls, WAITING)
            filler.send_signal(end)
            killed_at = time.monotonic()
            for other in others:
                assert said(other)[-1] == VALUE
            assert time.monotonic() - killed_at < MOMENT_S
    assert count(loads) == 2


def test_a_filler_that_is_stopped_holds_nobody_up_for_long(urls: list[str], loads: Path) -> None:
    """L10: its TCP stack still answers; its time is over after what it asked for."""
    with caller(urls[0], "hang", loads, str(FILL_S)) as filler:
        is_loading(filler)
        filler.send_signal(signal.SIGSTOP)
        stopped_at = time.monotonic()
        with crowd(urls, loads) as others:
            for other in others:
                assert said(other)[-1] == VALUE
        assert time.monotonic() - stopped_at < FILL_S + MOMENT_S
        assert count(loads) == 2


def test_a_filler_that_is_cut_off_is_replaced_and_stops(urls: list[str], loads: Path) -> None:
    """L8, L10: the load is cancelled, and its caller has the value of the other."""
    port = int(urls[0].rpartition(":")[2])
    with running_proxy(port) as proxy:
        url = f"ws://{proxy.url.partition('://')[2].partition('/')[0]}"
        with caller(url, "hang", loads) as filler:
            is_loading(filler)
            with crowd(urls, loads) as others:
                until_they_wait(urls, WAITING)
                proxy.cut()
                cut_at = time.monotonic()
                for other in others:
                    assert said(other)[-1] == VALUE
                assert time.monotonic() - cut_at < MOMENT_S
            proxy.heal()
            assert said(filler) == [VALUE]
    assert count(loads) == 2


def test_a_load_that_fails_is_one_error_for_all(urls: list[str], loads: Path) -> None:
    """L10: those who wait are told, and do not try one by one."""
    with caller(urls[0], "fail", loads) as filler:
        is_loading(filler)
        with crowd(urls, loads) as others:
            until_they_wait(urls, WAITING)
            loads.with_suffix(".go").touch()
            assert [said(other) for other in others] == [["FillFailed"]] * WAITING
        assert said(filler) == ["RuntimeError"]
    assert count(loads) == 1


def test_a_load_that_takes_too_long_is_taken_over(urls: list[str], loads: Path) -> None:
    """L10: it is cancelled at its end, and whoever wanted it has the value of the other."""
    with caller(urls[0], "hang", loads, str(FILL_S)) as filler:
        is_loading(filler)
        began = time.monotonic()
        with crowd(urls, loads) as others:
            for other in others:
                assert said(other)[-1] == VALUE
            assert time.monotonic() - began < FILL_S + MOMENT_S
        assert said(filler)[-1] == VALUE
    assert count(loads) == 2


@pytest.mark.parametrize(("server_ends", "fill_s"), [("killed", FILL_S), ("drained", 300)])
def test_a_server_that_ends_takes_no_load_with_it(
    server_ends: str, fill_s: int, redises: Redises, loads: Path
) -> None:
    """L8, L10: those who wait on another server are served when its fill is over at the latest, and
    when a draining server has closed the connection of whoever loads."""
    store = redises.single().url
    with running_server(store=store) as doomed, running_server(store=store) as other:
        with caller(doomed.url, "hang", loads, str(fill_s)) as filler:
            is_loading(filler)
            began = time.monotonic()
            with crowd([other.url], loads) as others:
                end(doomed, server_ends)
                for each in others:
                    assert said(each)[-1] == VALUE
            assert time.monotonic() - began < DRAINED_S + MOMENT_S
        assert count(loads) == 2


@on_redis
def test_a_thousand_tasks_under_asyncio_are_one_load(urls: list[str], loads: Path) -> None:
    """L10: of ten processes on all servers, 10,000 callers in all."""
    with ExitStack() as stack:
        processes = [
            stack.enter_context(caller(urls[n % len(urls)], "tasks", loads, "1000"))
            for n in range(10)
        ]
        for process in processes:
            assert said(process)[-1] == str({VALUE: 1000})
    assert count(loads) == 1


@on_redis
def test_a_hundred_threads_are_one_load(urls: list[str], loads: Path) -> None:
    """L10: and two processes of them."""
    with ExitStack() as stack:
        processes = [
            stack.enter_context(caller(urls[n % len(urls)], "threads", loads, "100"))
            for n in range(2)
        ]
        for process in processes:
            assert said(process)[-1] == str({VALUE: 100})
    assert count(loads) == 1


@on_redis
def test_a_command_runs_once_for_fifty_processes(urls: list[str], loads: Path) -> None:
    """L10: `leasekeeper cache run`."""
    command = ["sh", "-c", f"echo load >> {loads}; sleep 0.2; echo {VALUE}"]
    run = [*LEASEKEEPER, "cache", "run", KEY, "--ttl", "60"]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(started([*run, "--url", urls[n % len(urls)], "--", *command]))
            for n in range(50)
        ]
        for process in processes:
            assert said(process) == [VALUE]
    assert count(loads) == 1


def end(server: RunningServer, how: str) -> None:
    if how == "killed":
        server.process.kill()
    else:
        server.drain()


def until_they_wait(urls: list[str], number: int) -> None:
    """Returns when so many wait for the value, on all servers together."""

    async def look() -> None:
        async with dialling() as dial:
            clients = [await dial(url) for url in urls]

            async def so_many() -> bool:
                return sum([await waiting(client) for client in clients]) >= number

            await eventually(so_many)

    trio.run(look)


async def waiting(client: Raw) -> int:
    """How many wait on one server, as it says to one that does not want to."""
    try:
        await client.call("cache.get", key=KEY, wait_ms=0, can_fill=False)
    except Refused as busy:
        return as_int(busy.data["waiting"])
    return 0
