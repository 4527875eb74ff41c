"""The core of the cache and the Lua inside Redis are one: equal answers, news, and memory.

`caches_machine` says what is compared. Here it runs on one Redis, and on a cluster; and a few
histories are known beforehand.
"""

import contextlib
from collections.abc import Iterator
from functools import partial

import pytest

from leasekeeper.core import cache as core_cache
from leasekeeper.core import versions as core_versions
from leasekeeper.core.fills import Ask, Content
from leasekeeper.core.versions import TAG_RECORDS_MAX
from leasekeeper.messages import Mark
from tests.properties.caches_machine import (
    LONG_MS,
    OPTIONS,
    SHORT_MS,
    START_US,
    CoreAndScripts,
    run,
)
from tests.properties.caches_scripts import RULES, Wire
from tests.redis_groups import RedisCluster, introduce, share_slots
from tests.redises import running_redis

pytestmark = pytest.mark.system

# --- On one Redis, and on a cluster ---------------------------------------------------------------


@pytest.fixture(scope="module")
def one_partition() -> Iterator[Wire]:
    """A Redis whose clock stands still, for the examples to take turns."""
    with running_redis(skewed=True, options=OPTIONS) as redis:
        redis.freeze_clock(START_US)
        with contextlib.closing(Wire([redis], 1)) as wire:
            yield wire


@pytest.fixture(scope="module")
def cluster() -> Iterator[Wire]:
    """Three nodes, and their clocks stand still together."""
    clustered = ("--cluster-enabled", "yes", "--cluster-node-timeout", "60000")
    with contextlib.ExitStack() as stack:
        nodes = [
            stack.enter_context(running_redis(skewed=True, options=(*clustered, *OPTIONS)))
            for _ in range(3)
        ]
        share_slots(nodes)
        introduce(nodes)
        RedisCluster(nodes).wait_until_ok()
        for node in nodes:
            node.freeze_clock(START_US)
        with contextlib.closing(Wire(nodes, 64)) as wire:
            yield wire


@pytest.mark.parametrize(
    ("memory_ms", "records_max", "how_much"),
    [
        (LONG_MS, TAG_RECORDS_MAX, 1.0),
        (SHORT_MS, TAG_RECORDS_MAX, 0.4),
        (LONG_MS, 2, 0.4),
        (SHORT_MS, 2, 0.4),
    ],
)
def test_the_scripts_agree_with_the_core(
    one_partition: Wire, memory_ms: int, records_max: int, how_much: float
) -> None:
    """L9, L10, L11: whatever is called, and whatever Redis loses."""
    run(partial(CoreAndScripts, one_partition, memory_ms, records_max), how_much)


def test_they_agree_on_a_cluster(cluster: Wire) -> None:
    """L11: tags hold in every partition; and all keys of a call are in one slot."""
    run(partial(CoreAndScripts, cluster, LONG_MS, TAG_RECORDS_MAX), how_much=0.1)


# --- What the machine has found, and what it seldom comes upon ------------------------------------


@pytest.fixture
def caches(one_partition: Wire) -> Iterator[CoreAndScripts]:
    """For a history that is known beforehand: every step of it is compared."""
    machine = CoreAndScripts(one_partition, LONG_MS, TAG_RECORDS_MAX)
    yield machine
    machine.teardown()


def test_tags_of_abandoned_writes_are_marked_in_one_order(caches: CoreAndScripts) -> None:
    """Else it is another number that a later mark of one of them leaves behind."""
    caches.a_value_is_set("a", "k2", Content(b"1", 30_000))
    caches.a_write_begins("a", "k1", ("t4", "t2"), 300, None)
    caches.pass_time(300_000)
    caches.a_write_is_over("b", 1, "k2", None, ("t3", "t2"))
    caches.something_is_invalidated("b", [], ["t2"], Mark.SOFT)


def test_ninety_nine_tags_are_forgotten_as_one_is(caches: CoreAndScripts) -> None:
    """And those beyond a hundred by the next call."""
    caches.a_value_is_set("a", "k1", Content(b"1", 100))
    caches.something_is_invalidated("a", [], [f"t{number}" for number in range(150)], Mark.SOFT)
    for _ in range(3):
        caches.pass_time(1_000_000)
        caches.something_is_invalidated("a", [], ["t1"], Mark.HARD)


def test_a_value_that_is_set_is_shared_again(caches: CoreAndScripts) -> None:
    caches.look("a", "k1", Ask("f" * 32))
    caches.fills.append(("k1", "f" * 32))
    caches.what_was_loaded_is_private("a", 0, "k1", 300)
    caches.a_value_is_set("b", "k1", Content(b"1", 100))


@pytest.mark.parametrize("by_key_first", [True, False])
def test_the_first_soft_invalidation_counts(caches: CoreAndScripts, by_key_first: bool) -> None:
    """From it on the value is stale, for so long as it may be."""
    caches.a_value_is_set("a", "k1", Content(b"1", 30_000, 100, ("t1",)))
    for by_key in (by_key_first, not by_key_first):
        keys, tags = (["k1"], []) if by_key else ([], ["t1"])
        caches.something_is_invalidated("b", keys, tags, Mark.SOFT)
        caches.look("a", "k1", Ask())
        caches.pass_time(50_000)
    for us in (-1000, 0, 1000, 48_000, 1000, 1000):
        caches.pass_time(us)
        caches.look("a", "k1", Ask())


@pytest.mark.parametrize("early", [0.0, 1.0, 1.99, 2.0, 2.01, 3.0, 40.0])
def test_a_value_is_refreshed_early_at_the_same_moment(
    caches: CoreAndScripts, early: float
) -> None:
    """By the time it took to load, and not in the first half of its TTL."""
    for at_ms in (0, 149, 150, 151, 199, 200, 201, 249, 250, 251, 299):
        caches.a_value_is_loaded("a", "k1", Content(b"1", 300, 300), 50_000)
        caches.pass_time(at_ms * 1000)
        caches.look("b", "k1", Ask(f"{at_ms:032x}", 100, early=early))
        caches.pass_time(1_000_000)


def test_what_was_not_modified_is_the_value_that_the_filler_was_shown(
    caches: CoreAndScripts,
) -> None:
    """Another one, that came late, may be there meanwhile."""
    caches.look("a", "k1", Ask("a" * 32, 100))
    caches.pass_time(100_000)
    caches.look("a", "k1", Ask("b" * 32, 100))
    caches.fill("a", "k1", "a" * 32, Content(b"1", 300), not_modified=False)
    caches.fill("a", "k1", "b" * 32, Content(None, 300), not_modified=True)


@pytest.mark.parametrize("by_key", [True, False])
def test_a_negative_entry_is_invalidated_softly(caches: CoreAndScripts, by_key: bool) -> None:
    caches.a_value_is_loaded("a", "k1", Content(None, 300, tags=("t1",)), 0)
    keys, tags = (["k1"], []) if by_key else ([], ["t1"])
    caches.something_is_invalidated("b", keys, tags, Mark.SOFT)
    caches.look("a", "k1", Ask("f" * 32, server="a"))


def test_a_look_that_is_repeated_has_the_same_fill(caches: CoreAndScripts) -> None:
    """L10: and what is left of its time."""
    for server in "aba":
        caches.look(server, "k1", Ask("f" * 32, 300))
        caches.pass_time(100_000)


def test_what_was_not_modified_keeps_its_tags_and_etag(caches: CoreAndScripts) -> None:
    caches.a_value_is_loaded("a", "k1", Content(b"1", 100, 300, ("t1",), "e1"), 1000)
    caches.pass_time(200_000)
    caches.look("a", "k1", Ask("f" * 32))
    caches.fill("a", "k1", "f" * 32, Content(None, 100), not_modified=True)
    caches.look("a", "k1", Ask())


def test_what_is_granted_as_a_write_ends_is_not_void(caches: CoreAndScripts) -> None:
    """To the millisecond; a millisecond earlier it is."""
    for off_ms in (-1, 0):
        caches.pass_time(1000 - caches.core.us % 1000)
        caches.a_write_begins("a", "k2", ("t1",), 100, None)
        caches.pass_time((100 + off_ms) * 1000)
        caches.a_value_is_loaded("a", "k1", Content(b"1", 10, 0, ("t1",)), 0)
        caches.pass_time(50_000)


def test_who_has_no_fill_waits_for_nothing(caches: CoreAndScripts) -> None:
    caches.look("a", "k1", Ask("f" * 32))
    caches.a_filler_waits("a", -1, "k1", "k2")
    caches.fills.append(("k1", "f" * 32))
    caches.a_filler_waits("a", -2, "k1", "k2")


def test_a_value_of_before_the_floor_stays_void(caches: CoreAndScripts) -> None:
    """L11: also if what was forgotten is asked for by a clock that has stepped back."""
    caches.a_value_is_loaded("a", "k1", Content(b"1", 100, 300, ("t1",)), 1000)
    caches.something_is_invalidated("a", [], ["t1"], Mark.HARD)
    caches.pass_time(700_000)
    caches.something_is_invalidated("a", [], ["t2"], Mark.HARD)
    caches.pass_time(-690_000)
    caches.look("b", "k1", Ask("f" * 32))


def test_the_rules_have_the_same_numbers() -> None:
    """And the same words."""
    assert f"'{core_cache.DIED}'" in RULES
    assert (
        f"LATE_FILLS_MAX, DEATHS_MAX = {core_cache.LATE_FILLS_MAX}, {core_cache.DEATHS_MAX}\n"
        in (RULES)
    )
    backoff = f"{core_cache.BACKOFF_MIN_MS}, {core_cache.BACKOFF_MAX_MS}"
    assert f"BACKOFF_MIN_MS, BACKOFF_MAX_MS = {backoff}\n" in RULES
    assert f"NEWS_MS = {core_cache.NEWS_MS}\n" in RULES
    assert f"PRUNED_AT_ONCE = {core_versions._PRUNED_AT_ONCE}\n" in RULES
