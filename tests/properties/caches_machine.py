"""What clients, time and losses do to a cache, on both sides, and what must be equal after it.

The clock of a private Redis stands still until the machine moves it, so times are compared to the
millisecond, and a deadline can be hit exactly; it steps back, too. Three servers act, through the
store's own `RedisCaches`. After each call all that is kept of every key must be as the core has it:
fences, fills, what is void, what is remembered, and when Redis will forget it.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from leasekeeper.core.cache import Entry
from leasekeeper.core.fills import Ask, Conflict, Content, FillGrant, Intent
from leasekeeper.messages import Mark
from tests.properties.caches_core import CoreCache, deadlines, meta_of, value_of
from tests.properties.caches_scripts import CLOCK_KEYS, Clock, Wire, now_or_never

T = TypeVar("T")

START_US: Final = 1_800_000_000_000_123
LONG_MS, SHORT_MS = 3_600_000, 200
FAR_MS: Final = 100_000
KEYS: Final = ["k1", "k2", "k:3"]
TAGS: Final = ["t1", "t2", "t3", "t4"]
STRANGER: Final = "0" * 32
OPTIONS: Final = ("--enable-debug-command", "local")

KEY = st.sampled_from(KEYS)
SERVER = st.sampled_from("abc")
TAG_LISTS = st.lists(st.sampled_from(TAGS), max_size=3).map(tuple)
# Few and coinciding, so that deadlines often fall on the same moment, and on that of a call.
DURATIONS = st.sampled_from([100, 150, 300])
TTLS = st.sampled_from([1, 100, 100, 150, 300, 300, 30_000])
STALES = st.sampled_from([0, 0, 100, 150, 30_000])
ETAGS = st.sampled_from([None, None, "e1", 'W/"2"'])
VALUES = st.sampled_from([b"1", b"", b'"text"', b"\x00\xff\r\n", b"x" * 100])
CONTENTS = st.builds(Content, VALUES, TTLS, STALES, TAG_LISTS, ETAGS)
NEGATIVES = st.builds(Content, st.none(), TTLS, st.just(0), TAG_LISTS)
CHANCES = st.sampled_from([0.0, 0.1, 1 / 3, 1.0]) | st.floats(0, 1)
EARLIES = st.sampled_from([0.0, 1.0, 2.302585092994046]) | st.floats(0, 40)
ERRORS = st.sampled_from(["", "no database", "é \n\x00 {}"])
WHO = st.sampled_from([-2, -2, -2, -3, -1]) | st.integers(0, 20)
"""A fill, or an open write, by place: -2 is the latest, -1 a stranger."""


class CoreAndScripts(RuleBasedStateMachine):
    """See the module."""

    def __init__(self, wire: Wire, memory_ms: int, records_max: int) -> None:
        super().__init__()
        self.wire, self.memory_ms = wire, memory_ms
        self.core = CoreCache(START_US, wire.partitions, records_max)
        self.fills: list[tuple[str, str]] = []
        """Key and id of each that was granted."""
        self.writes: list[tuple[str, str, tuple[str, ...]]] = []
        self.agreed = True
        wire.begin(START_US, memory_ms, records_max)

    # --- Steps --------------------------------------------------------------------------------

    def both(self, in_core: Callable[[], T], in_redis: Callable[[], T]) -> T:
        """Makes a call on both sides, and compares the answers, the news and all that is kept."""
        self.agreed = False
        self.core.forget_clocks(self.wire.without_clock())
        expected, answer = in_core(), in_redis()
        assert answer == expected
        told, self.wire.told[:] = Counter(self.wire.told), []
        expected_told, self.core.told[:] = Counter(self.core.told), []
        if len(self.wire.nodes) > 1:  # of others it is heard too late
            told = expected_told = Counter()
        assert told == expected_told
        self.what_is_kept_agrees()
        self.agreed = True
        return answer

    def what_is_kept_agrees(self) -> None:
        now_ms, living = self.core.now.ms, self.core.living()
        kept = self.wire.kept_of(KEYS)
        # Redis keeps a key through the millisecond in which it ends.
        kept = {key: each for key, each in kept.items() if each.ends_ms != now_ms}
        assert kept.keys() == living.keys()
        for key, each in kept.items():
            entry = living[key]
            assert each.meta == meta_of(entry)
            assert each.value == value_of(entry)
            until_ms = entry.keep_until_ms()
            assert each.ends_ms == (-1 if until_ms is None else until_ms)
        for partition, versions in self.core.versions.items():
            clock = self.wire.clock_of(partition)
            if clock is None:  # it has expired
                continue
            assert clock.seq == versions.seq
            assert clock.floor == versions.floor
            assert clock.life_ms == versions.life_ms
            assert clock.hard == versions._hard
            assert clock.soft == versions._soft
            assert clock.ends == {
                tag: max(writes.values()) for tag, writes in versions._intents.items()
            }
            assert clock.writes == versions._intents
            self.the_clock_outlives_what_depends_on_it(partition, clock)

    def the_clock_outlives_what_depends_on_it(self, partition: int, clock: Clock) -> None:
        """And ends, with all that belongs to it. What was granted during a write-through, and is
        believed for longer than that is remembered, has made the clock last as long itself."""
        [expires_ms] = {each for each in clock.expires_ms.values() if each != -2}
        needed = list(clock.ends.values())
        for key, entry in self.core.living().items():
            if self.core.partition_of(key) == partition and not entry._dirty:
                needed += [fill.late_ms for fill in entry._fills.values()]
                needed += [intent.until_ms for intent in entry._intents.values()]
                needed += [entry._stored.stale_until_ms] if entry._stored else []
        assert expires_ms >= max(needed, default=0) + self.memory_ms or not needed

    def pass_time(self, us: int) -> None:
        self.core.us += us
        self.wire.set_clock(self.core.us)

    def a_fill(self, who: int, key: str) -> tuple[str, str]:
        """One that was granted, and its key; or one of this key that never was."""
        known = [*self.fills[-8:], (key, STRANGER)]
        return known[who % len(known)]

    def a_write(self, who: int, key: str) -> tuple[str, str, tuple[str, ...]]:
        known = [*self.writes[-4:], (key, STRANGER, ())]
        return known[who % len(known)]

    # --- Time ---------------------------------------------------------------------------------

    @rule(us=st.sampled_from([1, 500, 999, 1000, 49_000, 50_000, 100_000, 150_000, 31_000_000]))
    def time_passes(self, us: int) -> None:
        self.pass_time(us)

    @rule(us=st.sampled_from([1, 1000, 50_000, 100_000, 60_000_000]))
    def redis_clock_steps_back(self, us: int) -> None:
        """Fences rise nevertheless."""
        self.pass_time(-us)

    @rule(which=st.integers(0, 30), off_ms=st.sampled_from([-1, 0, 0, 0, 1]))
    def a_deadline_comes(self, which: int, off_ms: int) -> None:
        """Or is not there yet, or just over."""
        now_ms = self.core.now.ms
        ends = {at for entry in self.core.entries.values() for at in deadlines(entry)}
        for versions in self.core.versions.values():
            ends |= {at for writes in versions._intents.values() for at in writes.values()}
        coming = sorted(at for at in ends if now_ms < at + off_ms <= now_ms + FAR_MS)
        if coming:
            at_ms = coming[which % len(coming)] + off_ms
            self.pass_time(at_ms * 1000 - self.core.us)

    # --- Loads --------------------------------------------------------------------------------

    @rule(
        server=SERVER,
        key=KEY,
        can_fill=st.sampled_from(["no", "new", "new", "new", -2, -2, -3, 0]),
        fill_ms=DURATIONS,
        early=EARLIES,
        jitter=CHANCES,
        waits=st.booleans(),
    )
    def a_server_looks(
        self,
        server: str,
        key: str,
        can_fill: str | int,
        fill_ms: int,
        early: float,
        jitter: float,
        waits: bool,
    ) -> None:
        fill = f"{len(self.fills):032x}" if can_fill == "new" else None
        if isinstance(can_fill, int):
            key, fill = self.a_fill(can_fill, key)
        ask = Ask(fill, fill_ms, f"{server}.1", early, server if waits else None, jitter)
        self.look(server, key, ask)

    def look(self, server: str, key: str, ask: Ask) -> FillGrant | None:
        store = self.wire.caches[server]
        seen = self.both(
            lambda: self.core.look(key, ask), lambda: now_or_never(store.look(key, ask))
        )
        if seen.grant and seen.grant.shared and ask.fill and (key, ask.fill) not in self.fills:
            self.fills.append((key, ask.fill))
        return seen.grant

    @rule(server=SERVER, who=WHO, key=KEY, content=CONTENTS | NEGATIVES)
    def a_fill_is_handed_over(self, server: str, who: int, key: str, content: Content) -> None:
        key, fill = self.a_fill(who, key)
        self.fill(server, key, fill, content, not_modified=False)

    @rule(server=SERVER, who=WHO, key=KEY, content=NEGATIVES | CONTENTS)
    def nothing_was_modified(self, server: str, who: int, key: str, content: Content) -> None:
        key, fill = self.a_fill(who, key)
        self.fill(server, key, fill, content, not_modified=True)

    def fill(
        self, server: str, key: str, fill: str, content: Content, *, not_modified: bool
    ) -> None:
        store = self.wire.caches[server]
        self.both(
            lambda: self.core.fill(key, fill, content, not_modified=not_modified),
            lambda: now_or_never(store.fill(key, fill, content, not_modified=not_modified)),
        )

    @rule(
        server=SERVER,
        key=KEY,
        content=CONTENTS | NEGATIVES,
        took_us=st.sampled_from([0, 1000, 50_000]),
    )
    def a_value_is_loaded(self, server: str, key: str, content: Content, took_us: int) -> None:
        """In one go, so that there often is one."""
        ask = Ask(f"{len(self.fills):032x}", 300, server=server)
        grant = self.look(server, key, ask)
        self.pass_time(took_us)
        if grant and grant.shared and ask.fill:
            self.fill(server, key, ask.fill, content, not_modified=False)

    @rule(
        server=SERVER,
        key=KEY,
        content=CONTENTS,
        how=st.sampled_from([Mark.HARD, Mark.SOFT, Mark.SOFT, None]),
        by_key=st.booleans(),
        ended=st.booleans(),
    )
    def something_happens_during_a_load(
        self, server: str, key: str, content: Content, how: Mark | None, by_key: bool, ended: bool
    ) -> None:
        """To the key, or to one of the value's tags: an invalidation, or a write-through (None)."""
        ask = Ask(f"{len(self.fills):032x}", 300, server=server)
        self.look(server, key, ask)
        if how is not None:
            tags = [] if by_key else [*content.tags[:1]]
            self.something_is_invalidated(server, [key] if by_key else [], tags, how)
        else:
            other = key if by_key else KEYS[0]
            self.a_write_begins(server, other, content.tags[-1:], 100, None)
            if ended:
                self.a_write_is_over(server, len(self.writes[-4:]) - 1, key, content, None)
        if ask.fill:
            self.fill(server, key, ask.fill, content, not_modified=False)

    @rule(server=SERVER, who=WHO, key=KEY, error=ERRORS, after_ms=st.none() | DURATIONS, by=CHANCES)
    def a_load_fails(
        self, server: str, who: int, key: str, error: str, after_ms: int | None, by: float
    ) -> None:
        key, fill = self.a_fill(who, key)
        store = self.wire.caches[server]
        self.both(
            lambda: self.core.fail(key, fill, error, after_ms, by),
            lambda: now_or_never(store.fail(key, fill, error, after_ms, by)),
        )

    @rule(server=SERVER, key=KEY, error=ERRORS, by=CHANCES)
    def loads_fail_again_and_again(self, server: str, key: str, error: str, by: float) -> None:
        for _ in range(3):
            ask = Ask(f"{len(self.fills):032x}", 300, server=server)
            grant = self.look(server, key, ask)
            if grant and grant.shared:
                self.a_load_fails(server, len(self.fills[-8:]) - 1, key, error, None, by)
            self.pass_time(400_000)

    @rule(server=SERVER, key=KEY, times=st.integers(1, 6), by=CHANCES, quietly=st.booleans())
    def fillers_die(self, server: str, key: str, times: int, by: float, quietly: bool) -> None:
        """One after the other, and their server notices, or it does not."""
        store = self.wire.caches[server]
        for _ in range(times):
            ask = Ask(f"{len(self.fills):032x}", 100, server=server, jitter=by)
            grant = self.look(server, key, ask)
            if grant and grant.shared and not quietly:
                fill = self.fills[-1][1]
                self.both(
                    lambda fill=fill: self.core.give_up(key, fill, died=True, jitter=by),  # type: ignore[misc] # a default binds it
                    lambda fill=fill: now_or_never(  # type: ignore[misc] # the same
                        store.give_up(key, fill, died=True, jitter=by)
                    ),
                )
            elif quietly:
                self.pass_time(100_000)

    @rule(server=SERVER, key=KEY, times=st.integers(7, 11), us=st.sampled_from([0, 1000, 30_000]))
    def fillers_give_up(self, server: str, key: str, times: int, us: int) -> None:
        """One after the other. So many are remembered, in case they come late."""
        for _ in range(times):
            ask = Ask(f"{len(self.fills):032x}", 300, server=server)
            grant = self.look(server, key, ask)
            if grant and grant.shared:
                self.a_filler_is_gone(server, len(self.fills[-8:]) - 1, key, died=False, by=1.0)
            self.pass_time(us)

    @rule(server=SERVER, who=WHO, key=KEY, ms=DURATIONS)
    def what_was_loaded_is_private(self, server: str, who: int, key: str, ms: int) -> None:
        key, fill = self.a_fill(who, key)
        store = self.wire.caches[server]
        self.both(
            lambda: self.core.unshare(key, fill, ms),
            lambda: now_or_never(store.unshare(key, fill, ms)),
        )

    @rule(server=SERVER, who=WHO, key=KEY, died=st.booleans(), by=CHANCES)
    def a_filler_is_gone(self, server: str, who: int, key: str, died: bool, by: float) -> None:
        key, fill = self.a_fill(who, key)
        store = self.wire.caches[server]
        self.both(
            lambda: self.core.give_up(key, fill, died=died, jitter=by),
            lambda: now_or_never(store.give_up(key, fill, died=died, jitter=by)),
        )

    @rule(server=SERVER, who=WHO, key=KEY, on=st.none() | KEY)
    def a_filler_waits(self, server: str, who: int, key: str, on: str | None) -> None:
        key, fill = self.a_fill(who, key)
        store = self.wire.caches[server]
        self.both(
            lambda: self.core.wait_for(key, fill, on),
            lambda: now_or_never(store.wait_for(key, fill, on)),
        )
        self.both(lambda: self.core.waits_for(key), lambda: now_or_never(store.waits_for(key)))

    # --- Changes ------------------------------------------------------------------------------

    @rule(server=SERVER, key=KEY, content=CONTENTS)
    def a_value_is_set(self, server: str, key: str, content: Content) -> None:
        store = self.wire.caches[server]
        self.both(
            lambda: self.core.set(key, content), lambda: now_or_never(store.set(key, content))
        )

    @rule(
        server=SERVER,
        keys=st.lists(KEY, max_size=3),
        tags=st.lists(st.sampled_from(TAGS), max_size=2),
        mark=st.sampled_from(Mark),
    )
    def something_is_invalidated(
        self, server: str, keys: list[str], tags: list[str], mark: Mark
    ) -> None:
        store = self.wire.caches[server]
        self.both(
            lambda: self.core.invalidate(keys, tags, mark),
            lambda: now_or_never(store.invalidate(keys, tags, mark)),
        )

    @rule(
        server=SERVER,
        key=KEY,
        tags=TAG_LISTS,
        ttl_ms=DURATIONS,
        again=st.sampled_from([None, None, None, 0, 1, 2]),
    )
    def a_write_begins(
        self, server: str, key: str, tags: tuple[str, ...], ttl_ms: int, again: int | None
    ) -> None:
        write = f"{1000 + len(self.writes):032x}"
        if again is not None:
            key, write, tags = self.a_write(again, key)
        store = self.wire.caches[server]
        begun: Intent | Conflict = self.both(
            lambda: self.core.begin_write(key, write, tags, ttl_ms),
            lambda: now_or_never(store.begin_write(key, write, tags, ttl_ms)),
        )
        if isinstance(begun, Intent) and (key, write, tags) not in self.writes:
            self.writes.append((key, write, tags))

    @rule(
        server=SERVER,
        key=KEY,
        tags=st.lists(st.sampled_from(TAGS), min_size=1, max_size=3).map(tuple),
        ttl_ms=DURATIONS,
        off_us=st.sampled_from([-1000, 0, 0, 1000]),
        others=TAG_LISTS,
        mark=st.sampled_from(Mark),
    )
    def a_write_is_abandoned(
        self,
        server: str,
        key: str,
        tags: tuple[str, ...],
        ttl_ms: int,
        off_us: int,
        others: tuple[str, ...],
        mark: Mark,
    ) -> None:
        """And about when it ends, others are at work."""
        self.a_write_begins(server, key, tags, ttl_ms, None)
        self.pass_time(ttl_ms * 1000 - self.core.us % 1000 + off_us)
        self.something_is_invalidated(server, [], [*others], mark)
        self.look(server, key, Ask(f"{len(self.fills):032x}", 300, server=server))

    @rule(
        server=SERVER,
        who=WHO,
        key=KEY,
        content=st.none() | CONTENTS,
        tags=st.none() | TAG_LISTS,
    )
    def a_write_is_over(
        self,
        server: str,
        who: int,
        key: str,
        content: Content | None,
        tags: tuple[str, ...] | None,
    ) -> None:
        key, write, its_tags = self.a_write(who, key)
        tags = its_tags if tags is None else tags
        store = self.wire.caches[server]
        self.both(
            lambda: self.core.close_write(key, write, content, tags),
            lambda: now_or_never(store.close_write(key, write, content, tags)),
        )

    @rule(server=SERVER, key=KEY, content=CONTENTS, ttl_ms=st.none() | st.just(0))
    def a_write_is_queued(
        self, server: str, key: str, content: Content, ttl_ms: int | None
    ) -> None:
        if ttl_ms is not None:
            content = Content(content.value, 0, 0, content.tags)
        self.both(lambda: self.core.put(key, content), lambda: self.wire.put(server, key, content))

    @rule(server=SERVER, key=KEY, is_last=st.sampled_from([True, True, False]))
    def a_queued_write_is_written(self, server: str, key: str, is_last: bool) -> None:
        entry = self.core.entries.get(key) or Entry()
        seq = entry._dirty if is_last and entry._dirty else 7
        self.both(lambda: self.core.written(key, seq), lambda: self.wire.written(server, key, seq))

    @rule(server=SERVER, key=KEY)
    def a_queued_write_is_given_up(self, server: str, key: str) -> None:
        entry = self.core.entries.get(key) or Entry()
        seq = entry._dirty or 7
        self.both(
            lambda: self.core.given_up(key, seq), lambda: self.wire.given_up(server, key, seq)
        )

    # --- Losses -------------------------------------------------------------------------------

    @rule()
    def it_is_flushed(self) -> None:
        self.wire.flush()
        self.core.flush()

    @rule(key=KEY)
    def another_process_had_it(self, key: str) -> None:
        """A replica was promoted, or Redis restarted: the clock is of another run."""
        partition = self.core.partition_of(key)
        clock = self.wire.layout.partition_keys(partition)[0]
        [is_there] = self.wire.on_partition(partition, ["EXISTS", clock])
        if is_there and partition in self.core.versions:
            self.wire.on_partition(partition, ["HSET", clock, "run", "f" * 40])
            self.core.lose(partition, "run")

    @precondition(lambda self: self.core.versions)
    @rule(key=KEY, part=st.sampled_from(CLOCK_KEYS[1:]))
    def what_is_known_of_tags_is_lost(self, key: str, part: str) -> None:
        """Fail closed: Redis does not say what it lost."""
        partition = self.core.partition_of(key)
        name = self.wire.layout.partition_keys(partition)[CLOCK_KEYS.index(part)]
        [gone] = self.wire.on_partition(partition, ["DEL", name])
        versions = self.core.versions.get(partition)
        if not gone or not versions:
            return
        self.core.lose(partition, "tags")
        records = {"hard": versions._hard, "soft": versions._soft}.get(part)
        if records is not None:
            records.clear()
        else:
            versions._intents.clear()
            other = {"ends": 4, "writes": 3}[part]
            keys = self.wire.layout.partition_keys(partition)
            self.wire.on_partition(partition, ["DEL", keys[other]])

    def teardown(self) -> None:
        """L9: nothing remains of a cache at rest."""
        if not self.agreed:
            return
        for key, entry in list(self.core.entries.items()):
            if entry._dirty:
                self.both(
                    lambda key=key, seq=entry._dirty: self.core.written(key, seq),  # type: ignore[misc] # defaults bind them
                    lambda key=key, seq=entry._dirty: self.wire.written("a", key, seq),  # type: ignore[misc] # the same
                )
        self.pass_time(1000 * 1000 * 1000 + 10_000_000 * self.memory_ms)
        for node in self.wire.nodes:
            assert node.ask(["KEYS", "*"]) == [[]]


def run(machine: Callable[[], RuleBasedStateMachine], how_much: float = 1.0) -> None:
    """Runs a machine as often as the profile says, or a part of that."""
    profile = settings(
        max_examples=max(5, int(settings().max_examples * how_much)),
        stateful_step_count=50,
        report_multiple_bugs=False,
    )
    run_state_machine_as_test(machine, settings=profile)  # type: ignore[arg-type] # a factory
