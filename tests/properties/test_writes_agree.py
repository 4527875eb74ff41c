"""The core of write-behind and the Lua inside Redis are one: equal answers, news, and memory.

The machine of `caches_machine` with queues beside the cached keys: its clock stands still until
it is moved, so back-offs and the ends of claims are compared to the millisecond.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Final

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from leasekeeper.core import writes as core_writes
from leasekeeper.core.fills import Ask, Content
from leasekeeper.core.versions import TAG_RECORDS_MAX
from leasekeeper.core.writes import Bounds, Take, claim_id, parse_claim_id
from leasekeeper.messages import Mark
from leasekeeper.store.redis import scripts
from leasekeeper.store.redis.writes import RedisWrites
from tests.properties.caches_machine import (
    CHANCES,
    DURATIONS,
    ERRORS,
    KEY,
    KEYS,
    LONG_MS,
    OPTIONS,
    SERVER,
    START_US,
    VALUES,
    WHO,
    CoreAndScripts,
    run,
)
from tests.properties.caches_scripts import Wire, now_or_never
from tests.properties.writes_core import CoreWrites, Facts
from tests.properties.writes_scripts import kept_queue
from tests.redises import running_redis

pytestmark = pytest.mark.system

QUEUES: Final = ["q", "r:1"]
ATTEMPTS_MAX: Final = 3
QUEUE = st.sampled_from([*QUEUES[:1] * 3, *QUEUES[1:]])
PUTS = st.builds(Content, VALUES, st.sampled_from([0, 0, 1, 150, 300, 30_000]))
BOUNDS = st.sampled_from([Bounds(100, 10_000)] * 4 + [Bounds(2, 10_000), Bounds(100, 101)])


class KeysAndQueues(CoreAndScripts):
    """Keeps and compares the cached keys, and the queues beside them. Its rules are not used."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire, LONG_MS, TAG_RECORDS_MAX)
        self.queues = CoreWrites(self.core)

    def what_is_kept_agrees(self) -> None:
        super().what_is_kept_agrees()
        for queue in QUEUES:
            assert self.kept_in_redis(queue) == self.kept_in_core(queue)

    def kept_in_core(self, queue: str) -> Facts:
        kept = self.queues.kept(queue)
        return kept if any(kept.values()) else {}

    def kept_in_redis(self, queue: str) -> Facts:
        """Without the servers that have waited for too long."""
        kept = kept_queue(self.wire, queue)
        news = kept.get("news", {})
        assert isinstance(news, dict)
        now_ms = self.core.now.ms
        kept["news"] = {server: until for server, until in news.items() if until > now_ms}
        return kept if any(kept.values()) else {}


class QueuesAndScripts(RuleBasedStateMachine):
    """See the module."""

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self.keys = KeysAndQueues(wire)
        self.both, self.pass_time = self.keys.both, self.keys.pass_time
        self.queues = self.keys.queues
        self.stores = {
            server: RedisWrites(caches.caller, lambda: 1) for server, caches in wire.caches.items()
        }
        self.claims: list[tuple[str, str]] = []
        """Queue and id of each."""
        self.tokens = 0

    # --- What happens to the cached keys ------------------------------------------------------

    @rule(us=st.sampled_from([1, 999, 1000, 50_000, 100_000, 1_000_000, -1000, -100_000]))
    def time_passes(self, us: int) -> None:
        """Or the clock of Redis steps back."""
        self.pass_time(us)

    @rule(server=SERVER, key=KEY, can_fill=st.booleans())
    def a_server_looks(self, server: str, key: str, can_fill: bool) -> None:
        fill = f"{len(self.keys.fills):032x}" if can_fill else None
        self.keys.look(server, key, Ask(fill, 300, server=server))

    @rule(server=SERVER, key=KEY, content=PUTS)
    def a_value_is_set(self, server: str, key: str, content: Content) -> None:
        self.keys.a_value_is_set(server, key, content)

    @rule(server=SERVER, key=KEY, mark=st.sampled_from(Mark))
    def a_key_is_invalidated(self, server: str, key: str, mark: Mark) -> None:
        self.keys.something_is_invalidated(server, [key], [], mark)

    @rule(server=SERVER, key=KEY)
    def a_write_through_begins(self, server: str, key: str) -> None:
        self.keys.a_write_begins(server, key, ("t1",), 150, None)

    @rule(server=SERVER, who=WHO, key=KEY)
    def a_write_through_is_over(self, server: str, who: int, key: str) -> None:
        self.keys.a_write_is_over(server, who, key, None, None)

    def a_claim(self, who: int) -> tuple[str, str]:
        """Mostly one that is held, and its queue; or an old one, or one that never was."""
        if who % 5 == 0:
            known = [*self.claims[-2:], ("q", claim_id("0" * 32, "k1"))]
            return known[who // 5 % len(known)]
        if not self.held:
            key = KEYS[who % len(KEYS)]
            self.a_write_is_put("a", "q", key, Content(b"1", 150), Bounds(100, 10_000))
            self.writes_are_claimed("b", "q", 2, 150, False)
        held = self.held or [("q", claim_id("0" * 32, "k1"))]
        return held[who % len(held)]

    @property
    def held(self) -> list[tuple[str, str]]:
        """The claims that are held, with their queues."""
        return [
            (queue, claim_id(write.hold.token, key))
            for queue, writes in self.queues.queues.items()
            for key, write in writes._writes.items()
            if write.hold
        ]

    # --- Queueing -----------------------------------------------------------------------------

    @rule(server=SERVER, queue=QUEUE, key=KEY, content=PUTS, bounds=BOUNDS)
    def a_write_is_put(
        self, server: str, queue: str, key: str, content: Content, bounds: Bounds
    ) -> None:
        store = self.stores[server]
        self.both(
            lambda: self.queues.put(queue, key, content, bounds),
            lambda: now_or_never(store.put(queue, key, content, bounds)),
        )

    @rule(
        server=SERVER,
        queue=QUEUE,
        count=st.integers(1, 3),
        claim_ms=DURATIONS,
        waits=st.booleans(),
    )
    def writes_are_claimed(
        self, server: str, queue: str, count: int, claim_ms: int, waits: bool
    ) -> None:
        self.tokens += 1
        token = f"{self.tokens:032x}"
        take = Take(token, count, claim_ms, ATTEMPTS_MAX, server if waits else None)
        store = self.stores[server]
        taken = self.both(
            lambda: self.queues.claim(queue, take), lambda: now_or_never(store.claim(queue, take))
        )
        self.claims += [(queue, write.id) for write in taken.writes]

    # --- Settling -----------------------------------------------------------------------------

    @rule(server=SERVER, who=WHO, content=PUTS)
    def a_claimed_key_is_put_anew(self, server: str, who: int, content: Content) -> None:
        queue, claim = self.a_claim(who)
        self.a_write_is_put(server, queue, parse_claim_id(claim)[0], content, Bounds(100, 10_000))

    @rule(server=SERVER, who=WHO)
    def a_write_is_done(self, server: str, who: int) -> None:
        self.ack(server, *self.a_claim(who))

    def ack(self, server: str, queue: str, claim: str) -> None:
        store = self.stores[server]
        self.both(
            lambda: [self.queues.ack(queue, claim)],
            lambda: list(now_or_never(store.ack(queue, [claim]))),
        )

    def all_are_done(self, queue: str) -> None:
        """Whatever can be claimed is, and is written."""
        self.pass_time(400_000_000)
        self.writes_are_claimed("a", queue, 100, 100, False)
        for its_queue, claim in self.claims:
            if its_queue == queue:
                self.ack("a", queue, claim)

    @rule(
        server=SERVER,
        who=WHO,
        error=ERRORS,
        after_ms=st.sampled_from([None, 0, 0, 100]),
        jitter=CHANCES,
    )
    def a_write_fails(
        self, server: str, who: int, error: str, after_ms: int | None, jitter: float
    ) -> None:
        self.fail(server, *self.a_claim(who), error, after_ms, jitter)

    def fail(
        self, server: str, queue: str, claim: str, error: str, after_ms: int | None, by: float
    ) -> None:
        store = self.stores[server]
        rest = (error, after_ms)
        self.both(
            lambda: [self.queues.retry(queue, claim, *rest, by, ATTEMPTS_MAX)],
            lambda: list(now_or_never(store.retry(queue, [claim], *rest, [by], ATTEMPTS_MAX))),
        )

    @rule(server=SERVER, queue=QUEUE, error=ERRORS, quietly=st.booleans())
    def whatever_can_be_claimed_fails(
        self, server: str, queue: str, error: str, quietly: bool
    ) -> None:
        """Again and again, so that some die."""
        for _ in range(ATTEMPTS_MAX):
            before = len(self.claims)
            self.writes_are_claimed(server, queue, 3, 100, False)
            if quietly:
                self.pass_time(100_000)
            else:
                for its_queue, claim in self.claims[before:]:
                    self.fail(server, its_queue, claim, error, 0, 0.5)

    @rule(server=SERVER, who=WHO, unseen=st.booleans())
    def a_claim_is_given_back(self, server: str, who: int, unseen: bool) -> None:
        queue, claim = self.a_claim(who)
        store = self.stores[server]
        self.both(
            lambda: [self.queues.give_back(queue, claim, unseen=unseen)],
            lambda: list(now_or_never(store.give_back(queue, [claim], unseen=unseen))),
        )

    # --- The dead -----------------------------------------------------------------------------

    @rule(server=SERVER, queue=QUEUE, key=KEY)
    def a_write_is_revived(self, server: str, queue: str, key: str) -> None:
        store = self.stores[server]
        self.both(
            lambda: int(self.queues.revive(queue, key)),
            lambda: now_or_never(store.revive(queue, [key])),
        )

    @rule(server=SERVER, queue=QUEUE, limit=st.integers(1, 3))
    def the_dead_are_listed(self, server: str, queue: str, limit: int) -> None:
        store = self.stores[server]

        def in_pages() -> list[object]:
            found: list[object] = []
            cursor = None
            while True:
                page = now_or_never(store.dead(queue, limit, cursor))
                found += page.writes
                cursor = page.cursor
                if cursor is None:
                    return found

        self.both(lambda: list[object](self.queues.dead(queue)), in_pages)

    @rule(which=st.integers(0, 30), off_ms=st.sampled_from([-1, 0, 0, 1]))
    def a_write_becomes_ready(self, which: int, off_ms: int) -> None:
        """Or is not yet, or was a moment ago."""
        now_ms = self.keys.core.now.ms
        ready = {at for each in self.queues.queues.values() for at, _, _ in each._due}
        coming = sorted(at for at in ready if now_ms < at + off_ms)
        if coming:
            at_ms = coming[which % len(coming)] + off_ms
            self.pass_time(at_ms * 1000 - self.keys.core.us)

    # --- Losses, and the end ------------------------------------------------------------------

    @rule()
    def it_is_flushed(self) -> None:
        self.keys.it_is_flushed()
        self.queues.queues.clear()

    @rule(key=KEY)
    def another_process_had_it(self, key: str) -> None:
        self.keys.another_process_had_it(key)

    def teardown(self) -> None:
        """L9: nothing remains of queues at rest."""
        if not self.keys.agreed:
            return
        for queue in QUEUES:
            self.all_are_done(queue)
            for key in KEYS:
                self.a_write_is_revived("a", queue, key)
            self.all_are_done(queue)
        self.keys.teardown()


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    """A Redis whose clock stands still, for the examples to take turns."""
    with running_redis(skewed=True, options=OPTIONS) as redis:
        redis.freeze_clock(START_US)
        with contextlib.closing(Wire([redis], 1)) as made:
            yield made


def test_the_scripts_of_write_behind_agree_with_the_core(wire: Wire) -> None:
    """L6, L8, L9, L12: whatever is called, and whatever Redis loses."""
    run(partial(QueuesAndScripts, wire), how_much=0.7)


def test_the_rules_have_the_same_numbers() -> None:
    """And the same words."""
    source = scripts.WRITES_SETTLE.source
    backoff = f"{core_writes.BACKOFF_MIN_MS}, {core_writes.BACKOFF_MAX_MS}"
    assert f"RETRY_MIN_MS, RETRY_MAX_MS = {backoff}\n" in source
    bounds = f"1024 * 1024, {core_writes.SPENT_MAX}, {core_writes.SPENT_MS}"
    assert f"ANSWER_BYTES_MAX, SPENT_MAX, SPENT_MS = {bounds}\n" in source
    assert core_writes.ANSWER_BYTES_MAX == 1024 * 1024
    assert f"'{core_writes.LAPSED}'" in source
    assert f"NEWS_MS = {core_writes.NEWS_MS}\n" in source
