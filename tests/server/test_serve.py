"""`leasekeeper serve` as a process: where it listens, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define

from tests.harness import Peer, Refused, dial

pytestmark = pytest.mark.system

_STARTS_WITHIN_S = 20.0
SOON_S = 3.0


@define
class Process:
    """A server process, and the URLs it said it listens on."""

    process: trio.Process
    urls: list[str]
    peers: trio.Nursery

    async def connect(self, url: str | None = None) -> Peer:
        return await dial(url or self.urls[0], self.peers)

    def signal(self, number: int = signal.SIGTERM) -> float:
        """Sends it; returns the time, for `ended`."""
        self.process.send_signal(number)
        return trio.current_time()

    async def ended(self, since: float) -> tuple[int, float]:
        """Waits for its end: the exit code, and how long it took."""
        with trio.fail_after(30):
            code = await self.process.wait()
        return code, trio.current_time() - since


@asynccontextmanager
async def process(*arguments: str, listeners: int = 1) -> AsyncIterator[Process]:
    """Starts a server on a free port, unless told otherwise, and kills it in the end."""
    if "--listen" not in arguments:
        arguments = ("--listen", "127.0.0.1:0", *arguments)
    command = [sys.executable, "-m", "leasekeeper", "serve", *arguments]
    async with trio.open_nursery() as nursery:
        with tempfile.TemporaryFile() as log:
            started = await trio.lowlevel.open_process(
                command, stdout=subprocess.PIPE, stderr=log, env=_environment()
            )
            try:
                assert started.stdout is not None
                lines = b""
                with trio.fail_after(_STARTS_WITHIN_S):
                    while lines.count(b"\n") < listeners:
                        chunk = await started.stdout.receive_some()
                        log.seek(0)
                        assert chunk, log.read().decode()
                        lines += chunk
                urls = [
                    line.removeprefix("leasekeeper listening on ")
                    for line in lines.decode().splitlines()
                ]
                yield Process(started, urls, nursery)
                log.seek(0)
                assert b"Traceback" not in log.read()
            finally:
                with trio.CancelScope(shield=True):
                    if started.returncode is None:
                        started.kill()
                    await started.wait()
                    if started.stdout is not None:
                        await started.stdout.aclose()
        nursery.cancel_scope.cancel()


def _environment() -> dict[str, str]:
    return {name: each for name, each in os.environ.items() if not name.startswith("LEASEKEEPER_")}


def refuses(*arguments: str) -> str:
    """Runs a server that must not start; what it says on standard error."""
    command = [sys.executable, "-m", "leasekeeper", "serve", *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=20, env=_environment(), check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory whose name is short enough for socket files."""
    with tempfile.TemporaryDirectory(prefix="lk") as name:
        yield Path(name)


# --- Where it listens -----------------------------------------------------------------------------


async def test_it_names_the_free_port_it_picked() -> None:
    async with process() as server:
        (url,) = server.urls
        assert url.startswith("ws://127.0.0.1:")
        peer = await server.connect()
        await peer.call("lease.acquire", name="a")
        await peer.close()


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "127.evil.example:0"])
def test_to_listen_beyond_this_machine_without_a_token_is_refused(address: str) -> None:
    said = refuses("--listen", address)
    assert "LEASEKEEPER_TOKEN" in said
    assert len(said.strip().splitlines()) == 1


def test_an_address_that_is_taken_is_refused_with_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = refuses("--listen", f"127.0.0.1:{taken.getsockname()[1]}")
    assert "cannot listen on" in said
    assert len(said.strip().splitlines()) == 1


async def test_a_socket_file_is_served_and_removed_at_exit(place: Path) -> None:
    path = place / "lk.sock"
    async with process("--listen", f"unix:{path}") as server:
        assert server.urls == [f"ws+unix://{path}"]
        assert path.stat().st_mode & 0o007 == 0
        peer = await server.connect()
        await peer.call("lease.acquire", name="a")
        await peer.close()
        code, _ = await server.ended(server.signal())
        assert code == 0
        assert not path.exists()


async def test_a_stale_socket_file_is_replaced(place: Path) -> None:
    path = place / "lk.sock"
    async with process("--listen", f"unix:{path}") as first:
        first.process.kill()
        await first.process.wait()
        assert path.is_socket()
    async with process("--listen", f"unix:{path}") as second:
        peer = await second.connect()
        await peer.call("lease.acquire", name="a")
        await peer.close()


async def test_a_live_socket_file_is_not_replaced(place: Path) -> None:
    path = place / "lk.sock"
    async with process("--listen", f"unix:{path}") as server:
        said = await trio.to_thread.run_sync(refuses, "--listen", f"unix:{path}")
        assert "cannot listen on" in said
        peer = await server.connect()
        await peer.call("lease.acquire", name="a")
        await peer.close()


def test_a_file_that_is_no_socket_is_left_alone(place: Path) -> None:
    path = place / "lk.sock"
    path.write_text("precious")
    assert "cannot listen on" in refuses("--listen", f"unix:{path}")
    assert path.read_text() == "precious"


async def test_a_start_that_fails_leaves_no_socket_file(place: Path) -> None:
    path = place / "lk.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        other = f"127.0.0.1:{taken.getsockname()[1]}"
        refuses("--listen", f"unix:{path}", "--listen", other)
    assert not path.exists()


async def test_a_socket_file_that_another_server_has_replaced_is_left_to_it(place: Path) -> None:
    path = place / "lk.sock"
    async with process("--listen", f"unix:{path}") as old:
        path.unlink()
        async with process("--listen", f"unix:{path}") as new:
            await old.ended(old.signal())
            peer = await new.connect()
            await peer.call("lease.acquire", name="a")
            await peer.close()


async def test_it_listens_on_several_addresses_at_once(place: Path) -> None:
    listen = ("--listen", "127.0.0.1:0", "--listen", f"unix:{place / 'lk.sock'}")
    async with process(*listen, listeners=2) as server:
        first, second = [await server.connect(url) for url in server.urls]
        await first.call("lease.acquire", name="a")
        with pytest.raises(Refused, match="busy"):
            await second.call("lease.acquire", name="a")
        await first.close()
        await second.close()


# --- How it ends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_with_nobody_connected_it_ends_at_once(number: int) -> None:
    async with process() as server:
        code, took_s = await server.ended(server.signal(number))
        assert (code, took_s < 1) == (0, True)


async def test_with_nobody_holding_it_ends_soon() -> None:
    async with process() as server:
        peer = await server.connect()
        await peer.call("lease.inspect", name="a")
        since = server.signal()
        assert (await peer.notification("server.draining"))["reconnect_after_ms"] > 0
        assert await peer.closed() == 4000
        code, took_s = await server.ended(since)
        assert (code, took_s < SOON_S) == (0, True)


async def test_holders_may_finish_and_nobody_gets_a_new_lease() -> None:
    async with process() as server:
        peer, other = await server.connect(), await server.connect()
        grant = await peer.call("lease.acquire", name="a")
        since = server.signal()
        told = await peer.notification("server.draining")
        assert 0 < told["reconnect_after_ms"] <= 5000
        for each in (peer, other):
            with pytest.raises(Refused) as refused:
                await each.call("lease.acquire", name="b")
            assert refused.value.code == -32021
            assert refused.value.data["reconnect_after_ms"] > 0
        with pytest.raises(OSError, match=r"refused|all attempts"):
            await server.connect()
        await peer.call("lease.renew", name="a", lease=grant["lease"])
        await peer.call("lease.release", name="a", lease=grant["lease"])
        assert await peer.closed() == await other.closed() == 4000
        code, took_s = await server.ended(since)
        assert (code, took_s < SOON_S) == (0, True)


async def test_holders_that_stay_are_told_that_their_lease_is_lost() -> None:
    async with process("--drain-grace-ms", "500") as server:
        peer = await server.connect()
        grant = await peer.call("lease.acquire", name="a")
        since = server.signal()
        lost = await peer.notification("lease.lost")
        assert (lost["lease"], lost["reason"]) == (grant["lease"], "store_lost")
        assert await peer.closed() == 4000
        code, took_s = await server.ended(since)
        assert (code, took_s < SOON_S) == (0, True)


async def test_a_second_signal_ends_it_at_once() -> None:
    async with process("--drain-grace-ms", "60000") as server:
        peer = await server.connect()
        await peer.call("lease.acquire", name="a")
        server.signal()
        await peer.notification("server.draining")
        _, took_s = await server.ended(server.signal())
        assert took_s < 1


async def test_peers_that_do_not_read_or_answer_delay_its_end_by_a_bounded_time() -> None:
    async with process("--drain-grace-ms", "300", "--close-ms", "300") as server:
        peer, silent = await server.connect(), await server.connect()
        await peer.call("lease.acquire", name="a")
        silent.pause()
        code, took_s = await server.ended(server.signal())
        assert (code, took_s < SOON_S) == (0, True)


async def test_a_handshake_that_is_finished_during_the_drain_does_not_delay_the_end() -> None:
    async with process("--drain-grace-ms", "1000") as server:
        holder = await server.connect()
        await holder.call("lease.acquire", name="a")
        host, _, port = server.urls[0].removeprefix("ws://").rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        late = Peer(stream)
        server.peers.start_soon(late.run)
        await stream.send_all(b"GET / HT")  # it is accepted, and begins
        await holder.call("lease.inspect", name="a")
        since = server.signal()
        await holder.notification("server.draining")
        await stream.send_all(
            b"TP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        code, took_s = await server.ended(since)
        assert (code, took_s < SOON_S) == (0, True)


async def test_the_token_of_a_file_is_wanted_and_appears_in_no_output(place: Path) -> None:
    token = place / "token"
    token.write_text("canary-77\n")
    async with process("--token-file", str(token)) as server:
        peer = await server.connect()
        await peer.call("session.open", token="canary-77")
        await peer.call("lease.acquire", name="a")
        other = await server.connect()
        with pytest.raises(Refused) as refused:
            await other.call("session.open", token="canary-78")
        assert refused.value.code == -32010
        assert await other.closed() == 4500
        await peer.close()
