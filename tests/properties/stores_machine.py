"""Clients of one name on several servers, whose every call goes to two sides at once.

What the sides are, and how closely they must agree, is for the machines in `test_stores_agree.py`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from attrs import evolve, frozen
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from leasekeeper.core.lock import (
    Busy,
    Claim,
    Contended,
    Elsewhere,
    Event,
    Granted,
    HolderLost,
    Left,
    Lock,
    Mismatch,
    Missing,
    Moved,
    Queued,
    QueueFull,
    Renewed,
    Resumed,
    WaiterGranted,
    server_of,
)
from leasekeeper.messages import ORIGINAL_WAIT, LeaseState, Mode, OnDrop

T = TypeVar("T")

WAITING_MAX = 3
LEASES = [letter * 32 for letter in "abcde"]
# Few and coinciding, so that deadlines often fall on the same moment, and on that of a call.
DURATIONS = st.sampled_from([100, 150, 300])
TTLS = st.sampled_from([100, 100, 150, 300, 300, 30_000])
ALIVE = st.sampled_from([100, 150, 300, 300, 15_000])
STRANGER = "0" * 32
LEASE = st.sampled_from(LEASES)
WHO = st.integers(0, 9)
"""Someone who holds or waits, by place; or a stranger."""
WHEN = st.sampled_from([None, None, None, None, -1, 0, 0, 1])
"""None: now; else when the time of that one has come, or one millisecond off."""
FAR_MS = 60_000
WAITS = st.sampled_from([None, 100, 150])
LABELS = st.sampled_from([None, "plain", 'two words, "quotes", 100 %', "é\n\x00{}"])
DETAILS = st.sampled_from([None, "maintenance", "in  two words "])


@frozen
class Told:
    """What one server hears. `provisional`: it must confirm the grant to keep it."""

    server: str
    what: Event | None
    """None: the holders of a name that it watches changed."""
    provisional: bool = False


class Side(Protocol):
    """One name. Every call is made by one of the servers."""

    def acquire(
        self, server: str, claim: Claim, *, wait: bool, take_over: bool = True
    ) -> Granted | Queued | Busy | QueueFull | Mismatch | Elsewhere:
        """As `Store.acquire`."""

    def resume(
        self, server: str, lease: str, owner: str, *, wait_ms: int | None
    ) -> Resumed | Busy | Missing:
        """As `Store.resume`."""

    def renew(self, server: str, lease: str, ttl_ms: int | None) -> Renewed | Missing:
        """As `Store.renew`, of one lease."""

    def release(self, server: str, lease: str, *, only_of: str | None) -> Left:
        """As `Store.release`."""

    def touch(self, server: str, leases: Sequence[str], alive_ms: int) -> Sequence[bool]:
        """As `Store.touch`."""

    def break_(self, server: str, detail: str | None) -> int:
        """As `Store.break_`."""

    def inspect(self, server: str, *, holders_max: int, waiting_max: int) -> LeaseState:
        """As `Store.inspect`."""


@frozen
class Known:
    """Who holds or waits, and how long that lasts if nobody does anything."""

    claim: Claim
    left_ms: int


def known_of(lock: Lock, now_ms: int) -> dict[str, Known]:
    """By lease id, from the core's own books."""
    return {
        lease: Known(holder.claim, holder.expires_ms - now_ms)
        for lease, holder in lock._holders.items()
    } | {
        lease: Known(waiter.claim, waiter.alive_until_ms - now_ms)
        for lease, waiter in lock._queue.items()
    }


def told_by(events: Iterable[Event]) -> list[Told]:
    """Who hears of these, by the duties of a store."""
    told: list[Told] = []
    for event in events:
        if isinstance(event, Contended):
            servers = {server_of(owner) or "" for owner in event.owners}
            told += [Told(server, evolve(event, owners=())) for server in sorted(servers)]
        else:
            told.append(Told(server_of(event.owner) or "", event))
    return told


def in_order(told: Iterable[Told]) -> list[Told]:
    """What each server hears of each lease id, in its order. No other order means anything.

    Nor does it matter how often a server hears that a name it watches changed.
    """

    def whose(each: Told) -> tuple[str, str]:
        match each.what:
            case WaiterGranted() | HolderLost() | Moved():
                return each.server, each.what.lease
        return each.server, str(each.what)

    each_once = [*dict.fromkeys(each for each in told if each.what is None)]
    return sorted([*each_once, *(each for each in told if each.what is not None)], key=whose)


class Clients(RuleBasedStateMachine):
    """The rules. A machine of this kind says what a call is, and how time passes."""

    servers: Sequence[str] = "ab"

    def both(self, server: str, ask: Callable[[Side], T]) -> T:
        """Makes a call on both sides, and compares; returns the answer."""
        raise NotImplementedError

    def pass_time(self, us: int) -> None:
        """Without a call."""
        raise NotImplementedError

    def known(self) -> dict[str, Known]:
        """Who held or waited when a call was last made."""
        raise NotImplementedError

    def someone(self, who: int, when: int | None) -> str:
        """A lease id, and perhaps it is late for it."""
        known = self.known()
        lease = [*known, STRANGER][who % (len(known) + 1)]
        if when is not None and lease in known:
            left_ms = known[lease].left_ms + when
            if 0 < left_ms <= FAR_MS:
                self.pass_time(left_ms * 1000)
        return lease

    def server(self, number: int) -> str:
        return self.servers[number % len(self.servers)]

    @initialize(readers=st.integers(0, 3), waiting=st.lists(st.sampled_from(Mode), max_size=3))
    def some_are_there_already(self, readers: int, waiting: list[Mode]) -> None:
        for lease in LEASES[:readers]:
            self.acquire(0, Claim(lease, 300, Mode.SHARED, alive_ms=300), wait=False)
        for lease, mode in zip(LEASES[readers:], waiting, strict=False):
            self.acquire(1, Claim(lease, 300, mode, alive_ms=300), wait=True)

    @rule(
        by=st.integers(0, 5),
        lease=LEASE,
        mode=st.sampled_from(Mode),
        limit=st.none() | st.integers(1, 3),
        ttl_ms=TTLS,
        max_hold_ms=st.none() | DURATIONS,
        alive_ms=ALIVE,
        wait=st.booleans(),
        wait_ms=WAITS,
        label=LABELS,
        on_drop=st.sampled_from(OnDrop),
    )
    def a_client_acquires(
        self,
        by: int,
        lease: str,
        mode: Mode,
        limit: int | None,
        ttl_ms: int,
        max_hold_ms: int | None,
        alive_ms: int,
        wait: bool,
        wait_ms: int | None,
        label: str | None,
        on_drop: OnDrop,
    ) -> None:
        if mode is Mode.EXCLUSIVE:
            limit = None
        claim = Claim(lease, ttl_ms, mode, limit, label, "c", None, max_hold_ms, alive_ms)
        claim = evolve(claim, wait_ms=wait_ms, on_drop=on_drop, auto_renew=not limit)
        self.acquire(by, claim, wait=wait)

    @rule(by=st.integers(0, 5), lease=LEASE, ttl_ms=TTLS, wait=st.booleans())
    def a_reader_acquires(self, by: int, lease: str, ttl_ms: int, wait: bool) -> None:
        """With nothing unusual, so that several often share."""
        self.acquire(by, Claim(lease, ttl_ms, Mode.SHARED, alive_ms=300), wait=wait)

    @rule(by=st.integers(0, 5), lease=LEASE, limit=st.integers(1, 3), wait=st.booleans())
    def a_reader_with_a_limit_acquires(self, by: int, lease: str, limit: int, wait: bool) -> None:
        self.acquire(by, Claim(lease, 300, Mode.SHARED, limit, alive_ms=300), wait=wait)

    @rule(
        by=st.integers(0, 5),
        lease=LEASE,
        ttl_ms=TTLS,
        max_hold_ms=st.sampled_from([None, None, 150]),
        alive_ms=ALIVE,
        wait_ms=WAITS,
    )
    def a_writer_waits(
        self,
        by: int,
        lease: str,
        ttl_ms: int,
        max_hold_ms: int | None,
        alive_ms: int,
        wait_ms: int | None,
    ) -> None:
        """And may not hold it for long, so that two bounds meet."""
        claim = Claim(lease, ttl_ms, max_hold_ms=max_hold_ms, alive_ms=alive_ms, wait_ms=wait_ms)
        self.acquire(by, claim, wait=True)

    @rule(
        by=st.integers(0, 5),
        who=WHO,
        when=WHEN,
        wait=st.booleans(),
        take_over=st.booleans(),
        wait_ms=WAITS,
    )
    def a_client_repeats_its_request(
        self,
        by: int,
        who: int,
        when: int | None,
        wait: bool,
        take_over: bool,
        wait_ms: int | None,
    ) -> None:
        """L6, and it finds out what became of it; maybe on another server."""
        lease = self.someone(who, when)
        known = self.known().get(lease)
        claim = known.claim if known else Claim(lease, 300, alive_ms=300)
        self.acquire(by, evolve(claim, wait_ms=wait_ms), wait=wait, take_over=take_over)

    def acquire(self, by: int, claim: Claim, *, wait: bool, take_over: bool = True) -> None:
        """Asks as a client of one of the servers."""
        server = self.server(by)
        claim = evolve(claim, owner=f"{server}.{by}")
        self.both(server, lambda side: side.acquire(server, claim, wait=wait, take_over=take_over))

    @rule(
        by=st.integers(0, 5),
        who=WHO,
        when=WHEN,
        wait_ms=st.sampled_from([ORIGINAL_WAIT, ORIGINAL_WAIT, 0]) | WAITS,
    )
    def a_client_resumes(self, by: int, who: int, when: int | None, wait_ms: int | None) -> None:
        """L7: the lease id is all it takes, on any server."""
        self.resume(by, self.someone(who, when), wait_ms)

    def resume(self, by: int, lease: str, wait_ms: int | None = ORIGINAL_WAIT) -> None:
        """On one of the servers."""
        server = self.server(by)
        owner = f"{server}.{by}"
        self.both(server, lambda side: side.resume(server, lease, owner, wait_ms=wait_ms))

    @rule(by=st.integers(0, 5), who=WHO, when=WHEN, ttl_ms=st.none() | TTLS)
    def a_client_renews(self, by: int, who: int, when: int | None, ttl_ms: int | None) -> None:
        """On any server, and the lease stays with its own."""
        self.renew(by, self.someone(who, when), ttl_ms)

    def renew(self, by: int, lease: str, ttl_ms: int | None) -> None:
        """By one of the servers."""
        server = self.server(by)
        self.both(server, lambda side: side.renew(server, lease, ttl_ms))

    @rule(by=st.integers(0, 5), who=WHO, when=WHEN, only_of=st.sampled_from([None, None, "a", "b"]))
    def a_client_releases(self, by: int, who: int, when: int | None, only_of: str | None) -> None:
        """L6. With `only_of`, what was resumed elsewhere stays (L8)."""
        lease = self.someone(who, when)
        server = self.server(by)
        self.both(server, lambda side: side.release(server, lease, only_of=only_of))

    def all_release(self) -> None:
        """As clients do in the end."""
        for lease in (*LEASES, STRANGER):
            self.release(lease)

    def release(self, lease: str) -> None:
        """By whichever server."""
        self.both("a", lambda side: side.release("a", lease, only_of=None))

    @rule(by=st.integers(0, 5), who=WHO, when=WHEN, others=st.lists(LEASE), alive_ms=ALIVE)
    def a_server_vouches(
        self, by: int, who: int, when: int | None, others: list[str], alive_ms: int
    ) -> None:
        leases = [*dict.fromkeys([self.someone(who, when), *others])]
        server = self.server(by)
        self.both(server, lambda side: side.touch(server, leases, alive_ms))

    @rule(by=st.integers(0, 5), detail=DETAILS)
    def an_operator_breaks_it(self, by: int, detail: str | None) -> None:
        server = self.server(by)
        self.both(server, lambda side: side.break_(server, detail))

    @rule(by=st.integers(0, 5), holders_max=st.integers(0, 9), waiting_max=st.integers(0, 9))
    def somebody_looks(self, by: int, holders_max: int, waiting_max: int) -> None:
        """L7: at as much as was asked for."""
        server = self.server(by)
        shown = {"holders_max": holders_max, "waiting_max": waiting_max}
        self.both(server, lambda side: side.inspect(server, **shown))

    @rule(ms=st.sampled_from([1, 49, 50, 99, 100, 150, 300]))
    def time_passes(self, ms: int) -> None:
        """What that brought about is noticed by whatever comes next."""
        self.pass_time(ms * 1000)

    @rule(who=WHO, when=WHEN)
    def somebody_s_time_comes(self, who: int, when: int | None) -> None:
        """Or is not there yet, or just over."""
        self.someone(who, when)
