"""The preflight: what is refused, what is warned of, and how a running server takes it."""

import shlex
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final

import pytest
import trio
from attrs import frozen
from structlog.testing import capture_logs

from leasekeeper.cli.job import run
from leasekeeper.core.lock import Left, Renewed
from leasekeeper.errors import ConfigurationError, Outcome, Unavailable
from leasekeeper.resp.client import Client
from leasekeeper.resp.settings import parse_url
from leasekeeper.store.redis import findings
from leasekeeper.store.redis.findings import Finding, Level
from leasekeeper.store.redis.keys import Layout
from leasekeeper.store.redis.preflight import Examiner, try_subscribing
from leasekeeper.store.redis.store import Options, RedisStore
from tests.redis_groups import running_cluster, running_replicas
from tests.redises import RunningRedis, running_redis, until
from tests.store.actors import WAKE_S, Actor, acting

OFTEN: Final = Options(preflight_ms=100)
SOON_S: Final = 5.0
"""Within this a running server has noticed; far below the half minute that is usual."""
MINUTE_MS: Final = 60_000


@pytest.fixture
def redis() -> Iterator[RunningRedis]:
    """One that the test may spoil."""
    with running_redis() as running:
        yield running


@frozen
class Look:
    """What was found, by subject."""

    found: Sequence[Finding]

    def __getitem__(self, subject: str) -> Finding:
        [one] = [each for each in self.found if each.subject == subject]
        return one

    def at(self, level: Level) -> set[str]:
        """The subjects that are so."""
        return {each.subject for each in self.found if each.level is level}


async def looked(url: str, *, replicas: int = 0, times: int = 1) -> Look:
    """What an examination finds, the last of several."""
    client = Client(parse_url(url), lambda _: None, lambda _: None)
    found: list[Finding] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        examiner = Examiner(client, Layout(), replicas)
        for _ in range(times):
            found = await examiner.examine()
        found.append(await try_subscribing(client, Layout()))
        nursery.cancel_scope.cancel()
    return Look(found)


def serving(url: str, options: Options | None = None) -> AbstractAsyncContextManager[Actor]:
    """A server at work on it."""
    return acting(RedisStore(parse_url(url), "one", options or Options()))


def some_user(redis: RunningRedis, *rules: str) -> str:
    """The URL for a user that may do all but what the rules say."""
    redis.cli("ACL", "SETUSER", "user", "on", ">pw", "~lk:*", "&lk:*", "+@all", *rules)
    return f"redis://user:pw@{redis.address}"


# --- What is right --------------------------------------------------------------------------------


@pytest.mark.system
async def test_a_redis_that_loses_nothing_has_nothing_to_be_said_against_it() -> None:
    with running_redis(options=("--appendonly", "yes", "--appendfsync", "always")) as redis:
        look = await looked(redis.url)
        assert look.at(Level.OK) == {each.subject for each in look.found}
        assert {"version", "eviction", "memory", "persistence", "clock"} < look.at(Level.OK)
        assert {each.where for each in look.found} == {redis.address, ""}


@pytest.mark.system
async def test_the_rehearsal_leaves_nothing_behind(redis: RunningRedis) -> None:
    look = await looked(redis.url)
    assert look["scripts"].level is Level.OK
    # The last fence is remembered for a millisecond.
    until(lambda: redis.cli("KEYS", "*") == [], "no key is left", 1)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.system
async def test_a_redis_that_may_evict_is_refused_whatever_its_memory() -> None:
    with running_redis(options=("--maxmemory-policy", "volatile-ttl")) as redis:
        look = await looked(redis.url)
    assert look.at(Level.REFUSE) == {"eviction"}
    assert "volatile-ttl" in look["eviction"].found
    assert "CONFIG SET maxmemory-policy noeviction" in look["eviction"].advice


@pytest.mark.parametrize(
    ("said", "level"),
    [
        ("7.0.15", Level.OK),
        ("8.2", Level.OK),
        ("6.2.14", Level.WARN),
        ("6.0.16", Level.REFUSE),
        ("5.0.0", Level.REFUSE),
        ("", Level.WARN),
        ("unstable", Level.WARN),
    ],
)
def test_old_versions_are_refused_and_ageing_ones_warned_of(said: str, level: Level) -> None:
    finding = findings.version({"redis_version": said})
    assert finding.level is level
    assert bool(finding.advice) is (level is not Level.OK)


def test_a_fork_is_named_as_what_it_is() -> None:
    finding = findings.version({"redis_version": "7.2.4", "valkey_version": "8.1.0"})
    assert finding == Finding(Level.OK, "version", "Valkey 8.1.0 (as Redis 7.2.4)")


@pytest.mark.system
@pytest.mark.parametrize(
    ("rule", "found"),
    [
        ("-eval", "may not EVAL"),
        ("-evalsha", "may not EVALSHA with the keys lk:*"),
        ("resetkeys", "may not EVALSHA with the keys lk:*"),
        ("-publish", "may not PUBLISH in acquire"),
        ("resetchannels", "may not PUBLISH in acquire"),
        ("-zrank", "may not ZRANK or GET in acquire"),
        ("-time", "may not TIME in acquire"),
        ("-pexpire", "may not PEXPIRE in acquire"),
        ("-zrem", "may not ZREM in release"),
    ],
)
async def test_a_user_who_may_not_run_the_scripts_is_refused(
    redis: RunningRedis, rule: str, found: str
) -> None:
    """PING is answered all the same."""
    redis.cli("SET", "lk:mine", "1")
    look = await looked(some_user(redis, rule))
    assert look["scripts"].level is Level.REFUSE
    assert look["scripts"].found == f"this user {found}"
    assert not look["scripts"].passing
    assert redis.cli("KEYS", "*") == ["lk:mine"]


@pytest.mark.system
async def test_the_rights_that_are_advised_are_enough(redis: RunningRedis) -> None:
    url = some_user(redis, "-@all", "+@connection", "+info")
    advice = (await looked(url))["scripts"].advice
    redis.cli(*shlex.split(advice))
    look = await looked(url, replicas=1)
    assert look.at(Level.REFUSE) == set()
    assert look.at(Level.WARN) == {"persistence", "replicas"}


@pytest.mark.system
async def test_a_user_who_may_not_subscribe_is_refused(redis: RunningRedis) -> None:
    look = await looked(some_user(redis, "-subscribe"))
    assert look.at(Level.REFUSE) == {"events"}
    assert "refused SUBSCRIBE" in look["events"].found


@pytest.mark.system
async def test_a_user_who_may_not_wait_is_refused_where_replicas_are_wanted(
    redis: RunningRedis,
) -> None:
    url = some_user(redis, "-wait")
    assert (await looked(url)).at(Level.REFUSE) == set()
    assert (await looked(url, replicas=1)).at(Level.REFUSE) == {"replicas"}


# --- What is warned of ----------------------------------------------------------------------------


@pytest.mark.system
@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ((), "none"),
        (("--save", "60 1"), "snapshots only"),
        (("--appendonly", "yes"), "synced every second"),
        (("--appendonly", "yes", "--appendfsync", "no"), "appendfsync no"),
    ],
)
async def test_what_a_crash_would_lose_is_warned_of(settings: Sequence[str], found: str) -> None:
    with running_redis(options=settings) as redis:
        look = await looked(redis.url)
    assert look.at(Level.WARN) == {"persistence"}
    assert found in look["persistence"].found


@pytest.mark.parametrize(
    ("aof", "save", "fsync", "found"),
    [
        ("1", None, None, "whether it is synced at every write cannot be read"),
        ("0", None, None, "whether there are snapshots cannot be read"),
        (None, "60 1", "always", "cannot be read"),
    ],
)
def test_persistence_that_cannot_be_read_is_warned_of(
    aof: str | None, save: str | None, fsync: str | None, found: str
) -> None:
    info = {} if aof is None else {"aof_enabled": aof}
    finding = findings.persistence(info, save, fsync)
    assert finding.level is Level.WARN
    assert finding.found.endswith(found)


@pytest.mark.parametrize("judge", [findings.eviction, findings.memory, findings.version])
def test_what_info_does_not_say_is_a_warning(
    judge: Callable[[Mapping[str, str]], Finding],
) -> None:
    finding = judge({})
    assert finding.level is Level.WARN
    assert "cannot be read" in finding.found


@pytest.mark.system
async def test_a_forbidden_config_is_no_more_than_a_warning_and_asked_for_once(
    redis: RunningRedis,
) -> None:
    look = await looked(some_user(redis, "-config"), times=3)
    assert look.at(Level.WARN) == {"persistence"}
    assert "cannot be read" in look["persistence"].found
    assert "rejected_calls=1," in redis.info("commandstats")["cmdstat_config|get"]


@pytest.mark.system
async def test_a_user_who_may_not_scan_is_warned(redis: RunningRedis) -> None:
    look = await looked(some_user(redis, "-scan"))
    assert look["listing"].level is Level.WARN


@pytest.mark.parametrize(
    ("used", "most", "level"),
    [(81, 100, Level.WARN), (80, 100, Level.OK), (10**9, 0, Level.OK)],
)
def test_a_memory_that_is_nearly_full_is_warned_of(used: int, most: int, level: Level) -> None:
    info = {"used_memory": str(used), "maxmemory": str(most)}
    assert findings.memory(info).level is level


@pytest.mark.system
async def test_missing_replicas_are_warned_of() -> None:
    with running_replicas(1) as group:
        url = group.master().url
        until(
            lambda: "state=online" in group.master().info("replication")["slave0"],
            "the replica is online",
        )
        assert (await looked(url, replicas=1))["replicas"].level is Level.OK
        look = await looked(url, replicas=2)
    assert look["replicas"].level is Level.WARN
    assert look["replicas"].found.startswith("1 online, 2 wanted")


@pytest.mark.system
@pytest.mark.parametrize("step_ms", [MINUTE_MS, -MINUTE_MS])
async def test_a_step_of_the_clock_is_noticed_once(step_ms: int) -> None:
    with running_redis(skewed=True) as redis:
        client = Client(parse_url(redis.url), lambda _: None, lambda _: None)
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            examiner = Examiner(client, Layout(), 0)
            before = Look(await examiner.examine())
            redis.step_clock(step_ms)
            stepped = Look(await examiner.examine())
            after = Look(await examiner.examine())
            nursery.cancel_scope.cancel()
    assert before["clock"].level is Level.OK
    assert stepped["clock step"].level is Level.WARN
    assert ("forward" if step_ms > 0 else "back") in stepped["clock step"].found
    assert "60.0 s" in stepped["clock step"].found
    assert "clock step" not in after.at(Level.WARN)
    assert after["clock"].level is Level.WARN


# --- States that pass -----------------------------------------------------------------------------


@pytest.mark.system
async def test_a_full_redis_is_found_and_pauses_nothing_by_itself(redis: RunningRedis) -> None:
    """It answers each grant itself, and renewals and releases must go on."""
    async with serving(redis.url, OFTEN) as one:
        held = await one.take("held")
        redis.cli("CONFIG", "SET", "maxmemory", 1)
        look = await looked(redis.url)
        assert look["scripts"].passing
        assert look["scripts"].found == "acquire: refused: OOM"
        await trio.sleep(0.3)
        with pytest.raises(Unavailable, match="the store cannot answer now"):
            await one.take("other")
        assert await one.release("held", held.lease) is Left.HELD
    async with serving(redis.url):
        pass  # a server that is restarted meanwhile comes up


@pytest.mark.system
async def test_a_silent_node_of_a_cluster_is_found_beside_the_others() -> None:
    with running_cluster(node_timeout_ms=20_000) as cluster:
        client = Client(
            parse_url(f"{cluster.url}?patience_ms=300&read_ms=500"), lambda _: None, lambda _: None
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            examiner = Examiner(client, Layout(), 0)
            silent, *others = cluster.nodes
            silent.pause()
            found = await examiner.examine()
            silent.resume()
            nursery.cancel_scope.cancel()
    (lost,) = [each for each in found if each.where == silent.address]
    assert (lost.subject, lost.level, lost.passing) == ("connection", Level.REFUSE, True)
    for each in others:
        assert Finding(
            Level.OK, "scripts", "run, and leave nothing behind", where=each.address
        ) in (found)


@pytest.mark.system
async def test_every_master_of_a_cluster_is_examined_and_named() -> None:
    with running_cluster() as cluster:
        cluster.nodes[1].cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        look = await looked(cluster.url)
    addresses = {each.address for each in cluster.nodes}
    rehearsed = [each for each in look.found if each.subject == "scripts"]
    assert {each.where for each in rehearsed} == addresses
    assert {each.level for each in rehearsed} == {Level.OK}
    (refused,) = [each for each in look.found if each.level is Level.REFUSE]
    assert (refused.where, refused.subject) == (cluster.nodes[1].address, "eviction")


# --- At the start, and later ----------------------------------------------------------------------


@pytest.mark.system
def test_a_server_does_not_start_on_a_redis_that_may_evict(redis: RunningRedis) -> None:
    redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    store = RedisStore(parse_url(redis.url), "one")
    with capture_logs() as logs, pytest.raises(ConfigurationError) as raised:
        run(store.run, lambda _: None)
    text = str(raised.value)
    assert text.startswith(f"{redis.address}: maxmemory-policy is allkeys-lru")
    assert "CONFIG SET maxmemory-policy noeviction" in text
    assert "\n" not in text
    assert not logs


@pytest.mark.system
def test_of_several_refusals_one_is_told_and_the_others_are_counted(redis: RunningRedis) -> None:
    redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    store = RedisStore(parse_url(some_user(redis, "-publish")), "one")
    with pytest.raises(ConfigurationError, match=r"\(and 1 more: leasekeeper doctor shows all\)$"):
        run(store.run, lambda _: None)


async def refused(actor: Actor, name: str) -> Unavailable:
    """Waits until nothing is granted for what Redis is, and says how it was put."""
    with trio.fail_after(SOON_S):
        while True:
            claim = actor.claim()
            try:
                await actor.ask(name, claim)
            except Unavailable as problem:
                if "maxmemory-policy" in problem.text:
                    return problem
            with suppress(Unavailable):
                await actor.release(name, claim.lease)
            await trio.sleep(0.05)


@pytest.mark.system
async def test_a_server_stops_granting_while_redis_may_evict(redis: RunningRedis) -> None:
    """Leases that are held are renewed and released as ever; nobody is granted what they leave."""
    async with serving(redis.url, OFTEN) as one:
        held = await one.take("n")
        waiter = await one.queue("n")
        redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        problem = await refused(one, "other")
        assert problem.outcome is Outcome.NONE
        assert "maxmemory-policy is allkeys-lru" in problem.text
        assert isinstance(await one.renew("n", held.lease), Renewed)
        with pytest.raises(Unavailable):
            await one.queue("n")
        assert await one.release("n", held.lease) is Left.HELD
        await trio.sleep(0.3)
        assert await one.fences("n") == []
        redis.cli("CONFIG", "SET", "maxmemory-policy", "noeviction")
        grant = await one.granted(waiter, within_s=WAKE_S)
        assert grant.fence > held.fence
        await one.take("other")


@pytest.mark.system
async def test_every_new_connection_has_redis_examined_again(redis: RunningRedis) -> None:
    """Half a minute would be long, if another Redis answers now."""
    async with serving(redis.url) as one:
        await trio.sleep(1.5)  # the first connections are looked at
        redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        await trio.sleep(0.5)
        assert await one.is_free("n")
        redis.cli("CLIENT", "KILL", "TYPE", "normal")
        assert "allkeys-lru" in (await refused(one, "n")).text


@pytest.mark.system
async def test_a_redis_out_of_reach_is_not_right_again(redis: RunningRedis) -> None:
    url = f"{redis.url}?patience_ms=200&read_ms=300"
    with capture_logs() as logs:
        async with serving(url, OFTEN) as one:
            redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            await refused(one, "n")
            redis.pause()
            await trio.sleep(1.5)
            redis.resume()
            assert "allkeys-lru" in (await refused(one, "n")).text
    events = [each["event"] for each in logs]
    assert "redis connection lost" in events
    assert "grants go on" not in events


@pytest.mark.system
async def test_what_is_wrong_is_logged_once_and_again_when_it_is_right(
    redis: RunningRedis,
) -> None:
    def told(event: str) -> list[str]:
        return [each["check"] for each in logs if each["event"] == event]

    with capture_logs() as logs:
        async with serving(redis.url, OFTEN):
            await trio.sleep(0.5)
            assert told("redis is not as it should be") == ["persistence"]
            redis.cli("CONFIG", "SET", "appendonly", "yes", "appendfsync", "always")
            await in_time(lambda: told("redis is as it should be again") == ["persistence"])
            redis.cli("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            await in_time(lambda: len(told_of_pauses(logs)) == 1)
            redis.cli("CONFIG", "SET", "maxmemory-policy", "volatile-lru")
            await in_time(lambda: len(told_of_pauses(logs)) == 2)
    assert told("redis is not as it should be") == ["persistence", "eviction"]
    assert ["allkeys-lru" in each for each in told_of_pauses(logs)] == [True, False]


async def in_time(true: Callable[[], bool]) -> None:
    """Waits until it is true."""
    with trio.fail_after(SOON_S):
        while not true():  # noqa: ASYNC110 # there is no event for a line in the log
            await trio.sleep(0.05)


def told_of_pauses(logs: Sequence[MutableMapping[str, Any]]) -> list[str]:
    """The reasons."""
    return [each["reason"] for each in logs if each["event"] == "grants are paused"]
