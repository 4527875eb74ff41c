"""The sync facade: threads see the loss that tasks are cancelled by."""

import threading
from collections.abc import Callable, Iterator
from typing import Literal, TypeVar

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from attrs import frozen
from leasekeeper_client import Busy, ConnectionFailed, LeaseLost, sync

from client_fake_server import FakeServer, fake_server
from client_helpers import BACKENDS, Clock

R = TypeVar("R")


@frozen
class Rig:
    """A fake server in a thread of its own, and a keeper."""

    portal: BlockingPortal
    server: FakeServer
    keeper: sync.Keeper
    clock: Clock

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
        portal.wrap_async_context_manager(fake_server(grace_ms=60_000)) as server,
        sync.connect(server.url, clock=clock, backend=request.param) as keeper,
    ):
        yield Rig(portal, server, keeper, clock)


def test_a_lease_is_held_inside_and_free_after(rig: Rig) -> None:
    with rig.keeper.lease("orders", ttl=20) as lease:
        assert rig.server.holders["orders"].fence == lease.fence
        assert 19 < lease.remaining < 19.9
        lease.ensure()
        lease.renew()
        assert not lease.lost_event.is_set()
    assert not rig.server.holders


def test_a_thread_sees_its_loss_and_leaving_raises(rig: Rig) -> None:
    with pytest.raises(LeaseLost) as caught, rig.keeper.lease("orders") as lease:
        rig.do(lambda: rig.server.lose("orders", "broken"))
        assert lease.lost_event.wait(5)
        with pytest.raises(LeaseLost):
            lease.ensure()
    assert caught.value.reason == "broken"


def test_a_thread_sees_its_deadline_pass_offline(rig: Rig) -> None:
    rig.server.refusing = True
    with pytest.raises(LeaseLost) as caught, rig.keeper.lease("orders", ttl=0.5) as lease:
        rig.portal.call(rig.server.peer.drop)
        assert lease.lost_event.wait(5)
    assert caught.value.reason == "deadline"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thread_sees_the_end_of_a_silent_line(backend: Literal["asyncio", "trio"]) -> None:
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(fake_server(grace_ms=600)) as server,
        sync.connect(server.url, backend=backend) as keeper,
        pytest.raises(LeaseLost),
        keeper.lease("orders", ttl=30) as lease,
    ):
        assert not lease.lost_event.wait(0.9), "the background thread pings"
        server.silent = True
        assert lease.lost_event.wait(0.9)


def test_a_thread_that_was_stopped_ends_in_a_loss(rig: Rig) -> None:
    with pytest.raises(LeaseLost) as caught, rig.keeper.lease("orders"):
        rig.clock.ahead = 60
    assert caught.value.reason == "deadline"


def test_the_bodys_own_exception_wins(rig: Rig) -> None:
    with pytest.raises(ZeroDivisionError) as caught, rig.keeper.lease("orders") as lease:
        rig.do(lambda: rig.server.lose("orders", "broken"))
        assert lease.lost_event.wait(5)
        raise ZeroDivisionError
    assert isinstance(caught.value.__cause__, LeaseLost)


def test_busy_and_trying(rig: Rig) -> None:
    rig.do(lambda: rig.server.occupy("orders"))
    with pytest.raises(Busy), rig.keeper.lease("orders", wait=0):
        pytest.fail("unreachable")
    with rig.keeper.try_lease("orders") as lease:
        assert lease is None
    with rig.keeper.try_lease("other") as lease:
        assert lease is not None


def test_threads_share_a_keeper(rig: Rig) -> None:
    fences: list[int] = []

    def work() -> None:
        with rig.keeper.lease("orders") as lease:
            fences.append(lease.fence)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert fences == sorted(fences)
    assert len(fences) == 8


def test_sets_and_decorators(rig: Rig) -> None:
    with rig.keeper.lease_all(["b", "a"]) as leases:
        assert leases.fences.keys() == {"a", "b"}
        assert not leases.lost_event.is_set()

    @rig.keeper.locked("order-{number}")
    def settle(number: int) -> list[str]:
        return list(rig.server.holders)

    assert settle(7) == ["order-7"]
    with rig.keeper.shared("a"), rig.keeper.semaphore("b", 2):
        pass


def test_a_leader_stands_again(rig: Rig) -> None:
    terms: list[int] = []

    def lead(lease: sync.Lease) -> str:
        terms.append(lease.fence)
        if len(terms) == 1:
            rig.do(lambda: rig.server.lose("leader", "broken"))
            assert lease.lost_event.wait(5)
            lease.ensure()
        return "done"

    assert rig.keeper.campaign("leader", lead) == "done"
    assert len(terms) == 2


def test_looking_at_leases(rig: Rig) -> None:
    for name in ("a1", "a2", "a3", "b"):
        rig.do(lambda name=name: rig.server.occupy(name))  # type: ignore[misc]
    assert [lease.name for lease in rig.keeper.list("a")] == ["a1", "a2", "a3"]
    assert rig.keeper.inspect("b").holders
    states = rig.keeper.watch("b")
    assert len(next(states).holders) == 1
    assert rig.keeper.break_lease("b") == 1
    assert next(states).holders == ()
    states.close()
    rig.until(lambda: rig.server.watched["b"] == [])
    assert rig.keeper.connected


def test_an_interrupted_wait_is_given_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does it: an exception out of the blocking wait of this thread."""
    from concurrent.futures import Future

    rig.do(lambda: rig.server.occupy("orders"))
    real = Future.result

    def interrupted(future: "Future[object]", timeout: float | None = None) -> object:
        monkeypatch.setattr(Future, "result", real)
        rig.until(lambda: bool(rig.server.queues.get("orders")))
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt), rig.keeper.lease("orders"):
        pytest.fail("unreachable")
    rig.until(lambda: rig.server.queues["orders"] == [])


def test_an_interrupt_just_after_the_grant_gives_it_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from concurrent.futures import Future

    real = Future.result

    def interrupted(future: "Future[object]", timeout: float | None = None) -> object:
        monkeypatch.setattr(Future, "result", real)
        future.result()
        raise KeyboardInterrupt

    monkeypatch.setattr(Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt), rig.keeper.lease("orders"):
        pytest.fail("unreachable")
    rig.until(lambda: not rig.server.holders and bool(rig.server.asked("lease.release")))


def test_closing_wakes_waiting_threads(rig: Rig) -> None:
    rig.do(lambda: rig.server.occupy("orders"))
    failures: list[BaseException] = []

    def wait(keeper: sync.Keeper) -> None:
        try:
            with keeper.lease("orders"):
                pytest.fail("unreachable")
        except ConnectionFailed as exc:
            failures.append(exc)

    with sync.connect(rig.server.url) as keeper:
        thread = threading.Thread(target=wait, args=(keeper,))
        thread.start()
        rig.until(lambda: bool(rig.server.queues.get("orders")))
    thread.join(5)
    assert len(failures) == 1


def test_a_keeper_is_not_used_across_a_fork(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="fork"):
        rig.keeper.inspect("orders")


def test_no_server_is_a_connection_failure() -> None:
    with (
        pytest.raises(ConnectionFailed),
        sync.connect("ws+unix:///nonexistent/socket", connect_timeout=0.1),
    ):
        pytest.fail("unreachable")
