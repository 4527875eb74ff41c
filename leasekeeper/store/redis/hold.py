"""The restart hold: after Redis lost data, nobody is granted what somebody may still believe in.

Redis may come back without some or all of what it held: restarted without persistence, replaced by
a replica that was behind, or flushed. Fences still rise. But the holders of before do not know yet,
so grants pause until the longest lease that was given out before is over. Meanwhile holders renew,
resume, and are put back by the servers that know them.

How it is noticed: a master whose run id or replication id changed since it was last connected to;
and Redis' own word to its tracking clients that everything was flushed, which comes before any
later answer on the same connection. That word is also given when another database was flushed, so
such a pause is in doubt until that is known. Of a flush the other servers hear by themselves.
"""

from collections.abc import Callable
from typing import Final

import structlog
from attrs import define, field, frozen

from leasekeeper.resp.handshake import Identity
from leasekeeper.store.alarms import trio_ms

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

_ROUND_UP: Final = 1.25
"""What is announced is a little longer than the leases, so that it need not be said for each."""
SETTLE_MS: Final = 1000
"""A Redis that restarted or was replaced is granted from no sooner: other servers, which may know
of leases that this one does not, reconnect and say so within this time."""
FLUSH_SETTLE_MS: Final = 500
"""So is one that was flushed, of which all servers hear at once: a lease that was given out a
moment before is known to its server only, which says what it knows when it is sure of the flush."""
_ALIKE_MS: Final = 250
"""Servers count a pause from when they hear of it, so they do not agree to the millisecond."""
ANYWHERE: Final = "*"
"""The place of a pause that is for all masters."""
MASTER: Final = "master"
"""The place of all names where there is one master at a time, whatever its address."""


@frozen
class Word:
    """What a server says to all servers: `hello`, `leases` or `lost`.

    Its time is one of this server's clock, until it is said: then it is how long that is from now.
    """

    kind: str
    until_ms: int = 0
    place: str = ""

    def line(self, now_ms: int) -> str:
        """As it is said."""
        if not self.until_ms:
            return self.kind
        return f"{self.kind} {self.until_ms - now_ms} {self.place}".rstrip()


@define(eq=False)
class RestartHold:
    """Knows until when leases may be believed in, by all servers, and where grants are paused.

    A place is a master: in a cluster its address, for each of them loses data for itself. `tell`
    sends a word to all servers, in the background, until Redis has taken it or its time is over;
    `on_begin` is called when a pause begins, and when more was lost during it. Times are in ms of
    this server's own clock. It does not talk to Redis.
    """

    longest_ms: int
    """No pause is longer; 0: there is none."""
    tell: Callable[[Word], None]
    on_begin: Callable[[], None]
    pauses: int = 0
    """Counts them, so that who asked before one can tell that it came."""
    clustered: bool = False
    doubtful: bool = False
    """Whether the pause at `MASTER` may be for nothing: it was a flush, of whatever database."""
    _latest_ms: int = 0
    """Until when a lease of any server may be believed in."""
    _announced_ms: int = 0
    _until_ms: dict[str, int] = field(factory=dict)
    _masters: dict[str, tuple[str, str]] = field(factory=dict, repr=False)
    _replids: set[str] = field(factory=set, repr=False)

    @property
    def left_ms(self) -> int:
        """How long grants are still paused anywhere; 0: they are not."""
        if not self._until_ms:
            return 0
        now_ms = trio_ms()
        self._until_ms = {p: until for p, until in self._until_ms.items() if until > now_ms}
        return max((until - now_ms for until in self._until_ms.values()), default=0)

    def left_at(self, place: str) -> int:
        """How long grants are still paused at a master; 0: they are not."""
        until_ms = max(self._until_ms.get(place, 0), self._until_ms.get(ANYWHERE, 0))
        return max(0, until_ms - trio_ms()) if until_ms else 0

    def place_of(self, address: object) -> str:
        """The place of the names at an address."""
        return str(address) if self.clustered else MASTER

    # --- What leases there are ----------------------------------------------------------------

    def given(self, ttl_ms: int) -> None:
        """A lease was granted or renewed here, just now."""
        until_ms = trio_ms() + ttl_ms
        self._latest_ms = max(self._latest_ms, until_ms)
        if until_ms > self._announced_ms and self.longest_ms:
            self._announced_ms = trio_ms() + int(ttl_ms * _ROUND_UP) + 1000
            self.tell(Word("leases", self._announced_ms))

    def ask(self) -> None:
        """This server is new, or may have missed something: others say what they have given out."""
        self.tell(Word("hello"))

    # --- Losses -------------------------------------------------------------------------------

    def connected(self, identity: Identity) -> None:
        """A connection to a master was made; it has not been used yet."""
        self.clustered = identity.mode == "cluster"
        place = self.place_of(identity.address)
        now = (identity.run_id, identity.replid)
        before = self._masters.get(place)
        promoted = before is None and identity.replid2 in self._replids
        self._masters[place] = now
        self._replids.add(identity.replid)
        if promoted or before not in {None, now}:
            self._begin("another Redis, or one that restarted, answers", place, SETTLE_MS)

    def flushed(self, address: object) -> None:
        """Redis says that everything was deleted there, in some database."""
        place = self.place_of(address)
        if self.clustered:  # where there is but one database
            self._begin("it was flushed", place, FLUSH_SETTLE_MS)
        else:
            doubtful = self.doubtful or not self.left_at(MASTER)
            why = "it was flushed, or another database was" if doubtful else "it was flushed"
            self._begin(why, place, FLUSH_SETTLE_MS, doubtful=doubtful)

    def confirm(self, *, sure: bool = True) -> None:
        """It was this database that was flushed. If nobody can say, it is taken for that, but
        others are not told."""
        if self.doubtful and sure and self.left_at(MASTER):
            self._tell_lost(MASTER)
        self.doubtful = False

    def dismiss(self) -> None:
        """It was another database that was flushed."""
        if self.doubtful:
            self.doubtful = False
            self._until_ms.pop(MASTER, None)

    def join(self, left_ms: int) -> None:
        """Others paused before this server was there; for which of the masters is not known."""
        if self.longest_ms:
            self._pause(ANYWHERE, trio_ms() + min(left_ms, self.longest_ms))

    def heard(self, line: str) -> None:
        """Another server said something; or this one, for its own words come back."""
        word, _, rest = line.partition(" ")
        ms, _, place = rest.partition(" ")
        now_ms = trio_ms()
        if word == "hello":
            self._answer(now_ms)
        elif word in {"leases", "lost"} and ms.isdecimal():
            until_ms = now_ms + int(ms)
            self._latest_ms = max(self._latest_ms, until_ms)
            if word == "lost" and self.left_at(place) < int(ms) - _ALIKE_MS:
                self._begin("another server says so", place, heard_ms=until_ms)

    def _answer(self, now_ms: int) -> None:
        if self._latest_ms > now_ms:
            self.tell(Word("leases", self._latest_ms))
        for place, until_ms in self._until_ms.items():
            if until_ms > now_ms and not (place == MASTER and self.doubtful):
                self.tell(Word("lost", until_ms, place))

    def _begin(
        self,
        why: str,
        place: str,
        at_least_ms: int = 0,
        *,
        doubtful: bool = False,
        heard_ms: int = 0,
    ) -> None:
        """Data was lost at a master, or may have been."""
        now_ms = trio_ms()
        until_ms = min(max(self._latest_ms, now_ms + at_least_ms), now_ms + self.longest_ms)
        if until_ms <= now_ms:
            return
        grew = until_ms > self._until_ms.get(place, 0)
        if not doubtful and place == MASTER:
            self.doubtful = False
        elif doubtful and grew:
            self.doubtful = True
        self._pause(place, until_ms)
        if grew:
            _log.warning(
                "grants are paused: Redis may have lost leases",
                why=why,
                at=place,
                left_ms=until_ms - now_ms,
            )
            if not doubtful and until_ms > heard_ms + _ALIKE_MS:
                self._tell_lost(place)

    def _pause(self, place: str, until_ms: int) -> None:
        self._until_ms[place] = max(until_ms, self._until_ms.get(place, 0))
        self.pauses += 1
        self.on_begin()

    def _tell_lost(self, place: str) -> None:
        self.tell(Word("lost", self._until_ms[place], place))
