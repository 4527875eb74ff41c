"""The Redis store: the rules run as Lua inside Redis, and many servers share them.

Every call is one script on one name. What a script did to others comes back as events: those for
this server with the reply, those for another server on that server's channel. A channel may lose
what it carries, so nothing rests on it: `Looking` asks again whenever time may have changed a name
in which this server has an interest, and after every interruption (law L5).
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Final

import structlog
import trio
from attrs import define, evolve, field

from leasekeeper.core.lock import (
    Busy,
    Claim,
    Elsewhere,
    Granted,
    HolderLost,
    Left,
    Mismatch,
    Missing,
    Moved,
    Queued,
    QueueFull,
    Renewed,
    Resumed,
    WaiterGranted,
)
from leasekeeper.errors import Outcome, Unavailable
from leasekeeper.messages import ORIGINAL_WAIT, Key, LeasePage, LeaseState
from leasekeeper.resp.client import Client
from leasekeeper.resp.handshake import Identity
from leasekeeper.resp.replies import Reply
from leasekeeper.resp.scripts import Argument, Script
from leasekeeper.resp.settings import Settings
from leasekeeper.store.api import Event, Health, Renewal, StoreEvent
from leasekeeper.store.redis import scripts
from leasekeeper.store.redis.caches import RedisCaches, caches_in
from leasekeeper.store.redis.calling import Caller, NameCall
from leasekeeper.store.redis.entries import (
    NameChanged,
    NameDue,
    Provisional,
    claim_args,
    grant_of,
    integer,
    parse_entry,
    parse_event,
    wait_arg,
    word,
)
from leasekeeper.store.redis.health import health_of
from leasekeeper.store.redis.interests import Interests
from leasekeeper.store.redis.keys import Layout
from leasekeeper.store.redis.looking import Looking, in_calls
from leasekeeper.store.redis.options import Options
from leasekeeper.store.redis.preflight import Preflight
from leasekeeper.store.redis.recovery import Recovery
from leasekeeper.store.redis.views import WATCH_MS, Views
from leasekeeper.store.redis.writes import RedisWrites

__all__ = ["Options", "RedisStore"]

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

_RETRY_MS: Final = 500
_MOMENT_MIN_S: Final = 0.3
_MOMENT_MAX_S: Final = 3.0
_BREAK_AT_ONCE: Final = 1000


@define(eq=False)
class RedisStore:
    """A `Store` for one server. Its calls are made while `run` runs."""

    settings: Settings
    server: str
    options: Options = field(factory=Options)
    observe: Callable[[str, float], None] = field(default=lambda *_: None, repr=False)
    """Told the name of each script or command, and how many seconds Redis took over it."""
    layout: Layout = field(init=False)
    cache: RedisCaches = field(init=False, repr=False)
    writes: RedisWrites = field(init=False, repr=False)
    _client: Client = field(init=False, repr=False)
    _caller: Caller = field(init=False, repr=False)
    _interests: Interests = field(init=False, repr=False)
    _looking: Looking = field(init=False, repr=False)
    _views: Views = field(init=False, repr=False)
    _recovery: Recovery = field(init=False, repr=False)
    _preflight: Preflight = field(init=False, repr=False)
    _on_event: Callable[[Event], None] = field(default=lambda _: None, init=False)
    _nursery: trio.Nursery | None = field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.layout = Layout(self.options.prefix)
        self._interests = Interests(lambda name: self._looking.look_soon(name))
        self._recovery = Recovery(
            self.options.restart_hold_ms, self.layout, self._interests, self._in_background
        )
        self._preflight = Preflight(self.layout, self.options.replicas, self.options.preflight_ms)
        self._client = Client(
            self.settings, self._on_connected, self._recovery.on_flushed, self.observe
        )
        self._caller = Caller(
            self._client,
            self.layout,
            self.server,
            self.options.fence_memory_ms,
            self._paused_ms,
            self._on_text,
            self._on_unheard,
        )
        self.cache = caches_in(
            self._client,
            self.layout,
            self.server,
            self.options.fence_memory_ms,
            self._on_text,
            lambda: self._recovery.hold.clustered,
        )
        refusal = None if self.options.allow_volatile_writes else self._preflight.write_refusal
        self.writes = RedisWrites(self.cache.caller, self.cache.partitions, refusal)
        self._views = Views(self._client, self._caller, self.layout, self._interests)
        self._looking = Looking(
            self._caller,
            self._interests,
            lambda name, granted: self._in_background(self._confirm, name, granted),
            lambda name, claims: self._in_background(self._queue_again, name, claims),
            lambda event: self._on_event(event),
            self._views.see,
        )
        self._recovery.use(
            self._client, self._caller, lambda: self._looking.look_at_all(queues_lost=True)
        )
        self._preflight.use(self._client)

    @property
    def outlives_process(self) -> bool:
        """True: another server, or the next, knows the leases."""
        return True

    @property
    def answers_at_once(self) -> bool:
        """False: every answer comes over a network."""
        return False

    @property
    def health(self) -> Health:
        """As its connections, the restart hold and the preflight have it."""
        return health_of(self._client, self._preflight, self._recovery)

    async def run(
        self,
        on_event: Callable[[Event], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keeps the connections, and looks after names, until cancelled.

        Raises:
            ConfigurationError: Redis cannot be used as it is, or cannot be reached, at the start.
        """
        self._on_event = on_event
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await nursery.start(self._client.run)
                await nursery.start(self._preflight.run)
                await nursery.start(self._recovery.run)
                channels = [f"{self.layout.channels}{self.server}", self.layout.servers]
                await nursery.start(
                    self._client.subscribe, channels, self._on_message, self._on_subscribed
                )
                nursery.start_soon(self._interests.run)
                nursery.start_soon(self._looking.run)
                nursery.start_soon(self._refresh_watches)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    # --- Calls --------------------------------------------------------------------------------

    async def acquire(
        self, name: str, claim: Claim, *, wait: bool, take_over: bool = True
    ) -> Granted | Queued | Busy | QueueFull | Mismatch | Elsewhere:
        """Asks for a name."""
        args = (*claim_args(claim)[1:], int(wait), self.options.waiting_max, int(take_over))
        # Its grant may come before the answer.
        is_new = wait and self._interests.expect(name, claim)
        may_grant = not self._recovery.left_ms(name)
        fence_before = self._interests.fence_of(name, claim.lease)
        kind, *rest = await self._ask(name, claim.lease, scripts.ACQUIRE, *args)
        if kind in {b"granted", b"held"}:
            grant = grant_of(rest)
            if may_grant and self._recovery.left_ms(name) and grant.fence != fence_before:
                # By a call that was under way when data was lost.
                await self._caller.call(name, scripts.RELEASE, claim.lease, "")
                raise self._recovery.paused(name)
            self._hold(name, claim, grant)
            return grant
        if kind == b"queued":
            return self._queued(name, claim, rest)
        if is_new or kind in {b"busy", b"full", b"elsewhere"}:
            self._interests.leave(name, claim.lease)
        if kind == b"mismatch":
            return Mismatch()
        if kind == b"elsewhere":
            return Elsewhere()
        if kind == b"paused":
            raise self._paused(name)
        return QueueFull(self.options.waiting_max) if kind == b"full" else Busy()

    async def resume(
        self, name: str, lease: str, owner: str, *, wait_ms: int | None
    ) -> Resumed | Busy | Missing:
        """Takes over what the lease id holds or waits for."""
        wait = "" if wait_ms == ORIGINAL_WAIT else wait_arg(wait_ms)
        kind, *rest = await self._ask(name, lease, scripts.RESUME, owner, wait)
        if kind == b"missing" and self._recovery.left_ms(name):
            raise self._recovery.paused(name)  # it may be another server's, not yet put back
        if kind not in {b"held", b"queued"}:
            self._interests.leave(name, lease)
            return Busy() if kind == b"busy" else Missing()
        claim = parse_entry(lease, word(rest[-1])).claim
        if kind == b"queued":
            return Resumed(claim, self._queued(name, claim, rest))
        grant = grant_of(rest)
        self._hold(name, claim, grant)
        return Resumed(claim, grant)

    async def renew(self, renewals: Sequence[Renewal]) -> Sequence[Renewed | Missing | Unavailable]:
        """Renews many leases, in one round trip to each node."""
        calls = [
            NameCall(
                each.name, scripts.RENEW, (each.lease, "" if each.ttl_ms is None else each.ttl_ms)
            )
            for each in renewals
        ]
        answers = await self._caller.call_many_apart(calls, lambda: self._moment_s(renewals))
        missed = [
            at
            for at, answer in enumerate(answers)
            if not isinstance(answer, Unavailable) and answer[0] == b"missing"
        ]
        back = await self._recovery.put_back([renewals[at].key for at in missed])
        missed = [at for at in missed if renewals[at].key in back]
        again = await self._caller.call_many([calls[at] for at in missed])
        for at, answer in zip(missed, again, strict=True):
            answers[at] = answer
        return [
            answer if isinstance(answer, Unavailable) else self._renewed(each, answer)
            for each, answer in zip(renewals, answers, strict=True)
        ]

    async def release(self, name: str, lease: str, *, only_of: str | None = None) -> Left:
        """Gives a lease back or leaves the queue."""
        self._interests.leave(name, lease)  # or it might be put back, should Redis lose it now
        [left] = await self._caller.call(name, scripts.RELEASE, lease, only_of or "")
        return Left(word(left).decode())

    async def touch(self, waiters: Sequence[Key], alive_ms: int) -> Sequence[bool | Unavailable]:
        """Vouches for waiters, a few hundred of a name in a call."""
        answers: list[bool | Unavailable] = [False] * len(waiters)
        calls = in_calls(waiters, alive_ms)
        replies = await self._caller.call_many([call for call, _ in calls])
        for (call, places), reply in zip(calls, replies, strict=True):
            if isinstance(reply, Unavailable):
                states: Sequence[bool | Unavailable] = [reply] * len(places)
            else:
                leases = [waiters[at][1] for at in places]
                states = self._looking.compare(call.name, leases, reply, vouched=True)
            for place, state in zip(places, states, strict=True):
                answers[place] = state
        return answers

    async def break_(self, name: str, detail: str | None) -> int:
        """Puts all holders out, a thousand shared ones at a time."""
        broken = 0
        while True:
            reply = await self._caller.call(name, scripts.BREAK, detail or "", _BREAK_AT_ONCE)
            some, remaining = (integer(each) for each in reply)
            broken += some
            if not remaining or not some:
                return broken

    async def inspect(self, name: str, *, holders_max: int, waiting_max: int) -> LeaseState:
        """What others may see of a name."""
        return await self._views.inspect(name, holders_max=holders_max, waiting_max=waiting_max)

    async def list_leases(self, prefix: str, limit: int, cursor: str | None) -> LeasePage:
        """A page of held leases, of all servers."""
        return await self._views.list_leases(prefix, limit, cursor)

    async def watch(self, name: str) -> None:
        """From now on there are `Changed` events for this name."""
        if name in self._interests.watched:  # what is seen now is a change to those who watch
            self._looking.changed(name)
            return
        self._interests.watch(name)
        await self._views.see(name)

    def unwatch(self, name: str) -> None:
        """`Changed` events for this name are not wanted any more."""
        if name in self._interests.watched:
            self._interests.unwatch(name)
            self._in_background(self._views.look_away, name)

    # --- What calls and events have in common -------------------------------------------------

    def _paused_ms(self, name: str) -> int:
        """How long this name may not be granted yet; 0: it may."""
        return self._preflight.paused_ms or self._recovery.left_ms(name)

    def _paused(self, name: str) -> Unavailable:
        """What is said to those who ask for it meanwhile."""
        return self._preflight.paused() if self._preflight.reason else self._recovery.paused(name)

    async def _ask(self, name: str, lease: str, script: Script, *args: Argument) -> list[Reply]:
        """A call for a lease id that may grant. What Redis has lost of it is put back first."""
        reply = await self._ask_once(name, lease, script, *args)
        if reply[0] in {b"missing", b"paused"} and await self._recovery.put_back([(name, lease)]):
            return await self._ask_once(name, lease, script, *args)
        return reply

    async def _ask_once(
        self, name: str, lease: str, script: Script, *args: Argument
    ) -> list[Reply]:
        """With replicas wanted, a grant that they do not have goes back. One that is resumed was
        told long ago, and stays."""
        if not self.options.replicas or script is scripts.RESUME:
            return await self._caller.call(name, script, lease, *args)
        reply, have_it = await self._caller.call_and_wait(
            name,
            script,
            lease,
            *args,
            replicas=self.options.replicas,
            timeout_ms=self.options.replicas_ms,
        )
        if reply[0] in {b"granted", b"renewed"} and have_it < self.options.replicas:
            await self._caller.call(name, scripts.RELEASE, lease, "")
            raise Unavailable(Outcome.NONE, _RETRY_MS, "too few replicas have the grant in time")
        return reply

    def _moment_s(self, renewals: Sequence[Renewal]) -> float:
        """How long the answers of one node wait for those of a slower one."""
        shortest_ms = self._interests.shortest_ttl_ms(each.key for each in renewals)
        return min(_MOMENT_MAX_S, max(_MOMENT_MIN_S, shortest_ms / 10 / 1000))

    def _hold(self, name: str, claim: Claim, grant: Granted) -> None:
        self._interests.hold(name, claim, grant.fence, grant.ttl_ms)
        self._recovery.given(name, grant.fence, grant.ttl_ms)

    def _queued(self, name: str, claim: Claim, rest: Sequence[Reply]) -> Queued:
        position, fence, next_ms = (integer(each) for each in rest[:3])
        self._interests.wait(name, claim, fence, next_ms)
        return Queued(position, fence)

    def _renewed(self, asked: Renewal, answer: Sequence[Reply]) -> Renewed | Missing | Unavailable:
        if answer[0] == b"missing":
            if self._recovery.left_ms(asked.name):  # it may be another server's, not yet put back
                return self._recovery.paused(asked.name)
            self._interests.lose(asked.name, asked.lease)
            return Missing()
        ttl_ms = integer(answer[1])
        self._interests.extend(asked.name, asked.lease, ttl_ms)
        self._recovery.hold.given(ttl_ms)
        return Renewed(ttl_ms)

    # --- Events -------------------------------------------------------------------------------

    def _on_connected(self, identity: Identity) -> None:
        self._recovery.hold.connected(identity)
        self.cache.connected(identity)
        self._preflight.connected(identity)

    def _on_subscribed(self) -> None:
        self._recovery.hold.ask()
        self._looking.look_at_all()

    def _on_message(self, channel: str, text: bytes) -> None:
        try:
            if channel == self.layout.servers:
                self._recovery.hold.heard(text.decode())
            else:
                self._on_text(text)
        except ValueError:  # anybody can publish there, also a newer server that knows more events
            _log.warning("a message was not understood", channel=channel)

    def _on_unheard(self, name: str) -> None:
        """A script had its effect, but nobody took its events: a client released, and has gone."""
        if self._interests.find(name):
            self._looking.look_soon(name)

    def _on_text(self, text: bytes) -> None:
        event = parse_event(text)
        match event:
            case NameChanged(name):
                self._looking.changed(name)
            case NameDue(name, 0):
                self._looking.look_soon(name)
            case NameDue(name, in_ms):
                self._interests.look(name, in_ms)
            case Provisional(name, granted):
                self._in_background(self._confirm, name, granted)
            case StoreEvent(name, WaiterGranted() as granted):
                self._on_granted(name, granted)
            case StoreEvent(name, HolderLost() | Moved() as gone):
                if self._interests.gone(name, gone):
                    self._looking.look_soon(name)
                self._on_event(event)
            case _:
                self._on_event(event)

    def _on_granted(self, name: str, granted: WaiterGranted) -> None:
        """A waiter of this server got it: told at once, or when replicas have it."""
        if self.options.replicas:
            self._in_background(self._confirm, name, granted)
        else:
            self._tell_granted(name, granted)

    def _tell_granted(self, name: str, granted: WaiterGranted) -> None:
        lease, fence = granted.lease, granted.grant.fence
        if self._recovery.left_ms(name):  # by a call that was under way when data was lost
            self._interests.give_back(name, lease, fence)
            self._in_background(self._return, name, lease)
            return
        if self._interests.was_given_back(name, lease, fence):
            return
        interest = self._interests.find(name)
        if interest and (claim := interest.waiters.get(granted.lease)):
            self._hold(name, claim, granted.grant)
        self._on_event(StoreEvent(name, granted))

    async def _return(self, name: str, lease: str) -> None:
        """Gives back; if that fails it runs out by itself. Whoever waits for it asks again."""
        with suppress(Unavailable):
            await self._caller.call(name, scripts.RELEASE, lease, self.server)

    async def _confirm(self, name: str, granted: WaiterGranted) -> None:
        """Takes up a grant that lasts only a moment yet, or that replicas must have.

        If that fails it is tried again when the name is looked at.
        """
        lease = granted.lease
        try:
            reply = await self._ask(name, lease, scripts.RENEW, "")
        except Unavailable:
            self._interests.postpone(name, _RETRY_MS)
            return
        if reply[0] == b"renewed":
            grant = evolve(granted.grant, ttl_ms=integer(reply[1]))
            self._tell_granted(name, evolve(granted, grant=grant))

    async def _queue_again(self, name: str, claims: Sequence[Claim]) -> None:
        """Redis has lost their places. If this fails, whoever waits for them asks again."""
        last = (1, self.options.waiting_max, 0)
        calls = [NameCall(name, scripts.ACQUIRE, (*claim_args(each), *last)) for each in claims]
        for claim, answer in zip(claims, await self._caller.call_many(calls), strict=True):
            if isinstance(answer, Unavailable):
                continue
            interest = self._interests.find(name)
            if not interest or claim.lease not in interest.waiters:  # it was left meanwhile
                self._in_background(self._return, name, claim.lease)
            elif answer[0] == b"queued":
                self._queued(name, claim, answer[1:])
            elif answer[0] in {b"granted", b"held"}:
                self._on_granted(name, WaiterGranted(claim.lease, grant_of(answer[1:])))
            elif answer[0] == b"elsewhere":
                self._interests.leave(name, claim.lease)

    # --- Tasks --------------------------------------------------------------------------------

    def _in_background(self, work: Callable[..., Awaitable[None]], *args: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(work, *args)

    async def _refresh_watches(self) -> None:
        """Says again that this server watches, and sees what no message told of."""
        while True:
            await trio.sleep(WATCH_MS / 3 / 1000)
            for name in self._interests.watched:
                self._looking.changed(name)
