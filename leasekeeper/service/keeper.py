"""The service: sessions, what they ask for, and what they are told. No sockets.

connection ── attach ──> Session ── handle ──> Leases ──> Store
    ^                       │                               │
    └────── notify, ping ───┴───────── events <─────────────┘
"""

from collections.abc import Callable
from secrets import token_hex
from typing import Final, assert_never

import structlog
import trio
from attrs import define, field

from leasekeeper.core.lock import Contended, HolderLost, Moved, WaiterGranted
from leasekeeper.errors import Cancelled, LimitReached
from leasekeeper.messages import (
    CacheAbortWrite,
    CacheBeginWrite,
    CacheCommitWrite,
    CacheFail,
    CacheFill,
    CacheGet,
    CacheInvalidate,
    CacheSet,
    CacheWriting,
    CacheWritten,
    Done,
    LeaseAcquire,
    LeaseAcquireAll,
    LeaseBreak,
    LeaseBroken,
    LeaseChanged,
    LeaseInspect,
    LeaseList,
    LeaseRelease,
    LeaseRenew,
    LeaseResume,
    LeaseState,
    LeaseUnwatch,
    LeaseWatch,
    Notification,
    OnDrop,
    Params,
    Result,
    RpcCancel,
    ServerDraining,
    SessionHeartbeat,
    SessionOpen,
    WritesAck,
    WritesClaim,
    WritesDead,
    WritesPut,
    WritesRetry,
    WritesRevive,
)
from leasekeeper.service.caches import Caches
from leasekeeper.service.changes import Changes
from leasekeeper.service.leases import Leases
from leasekeeper.service.limits import Limits
from leasekeeper.service.metrics import Metrics
from leasekeeper.service.session import Session, SessionEvent
from leasekeeper.service.together import acquire_all
from leasekeeper.service.waiting import Waiting
from leasekeeper.service.writes import Writes
from leasekeeper.store.alarms import Alarms, trio_ms
from leasekeeper.store.api import Changed, Event, Store, StoreEvent
from leasekeeper.store.caches import KeyNews
from leasekeeper.store.writes import QueueNews

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)


@define(eq=False)
class Keeper:
    """One server's service on one store."""

    store: Store
    limits: Limits = field(factory=Limits)
    server: str = field(factory=lambda: token_hex(4))
    """How this server is named to clients and to other servers."""
    metrics: Metrics = field(factory=Metrics, repr=False)
    leases: Leases = field(init=False)
    caches: Caches = field(init=False)
    changes: Changes = field(init=False)
    writes: Writes = field(init=False)
    sessions: set[Session] = field(factory=set, init=False, repr=False)
    """Those that have a connection."""
    _detached: dict[Session, None] = field(factory=dict, init=False, repr=False)
    _graces: Alarms[Session] = field(init=False, repr=False)
    _watchers: dict[str, set[Session]] = field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.leases = Leases(self.store, self.server, self.limits, self.metrics)
        self.caches = Caches(self.store.cache, self.server, self.limits, self.metrics)
        self.changes = Changes(self.store.cache, self.limits, self.metrics)
        self.writes = Writes(self.store.writes, self.server, self.limits, self.metrics)
        self._graces = Alarms(self._end_grace)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves the sessions until cancelled. The store's failures come out of here."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.store.run, self._on_event)
            nursery.start_soon(self.leases.run)
            nursery.start_soon(self.caches.run)
            nursery.start_soon(self.writes.run)
            nursery.start_soon(self._graces.run)
            task_status.started()

    # --- Sessions -----------------------------------------------------------------------------

    def attach(self, notify: Callable[[Notification], None], ping: Callable[[], None]) -> Session:
        """A new connection's session. Neither function may block or raise."""
        session = Session(token_hex(16), notify, ping)
        self.sessions.add(session)
        return session

    def detach(self, session: Session, *, clean: bool) -> None:
        """The connection is gone. Call it before its requests are cancelled.

        Args:
            session: an attached one.
            clean: the peer said that it is done, so what it has is released now. Otherwise what
                it wants kept is kept for the grace.
        """
        self.sessions.remove(session)
        self.leases.renewals.forget(session)
        self.caches.end(session)
        self.writes.end(session)
        for name in list(session.watching):
            self._stop_watching(session, name)
        session.notify, session.ping = _tell_nobody, _ping_nobody
        if clean:
            session.step(SessionEvent.CLOSED)
            self.leases.end(session.tenures.values())
            return
        session.step(SessionEvent.DROPPED)
        self.leases.end(t for t in session.tenures.values() if t.on_drop is OnDrop.RELEASE)
        if not session.tenures:  # or strangers who come and go would end the grace of others
            session.step(SessionEvent.GRACE_OVER)
            return
        self._detached[session] = None
        self._graces.set(session, trio_ms() + self.limits.grace_ms)
        if len(self._detached) > self.limits.sessions_detached:
            self._end_grace(next(iter(self._detached)))

    def alive(self, session: Session) -> None:
        """Its connection saw a sign of life just now."""
        self.leases.renewals.alive(session)

    def drain(self, reconnect_after_ms: Callable[[], int]) -> None:
        """Refuses new leases from now on, and tells every session when to go elsewhere."""
        self.leases.draining_ms = reconnect_after_ms()
        for session in self.sessions:
            session.notify(ServerDraining(reconnect_after_ms()))

    @property
    def holding(self) -> bool:
        """Whether a connected session still holds a lease."""
        return any(session.held for session in self.sessions)

    # --- Requests -----------------------------------------------------------------------------

    def answers_at_once(self, params: Params) -> bool:
        """Whether `handle` of this request waits for nothing but, now and then, another's release.

        Such a request needs no task of its own.
        """
        if not self.store.answers_at_once:
            return False
        if isinstance(params, LeaseAcquire):
            return params.wait_ms == 0
        return isinstance(params, _WITHOUT_WAIT)

    async def begin(self, session: Session, params: Params) -> Result | Waiting:
        """Carries out one request, as `handle`, or says who will be told of its end.

        Whoever waits for a cached value needs no task meanwhile.
        """
        if isinstance(params, CacheGet) and session.attached:
            return await self.caches.begin(session, params)
        return await self.handle(session, params)

    async def handle(self, session: Session, params: Params) -> Result:
        """Carries out one request.

        Raises:
            RpcError: what the contract says for the method.

        Cancellation:
            A wait that is cancelled while the session is attached leaves nothing behind.
        """
        if not session.attached:
            raise Cancelled("its connection is gone")
        match params:
            case LeaseAcquire():
                return await self.leases.acquire(session, params)
            case LeaseRelease():
                return await self.leases.release(params)
            case CacheGet():
                return await self.caches.get(session, params)
            case SessionHeartbeat():
                return await self.leases.heartbeat(session)
            case LeaseRenew():
                return await self.leases.renew(params)
            case LeaseResume():
                return await self.leases.resume(session, params)
            case LeaseAcquireAll():
                return await acquire_all(self.leases, session, params)
            case LeaseInspect(name):
                return await self._inspect(name)
            case LeaseList(prefix, limit, cursor):
                return await self.store.list_leases(prefix, limit, cursor)
            case LeaseBreak(name, reason):
                return await self._break(session, name, reason)
            case LeaseWatch(name):
                return await self._watch(session, name)
            case LeaseUnwatch(name):
                self._stop_watching(session, name)
                return Done()
            case CacheFill():
                return await self.caches.fill(session, params)
            case CacheFail():
                return await self.caches.fail(session, params)
            case CacheSet() | CacheInvalidate():
                return await self._change(params)
            case CacheBeginWrite() | CacheCommitWrite() | CacheAbortWrite():
                return await self._write_through(params)
            case SessionOpen() | RpcCancel():
                raise AssertionError("these belong to the connection")
            case _:
                return await self._write_behind(session, params)

    async def _change(self, params: CacheSet | CacheInvalidate) -> Done:
        if isinstance(params, CacheSet):
            return await self.changes.set(params)
        return await self.changes.invalidate(params)

    async def _write_through(
        self, params: CacheBeginWrite | CacheCommitWrite | CacheAbortWrite
    ) -> CacheWriting | CacheWritten:
        match params:
            case CacheBeginWrite():
                return await self.changes.begin_write(params)
            case CacheCommitWrite():
                return await self.changes.commit_write(params)
            case CacheAbortWrite():
                return await self.changes.abort_write(params)
            case _:
                assert_never(params)

    async def _write_behind(
        self,
        session: Session,
        params: WritesPut | WritesClaim | WritesAck | WritesRetry | WritesDead | WritesRevive,
    ) -> Result:
        match params:
            case WritesPut():
                return await self.writes.put(params)
            case WritesClaim():
                return await self.writes.claim(session, params)
            case WritesAck():
                return await self.writes.ack(session, params)
            case WritesRetry():
                return await self.writes.retry(session, params)
            case WritesDead():
                return await self.writes.dead(params)
            case WritesRevive():
                return await self.writes.revive(params)
            case _:
                assert_never(params)

    async def _inspect(self, name: str) -> LeaseState:
        return await self.store.inspect(
            name, holders_max=self.limits.holders_shown, waiting_max=self.limits.waiters_shown
        )

    async def _break(self, session: Session, name: str, reason: str | None) -> LeaseBroken:
        broken = await self.store.break_(name, reason)
        _log.info("lease broken", lock=name, broken=broken, reason=reason, by=session.client)
        return LeaseBroken(broken)

    async def _watch(self, session: Session, name: str) -> LeaseState:
        is_new = name not in session.watching
        if is_new:
            if len(session.watching) >= self.limits.watches_per_session:
                raise LimitReached("watches_per_session", self.limits.watches_per_session)
            session.watching.add(name)
            self._watchers.setdefault(name, set()).add(session)
        watched = False
        try:
            await self.store.watch(name)
            state = await self._inspect(name)
            watched = True
        finally:
            if is_new and not watched:
                self._stop_watching(session, name)
            if name not in self._watchers:  # it was given up while the store was asked
                self.store.unwatch(name)
        return state

    # --- Events -------------------------------------------------------------------------------

    def _on_event(self, event: Event) -> None:
        match event:
            case KeyNews(key):
                self.caches.news(key)
            case QueueNews(queue):
                self.writes.news(queue)
            case _:
                self._on_lease_event(event)

    def _on_lease_event(self, event: StoreEvent) -> None:
        match event.what:
            case WaiterGranted():
                self.leases.granted(event.name, event.what)
            case HolderLost():
                self.leases.lost(event.name, event.what)
            case Contended():
                self.leases.contended(event.name, event.what)
            case Moved():
                self.leases.moved(event.name, event.what)
            case Changed(state):
                note = LeaseChanged(state.name, state.holders, state.waiting, state.waiting_total)
                for session in self._watchers.get(event.name, ()):
                    session.notify(note)
            case _:
                assert_never(event.what)

    def _stop_watching(self, session: Session, name: str) -> None:
        if name not in session.watching:
            return
        session.watching.remove(name)
        watchers = self._watchers[name]
        watchers.remove(session)
        if not watchers:
            del self._watchers[name]
            self.store.unwatch(name)

    def _end_grace(self, session: Session) -> None:
        del self._detached[session]
        self._graces.discard(session)
        session.step(SessionEvent.GRACE_OVER)
        self.leases.end(session.tenures.values())


_WITHOUT_WAIT: Final = (LeaseRelease, LeaseRenew, LeaseInspect, SessionHeartbeat)


def _tell_nobody(_: Notification) -> None:
    """Stands in for a connection that is gone."""


def _ping_nobody() -> None:
    """Stands in for a connection that is gone."""
