"""Readers, fillers and writers of two keys, over a database and a cache that may lose its data.

Every step is one call of somebody, so that they interleave in all ways. See `cache_world` for what
must hold of what is read (L11). Of fills: one is under way at a time (L10), and what nothing has
disturbed is stored. Fences of a key rise, whatever the cache has lost (L2).
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Final

from leasekeeper.core.fills import Conflict, Content
from leasekeeper.messages import FillOutcome, Mark
from tests.properties.cache_history import History
from tests.properties.cache_steps import step
from tests.properties.cache_world import (
    KEYS,
    TAGS,
    Kept,
    Load,
    Value,
    Writer,
    check_refresh,
    content_of,
)

MINUTE_MS: Final = 60_000
KEY: Final = (KEYS[0], KEYS[0], KEYS[0], KEYS[1])
"""Mostly the same one, so that much happens to it."""
SOME_TAGS: Final[Sequence[tuple[str, ...]]] = ((), (TAGS[0],), (TAGS[0],), TAGS)
WHICH: Final = (0, 0, 1, 2, 3)
"""One of those that are under way, by place; the last ones first."""
ROW: Final = (KEYS[0], *KEYS, TAGS[0], *TAGS)
TTL: Final = (60, 60, 150, 5_000)
STALE: Final = (0, 200)
EARLY: Final = (0.0, 0.0, 0.0, 1.0, 2.0)
NEGATIVE: Final = (False, False, False, True)
MARK: Final = (Mark.HARD, Mark.HARD, Mark.SOFT)


class CacheMachine(History):
    """See the module."""

    # --- Readers and fillers ------------------------------------------------------------------

    @step("fills", key=KEY, weight=8)
    def somebody_reads(self, key: str) -> None:
        self.look(key)

    @step("fills", key=KEY, early=EARLY, weight=8)
    def somebody_looks_who_can_load(self, key: str, early: float) -> None:
        """L10."""
        self.ask_for_fill(key, early)

    def ask_for_fill(self, key: str, early: float) -> Load | None:
        """A load, if it is granted."""
        fill = self.name()
        seen = self.look(key, fill, early)
        if seen.grant is None:
            return None
        load = Load(key, fill, self.rises(key, seen.grant.fence), self.ms, seen.grant.shared)
        kept = self.kept.get(key)
        if seen.found and seen.found.fresh:
            check_refresh(kept, early, self.ms)
        if seen.grant.etag is not None:
            assert kept is not None
            assert seen.grant.etag == kept.value.text.decode()
            load.shown = kept.value
        load.touched |= self.open_tags()
        if load.shared:
            assert key not in self.live, "L10: one at a time"
            self.live[key] = load
            self.grants[key] += 1
            assert self.grants[key] <= 1 + self.ends[key], "L10"
            for other in self.loads:
                other.after += other.key == key
        else:
            assert self.may_be_apart(key)
        self.loads.append(load)
        return load

    @step(
        "fills",
        key=KEY,
        early=EARLY,
        tags=SOME_TAGS,
        negative=NEGATIVE,
        takes_ms=(0, 0, 20, 50),
        ttl_ms=TTL,
        stale_ms=STALE,
    )
    def somebody_loads(
        self,
        key: str,
        early: float,
        tags: tuple[str, ...],
        negative: bool,
        takes_ms: int,
        ttl_ms: int,
        stale_ms: int,
    ) -> None:
        """And nobody interferes, as it mostly is."""
        if load := self.ask_for_fill(key, early):
            load.value = self.database.read(tags, negative=negative)
            if takes_ms:
                self.pass_time(takes_ms)
            self.hand_over(load, ttl_ms, stale_ms, frugal=True, again=False)

    @step("fills", lambda self: self.live, which=WHICH)
    def a_look_is_repeated(self, which: int) -> None:
        """L6: the same grant."""
        load = list(self.live.values())[which % len(self.live)]
        seen = self.look(load.key, load.fill)
        if self.steady and seen.negative_ms is None:
            assert seen.grant is not None
            assert seen.grant.fence == load.fence

    @step(
        "fills",
        lambda self: any(load.value is None for load in self.loads),
        which=WHICH,
        tags=SOME_TAGS,
        negative=NEGATIVE,
        weight=8,
    )
    def a_filler_reads_the_database(
        self, which: int, tags: tuple[str, ...], negative: bool
    ) -> None:
        """Of the tags nobody knows before."""
        if load := self.pick(which, loaded=False):
            load.value = self.database.read(tags, negative=negative)

    @step(
        "fills",
        lambda self: any(load.value is not None for load in self.loads),
        which=WHICH,
        ttl_ms=TTL,
        stale_ms=STALE,
        frugal=(False, True),
        again=(False, True),
        weight=12,
    )
    def a_filler_hands_over(
        self, which: int, ttl_ms: int, stale_ms: int, frugal: bool, again: bool
    ) -> None:
        """However late that is."""
        load = self.pick(which, loaded=True)
        assert load is not None
        self.hand_over(load, ttl_ms, stale_ms, frugal=frugal, again=again)

    def hand_over(
        self, load: Load, ttl_ms: int, stale_ms: int, *, frugal: bool, again: bool
    ) -> None:
        """What was loaded; `frugal`: or only that it has not changed."""
        assert load.value is not None
        self.loads.remove(load)
        same = frugal and load.is_same
        value = load.value
        content = content_of(value, ttl_ms, stale_ms)
        if same:
            content = Content(None, ttl_ms, stale_ms, value.tags)
        if same and load.shown is not None:
            value = Value(load.shown.text, value.rows, value.tags or load.shown.tags)
        outcome = self.side.fill(load.key, load.fill, content, not_modified=same)
        self.judge(load, value, outcome, is_same=same)
        if self.live.get(load.key) is load:
            self.end(load.key)
        if outcome is FillOutcome.STORED:
            kept = Kept(value, load.fence, load.granted_ms, self.ms, ttl_ms, stale_ms)
            self.keep(load.key, kept)
            self.look(load.key)
            if again:
                repeat = self.side.fill(load.key, load.fill, content, not_modified=same)
                assert repeat is FillOutcome.STORED, "L6"
                self.look(load.key)

    @step(
        "trouble",
        lambda self: self.loads,
        which=WHICH,
        how=("fails", "dies", "dies", "leaves", "apart"),
    )
    def a_filler_comes_to_nothing(self, which: int, how: str) -> None:
        """L10: exactly one other takes over, at once or after the back-off."""
        load = self.loads[-1 - which % len(self.loads)]
        is_live = self.live.get(load.key) is load
        if how == "fails":
            self.side.fail(load.key, load.fill, "no luck", 130, 0.5)
            self.loads.remove(load)
            self.retry_at_ms[load.key] = self.ms + 130 if is_live else self.retry_at_ms[load.key]
        elif how == "apart":
            self.side.unshare(load.key, load.fill, 120)
            self.loads.remove(load)
            if is_live or not load.after:  # nobody may have noticed yet that its time is over
                self.apart_until_ms[load.key] = max(self.ms + 120, self.apart_until_ms[load.key])
        else:
            self.side.give_up(load.key, load.fill, died=how == "dies", jitter=0.5)
        if is_live:
            self.end(load.key)

    # --- Writers ------------------------------------------------------------------------------

    @step("marks", row=ROW)
    def a_writer_commits(self, row: str) -> None:
        """To the database. The cache does not know yet."""
        changed = self.database.write([row])
        self.untold.append((changed, row if row in KEYS else None))

    @step("marks", row=ROW, mark=MARK)
    def a_writer_commits_and_invalidates(self, row: str, mark: Mark) -> None:
        """At once, so that there is nothing in between."""
        self.a_writer_commits(row)
        self.a_writer_invalidates(0, mark)

    @step("marks", lambda self: self.untold, which=WHICH, mark=MARK, weight=8)
    def a_writer_invalidates(self, which: int, mark: Mark) -> None:
        """By key or by tag; and when that is confirmed, it holds (L11)."""
        changed, key = self.untold.pop(-1 - which % len(self.untold))
        [row] = changed
        keys, tags = ((key,), ()) if key else ((), (row,))
        self.side.invalidate(keys, tags, mark)
        self.database.announce(changed, mark)
        self.disturb(keys, tags)
        if key and not self.is_dirty(key, mark):
            self.end(key)

    @step("sets", key=KEY, tags=SOME_TAGS, ttl_ms=TTL)
    def a_writer_sets(self, key: str, tags: tuple[str, ...], ttl_ms: int) -> None:
        """What it has just committed, before anybody else can."""
        changed = self.database.write([key])
        value = self.database.read(tags)
        fence = self.side.set(key, content_of(value, ttl_ms))
        if isinstance(fence, Conflict):
            assert self.kept[key].dirty
            self.untold.append((changed, key))
            return
        assert not self.is_dirty(key), "a queued value is read until it is written"
        self.rises(key, fence)
        self.replaced(key, Kept(value, fence, self.ms, self.ms, ttl_ms))
        self.database.announce(changed)

    @step("through", key=KEYS, tags=SOME_TAGS, ttl_ms=(80, 300))
    def a_write_through_begins(self, key: str, tags: tuple[str, ...], ttl_ms: int) -> None:
        write = self.name()
        begun = self.side.begin_write(key, write, tags, ttl_ms)
        if isinstance(begun, Conflict):
            assert self.kept[key].dirty
            self.disturb((), tags)
            return
        assert not self.is_dirty(key), "a queued value is read until it is written"
        self.rises(key, begun.fence)
        assert begun.until_ms == self.ms + ttl_ms
        self.end(key)
        self.disturb((key,), tags)
        writer = Writer(key, write, tags, self.ms + ttl_ms, begun.fence)
        writer.touched |= self.open_tags()
        rivals = [each for each in self.writers if each.key == key]
        writer.alone = not rivals
        writer.overlapped = any(not each.over and not each.forgotten for each in rivals)
        self.writers.append(writer)

    @step(
        "through",
        lambda self: any(not writer.versions for writer in self.writers),
        which=WHICH,
        tags=SOME_TAGS,
        weight=8,
    )
    def a_write_through_commits(self, which: int, tags: tuple[str, ...]) -> None:
        """To the database. It knows now what is true, for a while."""
        some = [each for each in self.writers if not each.versions]
        writer = some[-1 - which % len(some)]
        writer.versions = self.database.write((writer.key, *writer.tags))
        writer.value = self.database.read(tags)
        writer.late = writer.over or writer.forgotten

    @step(
        "through",
        lambda self: self.writers,
        which=WHICH,
        with_value=(True, True, False),
        ttl_ms=TTL,
    )
    def a_write_through_ends(self, which: int, with_value: bool, ttl_ms: int) -> None:
        """With commit or abort. If it never comes to that, its writer has died."""
        writer = self.writers[-1 - which % len(self.writers)]
        value = writer.value if with_value else None
        content = None if value is None else content_of(value, ttl_ms)
        tags = tuple(dict.fromkeys(writer.tags + (value.tags if value else ())))
        closed = self.side.close_write(writer.key, writer.write, content, tags)
        self.writers.remove(writer)
        if self.steady:
            assert closed.in_time == (self.ms < writer.until_ms and not writer.forgotten)
        self.judge_commit(writer, value, stored=closed.stored, in_time=closed.in_time)
        self.database.announce(writer.versions)
        if not self.is_dirty(writer.key):
            self.end(writer.key)
        self.disturb((writer.key,), tags)
        if closed.stored:
            assert value is not None
            # Its fence is not told, but greater than all before it.
            self.fences[writer.key] += 1
            kept = Kept(value, self.fences[writer.key], self.ms, self.ms, ttl_ms)
            self.keep(writer.key, kept)
            self.look(writer.key)

    # --- Write-behind -------------------------------------------------------------------------

    @step("behind", key=KEY, tags=SOME_TAGS, ttl_ms=(0, 150, 5_000))
    def a_write_is_queued(self, key: str, tags: tuple[str, ...], ttl_ms: int) -> None:
        value = self.database.read(tags)
        seq = self.side.put(key, content_of(value, ttl_ms))
        if isinstance(seq, Conflict):
            return
        self.rises(key, seq)
        self.replaced(key, Kept(value, seq, self.ms, self.ms, ttl_ms, dirty=seq))
        self.look(key)

    @step("behind", lambda self: self.queued(), which=WHICH, weight=8)
    def a_queued_write_is_carried_out(self, which: int) -> None:
        """In the database. That is not confirmed yet."""
        key = self.queued()[which % len(self.queued())]
        kept = self.kept[key]
        kept.value.rows.update(self.database.write([key]))
        kept.carried_out = True

    @step(
        "behind", lambda self: any(self.kept[key].carried_out for key in self.queued()), which=WHICH
    )
    def a_queued_write_is_confirmed(self, which: int) -> None:
        """From then on, the value is one like others: what was announced since counts."""
        some = [key for key in self.queued() if self.kept[key].carried_out]
        key = some[which % len(some)]
        kept = self.kept[key]
        self.side.written(key, kept.dirty)
        kept.dirty, kept.granted_ms, kept.stored_ms = 0, self.ms, self.ms
        if not kept.ttl_ms:
            del self.kept[key]
        self.look(key)

    @step("behind", lambda self: self.queued(), which=WHICH, weight=1)
    def a_queued_write_is_given_up(self, which: int) -> None:
        """Its value was never true."""
        key = self.queued()[which % len(self.queued())]
        self.side.give_up_write(key, self.kept.pop(key).dirty)
        self.look(key)

    # --- Time, and loss -----------------------------------------------------------------------

    @step("fills", ms=(1, 20, 20, 50, 50, 50, 100, 100, 200), weight=8)
    def time_passes(self, ms: int) -> None:
        self.pass_time(ms)

    @step("clock", weight=1, ms=(1_000, 5_000, MINUTE_MS))
    def nobody_does_anything_for_long(self, ms: int) -> None:
        self.pass_time(ms)

    @step("clock", lambda self: self.side.can_step_back, weight=1, ms=(-MINUTE_MS, -MINUTE_MS, -50))
    def the_clock_steps_back(self, ms: int) -> None:
        """What was to be over by then was over once: whoever relies on that is not told again."""
        self.steady = False
        self.pass_time(ms)

    @step("loss", weight=1)
    def everything_is_lost(self) -> None:
        """FLUSHALL."""
        self.lost()
        self.side.lose_all()
        self.kept.clear()
        for key in KEYS:
            self.end(key)
            self.retry_at_ms[key] = 0

    @step("loss", lambda self: self.side.has_replica, weight=1)
    def the_clock_is_lost(self) -> None:
        """And with it what is known of tags; not what is known of keys."""
        self.lost()
        self.steady = False
        self.side.lose_clock()

    @step("loss", lambda self: self.side.has_replica)
    def a_replica_falls_behind(self) -> None:
        self.side.snapshot()
        self.behind = deepcopy((self.kept, self.loads, self.writers))

    @step("loss", lambda self: self.behind is not None, weight=1)
    def the_replica_takes_over(self) -> None:
        """L11: it has not heard of all that was confirmed, and believes nothing therefore."""
        assert self.behind is not None
        self.lost()
        self.steady = False
        self.side.fail_over()
        (self.kept, loads, writers), self.behind = self.behind, None
        for writer in writers:  # it may have ended since, and be open again
            for key in (writer.key,) if not writer.tags else KEYS:
                self.apart_until_ms[key] = max(self.apart_until_ms[key], writer.until_ms)
        known = {load.fill for load in self.loads}
        # Also what was handed over since may be handed over again.
        self.loads += [load for load in loads if load.fill not in known]
        for key in KEYS:
            self.end(key)
            self.retry_at_ms[key] = 0
