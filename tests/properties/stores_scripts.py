"""The core, and the scripts inside a Redis, as two sides that a state machine can hold together.

Both read one clock, which stands still until it is told another time. The scripts are called as
`RedisStore` calls them, on one connection that hears all servers' channels as well.
"""

import socket
from collections.abc import Callable, Sequence
from typing import Final, TypeVar, cast

import hiredis
from attrs import define, evolve, field

from leasekeeper.core.lock import (
    Busy,
    Claim,
    Elsewhere,
    Granted,
    Left,
    Lock,
    Mismatch,
    Missing,
    Now,
    Queued,
    QueueFull,
    Renewed,
    Resumed,
    WaiterGranted,
)
from leasekeeper.messages import ORIGINAL_WAIT, LeaseState
from leasekeeper.resp.replies import Reply
from leasekeeper.resp.scripts import Argument, Script
from leasekeeper.store.api import Changed, StoreEvent
from leasekeeper.store.redis import scripts
from leasekeeper.store.redis.entries import (
    NameChanged,
    NameDue,
    Provisional,
    claim_args,
    integer,
    listed,
    parse_entry,
    parse_event,
    wait_arg,
    word,
)
from leasekeeper.store.redis.keys import Layout
from tests.properties.stores_machine import WAITING_MAX, Told, told_by
from tests.redises import HOST, REPLY_S, RunningRedis, packed

T = TypeVar("T")

NAME: Final = "n"
SCRIPTS: Final = (
    scripts.ACQUIRE,
    scripts.RESUME,
    scripts.RENEW,
    scripts.RELEASE,
    scripts.TOUCH,
    scripts.BREAK,
    scripts.INSPECT,
)
WATCH_MS: Final = 400
PARTS: Final = ("lock", "shared", "limits", "queue", "info", "fence", "watch")


@define(eq=False)
class Core:
    """A `Lock`, as the specification of what each server hears."""

    us: int
    lock: Lock = field(factory=lambda: Lock(WAITING_MAX))
    watchers: dict[str, int] = field(factory=dict)
    """Until when each wants to hear of changes."""
    watched_until_ms: int = 0
    told: list[Told] = field(factory=list)
    changed: set[str] = field(factory=set)
    """The servers whose calls have changed the holders."""

    @property
    def now(self) -> Now:
        """Its clock."""
        return Now(self.us // 1000, self.us)

    @property
    def next_ms(self) -> int:
        """When a holder's time is over, from now; -1: never. Dead waiters are found by calls."""
        return min((each.ttl_ms for each in self.lock.holders(self.now)), default=-1)

    def _step(self, server: str, call: Callable[[], T]) -> T:
        self._end_watches()
        claims = {lease: waiter.claim for lease, waiter in self.lock._queue.items()}
        before = self.lock.revision
        answer = call()
        for told in told_by(self.lock.events):
            if isinstance(told.what, WaiterGranted):
                grant, claim = told.what.grant, claims[told.what.lease]
                at_most_ms = min(claim.ttl_ms, claim.max_hold_ms or claim.ttl_ms)
                # The core's clock must not step back, and here it did.
                grant = evolve(grant, waited_ms=max(0, grant.waited_ms))
                granted = evolve(told.what, grant=grant)
                told = Told(told.server, granted, provisional=grant.ttl_ms < at_most_ms)
            self.told.append(told)
        self.lock.events.clear()
        if self.lock.revision != before:
            self.changed.add(server)
            watching = (each for each, until in self.watchers.items() if until >= self.now.ms)
            self.told += [Told(server, None) for server in watching]
        return answer

    def acquire(
        self, server: str, claim: Claim, *, wait: bool, take_over: bool = True
    ) -> Granted | Queued | Busy | QueueFull | Mismatch | Elsewhere:
        """Its server is the owner's."""
        return self._step(
            server,
            lambda: self.lock.acquire(claim, wait=wait, take_over=take_over, now=self.now),
        )

    def resume(
        self, server: str, lease: str, owner: str, *, wait_ms: int | None
    ) -> Resumed | Busy | Missing:
        """Its server is the owner's."""
        return self._step(
            server, lambda: self.lock.resume(lease, owner, wait_ms=wait_ms, now=self.now)
        )

    def renew(self, server: str, lease: str, ttl_ms: int | None) -> Renewed | Missing:
        """By that server."""
        return self._step(server, lambda: self.lock.renew(lease, ttl_ms, now=self.now, by=server))

    def release(self, server: str, lease: str, *, only_of: str | None) -> Left:
        """By that server."""
        return self._step(
            server, lambda: self.lock.release(lease, only_of=only_of, now=self.now, by=server)
        )

    def touch(self, server: str, leases: Sequence[str], alive_ms: int) -> Sequence[bool]:
        """By that server; with no lease id, it lets time pass."""
        self._step(server, lambda: self.lock.advance(self.now, by=server))
        return self._step(
            server,
            lambda: [self.lock.touch(each, alive_ms, now=self.now, by=server) for each in leases],
        )

    def break_(self, server: str, detail: str | None) -> int:
        """By that server."""
        return self._step(server, lambda: self.lock.break_(detail, now=self.now, by=server))

    def inspect(self, server: str, *, holders_max: int, waiting_max: int) -> LeaseState:
        """By that server."""
        self._step(server, lambda: self.lock.advance(self.now, by=server))
        state = self.lock.state(
            NAME, holders_max=holders_max, waiting_max=waiting_max, now=self.now
        )
        return evolve(
            state,
            holders=tuple(evolve(one, held_ms=max(0, one.held_ms)) for one in state.holders),
            waiting=tuple(evolve(one, waiting_ms=max(0, one.waiting_ms)) for one in state.waiting),
        )

    def watch(self, server: str) -> int:
        """Looks, and wants to hear of changes for a while, with those that the look comes upon."""
        self._end_watches()
        still = {each: until for each, until in self.watchers.items() if until > self.now.ms}
        self.watchers = still | {server: self.now.ms + WATCH_MS}
        self.watched_until_ms = max(self.watched_until_ms, self.watchers[server])
        self._step(server, lambda: self.lock.advance(self.now, by=server))
        return self.next_ms

    def _end_watches(self) -> None:
        """All together, with their key: should the clock step back later, they stay forgotten."""
        if self.watched_until_ms < self.now.ms:
            self.watchers.clear()
            self.watched_until_ms = 0


@define
class Raw:
    """The keys of the name."""

    lock: str | None = None
    shared: set[str] = field(factory=set)
    limits: set[str] = field(factory=set)
    queue: list[str] = field(factory=list)
    info: set[str] = field(factory=set)
    fence: int = 0
    left_ms: dict[str, int] = field(factory=dict)
    """What is left of each key; -1: it has no end; -2: there is no such key."""


@define(eq=False)
class Scripts:
    """The scripts. `raw` is what a call left in Redis, `state` what can be seen of it."""

    redis: RunningRedis
    memory_ms: int = 3_600_000
    told: list[Told] = field(factory=list)
    raw: Raw = field(factory=Raw)
    advances: bool = True
    """Whether the last call has let time pass for waiters; what is about a holder need not."""
    state: LeaseState = field(init=False)
    next_ms: int | None = None
    """What the last call said about it, if it did."""
    due_ms: dict[str, int] = field(factory=dict)
    """When a server that changed the holders before waiters should look again."""
    seen: list[tuple[int, int, int]] = field(factory=list)
    """The holders that the last touch met: fence, what is left, how long it waited."""
    layout: Layout = field(factory=Layout)
    keys: list[str] = field(init=False)
    _socket: socket.socket = field(init=False)
    _reader: hiredis.Reader = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.keys = self.layout.keys(NAME)
        self._reader = hiredis.Reader()
        self._socket = socket.create_connection((HOST, self.redis.port), REPLY_S)
        self.commands(["HELLO", 3], ["PSUBSCRIBE", f"{self.layout.channels}*"])
        self.commands(*(["SCRIPT", "LOAD", each.source] for each in SCRIPTS))

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def begin(self, us: int, memory_ms: int) -> None:
        """Empties Redis, and sets its clock."""
        self.redis.freeze_clock(us)
        self.commands(["FLUSHALL"])
        self.told.clear()
        self.due_ms.clear()
        self.raw = Raw()
        self.memory_ms = memory_ms

    def all_keys(self) -> list[Reply]:
        """Every key that is there."""
        return listed(self.commands(["KEYS", "*"])[0])

    def commands(self, *commands: Sequence[Argument]) -> list[Reply]:
        """What Redis replies to each."""
        self._socket.sendall(b"".join(map(packed, commands)))
        replies: list[Reply] = []
        while len(replies) < len(commands):
            reply = self._reader.gets()
            if reply is False:
                self._reader.feed(self._socket.recv(65536))
            elif isinstance(reply, hiredis.PushNotification):
                self._pushed(cast("list[Reply]", list(reply)))
                # The confirmation of a subscription is its reply.
                if reply[0] == b"psubscribe":
                    replies.append(None)
            elif isinstance(reply, Exception):
                raise reply
            else:
                replies.append(reply)
        return replies

    def _pushed(self, push: list[Reply]) -> None:
        if push[0] == b"pmessage":
            channel, text = word(push[2]).decode(), word(push[3])
            self._hear(channel.removeprefix(self.layout.channels), text)

    def _hear(self, server: str, text: bytes) -> None:
        event = parse_event(text)
        match event:
            case NameChanged():
                self.told.append(Told(server, None))
            case NameDue(_, in_ms):
                self.due_ms[server] = in_ms
            case Provisional(_, granted):
                self.told.append(Told(server, granted, provisional=True))
            case StoreEvent(_, what):
                assert not isinstance(what, Changed)
                self.told.append(Told(server, what))

    def call(self, server: str, script: Script, *args: Argument) -> list[Reply]:
        """One script, and a look at what it left behind, in one go."""
        lock, shared, limits, queue, info, fence, _ = self.keys
        reply, *raw, seen = self.commands(
            self.eval(server, script, *args),
            ["GET", lock],
            ["ZRANGE", shared, 0, -1],
            ["ZRANGE", limits, 0, -1],
            ["ZRANGE", queue, 0, -1],
            ["HKEYS", info],
            ["GET", fence],
            *(["PTTL", key] for key in self.keys),
            self.eval("a", scripts.INSPECT, 1000, 1000, 0, WATCH_MS),
        )
        self.raw = Raw(
            lock=None if raw[0] is None else word(raw[0]).decode(),
            shared=set(_words(raw[1])),
            limits=set(_words(raw[2])),
            queue=_words(raw[3]),
            info=set(_words(raw[4])),
            fence=0 if raw[5] is None else int(word(raw[5])),
            left_ms=dict(zip(PARTS, map(integer, raw[6:]), strict=True)),
        )
        self.state = self._state(self._taken("a", seen), 1000)
        self.next_ms = None
        self.seen.clear()
        self.advances = script not in {scripts.RENEW, scripts.RELEASE}
        return self._taken(server, reply)

    def eval(self, server: str, script: Script, *args: Argument) -> list[Argument]:
        """The command that runs a script."""
        common = (NAME, server, self.layout.channels, self.memory_ms, 1)
        return ["EVALSHA", script.sha, len(self.keys), *self.keys, *common, *args]

    def _taken(self, server: str, reply: Reply) -> list[Reply]:
        *answer, events = listed(reply)
        for event in listed(events):
            self._hear(server, word(event))
        return answer

    def acquire(
        self, server: str, claim: Claim, *, wait: bool, take_over: bool = True
    ) -> Granted | Queued | Busy | QueueFull | Mismatch | Elsewhere:
        """acquire.lua"""
        args = (*claim_args(claim), int(wait), WAITING_MAX, int(take_over))
        kind, *rest = self.call(server, scripts.ACQUIRE, *args)
        match kind:
            case b"granted" | b"held":
                return _granted(rest)
            case b"queued":
                return self._queued(rest)
            case b"full":
                return QueueFull(WAITING_MAX)
            case b"busy":
                return Busy()
            case b"mismatch":
                return Mismatch()
        assert kind == b"elsewhere"
        return Elsewhere()

    def resume(
        self, server: str, lease: str, owner: str, *, wait_ms: int | None
    ) -> Resumed | Busy | Missing:
        """resume.lua"""
        wait = "" if wait_ms == ORIGINAL_WAIT else wait_arg(wait_ms)
        kind, *rest = self.call(server, scripts.RESUME, lease, owner, wait)
        if kind in {b"busy", b"missing"}:
            return Busy() if kind == b"busy" else Missing()
        claim = parse_entry(lease, word(rest[-1])).claim
        return Resumed(claim, _granted(rest) if kind == b"held" else self._queued(rest))

    def renew(self, server: str, lease: str, ttl_ms: int | None) -> Renewed | Missing:
        """renew.lua"""
        kind, *rest = self.call(server, scripts.RENEW, lease, "" if ttl_ms is None else ttl_ms)
        return Missing() if kind == b"missing" else Renewed(integer(rest[0]))

    def release(self, server: str, lease: str, *, only_of: str | None) -> Left:
        """release.lua"""
        [left] = self.call(server, scripts.RELEASE, lease, only_of or "")
        return Left(word(left).decode())

    def touch(self, server: str, leases: Sequence[str], alive_ms: int) -> Sequence[bool]:
        """touch.lua"""
        next_ms, fence, *states = self.call(server, scripts.TOUCH, alive_ms, *leases)
        self.next_ms = integer(next_ms)
        assert fence == self.raw.fence
        for state in (word(each).split() for each in states):
            if len(state) == 3:
                its_fence, left_ms, waited_ms = map(int, state)
                self.seen.append((its_fence, left_ms, waited_ms))
        return [each == b"1" for each in states]

    def break_(self, server: str, detail: str | None) -> int:
        """break.lua; two at a time, unless somebody waits, who would get in between."""
        broken, at_once = 0, 99 if self.raw.queue else 2
        while True:
            some, remaining = self.call(server, scripts.BREAK, detail or "", at_once)
            broken += integer(some)
            if not remaining:
                return broken

    def inspect(self, server: str, *, holders_max: int, waiting_max: int) -> LeaseState:
        """inspect.lua"""
        return self._inspect(server, holders_max, waiting_max, watch=False)

    def watch(self, server: str) -> int:
        """inspect.lua, to hear of changes for a while."""
        self._inspect(server, 1, 0, watch=True)
        assert self.next_ms is not None
        return self.next_ms

    def _inspect(
        self, server: str, holders_max: int, waiting_max: int, *, watch: bool
    ) -> LeaseState:
        reply = self.call(server, scripts.INSPECT, 1000, waiting_max, int(watch), WATCH_MS)
        self.next_ms = integer(reply[1])
        return self._state(reply, holders_max)

    def _state(self, reply: list[Reply], holders_max: int) -> LeaseState:
        now_ms, _, waiting, foreign_ms, shown, waiters = reply
        assert foreign_ms == -2
        shown, waiters, at_ms = listed(shown), listed(waiters), integer(now_ms)
        holders = [
            parse_entry("", word(text)).holder(at_ms, integer(left_ms))
            for left_ms, text in zip(shown[::2], shown[1::2], strict=True)
        ]
        return LeaseState(
            NAME,
            tuple(sorted(holders, key=lambda each: each.fence))[:holders_max],
            tuple(
                parse_entry("", word(text)).waiter(at_ms, position)
                for position, text in enumerate(waiters, start=1)
            ),
            integer(waiting),
        )

    def _queued(self, rest: Sequence[Reply]) -> Queued:
        position, fence, self.next_ms = (integer(each) for each in rest[:3])
        return Queued(position, fence)


def _words(reply: Reply) -> list[str]:
    return [word(each).decode() for each in listed(reply)]


def _granted(rest: Sequence[Reply]) -> Granted:
    fence, ttl_ms, waited_ms = (integer(each) for each in rest[:3])
    return Granted(fence, ttl_ms, waited_ms)
