"""The rules of the cache with one mistake each, to see that the machine finds it.

Nothing here is used outside tests. The first lines of each class say what it gets wrong.
"""

from collections.abc import Iterable

from attrs import define, evolve

from leasekeeper.core.cache import Entry
from leasekeeper.core.fills import (
    Ask,
    Closed,
    Conflict,
    Content,
    Fill,
    FillGrant,
    Found,
    Seen,
    Stored,
)
from leasekeeper.core.lock import Now
from leasekeeper.core.versions import Versions
from leasekeeper.messages import FillOutcome, Mark

Tags = tuple[str, ...]
Some = Iterable[str]

# --- Of the clock -----------------------------------------------------------------------------


@define
class PlainCounter(Versions):
    """Numbers do not follow the clock, so they begin anew when they are lost."""

    def next(self, now: Now) -> int:
        self.seq += 1
        return self.seq


@define
class NoFloorCheck(Versions):
    """What may have been lost is believed, whatever the floor says."""

    def voids(self, tags: Some, fence: int, granted_ms: int, write: str | None = None) -> bool:
        floor, self.floor = self.floor, 0
        voids = super().voids(tags, fence, granted_ms, write)
        self.floor = floor
        return voids


@define
class FloorStays(Versions):
    """The floor does not rise with what is forgotten."""

    def _prune(self, now: Now) -> None:
        floor = self.floor
        super()._prune(now)
        self.floor = floor


@define
class ShortTags(Versions):
    """Tags are remembered for less time than values live."""

    def matters(self, ms: int) -> None:
        super().matters(ms // 4)


@define
class ShortTagsFloorStays(FloorStays, ShortTags):
    """Both."""


@define
class IntentsDoNotVoid(Versions):
    """A write-through of a tag voids only what was granted before its beginning."""

    def voids(self, tags: Some, fence: int, granted_ms: int, write: str | None = None) -> bool:
        intents, self._intents = self._intents, {}
        voids = super().voids(tags, fence, granted_ms, write)
        self._intents = intents
        return voids


@define
class CloseDoesNotMark(Versions):
    """The end of a write-through does not invalidate its tags."""

    def close(self, tags: Some, write: str, now: Now) -> None:
        hard = dict(self._hard)
        super().close(tags, write, now)
        self._hard = hard


@define
class SoftTagsAreForgotten(Versions):
    """Soft invalidations of tags are not remembered."""

    def softened(self, tags: Some, fence: int) -> int | None:
        return None


@define
class HardTagsAreForgotten(Versions):
    """Hard invalidations of tags are not remembered."""

    def mark(self, tags: Some, mark: Mark, now: Now) -> None:
        super().mark(tags if mark is Mark.SOFT else (), mark, now)


# --- Of fills ---------------------------------------------------------------------------------


@define
class StampAtFill(Entry):
    """A fill counts from when it is handed over, not from its grant."""

    def fill(
        self,
        fill: str,
        content: Content,
        versions: Versions,
        now: Now,
        *,
        not_modified: bool = False,
    ) -> FillOutcome:
        if known := self._fills.get(fill):
            known.fence, known.granted_ms = versions.next(now), now.ms
        return super().fill(fill, content, versions, now, not_modified=not_modified)


@define
class NoVoidCheck(Entry):
    """A fill is stored though its key was invalidated."""

    def _judge(self, known: Fill, content: Content, versions: Versions) -> FillOutcome:
        voided, self._voided = self._voided, 0
        outcome = super()._judge(known, content, versions)
        self._voided = voided
        return outcome


@define
class NoSoftCheck(Entry):
    """A fill is stored though its key was invalidated softly."""

    def _judge(self, known: Fill, content: Content, versions: Versions) -> FillOutcome:
        softened, self._softened = self._softened, 0
        outcome = super()._judge(known, content, versions)
        self._softened = softened
        return outcome


@define
class ShortTombstone(Entry):
    """That a key was invalidated is remembered for less time than its fills."""

    _void_ms: int = 0

    def _void(self, versions: Versions, now: Now) -> int:
        self._void_ms = now.ms
        return super()._void(versions, now)

    def _let_time_pass(self, versions: Versions, now: Now, jitter: float = 1.0) -> None:
        super()._let_time_pass(versions, now, jitter)
        if now.ms >= self._void_ms + 40:
            self._voided = 0


@define
class NeverTooLate(Entry):
    """A fill is remembered for ever."""

    def _let_time_pass(self, versions: Versions, now: Now, jitter: float = 1.0) -> None:
        fills = dict(self._fills)
        super()._let_time_pass(versions, now, jitter)
        self._fills = fills

    def keep_until_ms(self) -> int | None:
        return None if self._fills else super().keep_until_ms()


@define
class LateIsTooLate(Entry):
    """A fill is forgotten when its time is over."""

    def _let_time_pass(self, versions: Versions, now: Now, jitter: float = 1.0) -> None:
        super()._let_time_pass(versions, now, jitter)
        for fill in [each for each, it in self._fills.items() if it.until_ms <= now.ms]:
            del self._fills[fill]


@define
class NoLease(Entry):
    """Everybody is granted the fill."""

    def _grant(
        self,
        ask: Ask,
        fill: str,
        stored: Stored | None,
        found: Found | None,
        versions: Versions,
        now: Now,
    ) -> FillGrant | None:
        self._live = None
        return super()._grant(ask, fill, stored, found, versions, now)


@define
class AlwaysRefreshes(Entry):
    """A fresh value is loaded anew whenever somebody asks."""

    def _grant(
        self,
        ask: Ask,
        fill: str,
        stored: Stored | None,
        found: Found | None,
        versions: Versions,
        now: Now,
    ) -> FillGrant | None:
        found = found and evolve(found, fresh=False)
        return super()._grant(ask, fill, stored, found, versions, now)


@define
class UnsharedIsStored(Entry):
    """What somebody loads for himself is taken for all."""

    def _grant(
        self,
        ask: Ask,
        fill: str,
        stored: Stored | None,
        found: Found | None,
        versions: Versions,
        now: Now,
    ) -> FillGrant | None:
        grant = super()._grant(ask, fill, stored, found, versions, now)
        if grant is not None and not grant.shared:
            self._fills[fill] = Fill(grant.fence, now.ms, ask.fill_ms)
        return grant


@define
class RefreshesTooEarly(Entry):
    """Chance counts three times."""

    def look(self, ask: Ask, versions: Versions, now: Now) -> Seen:
        return super().look(evolve(ask, early=3 * ask.early), versions, now)


@define
class OlderReplacesNewer(Entry):
    """A late fill takes the place of what its successor has stored."""

    def _judge(self, known: Fill, content: Content, versions: Versions) -> FillOutcome:
        outcome = super()._judge(known, content, versions)
        return FillOutcome.STORED if outcome is FillOutcome.SUPERSEDED else outcome


@define
class AnyIsNotModified(Entry):
    """What is as good as new is whatever is there, and not what the filler was shown."""

    def fill(
        self,
        fill: str,
        content: Content,
        versions: Versions,
        now: Now,
        *,
        not_modified: bool = False,
    ) -> FillOutcome:
        if (known := self._fills.get(fill)) and self._stored:
            known.base = self._stored.fence
        return super().fill(fill, content, versions, now, not_modified=not_modified)


@define
class DeathIsNotNoticed(Entry):
    """A dead filler's fill stays its own until its time is over."""

    def give_up(self, fill: str, now: Now, *, died: bool, jitter: float = 1.0) -> None:
        if not died:
            super().give_up(fill, now, died=died, jitter=jitter)


@define
class NoBackOff(Entry):
    """A failed load is tried again at once."""

    def _back_off(self, error: str, retry_after_ms: int | None, jitter: float, now: Now) -> None:
        super()._back_off(error, 0, jitter, now)


# --- Of values --------------------------------------------------------------------------------


@define
class ReadsIgnoreTags(Entry):
    """A value is shown though its tags were invalidated."""

    def _visible(self, versions: Versions) -> Stored | None:
        stored = self._stored
        return stored if stored and stored.fence >= versions.floor else None


@define
class SoftKeepsNegative(Entry):
    """That there is no such thing is believed though it was invalidated softly."""

    def _negative_ms(self, stored: Stored, versions: Versions, now: Now) -> int | None:
        left_ms = stored.fresh_until_ms - now.ms
        return left_ms if stored.content.value is None and left_ms > 0 else None


@define
class SoftKeepsFresh(Entry):
    """A value is shown as fresh though its key was invalidated softly."""

    def _soft(self, stored: Stored, versions: Versions) -> int | None:
        return versions.softened(stored.content.tags, stored.fence)


# --- Of writes --------------------------------------------------------------------------------


@define
class SetKeepsTheQueued(Entry):
    """A queued value is replaced before it is written."""

    def set(self, content: Content, versions: Versions, now: Now) -> int | Conflict:
        self._dirty = 0
        return super().set(content, versions, now)


@define
class EndWithoutAWord(Entry):
    """A write-through that runs out voids nothing."""

    def _let_time_pass(self, versions: Versions, now: Now, jitter: float = 1.0) -> None:
        self._intents = {w: each for w, each in self._intents.items() if each.until_ms > now.ms}
        super()._let_time_pass(versions, now, jitter)


@define
class StoresWhileWriting(Entry):
    """A fill is stored while a write-through is open, if it was granted after its beginning."""

    def look(self, ask: Ask, versions: Versions, now: Now) -> Seen:
        self._let_time_pass(versions, now)
        intents, self._intents = self._intents, {}
        seen = super().look(ask, versions, now)
        self._intents = intents
        return seen

    def _judge(self, known: Fill, content: Content, versions: Versions) -> FillOutcome:
        intents, self._intents = self._intents, {}
        outcome = super()._judge(known, content, versions)
        self._intents = intents
        return outcome


@define
class WritesAreForgotten(Entry):
    """A key is forgotten while a write-through is open."""

    def keep_until_ms(self) -> int | None:
        intents, self._intents = self._intents, {}
        until_ms = super().keep_until_ms()
        self._intents = intents
        return until_ms


@define
class FillsAreForgotten(Entry):
    """A key is forgotten while a fill is under way."""

    def keep_until_ms(self) -> int | None:
        fills, self._fills = self._fills, {}
        until_ms = super().keep_until_ms()
        self._fills = fills
        return until_ms


@define
class CommitIgnoresKey(Entry):
    """A committed value is stored though its key was invalidated meanwhile."""

    def _is_void(
        self,
        tags: Tags,
        fence: int,
        granted_ms: int,
        versions: Versions,
        write: str | None = None,
    ) -> bool:
        if write is not None:
            return versions.voids(tags, fence, granted_ms, write)
        return super()._is_void(tags, fence, granted_ms, versions, write)


@define
class CommitIgnoresTags(Entry):
    """A committed value is stored though its tags were invalidated meanwhile."""

    def _is_void(
        self,
        tags: Tags,
        fence: int,
        granted_ms: int,
        versions: Versions,
        write: str | None = None,
    ) -> bool:
        tags = tags if write is None else ()
        return super()._is_void(tags, fence, granted_ms, versions, write)


@define
class TagsCloseFirst(Entry):
    """The tags are invalidated before a committed value is judged, so it is never stored."""

    def close(
        self, write: str, content: Content | None, tags: Tags, versions: Versions, now: Now
    ) -> Closed:
        versions.close(tags, write, now)
        return super().close(write, content, tags, versions, now)


@define
class OverlapIsStored(Entry):
    """A committed value is stored though another write-through of the key is open."""

    def close(
        self, write: str, content: Content | None, tags: Tags, versions: Versions, now: Now
    ) -> Closed:
        self._let_time_pass(versions, now)
        others = {each: it for each, it in self._intents.items() if each != write}
        self._intents = {each: it for each, it in self._intents.items() if each == write}
        closed = super().close(write, content, tags, versions, now)
        self._intents |= others
        return closed


@define
class LateCloseDoesNotVoid(Entry):
    """The end of a write-through that has run out already invalidates nothing."""

    def close(
        self, write: str, content: Content | None, tags: Tags, versions: Versions, now: Now
    ) -> Closed:
        if write not in self._intents:
            return Closed(stored=False, in_time=False)
        return super().close(write, content, tags, versions, now)


@define
class WrittenForgetsDrop(Entry):
    """A queued value that was invalidated stays once it is written."""

    def written(self, seq: int, versions: Versions, now: Now) -> None:
        self._dropped = False
        super().written(seq, versions, now)


@define
class WrittenIgnoresTags(Entry):
    """A queued value stays once it is written, whatever was invalidated of its tags."""

    def written(self, seq: int, versions: Versions, now: Now) -> None:
        if self._dirty == seq and self._stored:
            fence = versions.next(now)
            self._stored = evolve(self._stored, fence=fence, granted_ms=now.ms)
        super().written(seq, versions, now)


@define
class FillsWhileQueued(Entry):
    """What was loaded takes the place of a queued value."""

    def _judge(self, known: Fill, content: Content, versions: Versions) -> FillOutcome:
        dirty, self._dirty = self._dirty, 0
        outcome = super()._judge(known, content, versions)
        self._dirty = dirty
        return outcome
