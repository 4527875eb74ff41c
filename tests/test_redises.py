"""The private Redis servers, and the bad line to them, do what their names say."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import pytest
import trio
from redis.exceptions import ResponseError

from tests import redis_groups, redises
from tests.processes import ServerFailed, first_line
from tests.proxy import Proxy, Way, open_proxy, running_proxy
from tests.redis_groups import (
    Redises,
    in_step,
    is_master,
    running_cluster,
    running_replicas,
)
from tests.redises import (
    HOST,
    PortTaken,
    RedisFailed,
    RunningRedis,
    free_port,
    running_redis,
    skew_library,
    until,
)

WITHIN_S: Final = 20
SOON_S: Final = 0.2
MINUTE_MS: Final = 60_000

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def redis() -> Iterator[RunningRedis]:
    """One that nobody harms."""
    with running_redis() as running:
        yield running


def exists(pid: int) -> bool:
    """Whether there is such a process; a dead child that was not waited for still is one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def listens(port: int) -> bool:
    """Whether somebody accepts connections."""
    try:
        socket.create_connection((HOST, port)).close()
    except ConnectionRefusedError:
        return False
    return True


# --- one server


def test_nothing_remains_of_it_even_if_the_test_fails() -> None:
    with pytest.raises(ZeroDivisionError), running_redis() as redis:  # noqa: PT012 # the body is it
        assert redis.cli("SET", "k", b"v") == "OK"
        redis.pause()
        _ = 1 / 0
    assert not exists(redis.process.pid)
    assert not redis.directory.exists()


DYING_RUN: Final = """
import time
from tests.redises import running_redis
with running_redis() as redis:
    print(redis.port, redis.directory, flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux kills for a parent that cannot")
def test_no_process_remains_of_a_killed_test_run() -> None:
    with subprocess.Popen([sys.executable, "-c", DYING_RUN], stdout=subprocess.PIPE) as run:
        assert run.stdout is not None
        port, directory = first_line(run.stdout).split()
        assert listens(int(port))
        run.kill()
    until(lambda: not listens(int(port)), "the Redis is gone", WITHIN_S)
    shutil.rmtree(directory)


def test_a_restarted_one_is_empty_at_the_same_port() -> None:
    with running_redis() as redis:
        url, run_id = redis.url, redis.info()["run_id"]
        redis.cli("SET", "k", "v")
        redis.kill()
        with pytest.raises(ConnectionRefusedError):
            redis.cli("PING")
        redis.restart()
        assert redis.url == url
        assert redis.info()["run_id"] != run_id
        assert redis.cli("GET", "k") is None


def test_it_keeps_what_its_options_say(tmp_path: Path) -> None:
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with running_redis(options=options, directory=tmp_path) as redis:
        redis.cli("SET", "k", "v")
        redis.restart()
        assert redis.cli("GET", "k") == "v"
    assert tmp_path.exists()


def test_a_paused_one_answers_when_it_is_resumed() -> None:
    with running_redis() as redis, socket.create_connection((HOST, redis.port)) as line:
        redis.pause()
        line.sendall(b"PING\r\n")
        line.settimeout(SOON_S)
        with pytest.raises(TimeoutError):
            line.recv(100)
        redis.resume()
        line.settimeout(WITHIN_S)
        assert line.recv(100) == b"+PONG\r\n"


def test_it_is_reached_with_a_password_and_in_the_file_system() -> None:
    with running_redis(password="secret", unix_socket=True) as redis:
        assert redis.url == f"redis://:secret@127.0.0.1:{redis.port}"
        path = redis.unix_url.removeprefix("unix://:secret@")
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(path)
            line.sendall(b"PING\r\n")
            assert line.recv(100).startswith(b"-NOAUTH")
        assert redis.cli("PING") == "PONG"


def test_an_error_is_raised(redis: RunningRedis) -> None:
    with pytest.raises(ResponseError, match="unknown command"):
        redis.cli("NONSENSE")


def test_one_that_cannot_start_says_why() -> None:
    with pytest.raises(RedisFailed, match="maxmemory"), running_redis(options=("--maxmemory", "x")):
        pass


@pytest.mark.parametrize("password", [None, "another"])
def test_a_taken_port_is_left_alone(password: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a port that the test insists on is a reason to give up."""
    with running_redis(password=password) as first:
        with pytest.raises(PortTaken), running_redis(port=first.port):
            pass
        free = free_port()
        monkeypatch.setattr(redises, "free_port", iter([first.port, free]).__next__)
        with running_redis() as second:
            assert second.port == free


# --- its clock


def ahead_ms(redis: RunningRedis) -> float:
    """How far its clock is ahead of ours."""
    return redis.time_ms() - time.time() * 1000


def test_a_skewed_clock_is_stepped_forth_and_back() -> None:
    with running_redis(skewed=True) as redis:
        assert ahead_ms(redis) == pytest.approx(0, abs=1000)
        redis.cli("SET", "k", "v", "PX", MINUTE_MS - 1)
        redis.step_clock(MINUTE_MS)
        assert ahead_ms(redis) == pytest.approx(MINUTE_MS, abs=1000)
        assert redis.cli("GET", "k") is None
        redis.step_clock(-2 * MINUTE_MS)
        assert ahead_ms(redis) == pytest.approx(-MINUTE_MS, abs=1000)
        assert int(redis.info()["uptime_in_seconds"]) < MINUTE_MS // 1000
        redis.restart()
        assert ahead_ms(redis) == pytest.approx(-MINUTE_MS, abs=1000)


def test_a_frozen_clock_stands_still_until_it_is_told_another_time() -> None:
    """Expiry and TIME follow it, in scripts, too."""
    frozen_us = 2_000_000_000_000_123
    with running_redis(skewed=True) as redis:
        redis.freeze_clock(frozen_us)
        redis.cli("SET", "k", "v", "PX", 10)
        time.sleep(0.02)
        script = "return {redis.call('TIME')[1], redis.call('TIME')[2], redis.call('PTTL', 'k')}"
        assert redis.cli("EVAL", script, 0) == ["2000000000", "123", 10]
        redis.freeze_clock(frozen_us + 11_000)
        assert redis.cli("GET", "k") is None


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of clock steps fails then: skipped, it would never be missed."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RedisFailed, match="apt-get install gcc libc6-dev"):
        skew_library.__wrapped__()


# --- several


def set_everywhere(master: RunningRedis, key: str) -> None:
    """Gives the key a value that the master's replica has, too."""
    assert master.pipeline(["SET", key, "v"], ["WAIT", 1, WITHIN_S * 1000]) == ["OK", 1]


def test_sentinels_promote_a_replica() -> None:
    with running_replicas(sentinels=3) as group:
        set_everywhere(group.master(), "k")
        killed = group.kill_master()
        promoted = group.wait_until_promoted(killed)
        assert promoted.cli("GET", "k") == "v"
        assert group.url.count(",") == 2
        killed.restart()
        until(lambda: not is_master(killed) and in_step(killed), "the killed one follows")
        assert group.replicas() == [killed]


def test_a_replica_is_promoted_by_hand() -> None:
    with running_replicas(2) as group:
        first, (second, third) = group.master(), group.replicas()
        assert group.url == first.url
        group.promote(second)
        until(lambda: in_step(first) and in_step(third), "the others follow")
        assert group.master() is second
        assert group.replicas() == [first, third]


def test_a_cluster_outlives_a_master_with_a_replica() -> None:
    with running_cluster(replicas_each=1) as cluster:
        keys = [f"k{number}" for number in range(20)]
        assert (
            {cluster.node_of(key) for key in keys} == {*cluster.masters()} == {*cluster.nodes[:3]}
        )
        for key in keys:
            set_everywhere(cluster.node_of(key), key)
        victim = cluster.nodes[0]
        cluster.kill_node(victim)
        cluster.wait_until_ok()
        assert [cluster.node_of(key).cli("GET", key) for key in keys] == ["v"] * len(keys)
        assert victim not in cluster.masters()
        cluster.flushall()
        assert [each.cli("DBSIZE") for each in cluster.masters()] == [0, 0, 0]


# --- for a whole session


def test_the_shared_ones_are_handed_out_empty() -> None:
    with contextlib.ExitStack() as stack:
        shared = Redises(stack)
        redis, cluster = shared.single(), shared.cluster()
        nodes = [redis, *cluster.nodes]
        for node in nodes:
            for name in range(20):
                with contextlib.suppress(ResponseError):
                    node.cli("SET", f"k{name}", "v")
            assert node.cli("DBSIZE") != 0
        assert shared.single() is redis
        assert shared.cluster() is cluster
        assert [each.cli("DBSIZE") for each in nodes] == [0, 0, 0, 0]
    assert not any(exists(each.process.pid) for each in nodes)


def test_a_failed_start_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[None] = []

    @contextlib.contextmanager
    def failing() -> Iterator[RunningRedis]:
        tries.append(None)
        raise RedisFailed("no luck")
        yield

    monkeypatch.setattr(redis_groups, "running_redis", failing)
    with contextlib.ExitStack() as stack:
        shared = Redises(stack)
        for _ in range(3):
            with pytest.raises(RedisFailed, match="no luck"):
                shared.single()
    assert len(tries) == 1


# --- a bad line


@pytest.fixture
async def proxy(redis: RunningRedis) -> AsyncIterator[Proxy]:
    async with open_proxy(redis.port) as running:
        yield running


@pytest.fixture
async def line(proxy: Proxy) -> AsyncIterator[trio.SocketStream]:
    """A connection on which something has passed, so that it is through to Redis."""
    async with await trio.open_tcp_stream(HOST, proxy.port) as stream:
        assert await asked(stream, b"PING") == b"+PONG\r\n"
        yield stream


async def asked(line: trio.SocketStream, what: bytes) -> bytes:
    """What comes back next; nothing at the end."""
    with trio.fail_after(WITHIN_S):
        await line.send_all(what + b"\r\n")
        return await line.receive_some()


async def silent(line: trio.SocketStream) -> bool:
    """Whether neither bytes nor the end arrive."""
    with trio.move_on_after(SOON_S) as waiting:
        await line.receive_some()
    return waiting.cancelled_caught


async def test_a_cut_ends_connections_and_welcomes_new_ones(
    proxy: Proxy, line: trio.SocketStream
) -> None:
    assert proxy.connections == 1
    proxy.cut()
    assert await line.receive_some() == b""
    async with await trio.open_tcp_stream(HOST, proxy.port) as another:
        assert await asked(another, b"PING") == b"+PONG\r\n"
        assert proxy.connections == 1


async def test_new_connections_are_refused_and_old_ones_served(
    proxy: Proxy, line: trio.SocketStream
) -> None:
    proxy.refuse()
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream(HOST, proxy.port)
    assert await asked(line, b"PING") == b"+PONG\r\n"
    proxy.heal()
    await (await trio.open_tcp_stream(HOST, proxy.port)).aclose()


async def test_a_delay_counts_in_both_directions(proxy: Proxy, line: trio.SocketStream) -> None:
    proxy.delay(50)
    before = trio.current_time()
    await asked(line, b"PING")
    assert trio.current_time() - before >= 0.1


async def test_a_half_open_line_keeps_what_it_is_given(
    proxy: Proxy, line: trio.SocketStream, redis: RunningRedis
) -> None:
    redis.cli("DEL", "k")
    proxy.half_open()
    await line.send_all(b"SET k v\r\n")
    assert await silent(line)
    assert redis.cli("GET", "k") is None
    proxy.heal()
    assert await line.receive_some() == b"+OK\r\n"


async def test_a_line_towards_redis_only(
    proxy: Proxy, line: trio.SocketStream, redis: RunningRedis
) -> None:
    proxy.one_way(Way.TO_REDIS)
    await line.send_all(b"SET k towards\r\n")
    assert await silent(line)
    assert redis.cli("GET", "k") == "towards"
    proxy.heal()
    assert await line.receive_some() == b"+OK\r\n"


async def test_a_line_towards_the_client_only(
    proxy: Proxy, line: trio.SocketStream, redis: RunningRedis
) -> None:
    await asked(line, b"SUBSCRIBE channel")
    proxy.one_way(Way.TO_CLIENT)
    redis.cli("PUBLISH", "channel", "news")
    assert b"news" in await line.receive_some()
    await line.send_all(b"PING\r\n")
    assert await silent(line)


async def test_a_dropped_reply_never_comes(
    proxy: Proxy, line: trio.SocketStream, redis: RunningRedis
) -> None:
    proxy.drop_replies()
    await line.send_all(b"SET k dropped\r\n")
    assert await silent(line)
    assert redis.cli("GET", "k") == "dropped"
    proxy.heal()
    assert await asked(line, b"PING") == b"+PONG\r\n"


def test_a_proxy_in_a_process_of_its_own_obeys(redis: RunningRedis) -> None:
    with running_proxy(redis.port) as proxy:
        through = attrs.evolve(redis, port=proxy.port)
        assert through.cli("PING") == "PONG"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            through.cli("PING")
        proxy.heal()
        with socket.create_connection((HOST, proxy.port)) as line:
            line.settimeout(SOON_S)
            for trouble in (proxy.half_open, partial(proxy.one_way, Way.TO_REDIS)):
                trouble()
                line.sendall(b"PING\r\n")
                with pytest.raises(TimeoutError):
                    line.recv(100)
                proxy.heal()
                line.settimeout(WITHIN_S)
                assert line.recv(100) == b"+PONG\r\n"
                line.settimeout(SOON_S)
            proxy.drop_replies()
            line.sendall(b"PING\r\n")
            proxy.delay(1)
            proxy.cut()
            line.settimeout(WITHIN_S)
            assert line.recv(100) == b""
        with pytest.raises(ServerFailed, match="delay never"):
            proxy.delay("never")  # type: ignore[arg-type]
