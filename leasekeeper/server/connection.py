"""One connection: frames in, requests carried out side by side, answers and news out.

    run
    ├── _write                what could not be written at once, with a deadline
    └── requests
        ├── _keep_alive       pings, and what a pong means
        ├── _expect_token     where one is wanted
        └── ...               a task for each request that waits, and one for the others

What the store answers without waiting is answered by who reads, and written by it; all else is
left to `Requests`. When reading ends, for whatever reason, the session is detached first, so that
the requests cancelled after it know that their client is gone.
"""

import hmac
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog
import trio
from attrs import define, field

from leasekeeper.errors import (
    CLEAN_CLOSES,
    CloseCode,
    InternalError,
    InvalidRequest,
    LimitReached,
    RpcError,
    Unauthenticated,
)
from leasekeeper.messages import (
    TTL_MAX_MS,
    TTL_MIN_MS,
    CacheHit,
    LeaseChanged,
    Notification,
    RequestId,
    Result,
    SessionOpen,
    SessionOpened,
)
from leasekeeper.server.config import ServerConfig
from leasekeeper.server.outbox import Outbox
from leasekeeper.server.requests import IN_A_ROW_MAX, Answer, Requests, Sink
from leasekeeper.server.transport import Closed, WebSocket
from leasekeeper.service.keeper import Keeper
from leasekeeper.service.session import Session
from leasekeeper.service.waiting import Waiting
from leasekeeper.version import VERSION
from leasekeeper.wire.codec import (
    BATCH_REQUESTS_MAX,
    Frame,
    Request,
    decode_frame,
    encode_error,
    encode_notification,
    encode_result,
    join,
)

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

PROTOCOL_VERSION: Final = 1
_FRAME_BYTES: Final = 256 * 1024
"""Messages are joined into one frame up to about this size."""


@define(eq=False)
class _BatchAnswer:
    """Gathers the answers of a batch, which go as one array when all are there."""

    missing: int
    answers: list[bytes] = field(factory=list)

    def put(self, answer: bytes) -> bool:
        """Whether this was the last."""
        self.answers.append(answer)
        self.missing -= 1
        return not self.missing


@define(eq=False)
class Connection:
    """One peer. `run` returns when it is gone; `close_soon` sends it away."""

    socket: WebSocket
    keeper: Keeper
    config: ServerConfig
    authenticated: bool
    session: Session = field(init=False)
    _outbox: Outbox = field(init=False)
    _batch: bool = field(default=False, init=False)
    _opened: bool = field(default=False, init=False)
    _close_code: int = field(default=CloseCode.NORMAL, init=False)
    _close_reason: str = field(default="", init=False)
    _reading: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    _ping_wanted: trio.Event = field(factory=trio.Event, init=False)
    _requests: Requests = field(init=False)
    _kept_bytes: int = field(default=0, init=False)
    """Answers that wait for the others of their batch."""
    _answered: set[RequestId] = field(factory=set, init=False)
    """The ids of this frame's requests that were answered at once."""
    _in_a_row: int = field(default=0, init=False)
    """Counts requests that were answered at once."""

    def __attrs_post_init__(self) -> None:
        self._outbox = Outbox(self.config.wire.outbox_bytes, self.config.wire.outbox_values_bytes)
        self.socket.on_owed = self._outbox.nudge

    async def run(self) -> None:
        """Serves the peer until it is gone or sent away.

        Cancellation:
            The session is detached as after a drop; the stream is left to the caller.
        """
        self.session = self.keeper.attach(self._notify, self._want_ping)
        clean = False
        try:
            async with trio.open_nursery() as writing:
                writing.start_soon(self._write)
                async with trio.open_nursery() as requests:
                    self._requests = Requests(self.keeper, self.session, requests, self._reading)
                    try:
                        clean = await self._read(requests)
                    finally:
                        # No ping is answered from here on: to a holder, a pong says that its
                        # leases are not yet in their grace.
                        self.socket.stop_reading()
                        self.keeper.detach(self.session, clean=clean)
                        self._requests.withdraw_all()
                        requests.cancel_scope.cancel()
                writing.cancel_scope.deadline = (
                    trio.current_time() + self.config.wire.close_ms / 1000
                )
                self._outbox.finish(drop=clean or self._close_code is CloseCode.SLOW_CONSUMER)
        finally:
            self._outbox.finish(drop=True)
        await self.socket.close(self._close_code, self._close_reason)

    def close_soon(self, code: int, reason: str) -> None:
        """Sends the peer away; the first reason counts. Never blocks."""
        if not self._reading.cancel_called:
            self._close_code, self._close_reason = code, reason
            self._reading.cancel()

    # --- What the service asks of a connection -------------------------------------------------

    def _notify(self, notification: Notification) -> None:
        changed = notification.name if isinstance(notification, LeaseChanged) else None
        self._put(encode_notification(notification), replaces=changed)

    def _want_ping(self) -> None:
        self._ping_wanted.set()

    # --- Out ----------------------------------------------------------------------------------

    def _put(self, message: bytes, replaces: str | None = None) -> None:
        if not self._outbox.put(message, replaces):
            self._refuse_more()

    def _refuse_more(self) -> None:
        self._outbox.finish(drop=True)
        self.close_soon(CloseCode.SLOW_CONSUMER, "too much waits to be read")

    def _answer(self, request_id: RequestId, answer: Answer) -> None:
        """A message of its own, written at once if no other is to come and share its frame."""
        if self._requests.unanswered != 1 or self._outbox.is_held:
            self._put_answer(request_id, answer)
            return
        self._outbox.hold()
        self._put_answer(request_id, answer)
        self._outbox.let_go(self._write_now)

    def _put_answer(self, request_id: RequestId, answer: Answer) -> None:
        """The value of a cached key is written when it can be read."""
        if not isinstance(answer, CacheHit):
            self._put(_encoded(request_id, answer))
            return
        encode = partial(_encoded, request_id, answer)
        own_bytes = len(request_id) if isinstance(request_id, str) else 0
        if not self._outbox.put_later(encode, answer.value.text, own_bytes):
            self._refuse_more()

    def _answer_in_batch(
        self, batch: "_BatchAnswer", request_id: RequestId, answer: Answer
    ) -> None:
        """Keeps an answer until its batch is complete."""
        encoded = _encoded(request_id, answer)
        self._kept_bytes += len(encoded)
        if batch.put(encoded):
            self._kept_bytes -= sum(map(len, batch.answers))
            self._put(join(batch.answers))
        elif self._kept_bytes > self.config.wire.outbox_bytes:
            self._refuse_more()

    async def _write(self) -> None:
        try:
            await self.socket.send_owed()
            while (messages := await self._outbox.take()) is not None:
                await self.socket.send_owed()
                frames = _frames(messages, joined=self._batch)
                if not self.socket.send_now(frames):
                    for frame in frames:
                        await self.socket.send(frame)
                await self.socket.send_owed()
        except Closed as closed:
            self._outbox.finish(drop=True)
            self.close_soon(closed.code, "cannot be written to")

    def _write_now(self, messages: list[bytes]) -> bool:
        return self.socket.send_now(_frames(messages, joined=self._batch))

    async def _keep_alive(self) -> None:
        """Pings when asked to, or when long enough nothing was; a pong is a sign of life."""
        try:
            while True:
                with trio.move_on_after(self.config.wire.ping_ms / 1000):
                    await self._ping_wanted.wait()
                self._ping_wanted = trio.Event()
                if not await self.socket.ping():
                    self.close_soon(CloseCode.NO_SIGN_OF_LIFE, "no pong")
                    return
                self.keeper.alive(self.session)
        except Closed:
            self.close_soon(CloseCode.ABNORMAL, "")

    # --- In -----------------------------------------------------------------------------------

    async def _read(self, requests: trio.Nursery) -> bool:
        """Takes requests until the connection ends; says whether the peer ended it cleanly."""
        requests.start_soon(self._keep_alive)
        if not self.authenticated:
            requests.start_soon(self._expect_token)
        try:
            with self._reading:
                while True:
                    text = await self.socket.receive()
                    self._outbox.hold()
                    try:
                        self.keeper.alive(self.session)
                        await self._take(decode_frame(text))
                    finally:
                        if not self.socket.has_message:
                            self._outbox.let_go(self._write_now)
        except Closed as closed:
            if not self._reading.cancel_called:
                # The peer's own code, or what it is told of a frame that must not be.
                self._close_code, self._close_reason = closed.code, closed.reason
                return closed.code in CLEAN_CLOSES
        return False

    async def _expect_token(self) -> None:
        await trio.sleep(self.config.wire.handshake_ms / 1000)
        if not self.authenticated:
            self.close_soon(CloseCode.UNAUTHENTICATED, "no token came in time")

    async def _take(self, frame: Frame) -> None:
        sink: Sink = self._answer
        if frame.batch and not self._batch:
            answered = sum(request.answered for request in frame.requests)
            sink = partial(self._answer_in_batch, _BatchAnswer(answered))
        self._answered.clear()
        for request in frame.requests:
            await self._begin(request, sink if request.answered else _drop)

    async def _begin(self, request: Request, sink: Sink) -> None:
        """Answers at once what needs no waiting, and begins everything else."""
        params = request.params
        if self._reading.cancel_called and self.authenticated:
            return  # it is being sent away
        if isinstance(params, SessionOpen) or not self.authenticated:
            # In order and at once, so that what follows in the same frame finds the session open.
            self._answer_now(request, sink, lambda: self._open(params))
            return
        most = self.config.wire.requests_outstanding
        if isinstance(params, RpcError):
            sink(request.id, params)
        elif request.id is not None and (
            request.id in self._requests or request.id in self._answered
        ):
            sink(request.id, InvalidRequest("a request with this id is outstanding"))
        elif self._requests.unanswered >= most:
            sink(request.id, LimitReached("requests_outstanding", most))
        elif not self._requests.is_behind and self.keeper.answers_at_once(params):
            self._answered.add(request.id)
            answer = await self._requests.carry_out(request)
            assert not isinstance(answer, Waiting)
            sink(request.id, answer)
            await self._pause_now_and_then()
        else:
            self._requests.add(request, sink)

    async def _pause_now_and_then(self) -> None:
        """For others, and for who writes: a peer that reads what it asked for is not slow."""
        self._in_a_row += 1
        if self._outbox.is_half_full:
            self._outbox.let_go(self._write_now)
            await trio.lowlevel.checkpoint()
            self._outbox.hold()
        elif self._in_a_row % IN_A_ROW_MAX == 0:
            await trio.lowlevel.checkpoint()

    def _answer_now(self, request: Request, sink: Sink, answer: Callable[[], Result]) -> None:
        try:
            sink(request.id, answer())
        except RpcError as error:
            sink(request.id, error)

    def _open(self, params: object) -> SessionOpened:
        if not self.authenticated:
            token = params.token if isinstance(params, SessionOpen) else None
            if self._reading.cancel_called or not token_fits(self.config, token):
                self.close_soon(CloseCode.UNAUTHENTICATED, "a token is wanted")
                raise Unauthenticated
            self.authenticated = True
        if isinstance(params, RpcError):
            raise params
        assert isinstance(params, SessionOpen)
        if self._opened:
            raise InvalidRequest("the session is open already")
        self._opened, self._batch = True, params.batch
        self.session.client, self.session.liveness = params.client, params.liveness
        limits, wire = self.keeper.limits, self.config.wire
        return SessionOpened(
            session=self.session.id,
            server=self.keeper.server,
            version=VERSION,
            protocol=PROTOCOL_VERSION,
            heartbeat_ms=limits.heartbeat_ms,
            limits={
                "message_bytes": wire.message_bytes,
                "fragments": wire.fragments,
                "batch_requests": BATCH_REQUESTS_MAX,
                "requests_outstanding": wire.requests_outstanding,
                "outbox_bytes": wire.outbox_bytes,
                "leases_per_session": limits.leases_per_session,
                "waiters_per_session": limits.waiters_per_session,
                "waiters_per_name": limits.waiters_per_name,
                "watches_per_session": limits.watches_per_session,
                "waiters_per_key": limits.waiters_per_key,
                "fills_per_session": limits.fills_per_session,
                "value_bytes": limits.value_bytes,
                "waiters_per_queue": limits.waiters_per_queue,
                "claims_per_session": limits.claims_per_session,
                "writes_per_queue": limits.writes_per_queue,
                "writes_bytes_per_queue": limits.writes_bytes_per_queue,
                "writes_attempts_max": limits.writes_attempts_max,
                "ttl_min_ms": TTL_MIN_MS,
                "ttl_max_ms": TTL_MAX_MS,
                "grace_ms": limits.grace_ms,
            },
        )


def token_fits(config: ServerConfig, token: str | None) -> bool:
    """Whether this token opens the server; compared in constant time."""
    if config.token is None:
        return True
    return token is not None and hmac.compare_digest(config.token.encode(), token.encode())


def _encoded(request_id: RequestId, answer: Answer) -> bytes:
    try:
        if isinstance(answer, RpcError):
            return encode_error(request_id, answer)
        return encode_result(request_id, answer)
    except Exception:  # whoever tells of it may be anybody's task
        _log.exception("answer cannot be encoded", answer=type(answer).__name__)
        return encode_error(request_id, InternalError())


def _frames(messages: list[bytes], *, joined: bool) -> list[bytes]:
    """The text frames that carry these messages: one each, or arrays of a bounded size."""
    if not joined or len(messages) <= 1:
        return messages
    frames: list[list[bytes]] = [[]]
    size = 0
    for message in messages:
        if size > _FRAME_BYTES:
            frames.append([])
            size = 0
        frames[-1].append(message)
        size += len(message)
    return [join(frame) for frame in frames]


def _drop(_: RequestId, __: Answer) -> None:
    """Where answers to notifications go."""
