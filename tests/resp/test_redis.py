"""Against a real Redis: the ways to reach it, and what becomes of it."""

import socket
import subprocess
from pathlib import Path

import pytest
import trio
from attrs import evolve
from redis.exceptions import ResponseError

from leasekeeper.errors import Outcome
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.scripts import Call, Script
from leasekeeper.resp.settings import Address, parse_url
from tests.redis_groups import Redises, running_replicas
from tests.redises import RunningRedis, free_port, running_redis, until
from tests.resp.fake import Connected, running_client

COUNT = Script("count", "return redis.call('INCR', KEYS[1])")
ECHO = Script("echo", "return {ARGV[1], 7, false, {}}")


async def works(connected: Connected) -> None:
    """Runs scripts in each way there is."""
    client = connected.client
    assert await client.eval(ECHO, ["k"], [b"\x00\xff"]) == [b"\x00\xff", 7, None, []]
    assert await client.eval(COUNT, ["n"], []) == 1
    assert await client.eval_many([Call(COUNT, ["n"], [])] * 3) == [2, 3, 4]
    assert await client.command("GET", "n", key="n") == b"4"


async def test_tcp(redises: Redises) -> None:
    async with running_client(parse_url(redises.single().url)) as connected:
        await works(connected)
        identity = connected.identities[0]
        info = redises._single.info("server")  # type: ignore[union-attr]
        assert (identity.run_id, identity.version) == (info["run_id"], info["redis_version"])
        assert (identity.is_master, identity.mode) == (True, "standalone")
        assert (identity.maxmemory, identity.maxmemory_policy) == (0, "noeviction")


async def test_a_unix_socket() -> None:
    with running_redis(unix_socket=True, password="secret") as redis:
        async with running_client(parse_url(redis.unix_url)) as connected:
            await works(connected)
            assert connected.client.masters == (Address(path=f"{redis.directory}/redis.sock"),)


async def test_a_password_and_a_database() -> None:
    with running_redis(password="sec/ret@") as redis:
        url = f"redis://:sec%2Fret%40@{redis.address}/3"
        async with running_client(parse_url(url)) as connected:
            await works(connected)
            assert "sec/ret" not in repr(connected)
        assert redis.info("keyspace")["db3"].startswith("keys=1,")


async def test_a_user_with_no_more_rights_than_needed() -> None:
    with running_redis() as redis:
        rights = ("~*", "&*", "+@connection", "+info", "+@scripting", "+incr", "+get")
        redis.cli("ACL", "SETUSER", "bob", "on", ">secret", *rights)
        async with running_client(parse_url(f"redis://bob:secret@{redis.address}")) as connected:
            await works(connected)
            with pytest.raises(Unanswered, match="NOPERM") as refused:
                await connected.client.command("FLUSHALL")
            assert refused.value.outcome is Outcome.NONE


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the key and the certificate of 127.0.0.1, which is its own CA."""
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", directory / "key.pem", "-out", directory / "cert.pem"),
        ],
        check=True,
        capture_output=True,
    )
    return directory


def tls_options(certificate: Path, port: int) -> tuple[str, ...]:
    """For a Redis that speaks it on a second port."""
    cert, key = certificate / "cert.pem", certificate / "key.pem"
    files = ("--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert)
    return ("--tls-port", str(port), *map(str, files))


@pytest.mark.parametrize("client_certificate", ["no", "yes"])
async def test_tls(certificate: Path, client_certificate: str) -> None:
    port = free_port()
    options = (*tls_options(certificate, port), "--tls-auth-clients", client_certificate)
    cert, key = certificate / "cert.pem", certificate / "key.pem"
    ours = f"&ssl_certfile={cert}&ssl_keyfile={key}" if client_certificate == "yes" else ""
    with running_redis(options=options) as redis:
        url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={cert}{ours}"
        async with running_client(parse_url(url)) as connected:
            await works(connected)
            await trio.to_thread.run_sync(redis.restart)
            assert await connected.client.eval(COUNT, ["n"], []) == 1


async def test_a_loss_of_data_is_told_of_before_any_later_reply(redises: Redises) -> None:
    """By each connection of its own, whoever has flushed, and whatever is under way."""
    settings = evolve(parse_url(redises.single().url), pool_min=1, pool_max=1)
    async with running_client(settings) as connected:
        client = connected.client
        await client.command("SET", "n", 1000)
        after = 0

        async def count() -> None:
            nonlocal after
            reply = await client.eval(COUNT, ["n"], [])
            if reply in range(1000):
                after += 1
                assert connected.flushed

        async with trio.open_nursery() as nursery:
            for number in range(101):
                if number == 50:
                    nursery.start_soon(client.command, "FLUSHALL")
                nursery.start_soon(count)
        assert after
        assert len(connected.flushed) == 1


async def test_a_restart_is_a_new_identity_before_the_first_command() -> None:
    with running_redis() as redis:
        async with running_client(parse_url(f"{redis.url}?pool_min=1")) as connected:
            assert await connected.client.eval(COUNT, ["n"], []) == 1
            before = len(connected.identities)
            await trio.to_thread.run_sync(redis.restart)
            assert await connected.client.eval(COUNT, ["n"], []) == 1
            new = {each.run_id for each in connected.identities[before:]}
            assert new == {redis.info("server")["run_id"]}


async def test_a_stopped_redis_is_unknown_in_time_and_then_unreachable_in_time() -> None:
    with running_redis() as redis:
        settings = evolve(parse_url(redis.url), read_ms=300, dial_ms=300, patience_ms=200)
        async with running_client(settings) as connected:
            redis.pause()
            for outcome, within_s in ((Outcome.UNKNOWN, 0.3), (Outcome.NONE, 0.2)):
                started = trio.current_time()
                with pytest.raises(Unanswered) as failed:
                    await connected.client.eval(COUNT, ["n"], [])
                assert failed.value.outcome is outcome
                assert trio.current_time() - started < within_s + 0.3
            redis.resume()
            with trio.fail_after(5):
                await is_back(connected)


async def is_back(connected: Connected) -> None:
    """Calls until it works again."""
    while await problem_of(connected) is not None:
        pass


async def test_wait_counts_the_replicas_that_have_it() -> None:
    with running_replicas(1) as group:
        async with running_client(parse_url(group.url)) as connected:
            client = connected.client
            reply = await client.eval_and_wait(COUNT, ["n"], [], replicas=1, timeout_ms=2000)
            assert reply == (1, 1)
            group.replicas()[0].pause()
            reply = await client.eval_and_wait(COUNT, ["n"], [], replicas=1, timeout_ms=100)
            assert reply == (2, 0)


async def test_many_tasks_get_their_own_replies_while_others_are_cancelled(
    redises: Redises,
) -> None:
    async def ask(connected: Connected, name: int) -> None:
        for number in range(50):
            nonce = f"{name}.{number}".encode()
            with trio.move_on_after(0.001 if name % 2 else 30):
                [reply, *_] = listed(await connected.client.eval(ECHO, ["k"], [nonce]))
                assert reply == nonce

    async with (
        running_client(parse_url(redises.single().url)) as connected,
        trio.open_nursery() as nursery,
    ):
        for name in range(200):
            nursery.start_soon(ask, connected, name)


def listed(reply: object) -> list[object]:
    """An array reply."""
    assert isinstance(reply, list)
    return reply


async def test_real_refusals() -> None:
    """Out of memory, and a script that runs for too long."""
    with running_redis(options=("--busy-reply-threshold", "50")) as redis:
        async with running_client(parse_url(redis.url)) as connected:
            client = connected.client
            redis.cli("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(Unanswered, match="OOM") as refused:
                await client.eval(COUNT, ["n"], [])
            assert refused.value.outcome is Outcome.NONE
            redis.cli("CONFIG", "SET", "maxmemory", "0")
            await refused_while_busy(connected, redis)
            with pytest.raises(ResponseError, match="WRONGTYPE"):
                await client.eval(Script("bad", "return redis.call('LPUSH', 'n', 1)"), ["n"], [])


async def refused_while_busy(connected: Connected, redis: RunningRedis) -> None:
    """Somebody else's script blocks Redis."""
    with socket.create_connection(("127.0.0.1", redis.port)) as other:
        other.sendall(b"EVAL 'while true do end' 0\r\n")
        with trio.fail_after(5):
            problem = None
            while problem is None:
                problem = await problem_of(connected)
        assert problem.outcome is Outcome.NONE
        assert "BUSY" in problem.reason
        redis.cli("SCRIPT", "KILL")
        with trio.fail_after(5):
            await is_back(connected)


async def problem_of(connected: Connected) -> Unanswered | None:
    """How a call fails, if it does."""
    try:
        await connected.client.eval(COUNT, ["n"], [])
    except Unanswered as problem:
        return problem
    return None


async def test_no_socket_is_left_behind(redises: Redises) -> None:
    redis = redises.single()

    def clients() -> int:
        return int(redis.info("clients")["connected_clients"])

    before = clients()
    async with running_client(parse_url(redis.url)) as connected:
        await works(connected)
        assert clients() > before
    until(lambda: clients() == before, "Redis sees the connections end")
