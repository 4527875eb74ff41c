"""Write-behind: the writes of one queue that wait in one partition. The executable specification.

A key has at most one write here, that of its latest value: a newer one takes its place. A claim is
a lease of a write, and says with a fence which value it is for, so that the database refuses what
comes too late. Of a claim that ends without a word the write may be claimed again: it is carried
out at least once. Each key backs off for itself, so one that fails holds up no other.

A write that fails too often is *dead*: it is kept apart, is not claimed, and its value is not
served any more, for it was never true. Somebody may revive it, as long as the key was not written
anew. Dead writes count among those that are queued, so that they cannot pile up unnoticed.

Time and chance go in, what others must be told comes out in `WriteQueue.events`. The cached entry
of the key goes into each call that changes it, for both change in one step.
"""

from enum import StrEnum
from typing import Final

from attrs import define, field, frozen
from sortedcontainers import SortedDict, SortedList

from leasekeeper.core.cache import Entry
from leasekeeper.core.fills import Conflict, Content, News
from leasekeeper.core.lock import Now
from leasekeeper.core.versions import Versions
from leasekeeper.messages.values import Json
from leasekeeper.messages.writes import ClaimedWrite, DeadWrite

BACKOFF_MIN_MS: Final = 1_000
BACKOFF_MAX_MS: Final = 300_000
NEWS_MS: Final = 15_000
"""How long a server that waits hears of a queue without asking again."""
ANSWER_BYTES_MAX: Final = 1024 * 1024
"""The values of one claim, or of one page of dead writes, take no more, unless one alone does."""
SPENT_MAX: Final = 100
"""So many writes that have failed too often are put aside by one claim."""
SPENT_MS: Final = 1_000
"""Until whoever puts one aside must have buried it, or another may."""
LAPSED: Final = "its last claim ended without an answer"


@frozen
class Bounds:
    """How many writes one queue of a partition may have, dead ones too, and of how many bytes."""

    count: int
    bytes: int


@frozen
class Full:
    """The queue has as much as it may have."""


@frozen
class Take:
    """How a server claims. `token` is random, and never used twice."""

    token: str = field(repr=False)
    count: int
    claim_ms: int
    attempts_max: int
    server: str | None = None
    """It wants to hear of writes that can be claimed, if there is none now."""


@frozen
class Taken:
    """What was claimed; in `next_ms` more can be, None: there is nothing more.

    `spent` are keys that whoever claimed is to bury.
    """

    writes: tuple[ClaimedWrite, ...] = ()
    next_ms: int | None = None
    spent: tuple[str, ...] = ()


class Settled(StrEnum):
    """What became of a write when its claim was settled."""

    NOT_HELD = "not_held"
    """Nothing: somebody else has claimed it, or it is settled."""
    DONE = "done"
    QUEUED = "queued"
    """It will be claimed again: it has failed, or was written anew meanwhile."""
    DEAD = "dead"


@frozen
class Hold:
    """The claim of a write: for the value of this number, until then, for so manieth time."""

    token: str = field(repr=False)
    seq: int
    until_ms: int
    attempt: int


@define
class Write:
    """The write of a key that waits, or is claimed. It can be claimed from `ready_ms` on."""

    content: Content
    seq: int
    place: int
    """Among those that are ready since the same moment."""
    ready_ms: int
    attempts: int = 0
    """How often its present value was claimed."""
    error: str = ""
    hold: Hold | None = None


@frozen
class Grave:
    """A dead write. `number` says when it died."""

    number: int
    content: Content
    seq: int
    attempts: int
    error: str


@define
class WriteQueue:
    """The rules of one queue, in one partition, whose clock is `versions`.

    It does not read clocks, make tokens, carry writes out, or keep claimants who wait.
    """

    events: list[News] = field(factory=list)
    _writes: dict[str, Write] = field(factory=dict, repr=False)
    _due: SortedList[tuple[int, int, str]] = field(factory=SortedList, repr=False)
    """When each of them can be claimed, its place and its key."""
    _graves: dict[str, Grave] = field(factory=dict, repr=False)
    _buried: SortedDict[int, str] = field(factory=SortedDict, repr=False)
    """Their keys, by their numbers."""
    _bytes: int = 0
    """Of all values, of dead writes too."""
    _news: dict[str, int] = field(factory=dict, repr=False)
    """The servers that wait, and until when."""

    # Invariants, whenever a call returns: a key has a write or a grave, or neither; each write is
    # in _due exactly once; a write with a hold is not ready before the hold ends.

    # --- Queueing -----------------------------------------------------------------------------

    def put(
        self,
        key: str,
        content: Content,
        bounds: Bounds,
        entry: Entry,
        versions: Versions,
        now: Now,
    ) -> int | Conflict | Full:
        """Replaces the cached value and queues the write of it; returns its number.

        A write of this key that waits is replaced, and keeps its place; one that is claimed will be
        followed by this one. A dead one is forgotten, for this is its newer value.
        """
        known = self._writes.get(key) or self._graves.get(key)
        grows = _size(content) - (_size(known.content) if known else 0)
        if known is None and len(self) >= bounds.count:
            return Full()
        if grows > 0 and self._bytes + grows > bounds.bytes:
            return Full()
        seq = entry.put(content, versions, now)
        if isinstance(seq, Conflict):
            return seq
        self._bytes += grows
        write = self._writes.get(key)
        if write is None:
            self._exhume(key)
            self._queue(key, content, seq, now)
        else:
            write.content, write.seq, write.attempts, write.error = content, seq, 0, ""
        return seq

    def claim(self, take: Take, versions: Versions, now: Now) -> Taken:
        """Claims writes that are ready, those first that have been for longest."""
        writes: list[ClaimedWrite] = []
        spent: list[str] = []
        size = 0
        while self._due and len(writes) < take.count and len(spent) < SPENT_MAX:
            ready_ms, _, key = self._due[0]
            write = self._writes[key]
            if ready_ms > now.ms:
                break
            if write.attempts >= take.attempts_max:
                spent.append(key)
                self._move(key, write, now.ms + SPENT_MS)
                continue
            size += _size(write.content)
            if writes and size > ANSWER_BYTES_MAX:
                break
            writes.append(self._claim(key, write, take, versions, now))
        if take.server is not None and not writes:
            self._news[take.server] = now.ms + NEWS_MS
        next_ms = max(0, self._due[0][0] - now.ms) if self._due else None
        return Taken(tuple(writes), next_ms, tuple(spent))

    # --- Settling -----------------------------------------------------------------------------

    def ack(self, key: str, token: str, entry: Entry, versions: Versions, now: Now) -> Settled:
        """The claimed value is written. A claim that is over counts, too, until the next."""
        held = self._held(key, token)
        if held is None:
            return Settled.NOT_HELD
        write, hold = held
        entry.written(hold.seq, versions, now)
        if write.seq != hold.seq:
            self._free(key, write, now.ms, now)
            return Settled.QUEUED
        self._remove(key, write)
        self._bytes -= _size(write.content)
        return Settled.DONE

    def retry(
        self,
        key: str,
        token: str,
        error: str,
        after_ms: int | None,
        jitter: float,
        attempts_max: int,
        entry: Entry,
        versions: Versions,
        now: Now,
    ) -> Settled:
        """The claimed value could not be written. It is dead if that was once too often."""
        held = self._held(key, token)
        if held is None:
            return Settled.NOT_HELD
        write, hold = held
        if write.seq == hold.seq:
            write.error = error
        if write.attempts >= attempts_max:
            self._bury(key, write, entry, versions, now)
            return Settled.DEAD
        if after_ms is None:
            most_ms = min(BACKOFF_MAX_MS, BACKOFF_MIN_MS * 2 ** min(hold.attempt - 1, 20))
            after_ms = int(most_ms * (1 + jitter) / 2)
        self._free(key, write, now.ms + after_ms, now)
        return Settled.QUEUED

    def give_back(self, key: str, token: str, now: Now, *, unseen: bool) -> Settled:
        """Whoever claimed it is gone, or (`unseen`) never heard of it: it can be claimed now."""
        held = self._held(key, token)
        if held is None:
            return Settled.NOT_HELD
        write, hold = held
        if unseen and write.seq == hold.seq:
            write.attempts -= 1
        self._free(key, write, now.ms, now)
        return Settled.QUEUED

    # --- The dead -----------------------------------------------------------------------------

    def bury(self, key: str, attempts_max: int, entry: Entry, versions: Versions, now: Now) -> bool:
        """Whether this write is dead now: claimed too often, and the last claim is over."""
        write = self._writes.get(key)
        if write is None or write.attempts < attempts_max:
            return False
        if write.hold is not None and write.hold.until_ms > now.ms:
            return False
        write.error = write.error or LAPSED
        self._bury(key, write, entry, versions, now)
        return True

    def dead(self, after: int, limit: int) -> tuple[tuple[DeadWrite, ...], int | None]:
        """Those that died after this number, in order; and where to go on, None: these are all."""
        found: list[DeadWrite] = []
        size, last = 0, after
        for number in self._buried.irange(after, inclusive=(False, True)):
            key = self._buried[number]
            grave = self._graves[key]
            size += _size(grave.content)
            if len(found) == limit or (found and size > ANSWER_BYTES_MAX):
                return tuple(found), last
            value = Json(grave.content.value or b"")
            found.append(DeadWrite(key, value, grave.seq, grave.attempts, grave.error))
            last = number
        return tuple(found), None

    def revive(self, key: str, entry: Entry, versions: Versions, now: Now) -> bool:
        """Queues a dead write again, as if it were put now. False: there is none, or it cannot be
        put."""
        grave = self._graves.get(key)
        if grave is None:
            return False
        seq = entry.put(grave.content, versions, now)
        if isinstance(seq, Conflict):
            return False
        self._exhume(key)
        self._queue(key, grave.content, seq, now)
        return True

    # --- Its life -----------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many writes it has, dead ones too."""
        return len(self._writes) + len(self._graves)

    def keep_until_ms(self) -> int | None:
        """Until when this must be remembered; None: for as long as it has writes."""
        return None if len(self) else max(self._news.values(), default=0)

    # --- Steps --------------------------------------------------------------------------------

    def _queue(self, key: str, content: Content, seq: int, now: Now) -> None:
        write = self._writes[key] = Write(content, seq, seq, now.ms)
        self._due.add((write.ready_ms, write.place, key))
        self._tell(now)

    def _claim(
        self, key: str, write: Write, take: Take, versions: Versions, now: Now
    ) -> ClaimedWrite:
        write.attempts += 1
        fence, until_ms = versions.next(now), now.ms + take.claim_ms
        write.hold = Hold(take.token, write.seq, until_ms, write.attempts)
        self._move(key, write, until_ms)
        return ClaimedWrite(
            id=claim_id(take.token, key),
            key=key,
            value=Json(write.content.value or b""),
            seq=write.seq,
            fence=fence,
            attempt=write.attempts,
        )

    def _held(self, key: str, token: str) -> tuple[Write, Hold] | None:
        write = self._writes.get(key)
        if write is None or write.hold is None or write.hold.token != token:
            return None
        return write, write.hold

    def _free(self, key: str, write: Write, ready_ms: int, now: Now) -> None:
        write.hold = None
        self._move(key, write, ready_ms)
        self._tell(now)

    def _move(self, key: str, write: Write, ready_ms: int) -> None:
        self._due.remove((write.ready_ms, write.place, key))
        write.ready_ms = ready_ms
        self._due.add((ready_ms, write.place, key))

    def _remove(self, key: str, write: Write) -> None:
        self._due.remove((write.ready_ms, write.place, key))
        del self._writes[key]

    def _bury(self, key: str, write: Write, entry: Entry, versions: Versions, now: Now) -> None:
        self._remove(key, write)
        entry.given_up(write.seq)
        number = versions.next(now)
        self._graves[key] = Grave(number, write.content, write.seq, write.attempts, write.error)
        self._buried[number] = key

    def _exhume(self, key: str) -> None:
        grave = self._graves.pop(key, None)
        if grave is not None:
            del self._buried[grave.number]

    def _tell(self, now: Now) -> None:
        """There is something to claim, now or sooner than those who wait know."""
        self.events += [
            News(server) for server, until_ms in self._news.items() if until_ms > now.ms
        ]
        self._news.clear()


def claim_id(token: str, key: str) -> str:
    """What a claim is settled by."""
    return f"{token}.{key}"


def parse_claim_id(text: str) -> tuple[str, str]:
    """The key and the token of a claim; of one that cannot be, whatever there is no write of."""
    token, _, key = text.partition(".")
    return key, token


def _size(content: Content) -> int:
    return len(content.value or b"")
