"""What is known of a history of calls to a cache, and what must hold of each answer."""

from hypothesis.stateful import RuleBasedStateMachine

from leasekeeper.core.fills import Ask, Seen
from leasekeeper.messages import FillOutcome, Mark
from tests.properties.cache_sides import START_MS, Side
from tests.properties.cache_world import (
    FILL_MS,
    KEYS,
    TAGS,
    Database,
    Kept,
    Load,
    Value,
    Writer,
    check_read,
)


class History(RuleBasedStateMachine):
    """See the module. `side` is the cache, which is empty."""

    def __init__(self, side: Side, *, steady: bool = True) -> None:
        super().__init__()
        self.side = side
        self.database = Database()
        self.ms = self.latest_ms = START_MS
        self.serial = 0
        self.kept: dict[str, Kept] = {}
        self.loads: list[Load] = []
        self.live: dict[str, Load] = {}
        self.writers: list[Writer] = []
        self.untold: list[tuple[dict[str, int], str | None]] = []
        """What was changed in the database and not announced yet; of which key, None: of a tag."""
        self.fences: dict[str, int] = dict.fromkeys(KEYS, 0)
        self.grants = dict.fromkeys(KEYS, 0)
        self.ends = dict.fromkeys(KEYS, 0)
        """Fills that were stored, failed, given up, or void."""
        self.apart_until_ms = dict.fromkeys(KEYS, 0)
        self.retry_at_ms = dict.fromkeys(KEYS, 0)
        self.behind: tuple[dict[str, Kept], list[Load], list[Writer]] | None = None
        self.steady = steady
        """The clock has not stepped, and nothing was restored: so all must go as it should."""

    def teardown(self) -> None:
        self.side.close()

    # --- What is known ------------------------------------------------------------------------

    def name(self) -> str:
        """An id of a fill or a write-through."""
        self.serial += 1
        return f"{self.serial:032x}"

    def rises(self, key: str, fence: int) -> int:
        """L2, for what is granted, set, begun or put."""
        assert fence > self.fences[key]
        self.fences[key] = fence
        return fence

    def end(self, key: str) -> None:
        """The fill under way is over, one way or the other."""
        if self.live.pop(key, None):
            self.ends[key] += 1

    def disturb(self, keys: tuple[str, ...], tags: tuple[str, ...] = (), by: str = "") -> None:
        """Something of these keys and tags was changed."""
        for load in self.loads:
            load.disturbed |= load.key in keys
            load.touched.update(tags)
        for writer in self.writers:
            if writer.write != by:
                writer.disturbed |= writer.key in keys
                writer.touched.update(tags)

    def disturb_all(self) -> None:
        self.disturb(KEYS, TAGS)

    def open_tags(self) -> set[str]:
        """Those of which a write-through may still be open, or has ended without a word."""
        return {tag for writer in self.writers for tag in writer.tags}

    def may_be_apart(self, key: str) -> bool:
        """Whether there is reason to let everybody load for himself."""
        return self.apart_until_ms[key] > self.ms or any(
            writer.until_ms > self.ms and (writer.key == key or writer.tags)
            for writer in self.writers
        )

    def keep(self, key: str, kept: Kept) -> None:
        """This was stored. A later one is never replaced by an earlier."""
        before = self.kept.get(key)
        assert before is None or kept.fence > before.fence
        self.kept[key] = kept
        self.retry_at_ms[key] = 0  # what is there is there

    def is_dirty(self, key: str, mark: Mark = Mark.HARD) -> bool:
        """Whether a write of it is queued, so that there is nothing to invalidate."""
        return mark is Mark.HARD and key in self.kept and bool(self.kept[key].dirty)

    def queued(self) -> list[str]:
        """The keys with a queued write."""
        return [key for key, kept in self.kept.items() if kept.dirty]

    def pick(self, which: int, *, loaded: bool) -> Load | None:
        """A load that has, or has not, come to a value; of the last ones."""
        some = [load for load in self.loads if (load.value is not None) == loaded]
        return some[-1 - which % len(some)] if some else None

    def replaced(self, key: str, kept: Kept) -> None:
        """The value was replaced, without a load."""
        self.end(key)
        self.disturb((key,))
        self.keep(key, kept)

    # --- What must hold ------------------------------------------------------------------------

    def look(self, key: str, fill: str | None = None, early: float = 0.0) -> Seen:
        """Reads, and checks all that is read."""
        ask = Ask(fill, FILL_MS, "owner", early, "a" if early else None, 0.5)
        seen = self.side.look(key, ask)
        kept = self.kept.get(key)
        check_read(self.database, key, seen, kept, self.ms)
        if self.ms < self.retry_at_ms[key]:
            assert seen.grant is None or not seen.grant.shared, "in the back-off"
        live = self.live.get(key)
        if self.steady:
            assert (seen.filling_ms is None) == (
                live is None or (live.fill == fill and seen.grant is not None)
            )
        if fill is not None and not seen.found and seen.negative_ms is None:
            stuck = seen.grant is None and seen.filling_ms is None and seen.failed is None
            assert not stuck, "nobody has it, and nobody may load it"
        return seen

    def judge(self, load: Load, value: Value, outcome: FillOutcome, *, is_same: bool) -> None:
        """Nothing is stored that was not to be shared, and what nothing has disturbed is."""
        if not load.shared:
            assert outcome is FillOutcome.TOO_LATE
            return
        if self.steady and self.ms >= load.granted_ms + 2 * FILL_MS:
            assert outcome is FillOutcome.TOO_LATE
            return
        undisturbed = not load.disturbed and load.touched.isdisjoint(value.tags)
        if self.steady and undisturbed and load.after < 8:
            kept = self.kept.get(load.key)
            newer = kept is not None and kept.fence > load.fence
            gone = is_same and (kept is None or kept.value is not load.shown)
            if not gone:
                expected = FillOutcome.SUPERSEDED if newer else FillOutcome.STORED
                assert outcome is expected

    def judge_commit(
        self, writer: Writer, value: Value | None, *, stored: bool, in_time: bool
    ) -> None:
        """A value is stored if there was one, in time, and nothing else was written meanwhile."""
        if value is None or not in_time or writer.overlapped or writer.disturbed:
            assert not stored
        elif self.steady and writer.alone:
            assert stored or not writer.touched.isdisjoint(value.tags)

    # --- Time ---------------------------------------------------------------------------------

    def pass_time(self, ms: int) -> None:
        self.ms += ms
        self.latest_ms = max(self.ms, self.latest_ms)
        self.side.pass_time(ms)
        for key, load in list(self.live.items()):
            if self.ms >= load.until_ms:
                self.end(key)
        for key in KEYS:
            if self.ms >= self.retry_at_ms[key]:
                self.retry_at_ms[key] = 0
        for writer in self.writers:
            if not writer.over and self.ms >= writer.until_ms:
                writer.over = True
                if not writer.forgotten and not writer.late:
                    self.database.announce(writer.versions)

    def lost(self) -> None:
        """L2 needs a clock that is not behind what was lost."""
        self.disturb_all()
        for writer in self.writers:
            writer.forgotten = True
        if self.ms <= self.latest_ms:
            self.pass_time(self.latest_ms + 1 - self.ms)
