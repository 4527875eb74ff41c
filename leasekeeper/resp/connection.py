"""One pipelined connection: commands joined into few writes, replies matched in order.

Three tasks share it. The writer joins what was queued while its last write was under way; with
nothing under way, who asks writes the command himself, and no task has to be woken for it. The
reader gives each reply to the oldest command that has none. The watch ends the connection when
the oldest command has waited too long, and sends a ping when nothing else is heard.

A cancelled caller's command keeps its place in line, and its reply is dropped: replies never
cross. Only when none of its bytes were written does the command go with its caller. The writer is
a task of its own, so no cancelled caller cuts a command short.

What it does not do: choose between connections, repeat anything, or know what commands mean.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, cast

import hiredis
import trio
from attrs import define, field

from leasekeeper.errors import Outcome
from leasekeeper.resp.errors import NotWritten, Unanswered
from leasekeeper.resp.replies import Answer, Reply, error_reply
from leasekeeper.resp.scripts import Argument
from leasekeeper.resp.settings import Address, Settings
from leasekeeper.sockets import receive_some, send_now

UNANSWERED_MAX: Final = 10_000
"""How many commands may be under way on one connection."""

_RECEIVE_BYTES: Final = 256 * 1024
_NOTHING_YET: Final = object()

# Its stub says that a command has one word.
pack: Final[Callable[[tuple[Argument, ...]], bytes]] = hiredis.pack_command  # type: ignore[assignment]
"""The bytes of one command."""

_PING: Final = pack(("PING",))


@define(eq=False)
class _Request:
    """Commands that were submitted together, and who waits for their replies."""

    packed: bytes = field(repr=False)
    count: int
    due_at: float
    """When the last reply has to be there."""
    blocks: bool
    task: trio.lowlevel.Task | None = None
    answers: list[Answer] = field(factory=list)
    problem: Unanswered | None = None

    def wake(self) -> None:
        """Ends the caller's wait, unless it has given up."""
        if self.task is not None:
            task, self.task = self.task, None
            trio.lowlevel.reschedule(task)


@define(eq=False)
class Connection:
    """See the module. `serve` runs it; `ask` may be called before that.

    `on_push` gets what Redis sends without being asked, in order with the replies. `on_end` is
    called once, when it takes no more commands, before anybody who waits for a reply is told.
    """

    address: Address
    stream: trio.abc.Stream
    settings: Settings
    on_push: Callable[[Sequence[Reply]], None]
    on_end: Callable[["Connection"], None]
    load: int = field(default=0, init=False)
    """How many commands are under way."""
    blocked: int = field(default=0, init=False)
    """How many of the requests under way may keep the others waiting, as WAIT does."""
    opened_at: float = field(factory=trio.current_time, init=False)
    used_at: float = field(factory=trio.current_time, init=False)
    """When somebody last asked something."""
    reason: str | None = field(default=None, init=False)
    """Why it ended; None while it has not."""
    was_lost: bool = field(default=False, init=False)
    """Whether it ended through no will of ours."""
    was_silent: bool = field(default=False, init=False)
    """Whether it was lost because Redis did not answer."""
    _retiring: str | None = field(default=None, init=False)
    _queued: list[_Request] = field(factory=list, init=False)
    _written: deque[_Request] = field(factory=deque, init=False)
    _rest: bytes = field(default=b"", init=False, repr=False)
    """The end of a command that the kernel took in part."""
    _due_at: float = field(default=0.0, init=False)
    """When the reply to the newest request has to be there."""
    _asked_at: float = field(factory=trio.current_time, init=False)
    _heard_at: float = field(factory=trio.current_time, init=False)
    _idle_writer: trio.lowlevel.Task | None = field(default=None, init=False)
    _scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)

    async def ask(self, packed: bytes, count: int = 1, extra_ms: int = 0) -> list[Answer]:
        """Submits commands and waits for their replies.

        Args:
            packed: one command or several.
            count: how many.
            extra_ms: how long they may take by design, beside `read_ms`.

        Raises:
            NotWritten: the connection ended before any of it was written.
            Unanswered: there is no answer.

        Cancellation:
            What was written runs its course, and its replies are dropped.
        """
        await trio.lowlevel.checkpoint_if_cancelled()  # or it would be written all the same
        if self.reason is not None:
            raise NotWritten(self.reason)
        if self.load + count > UNANSWERED_MAX:
            raise Unanswered(Outcome.NONE, "too many commands under way")
        request = self._submit(packed, count, extra_ms)
        request.task = trio.lowlevel.current_task()
        self.used_at = self._asked_at

        def abort(_: object) -> trio.lowlevel.Abort:
            self._abandon(request)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if request.problem is not None:
            raise request.problem
        return request.answers

    def tell(self, packed: bytes) -> None:
        """Submits a command ahead of all that are submitted later. Nobody waits for its reply."""
        if self.reason is None:
            self._submit(packed, 1, 0)

    def _submit(self, packed: bytes, count: int, extra_ms: int) -> _Request:
        self._asked_at = trio.current_time()
        due_at = self._asked_at + self.settings.read_ms / 1000
        if self.load:
            # Behind a command that takes its time, the others may take as long.
            due_at = max(due_at, self._due_at)
        self._due_at = due_at + extra_ms / 1000
        request = _Request(packed, count, self._due_at, blocks=extra_ms > 0)
        if self.load or self._idle_writer is None or not self._write_now(request):
            self._queued.append(request)
            self._wake_writer()
        self.load += count
        self.blocked += request.blocks
        return request

    def _write_now(self, request: _Request) -> bool:
        """Writes it without waiting. With nothing under way, there is nothing to join it with.

        What the kernel does not take is left to the writer. False: none of it was written.
        """
        count = send_now(self.stream, request.packed)
        if not count:
            return False
        self._written.append(request)
        if count < len(request.packed):
            self._rest = request.packed[count:]
            self._wake_writer()
        return True

    def _wake_writer(self) -> None:
        if self._idle_writer is not None:
            writer, self._idle_writer = self._idle_writer, None
            trio.lowlevel.reschedule(writer)

    def _abandon(self, request: _Request) -> None:
        """Its caller waits no more."""
        request.task = None
        if request in self._queued:
            self._queued.remove(request)
            self._forget(request)

    def _forget(self, request: _Request) -> None:
        self.load -= request.count
        self.blocked -= request.blocks

    def end(self, reason: str) -> None:
        """Takes no more commands, and tells all who wait. Only the first reason counts."""
        if self.reason is not None:
            return
        self.reason = reason
        self._scope.cancel()
        self.on_end(self)
        for request in self._written:
            request.problem = Unanswered(Outcome.UNKNOWN, reason)
            request.wake()
        for request in self._queued:
            request.problem = NotWritten(reason)
            request.wake()
        self._written.clear()
        self._queued.clear()
        self.load = self.blocked = 0

    def _lose(self, reason: str) -> None:
        self.was_lost = self.reason is None
        self.end(reason)

    def retire(self, reason: str) -> None:
        """Ends as soon as nothing is under way. Nobody asks it any more."""
        self._retiring = reason
        if not self.load:
            self.end(reason)

    async def serve(self) -> None:
        """Reads and writes until the connection ends or this is cancelled; then it is closed.

        What `on_push` raises comes out.
        """
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._watch)
        finally:
            self.end(f"the connection to {self.address} was closed")
            await trio.aclose_forcefully(self.stream)

    async def _write(self) -> None:
        while True:
            if not self._queued and not self._rest:
                await self._wait_for_commands()
            batch, self._queued = self._queued, []
            data = b"".join([self._rest, *(each.packed for each in batch)])
            # From here on parts of them may reach Redis, whatever happens.
            self._written.extend(batch)
            self._rest = data[send_now(self.stream, data) :]
            if not self._rest:
                continue
            with trio.move_on_after(self.settings.write_ms / 1000) as scope:
                try:
                    rest, self._rest = self._rest, b""
                    await self.stream.send_all(rest)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._lose(f"the connection to {self.address} was lost")
            if scope.cancelled_caught:
                self._end_silent(self.settings.write_ms)

    async def _wait_for_commands(self) -> None:
        self._idle_writer = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._idle_writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _read(self) -> None:
        reader = hiredis.Reader(replyError=error_reply, notEnoughData=_NOTHING_YET)
        while True:
            try:
                data = await receive_some(self.stream, _RECEIVE_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                self._lose(f"the connection to {self.address} was lost")
                return
            self._heard_at = trio.current_time()
            try:
                reader.feed(bytes(data))
                while (reply := _next_reply(reader)) is not _NOTHING_YET:
                    self._hear(reply)
            except hiredis.ProtocolError:
                self._lose(f"{self.address} sent what is not RESP")
                return

    def _hear(self, reply: object) -> None:
        if type(reply) is hiredis.PushNotification:
            self.on_push(cast("Sequence[Reply]", reply))
            return
        if not self._written:
            raise hiredis.ProtocolError("a reply that nobody asked for")
        request = self._written[0]
        request.answers.append(cast("Answer", reply))
        if len(request.answers) == request.count:
            self._written.popleft()
            self._forget(request)
            request.wake()
            if self._retiring is not None and not self.load:
                self.end(self._retiring)

    async def _watch(self) -> None:
        read_s = self.settings.read_ms / 1000
        while True:
            oldest = self._written[0] if self._written else None
            if oldest is not None:
                due_at = oldest.due_at
            else:
                due_at = max(self._heard_at, self._asked_at) + read_s
            if trio.current_time() < due_at:
                await trio.sleep_until(due_at)
            elif oldest is None:
                self._submit(_PING, 1, 0)
            else:
                # If it was we who stood still, the reply is here, and only has to be read.
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                if self._written and self._written[0] is oldest:
                    self._end_silent(self.settings.read_ms)

    def _end_silent(self, within_ms: int) -> None:
        self.was_silent = True
        self._lose(f"{self.address} did not answer within {within_ms} ms")


def _next_reply(reader: hiredis.Reader) -> object:
    """
    Raises:
        hiredis.ProtocolError: it is none.
    """
    try:
        return reader.gets()
    except TypeError as error:  # a map whose key is a list, say
        raise hiredis.ProtocolError(str(error)) from None
