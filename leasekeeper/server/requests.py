"""The requests of one connection: carried out side by side, and begun in order.

A request that waits has a task. Whoever waits for a cached value has none: the service tells of the
answer. Requests start in the order in which they came, and none waits for another.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, TypeAlias

import structlog
import trio
from attrs import define, field

from leasekeeper.errors import Cancelled, InternalError, RpcError
from leasekeeper.messages import CancelAnswer, RequestId, Result, RpcCancel
from leasekeeper.service.keeper import Keeper
from leasekeeper.service.session import Session
from leasekeeper.service.waiting import Waiting
from leasekeeper.wire.codec import Request

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

IN_A_ROW_MAX: Final = 16
"""After so many requests of one connection, the others get their turn."""

Answer: TypeAlias = Result | RpcError
Sink: TypeAlias = Callable[[RequestId, Answer], None]
"""Where an answer goes. It neither blocks nor raises."""


@define(eq=False)
class _Outstanding:
    """A request that has not been answered yet."""

    request: Request
    sink: Sink
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    finished: trio.Event = field(factory=trio.Event)
    waiting: Waiting | None = None
    """What it is to the service while no task waits with it."""
    was_cancelled: bool = False


@define(eq=False)
class Requests:
    """See the module. `nursery` has the tasks; what is begun ends with it and `withdraw_all`."""

    keeper: Keeper
    session: Session
    nursery: trio.Nursery
    reading: trio.CancelScope
    """Once it is cancelled, the peer is being sent away, and nothing more is begun."""
    unanswered: int = field(default=0, init=False)
    _backlog: deque[_Outstanding] = field(factory=deque, init=False)
    _outstanding: dict[RequestId, _Outstanding] = field(factory=dict, init=False)
    _waiting: dict[_Outstanding, None] = field(factory=dict, init=False)
    """Those with which no task waits."""
    _answering: bool = field(default=False, init=False)
    """Whether a task is about to take the head of the backlog."""

    def __contains__(self, request_id: RequestId) -> bool:
        """Whether a request with this id is outstanding."""
        return request_id in self._outstanding

    @property
    def is_behind(self) -> bool:
        """Whether a request is yet to be begun, which the next may not overtake."""
        return bool(self._backlog) or self._answering

    def add(self, request: Request, sink: Sink) -> None:
        """Carries it out once those before it are begun."""
        outstanding = _Outstanding(request, sink)
        if request.id is not None:
            self._outstanding[request.id] = outstanding
        self.unanswered += 1
        self._backlog.append(outstanding)
        self._start_answering()

    async def carry_out(self, request: Request) -> Answer | Waiting:
        """The answer, or who will be told of it.

        Cancellation:
            As the service has it for the method.
        """
        params = request.params
        assert not isinstance(params, RpcError)
        try:
            if isinstance(params, RpcCancel):
                return await self._cancel(params.id)
            return await self.keeper.begin(self.session, params)
        except RpcError as error:
            return error
        except Exception:
            _log.exception("request failed", request=type(params).__name__)
            return InternalError()

    def withdraw_all(self) -> None:
        """The connection is gone, and the session knows: nobody is to be told any more."""
        for outstanding in self._waiting:
            assert outstanding.waiting is not None
            outstanding.waiting.withdraw()

    # --- One after the other ------------------------------------------------------------------

    def _start_answering(self) -> None:
        if not self._answering:
            self._answering = True
            self.nursery.start_soon(self._answer_backlog)

    async def _answer_backlog(self) -> None:
        """Answers requests from the head of the backlog, one after the other.

        A successor stands by, and goes on with the next request as soon as this one has to wait.
        So requests reach the store in the order in which they came, and as long as none waits
        they all need but two tasks.
        """
        self._answering = False
        in_a_row = 0
        while self._backlog and self.session.attached and not self.reading.cancel_called:
            outstanding = self._backlog.popleft()
            if self._backlog:
                self._start_answering()
            try:
                await self._answer(outstanding)
            finally:
                if outstanding.waiting is None:
                    self._end(outstanding)
            in_a_row += 1
            if in_a_row % IN_A_ROW_MAX == 0:
                await trio.lowlevel.checkpoint()

    async def _answer(self, outstanding: _Outstanding) -> None:
        answer: Answer | Waiting = Cancelled()
        with outstanding.scope:
            answer = await self.carry_out(outstanding.request)
        if not isinstance(answer, Waiting):
            outstanding.was_cancelled = outstanding.scope.cancelled_caught
            outstanding.sink(outstanding.request.id, answer)
            return
        outstanding.waiting = answer
        self._waiting[outstanding] = None
        answer.when_answered(partial(self._answered, outstanding))
        if outstanding.scope.cancel_called:
            self._withdraw(outstanding)
        elif not self.session.attached:
            answer.withdraw()

    def _answered(self, outstanding: _Outstanding, answer: Answer) -> None:
        """One with which no task waited."""
        del self._waiting[outstanding]
        outstanding.sink(outstanding.request.id, answer)
        self._end(outstanding)

    def _end(self, outstanding: _Outstanding) -> None:
        outstanding.finished.set()
        self.unanswered -= 1
        if self._outstanding.get(outstanding.request.id) is outstanding:
            del self._outstanding[outstanding.request.id]

    # --- Cancelled ----------------------------------------------------------------------------

    async def _cancel(self, request_id: RequestId) -> CancelAnswer:
        outstanding = self._outstanding.get(request_id)
        if outstanding is None or isinstance(outstanding.request.params, RpcCancel):
            return CancelAnswer(cancelled=False)
        outstanding.scope.cancel()
        if outstanding in self._waiting:
            self._withdraw(outstanding)
        await outstanding.finished.wait()
        return CancelAnswer(cancelled=outstanding.was_cancelled)

    def _withdraw(self, outstanding: _Outstanding) -> None:
        """It was cancelled while no task waited with it."""
        assert outstanding.waiting is not None
        outstanding.waiting.withdraw()
        outstanding.was_cancelled = True
        self._answered(outstanding, Cancelled())
