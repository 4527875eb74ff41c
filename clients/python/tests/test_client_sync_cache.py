"""The cache in the sync facade: threads load in their own thread, once for all of them."""

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from attrs import frozen
from leasekeeper_client import (
    Busy,
    ConnectionFailed,
    Deadlock,
    FillFailed,
    MsgpackCodec,
    NotFound,
    Private,
    ValueNotFound,
    WriteExpired,
    current_load,
    sync,
)

from client_fake_cache import FakeCaches, cache_server
from client_helpers import BACKENDS, Clock

R = TypeVar("R")
WHO: ContextVar[str] = ContextVar("WHO", default="nobody")


@frozen
class Rig:
    """A fake server in a thread of its own, and a keeper."""

    portal: BlockingPortal
    server: FakeCaches
    keeper: sync.Keeper
    clock: Clock

    @property
    def cache(self) -> sync.Cache:
        return self.keeper.cache

    def do(self, function: Callable[[], R]) -> R:
        """Do something in the server's thread."""
        return self.portal.call(function)

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so at the server."""
        self.portal.call(self.server.until, condition)


@pytest.fixture(params=BACKENDS)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    clock = Clock()
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(cache_server()) as server,
        sync.connect(server.url, clock=clock, backend=request.param) as keeper,
    ):
        yield Rig(portal, server, keeper, clock)


def never() -> Any:
    """A function that is not to be called."""
    raise AssertionError("it was called")


def test_a_function_loads_in_the_thread_that_asks(rig: Rig) -> None:
    WHO.set("me")

    def load() -> list[object]:
        mine = current_load()
        return [threading.get_ident(), WHO.get(), mine.key, mine.fence, mine.lost]

    got = rig.cache.get_or_fill("k", load, ttl=60)
    assert got == [threading.get_ident(), "me", "k", rig.server.fence, False]
    assert rig.cache.get_or_fill("k", never, ttl=60) == got
    with pytest.raises(LookupError):
        current_load()


def test_threads_load_once(rig: Rig) -> None:
    count = 20
    loads: list[int] = []
    got: list[int] = []
    there = threading.Barrier(count)
    go_on = threading.Event()

    def load() -> int:
        loads.append(threading.get_ident())
        assert go_on.wait(10)
        return 7

    def work() -> None:
        there.wait(10)
        got.append(rig.cache.get_or_fill("k", load, ttl=60))

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    rig.until(lambda: bool(rig.server.fills))
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert got == [7] * count
    assert len(loads) == 1
    assert len(rig.server.asked("cache.get")) <= count / 2


def test_a_failure_is_the_threads_own(rig: Rig) -> None:
    with pytest.raises(ZeroDivisionError):
        rig.cache.get_or_fill("k", lambda: 1 // 0, ttl=60)
    (failed,) = rig.server.asked("cache.fail")
    assert failed["error"].startswith("ZeroDivisionError")


def test_all_that_a_function_may_return(rig: Rig) -> None:
    assert rig.cache.get_or_fill("a", lambda: Private(1), ttl=60) == 1
    assert rig.cache.get_or_fill("a", lambda: 2, ttl=60) == 2, "each loads for himself"
    with pytest.raises(ValueNotFound):
        rig.cache.get_or_fill("b", NotFound, ttl=60)
    assert rig.cache.get_or_fill("b", never, ttl=60, default=None) is None
    assert not rig.server.asked("cache.fill")


def test_waits_and_failures_of_others(rig: Rig) -> None:
    rig.do(lambda: rig.server.take_fill("k"))
    with pytest.raises(Busy):
        rig.cache.get_or_fill("k", never, ttl=60, wait=0)
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            rig.cache.get_or_fill("k", never, ttl=60)
        except FillFailed as exc:
            failures.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    rig.until(lambda: bool(rig.server.getters.get("k")))
    rig.do(lambda: rig.server.refuse_getters("k", -32005, {"error": "no"}))
    thread.join(10)
    assert len(failures) == 1


def test_loads_within_loads(rig: Rig) -> None:
    def outer() -> int:
        inner: int = rig.cache.get_or_fill("b", lambda: 1, ttl=60)
        return inner + 1

    def itself() -> Any:
        return rig.cache.get_or_fill("c", never, ttl=60)

    assert rig.cache.get_or_fill("a", outer, ttl=60) == 2
    assert rig.server.asked("cache.get")[1]["within_key"] == "a"
    with pytest.raises(Deadlock):
        rig.cache.get_or_fill("c", itself, ttl=60)


def test_a_refresh_runs_in_another_thread(rig: Rig) -> None:
    rig.do(lambda: rig.server.put("k", "old", due=True))
    seen: list[object] = []
    WHO.set("me")

    def load() -> str:
        seen.extend([threading.get_ident(), WHO.get(), current_load().key])
        return "new"

    assert rig.cache.get_or_fill("k", load, ttl=60) == "old"
    rig.until(lambda: rig.server.entries["k"].value == "new")
    assert seen[1:] == ["me", "k"]
    assert seen[0] != threading.get_ident()


def test_a_load_that_takes_too_long_is_told_and_handed_over(rig: Rig) -> None:
    """A thread cannot be stopped; what it brings late is judged by the server."""
    rig.server.fill_ms = 200

    def load() -> int:
        until = time.monotonic() + 5
        while not current_load().lost and time.monotonic() < until:
            time.sleep(0.01)
        assert current_load().remaining == 0
        return 7

    assert rig.cache.get_or_fill("k", load, ttl=60) == 7
    assert rig.server.entries["k"].value == 7


def test_a_load_goes_on_without_its_connection(rig: Rig) -> None:
    def load() -> int:
        rig.portal.call(rig.server.peer.drop)
        until = time.monotonic() + 5
        while not current_load().lost and time.monotonic() < until:
            time.sleep(0.01)
        return 7

    assert rig.cache.get_or_fill("k", load, ttl=60) == 7
    assert rig.server.asked("cache.fill")


def test_an_interrupt_in_a_load_gives_it_up(rig: Rig) -> None:
    def load() -> int:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rig.cache.get_or_fill("k", load, ttl=60)
    rig.until(lambda: bool(rig.server.asked("cache.fail")))
    assert rig.server.asked("cache.fail")[0]["promote"] is True
    assert rig.keeper.connected


def test_an_interrupted_thread_hands_the_load_to_the_next(rig: Rig) -> None:
    """Two threads share a request; the one whose turn it was is gone, so the other one loads."""
    outcomes: dict[str, object] = {}

    def interrupted() -> int:
        raise KeyboardInterrupt

    def get(who: str, load: Callable[[], int]) -> None:
        try:
            outcomes[who] = rig.cache.get_or_fill("k", load, ttl=60)
        except BaseException as exc:
            outcomes[who] = type(exc)

    lines = rig.keeper._engine.lines._lines
    threads = []

    def begin(who: str, load: Callable[[], int], boarded: int) -> None:
        threads.append(threading.Thread(target=get, args=(who, load)))
        threads[-1].start()
        until = time.monotonic() + 5
        while time.monotonic() < until:
            for line in list(lines.values()):
                if line.boarding is not None and len(line.boarding.riders) == boarded:
                    return
            time.sleep(0.005)
        raise AssertionError("it did not board")

    rig.do(lambda: rig.server.take_fill("k"))
    waiting = threading.Thread(target=get, args=("waiting", never))
    waiting.start()
    rig.until(lambda: bool(rig.server.getters.get("k")))
    begin("first", interrupted, 1)
    begin("second", lambda: 7, 2)

    def fail() -> None:
        del rig.server.fills["k"]
        rig.server.refuse_getters("k", -32005, {"error": "no"})

    rig.do(fail)
    for thread in (waiting, *threads):
        thread.join(10)
    assert outcomes == {"waiting": FillFailed, "first": KeyboardInterrupt, "second": 7}
    assert not rig.server.asked("cache.fail"), "nobody but this program knows of it"


def test_an_interrupted_wait_is_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.do(lambda: rig.server.take_fill("k"))

    def interrupted(_: object) -> object:
        rig.until(lambda: bool(rig.server.getters.get("k")))
        raise KeyboardInterrupt

    monkeypatch.setattr("leasekeeper_client.sync_cache.LoadErrand._next_job", interrupted)
    with pytest.raises(KeyboardInterrupt):
        rig.cache.get_or_fill("k", never, ttl=60)
    rig.until(lambda: not rig.server.getters["k"])


def test_a_cached_function(rig: Rig) -> None:
    calls: list[int] = []

    @rig.cache.cached("n:{n}", ttl=60, tags=["n:{n}"])
    def double(n: int) -> int:
        calls.append(n)
        return 2 * n

    assert double(2) == double(n=2) == 4
    assert double.key(2) == "n:2"
    double.invalidate(2)
    assert double(2) == 4
    assert calls == [2, 2]


def test_the_rest_of_the_cache(rig: Rig) -> None:
    assert rig.cache.get("k", 1) == 1
    rig.cache.set("k", 2, ttl=1, tags=["t"])
    assert rig.cache.get("k") == 2
    rig.cache.invalidate("k", tags=["t"], soft=True)
    assert rig.cache.get("k") is None
    packed = rig.cache.using(MsgpackCodec())
    packed.set("k", b"x", ttl=1)
    assert packed.get("k") == b"x"
    assert (packed.codec.tag, packed.value_bytes) == ("msgpack", rig.cache.value_bytes)


def test_writing_through(rig: Rig) -> None:
    with rig.cache.write_through("k", tags=["t"]) as write:
        write.ensure()
        write.set(1, ttl=5)
    assert write.stored
    with pytest.raises(ZeroDivisionError), rig.cache.write_through("k"):
        raise ZeroDivisionError
    assert len(rig.server.asked("cache.abort_write")) == 1
    with pytest.raises(WriteExpired), rig.cache.write_through("k") as write:
        rig.clock.ahead = 20
        rig.server.in_time = False
        assert write.remaining == 0
    assert len(rig.server.asked("cache.commit_write")) == 2


def test_writing_behind(rig: Rig) -> None:
    queue = rig.cache.write_behind("orders")
    for number, key in enumerate("abc"):
        queue.put(key, number)
    assert queue.queue == "orders"
    keys: list[str] = []
    writes = rig.keeper.writes("orders", max=2)
    for write in writes:
        keys.append(write.key)
        with write:
            if write.key == "a":
                raise LookupError("no table")
            if write.key == "b":
                assert write.retry("later", after=1)
        if len(keys) == 3:
            break
    writes.close()
    assert keys == ["a", "b", "c"]
    errors = [each["error"] for each in rig.server.asked("writes.retry")]
    assert errors == ["LookupError: no table", "later"]
    assert len(rig.server.asked("writes.ack")) == 1
    rig.do(lambda: rig.server.queue("orders", "d", 1))
    write = next(rig.keeper.writes("orders"))
    assert write.ack()
    assert [letter.key for letter in rig.keeper.writes_dead("orders")] == ["k0", "k1", "k2"]
    assert rig.keeper.writes_revive("orders", "k0") == 1


def test_closing_ends_waits_and_loads() -> None:
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(cache_server()) as server,
    ):
        failures: list[BaseException] = []
        begun, go_on = threading.Event(), threading.Event()

        def load() -> int:
            begun.set()
            go_on.wait(10)
            return 7

        def work(keeper: sync.Keeper) -> None:
            try:
                keeper.cache.get_or_fill("k", load, ttl=60)
            except ConnectionFailed as exc:
                failures.append(exc)

        with sync.connect(server.url) as keeper:
            thread = threading.Thread(target=work, args=(keeper,))
            thread.start()
            assert begun.wait(10)
        go_on.set()
        thread.join(10)
        assert len(failures) == 1


def test_a_keeper_is_not_used_across_a_fork(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="fork"):
        rig.cache.get_or_fill("k", never, ttl=60)
