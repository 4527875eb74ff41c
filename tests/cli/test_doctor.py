"""`leasekeeper doctor`: what it says of a Redis; and how `serve` refuses one in a single line."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Final

import pytest
import structlog

from leasekeeper.cli.doctor import doctor
from tests.cli.running import leasekeeper
from tests.processes import LEASEKEEPER, started
from tests.redis_groups import running_cluster, running_replicas
from tests.redises import RunningRedis, free_port, running_redis, until

WITHIN_S: Final = 20.0
CANARY: Final = "canary-77"


@pytest.fixture
def redis() -> Iterator[RunningRedis]:
    """One that the test may spoil."""
    with running_redis() as running:
        yield running


# --- What it says ---------------------------------------------------------------------------------


@pytest.mark.system
def test_warnings_are_no_failure(redis: RunningRedis) -> None:
    said = leasekeeper("doctor", "--store", redis.url)
    assert said.exit_code == 0, said.output
    assert said.stderr == ""
    first, *_, last = said.output.splitlines()
    assert first == redis.address
    assert last == "Leases can be kept here, with 1 warning."
    assert "  eviction     ok      maxmemory-policy is noeviction\n" in said.output
    assert "  persistence  warn    none" in said.output
    assert "-> CONFIG SET appendonly yes" in said.output


@pytest.mark.system
def test_a_redis_that_loses_nothing_is_praised() -> None:
    with running_redis(options=("--appendonly", "yes", "--appendfsync", "always")) as redis:
        said = leasekeeper("doctor", "--store", redis.url)
    assert (said.exit_code, said.output.splitlines()[-1]) == (0, "Leases can be kept here.")


@pytest.mark.system
def test_what_a_server_would_refuse_ends_it_with_2(redis: RunningRedis) -> None:
    redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    said = leasekeeper("doctor", "--store", redis.url, "--replicas", "1")
    assert said.exit_code == 2
    assert "  eviction     refuse  maxmemory-policy is allkeys-lru" in said.output
    assert "-> CONFIG SET maxmemory-policy noeviction" in said.output
    assert "  replicas     warn    0 online, 1 wanted" in said.output
    assert said.output.endswith("Leases cannot be kept here: 1 refused, 2 warnings.\n")


@pytest.mark.system
@pytest.mark.parametrize("columns", [80, 120])
def test_it_fits_into_the_terminal(redis: RunningRedis, columns: int) -> None:
    redis.cli("ACL", "SETUSER", "user", "on", ">pw", "~lk:*", "&lk:*", "+@all", "-publish")
    url = f"redis://user:pw@{redis.address}"
    said = leasekeeper("doctor", "--store", url, COLUMNS=str(columns))
    assert "this user may not PUBLISH in acquire" in said.output
    assert max(map(len, said.output.splitlines())) <= min(columns, 100)


@pytest.mark.system
def test_json_is_one_document(redis: RunningRedis) -> None:
    redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    said = leasekeeper("doctor", "--store", redis.url, "--json")
    assert said.exit_code == 2
    document = json.loads(said.stdout)
    assert document["verdict"] == "refuse"
    by_check = {each["check"]: each for each in document["findings"]}
    assert by_check["eviction"]["verdict"] == "refuse"
    assert by_check["eviction"]["node"] == redis.address
    assert by_check["scripts"] == {
        "node": redis.address,
        "check": "scripts",
        "verdict": "ok",
        "found": "run, and leave nothing behind",
        "advice": None,
    }


@pytest.mark.system
def test_nothing_is_logged_in_between(redis: RunningRedis) -> None:
    """A refused command is, where a server runs."""
    redis.cli("ACL", "SETUSER", "user", "on", ">pw", "~lk:*", "&lk:*", "+@all", "-evalsha")
    said = leasekeeper("doctor", "--store", f"redis://user:pw@{redis.address}", "--json")
    assert json.loads(said.stdout)["verdict"] == "refuse"
    assert said.stderr == ""


@pytest.mark.system
def test_every_master_of_a_cluster_has_its_part() -> None:
    with running_cluster() as cluster:
        cluster.nodes[1].cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        said = leasekeeper("doctor", "--store", cluster.url)
        assert said.exit_code == 2
        parts = [part.splitlines() for part in said.output.strip().split("\n\n")]
        refusing = [part[0] for part in parts if any("eviction     refuse" in row for row in part)]
        assert refusing == [cluster.nodes[1].address]
        addresses = {each.address for each in cluster.nodes}
        assert addresses < {part[0] for part in parts}
        assert all(part[0] in addresses for part in parts if "scripts" in "".join(part))


@pytest.mark.system
def test_it_leaves_nothing_behind(redis: RunningRedis) -> None:
    before = structlog.get_config()
    assert leasekeeper("doctor", "--store", redis.url).exit_code == 0
    until(lambda: redis.cli("KEYS", "*") == [], "no key is left", 1)
    assert structlog.get_config() == before


@pytest.mark.system
def test_the_prefix_counts_for_permissions(redis: RunningRedis) -> None:
    redis.cli("ACL", "SETUSER", "user", "on", ">pw", "~mine:*", "&mine:*", "+@all")
    url = f"redis://user:pw@{redis.address}"
    assert leasekeeper("doctor", "--store", url).exit_code == 2
    assert leasekeeper("doctor", "--store", url, "--prefix", "mine").exit_code == 0


def test_the_embedded_store_has_nothing_to_examine() -> None:
    said = leasekeeper("doctor")
    assert said.exit_code == 0
    assert "nothing to examine" in said.output
    said = leasekeeper("doctor", "--store", "memory", "--json")
    assert json.loads(said.stdout) == {"verdict": "ok", "findings": []}


@pytest.mark.system
def test_the_store_may_come_from_the_environment(redis: RunningRedis) -> None:
    said = leasekeeper("doctor", LEASEKEEPER_STORE=redis.url)
    assert said.output.splitlines()[0] == redis.address


def test_the_help_says_what_the_exit_codes_mean() -> None:
    assert doctor.help is not None
    assert "Exits with 0" in doctor.help
    assert "with 2" in doctor.help


# --- A Redis that is no store, to `doctor` and to `serve` -----------------------------------------


def down(_: ExitStack) -> tuple[str, str]:
    """Nothing listens there."""
    return f"redis://:{CANARY}@127.0.0.1:{free_port()}", "nothing listens at 127.0.0.1:"


def wrong_password(stack: ExitStack) -> tuple[str, str]:
    """The right one is another."""
    redis = stack.enter_context(running_redis(password="right"))
    return f"redis://:{CANARY}@{redis.address}", "refused the user name or the password"


def no_password(stack: ExitStack) -> tuple[str, str]:
    """There has to be one."""
    redis = stack.enter_context(running_redis(password="right"))
    return f"redis://{redis.address}", "wants a password"


def wrong_url(_: ExitStack) -> tuple[str, str]:
    """Of another kind of store."""
    return f"postgres://:{CANARY}@127.0.0.1", "a Redis URL begins with"


def wrong_port(_: ExitStack) -> tuple[str, str]:
    """Not a number."""
    return f"redis://:{CANARY}@127.0.0.1:http", "the hosts of a Redis URL are HOST:PORT"


def replica(stack: ExitStack) -> tuple[str, str]:
    """It is read-only."""
    group = stack.enter_context(running_replicas(1))
    return group.replicas()[0].url, "is a read-only replica of"


def evicting(stack: ExitStack) -> tuple[str, str]:
    """It may delete leases."""
    options = ("--maxmemory-policy", "allkeys-lru")
    redis = stack.enter_context(running_redis(options=options))
    return redis.url, "maxmemory-policy is allkeys-lru"


UNREACHED: Final = (down, wrong_password, no_password, wrong_url, wrong_port, replica)


@pytest.mark.system
@pytest.mark.parametrize("case", UNREACHED)
def test_what_cannot_be_connected_to_is_one_line(
    case: Callable[[ExitStack], tuple[str, str]],
) -> None:
    with ExitStack() as stack:
        url, expected = case(stack)
        said = leasekeeper("doctor", "--store", url)
    assert (said.exit_code, said.stdout) == (2, "")
    (line,) = said.stderr.splitlines()
    assert expected in line
    assert CANARY not in line


@pytest.mark.system
@pytest.mark.parametrize("case", [*UNREACHED, evicting])
def test_a_server_that_cannot_start_says_why_in_one_line(
    case: Callable[[ExitStack], tuple[str, str]],
) -> None:
    with ExitStack() as stack:
        url, expected = case(stack)
        command = (*LEASEKEEPER, "serve", "--listen", "127.0.0.1:0")
        with started(command, LEASEKEEPER_STORE=url) as server:
            output, complaints = server.communicate(timeout=WITHIN_S)
    assert (server.returncode, output) == (2, b"")
    (line,) = complaints.decode().splitlines()
    assert line.startswith("Error: ")
    assert expected in line
    assert CANARY not in line


@pytest.mark.system
def test_what_cannot_be_connected_to_is_a_finding_in_json() -> None:
    said = leasekeeper("doctor", "--json", "--store", f"redis://127.0.0.1:{free_port()}")
    assert said.exit_code == 2
    document = json.loads(said.stdout)
    (finding,) = document["findings"]
    assert (document["verdict"], finding["check"]) == ("refuse", "connection")
    assert finding["found"].startswith("nothing listens at")
    assert finding["advice"].startswith("start Redis there")
