"""One cached key: its value, who loads it, what was invalidated. The executable specification.

Who may load a key is a lease, the *fill*: one for the whole fleet, for a limited time (law L10).
What a fill loaded is stored only if nothing has been invalidated since it was *granted*, for it may
have read before that (law L11). The two are separate: a fill whose time is over has lost its
exclusivity, and another may be granted; it is still stored if it comes a little late and nothing
newer is there.

All order comes from one clock, `Versions`, which also knows what was invalidated by tag.

A write-through is an invalidation in advance, the *intent*: while it is open nothing is stored, and
when it is over without a word, everything granted before its end is void.

A write-behind makes the key *dirty*: until its value is written, nothing else takes its place.

Time and chance go in, what others must be told comes out in `Entry.events`. Both times of a `Now`
are those of one clock here: `ms` is `us` in milliseconds, rounded down. When to load anew before a
value is stale follows XFetch (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache
Stampede Prevention, VLDB 2015) with the measured load time.
"""

from typing import Final

from attrs import define, evolve, field

from leasekeeper.core.fills import (
    Ask,
    Closed,
    Conflict,
    Content,
    Failed,
    Failure,
    Fill,
    FillGrant,
    Found,
    Intent,
    News,
    Seen,
    Stored,
)
from leasekeeper.core.lock import Now
from leasekeeper.core.versions import Versions
from leasekeeper.messages import FillOutcome, Mark

LATE_FILLS_MAX: Final = 8
"""So many fills of a key, whose time is over, are remembered in case they come late."""
DEATHS_MAX: Final = 5
"""So many fillers in a row may die before a key is left alone for a while."""
BACKOFF_MIN_MS: Final = 100
BACKOFF_MAX_MS: Final = 30_000
NEWS_MS: Final = 15_000
"""How long a server that waits hears of a key without asking again."""
DIED: Final = "those who were to load it have died, one after the other"


@define
class Entry:
    """The rules of one key. `versions` is the clock of its partition, and goes into every call.

    It does not read clocks, make fill ids, keep callers who wait, or know how large a value may be.
    """

    events: list[News] = field(factory=list)
    _stored: Stored | None = field(default=None, repr=False)
    _fills: dict[str, Fill] = field(factory=dict, repr=False)
    _live: str | None = field(default=None, repr=False)
    _voided: int = 0
    """Fills and values up to this fence are void."""
    _softened: int = 0
    """Values up to this fence are stale, and fills void."""
    _failure: Failure | None = None
    _deaths: int = 0
    """How many fillers in a row have died."""
    _unshared_until_ms: int = 0
    _intents: dict[str, Intent] = field(factory=dict, repr=False)
    _tags: tuple[str, ...] = ()
    """Those of the last fill, stored or not."""
    _tags_until_ms: int = 0
    """So long they are remembered if it was not."""
    _news: dict[str, int] = field(factory=dict)
    """The servers that wait, and until when."""
    _dirty: int = 0
    """The number of the queued write whose value this is; 0: none."""
    _dropped: bool = False
    """Whether a dirty value was invalidated, and goes when it is written."""

    # Invariants, whenever a call returns: the live fill is among the fills, and none that was
    # granted later; at most LATE_FILLS_MAX others are; a dirty key has no live fill.

    # --- Reading ------------------------------------------------------------------------------

    def look(self, ask: Ask, versions: Versions, now: Now) -> Seen:
        """What there is for those who ask; grants them the fill if it is theirs to load."""
        self._let_time_pass(versions, now, ask.jitter)
        stored = self._visible(versions)
        found = self._found(stored, versions, now) if stored else None
        negative_ms = self._negative_ms(stored, versions, now) if stored else None
        grant = None
        if ask.fill is not None and negative_ms is None and not self._dirty:
            grant = self._grant(ask, ask.fill, stored, found, versions, now)
        filling_ms = None
        if self._live is not None and (grant is None or not grant.shared):
            filling_ms = self._fills[self._live].until_ms - now.ms
        if ask.server is not None and negative_ms is None and not (found and found.fresh):
            self._news[ask.server] = now.ms + NEWS_MS
        return Seen(found, negative_ms, grant, filling_ms, self._failed(now))

    # --- Filling ------------------------------------------------------------------------------

    def fill(
        self,
        fill: str,
        content: Content,
        versions: Versions,
        now: Now,
        *,
        not_modified: bool = False,
    ) -> FillOutcome:
        """Stores what was loaded, if it is not too old. The fill is over, whatever comes of it.

        With `not_modified` the value is that which was there when the fill was granted, and still
        is; its tags and etag, too, if none are given.
        """
        self._let_time_pass(versions, now)
        if self._stored and self._stored.fill == fill:  # a repeat
            return FillOutcome.STORED
        known = self._fills.get(fill)
        if known is None:
            return FillOutcome.TOO_LATE
        if not_modified and (old := self._visible(versions)) and old.fence == known.base:
            tags, etag = content.tags or old.content.tags, content.etag or old.content.etag
            content = evolve(content, value=old.content.value, tags=tags, etag=etag)
        outcome = self._judge(known, content, versions)
        if outcome is FillOutcome.STORED and not_modified and content.value is None:
            outcome = FillOutcome.TOO_LATE  # there is nothing left to make new
        self._end(fill)
        if outcome is FillOutcome.STORED:
            self._store(content, known.fence, known.granted_ms, versions, now, fill)
        else:
            self._tags, self._tags_until_ms = content.tags, now.ms + known.fill_ms
        self._tell(now)
        return outcome

    def fail(
        self, fill: str, error: str, retry_after_ms: int | None, jitter: float, now: Now
    ) -> None:
        """The load failed. A fill whose time was over already changes nothing."""
        if fill == self._live:
            self._deaths = 0
            self._back_off(error, retry_after_ms, jitter, now)
            self._end(fill)
            self._tell(now)
        self._fills.pop(fill, None)

    def unshare(self, fill: str, ms: int, now: Now) -> None:
        """What was loaded is for its loader alone: for so long everybody loads for himself."""
        if fill == self._live:
            self._unshared_until_ms = now.ms + ms
            self._end(fill)
            self._tell(now)

    def give_up(self, fill: str, now: Now, *, died: bool, jitter: float = 1.0) -> None:
        """Its filler is gone, or does not want it any more: somebody else may have it."""
        if fill == self._live:
            if died:
                self._died(jitter, now)
            self._live = None
            self._tell(now)

    def wait_for(self, fill: str, key: str | None) -> None:
        """This fill's filler waits for another key, or waits no more."""
        if fill == self._live:
            self._fills[fill].waits_for = key

    @property
    def waits_for(self) -> str | None:
        """The key that whoever loads this one waits for."""
        return self._fills[self._live].waits_for if self._live is not None else None

    # --- Changing -----------------------------------------------------------------------------

    def set(self, content: Content, versions: Versions, now: Now) -> int | Conflict:
        """Replaces the value, and returns its fence. What is being loaded is void.

        While a write-through is open there is no telling which came last, so nothing is stored.
        """
        self._let_time_pass(versions, now)
        if self._dirty:
            return Conflict()
        fence = self._void(versions, now)
        if not self._intents and not versions.is_open(content.tags, now):
            self._store(content, fence, now.ms, versions, now)
        self._tell(now)
        return fence

    def invalidate(self, mark: Mark, versions: Versions, now: Now) -> None:
        """Makes the value invalid, and all that is being loaded."""
        self._let_time_pass(versions, now)
        if mark is Mark.SOFT:
            self._softened, self._live = versions.next(now), None
        elif self._dirty:
            self._dropped = True
        else:
            self._void(versions, now)
        self._tell(now)

    def begin(
        self, write: str, tags: tuple[str, ...], ttl_ms: int, versions: Versions, now: Now
    ) -> Intent | Conflict:
        """A write-through begins. Its tags have been opened before. A repeat changes nothing."""
        self._let_time_pass(versions, now)
        if self._dirty:
            return Conflict()
        if known := self._intents.get(write):
            return known
        fence = self._void(versions, now)
        self._intents[write] = Intent(fence, now.ms + ttl_ms, tags)
        versions.matters(ttl_ms)
        self._tell(now)
        return self._intents[write]

    def close(
        self,
        write: str,
        content: Content | None,
        tags: tuple[str, ...],
        versions: Versions,
        now: Now,
    ) -> Closed:
        """The write-through is over, for `tags` and those it was begun with.

        `content`, its value, is stored if nothing else has happened to the key and to the value's
        tags since the beginning, for it may have been computed before that. Also what is not open
        any more is closed: it invalidates all the same.
        """
        self._let_time_pass(versions, now)
        intent = self._intents.pop(write, None)
        holds = (
            intent is not None
            and content is not None
            and not self._intents
            and not self._is_void(content.tags, intent.fence, now.ms, versions, write)
        )
        versions.close(dict.fromkeys(tags + (intent.tags if intent else ())), write, now)
        if self._dirty:
            self._dropped = True
            return Closed(stored=False, in_time=False)
        fence = self._void(versions, now)
        if holds and content is not None:
            self._store(content, fence, now.ms, versions, now)
        self._tell(now)
        return Closed(holds, in_time=intent is not None)

    def tags_of(self, write: str) -> tuple[str, ...]:
        """Those that an open write-through was begun with."""
        intent = self._intents.get(write)
        return intent.tags if intent else ()

    def put(self, content: Content, versions: Versions, now: Now) -> int | Conflict:
        """Replaces the value by one that is queued to be written, and returns its number.

        Until it is written it has no TTL; after that, `content.ttl_ms`, and 0 drops it. Its tags
        are those last known, if it has none of its own.
        """
        self._let_time_pass(versions, now)
        if self._intents:
            return Conflict()
        self._dirty, self._dropped = self._void(versions, now), False
        content = evolve(content, tags=content.tags or self._tags)
        self._store(content, self._dirty, now.ms, versions, now)
        self._tell(now)
        return self._dirty

    def written(self, seq: int, versions: Versions, now: Now) -> None:
        """The write of this number is done, or given up. A later one keeps the key dirty.

        The value stays if nothing was invalidated since it was put, and is as good as new.
        """
        if self._dirty != seq:
            return
        self._dirty, stored, self._stored = 0, self._stored, None
        if stored is None or self._dropped or not stored.content.ttl_ms:
            return
        if not self._is_void(stored.content.tags, stored.fence, stored.granted_ms, versions):
            self._store(stored.content, versions.next(now), now.ms, versions, now)

    def given_up(self, seq: int) -> None:
        """The write of this number will not be done. Its value goes, for it was never true."""
        if self._dirty == seq:
            self._dirty, self._stored = 0, None

    # --- Its life -----------------------------------------------------------------------------

    def keep_until_ms(self) -> int | None:
        """Until when this must be remembered; None: for as long as it is dirty."""
        if self._dirty:
            return None
        times = [each.late_ms for each in self._fills.values()]
        times += [each.until_ms for each in self._intents.values()]
        times += [self._unshared_until_ms, self._tags_until_ms, *self._news.values()]
        times += [self._stored.stale_until_ms] if self._stored else []
        # It counts how often in a row, so it must outlast the next attempt.
        times += [self._failure.retry_at_ms + BACKOFF_MAX_MS] if self._failure else []
        return max(times, default=0)

    @property
    def size(self) -> int:
        """The bytes of its value."""
        value = self._stored.content.value if self._stored else None
        return len(value) if value is not None else 0

    def evict(self) -> None:
        """Gives the value up, to make room. A dirty one stays."""
        if not self._dirty:
            self._stored = None

    # --- Steps --------------------------------------------------------------------------------

    def _let_time_pass(self, versions: Versions, now: Now, jitter: float = 1.0) -> None:
        for write in [w for w, intent in self._intents.items() if intent.until_ms <= now.ms]:
            del self._intents[write]
            self._void(versions, now)
        if self._live is not None and self._fills[self._live].until_ms <= now.ms:
            self._died(jitter, now)
            self._live = None
            self._tell(now)
        for fill in [f for f, each in self._fills.items() if each.late_ms <= now.ms]:
            del self._fills[fill]

    def _visible(self, versions: Versions) -> Stored | None:
        stored = self._stored
        if stored is None or self._dirty:
            return stored
        voided = versions.voids(stored.content.tags, stored.fence, stored.granted_ms)
        return None if voided or stored.fence <= self._voided else stored

    def _found(self, stored: Stored, versions: Versions, now: Now) -> Found | None:
        value, age_ms = stored.content.value, max(0, now.ms - stored.stored_ms)
        if value is None:
            return None
        if self._dirty:
            return Found(value, age_ms, stored.content.ttl_ms, fresh=True)
        soft = self._soft(stored, versions)
        if soft is None and now.ms < stored.fresh_until_ms:
            return Found(value, age_ms, stored.fresh_until_ms - now.ms, fresh=True)
        stale_until_ms = stored.stale_until_ms
        if soft is not None:
            stale_until_ms = min(stale_until_ms, soft // 1000 + stored.content.stale_ms)
        return Found(value, age_ms, 0, fresh=False) if now.ms < stale_until_ms else None

    def _negative_ms(self, stored: Stored, versions: Versions, now: Now) -> int | None:
        left_ms = stored.fresh_until_ms - now.ms
        negative = stored.content.value is None and self._soft(stored, versions) is None
        return left_ms if negative and left_ms > 0 else None

    def _soft(self, stored: Stored, versions: Versions) -> int | None:
        """The first soft invalidation that concerns it; None: there was none."""
        soft = versions.softened(stored.content.tags, stored.fence)
        if self._softened > stored.fence:
            return min(soft or self._softened, self._softened)
        return soft

    def _grant(
        self,
        ask: Ask,
        fill: str,
        stored: Stored | None,
        found: Found | None,
        versions: Versions,
        now: Now,
    ) -> FillGrant | None:
        etag = stored.content.etag if stored and found else None
        if fill == self._live:  # a repeat
            known = self._fills[fill]
            return FillGrant(known.fence, known.until_ms - now.ms, etag=etag)
        if found and found.fresh and not (stored and _is_due(stored, ask.early, now)):
            return None
        unshared = self._intents or now.ms < self._unshared_until_ms
        if not found and (unshared or versions.is_open(self._tags, now)):
            return FillGrant(versions.next(now), ask.fill_ms, shared=False)
        if self._live is not None or self._failed(now):
            return None
        fence = versions.next(now)
        base = stored.fence if stored and found else 0
        self._fills[fill] = Fill(fence, now.ms, ask.fill_ms, ask.owner, base)
        self._live = fill
        if len(self._fills) > LATE_FILLS_MAX + 1:
            del self._fills[next(iter(self._fills))]
        versions.matters(2 * ask.fill_ms)
        return FillGrant(fence, ask.fill_ms, etag=etag)

    def _judge(self, known: Fill, content: Content, versions: Versions) -> FillOutcome:
        void = self._is_void(content.tags, known.fence, known.granted_ms, versions)
        if void or self._dirty or self._intents:
            return FillOutcome.VOIDED
        if self._stored and self._stored.fence > known.fence:
            return FillOutcome.SUPERSEDED
        return FillOutcome.STORED

    def _is_void(
        self,
        tags: tuple[str, ...],
        fence: int,
        granted_ms: int,
        versions: Versions,
        write: str | None = None,
    ) -> bool:
        """Whether something was invalidated since that was granted, the write itself apart."""
        return (
            fence <= max(self._voided, self._softened)
            or versions.voids(tags, fence, granted_ms, write)
            or versions.softened(tags, fence) is not None
        )

    def _store(
        self,
        content: Content,
        fence: int,
        granted_ms: int,
        versions: Versions,
        now: Now,
        fill: str = "",
    ) -> None:
        self._stored = Stored(content, fence, granted_ms, now.ms, fill)
        self._tags, self._failure, self._deaths, self._unshared_until_ms = content.tags, None, 0, 0
        versions.matters(now.ms - granted_ms + content.ttl_ms + content.stale_ms)

    def _void(self, versions: Versions, now: Now) -> int:
        """What is there and what is being loaded is void; returns a fence above all of it."""
        fence = versions.next(now)
        self._voided, self._stored, self._live = fence - 1, None, None
        return fence

    def _end(self, fill: str) -> None:
        self._fills.pop(fill, None)
        if fill == self._live:
            self._live = None

    def _died(self, jitter: float, now: Now) -> None:
        self._deaths += 1
        if self._deaths >= DEATHS_MAX:
            self._deaths = 0
            self._back_off(DIED, None, jitter, now)

    def _back_off(self, error: str, retry_after_ms: int | None, jitter: float, now: Now) -> None:
        count = self._failure.count + 1 if self._failure else 1
        if retry_after_ms is None:
            most_ms = min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** min(count, 20))
            retry_after_ms = int(most_ms * (1 + jitter) / 2)
        self._failure = Failure(error, now.ms + retry_after_ms, count)

    def _failed(self, now: Now) -> Failed | None:
        failure = self._failure
        if failure is None or failure.retry_at_ms <= now.ms:
            return None
        return Failed(failure.error, failure.retry_at_ms - now.ms)

    def _tell(self, now: Now) -> None:
        """Whoever waits should look again."""
        self.events += [
            News(server) for server, until_ms in self._news.items() if until_ms > now.ms
        ]
        self._news.clear()


def _is_due(stored: Stored, early: float, now: Now) -> bool:
    """XFetch, but not in the first half of the TTL, or a short one would be refreshed for ever."""
    half_ms = stored.stored_ms + stored.content.ttl_ms // 2
    return now.ms >= half_ms and now.ms + stored.delta_ms * early >= stored.fresh_until_ms
