"""Calls of the scripts: their common arguments, their events, and what failed calls mean."""

from collections.abc import Callable, Sequence
from typing import Final

import structlog
import trio
from attrs import define, field, frozen
from redis.exceptions import ResponseError

from leasekeeper.errors import Outcome, Unavailable
from leasekeeper.resp.client import Client
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.replies import Reply
from leasekeeper.resp.scripts import Argument, Call, Script
from leasekeeper.resp.settings import Address
from leasekeeper.store.redis.entries import listed, word
from leasekeeper.store.redis.keys import Layout

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

_RETRY_MS: Final = 500


@frozen
class NameCall:
    """A script to run on a name, with its own arguments."""

    name: str
    script: Script
    args: Sequence[Argument] = field(repr=False)


@define(eq=False)
class Caller:
    """Runs scripts on names.

    `paused_ms` says for how long a name may not be granted. `on_event` hears of each event before
    the reply is returned; `on_unheard` of each name with a call whose reply, and the events with
    it, nobody may have heard.
    """

    client: Client
    layout: Layout
    server: str
    memory_ms: int
    paused_ms: Callable[[str], int]
    on_event: Callable[[bytes], None]
    on_unheard: Callable[[str], None]

    async def call(self, name: str, script: Script, *args: Argument) -> list[Reply]:
        """One script on one name.

        Raises:
            Unavailable: it has no answer.
        """
        call = self._call(NameCall(name, script, args))
        try:
            with self._listening(name):
                return self._taken(await self.client.eval(call.script, call.keys, call.args))
        except (Unanswered, ResponseError) as problem:
            raise unavailable(problem, name, script) from problem

    async def call_and_wait(
        self, name: str, script: Script, *args: Argument, replicas: int, timeout_ms: int
    ) -> tuple[list[Reply], int]:
        """The same, and how many replicas had it in time.

        Raises:
            Unavailable: it has no answer.
        """
        call = self._call(NameCall(name, script, args))
        try:
            with self._listening(name):
                reply, have_it = await self.client.eval_and_wait(
                    call.script, call.keys, call.args, replicas=replicas, timeout_ms=timeout_ms
                )
        except (Unanswered, ResponseError) as problem:
            raise unavailable(problem, name, script) from problem
        return self._taken(reply), have_it

    async def call_many(self, calls: Sequence[NameCall]) -> list[list[Reply] | Unavailable]:
        """Many scripts in one round trip to each node; one answer each, in order."""
        with self._listening(*{each.name for each in calls}):
            replies = await self.client.eval_many([self._call(each) for each in calls])
        return [
            unavailable(reply, call.name, call.script)
            if isinstance(reply, Unanswered | ResponseError)
            else self._taken(reply)
            for call, reply in zip(calls, replies, strict=True)
        ]

    async def call_many_apart(
        self, calls: Sequence[NameCall], moment_s: Callable[[], float]
    ) -> list[list[Reply] | Unavailable]:
        """The same, but a node that is slow keeps nobody waiting for the answers of the others.

        Once one node has answered the others have a moment. After that, their calls go on and have
        an answer of unknown outcome here.
        """
        by_node: dict[Address | None, list[int]] = {}
        for at, call in enumerate(calls):
            by_node.setdefault(self.node_of(call.name), []).append(at)
        if len(by_node) <= 1:
            return await self.call_many(calls)
        answers: list[list[Reply] | Unavailable] = [Unavailable(Outcome.UNKNOWN, _RETRY_MS)]
        answers *= len(calls)

        async def ask(places: Sequence[int]) -> None:
            replies = await self.call_many([calls[at] for at in places])
            for at, reply in zip(places, replies, strict=True):
                answers[at] = reply
            scope.deadline = min(scope.deadline, trio.current_time() + moment_s())

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for places in by_node.values():
                    nursery.start_soon(ask, places)
        return answers

    def node_of(self, name: str) -> Address | None:
        """The node that has a name, as far as is known."""
        return self.client.address_of(self.layout.lock(name))

    def _listening(self, *names: str) -> "Listening":
        def missed() -> None:
            for name in names:
                self.on_unheard(name)

        return Listening(missed)

    def _call(self, call: NameCall) -> Call:
        may_grant = 0 if self.paused_ms(call.name) else 1
        common = (call.name, self.server, self.layout.channels, self.memory_ms, may_grant)
        return Call(call.script, self.layout.keys(call.name), (*common, *call.args))

    def _taken(self, reply: Reply) -> list[Reply]:
        *answer, events = listed(reply)
        for event in listed(events):
            self.on_event(word(event))
        return answer


class Listening:
    """Calls back if what is asked in it may have had an effect of which nobody hears.

    So it is for whoever is cancelled in it, and if a connection is lost.
    """

    __slots__ = ("_missed",)

    def __init__(self, missed: Callable[[], None]) -> None:
        self._missed = missed

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, problem: BaseException | None, __: object) -> None:
        if problem is None or isinstance(problem, ResponseError):
            return
        if not isinstance(problem, Unanswered) or problem.outcome is Outcome.UNKNOWN:
            self._missed()


def unavailable(
    problem: Unanswered | ResponseError, name: str | None = None, script: Script | None = None
) -> Unavailable:
    """What the service is told of a call without an answer."""
    if isinstance(problem, Unanswered):
        return Unavailable(problem.outcome, _RETRY_MS)
    called = script.name if script else None
    _log.error("a script failed inside Redis", lock=name, script=called, error=str(problem))
    return Unavailable(Outcome.UNKNOWN, _RETRY_MS)
