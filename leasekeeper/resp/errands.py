"""Commands on their way to an answer, through whatever Redis has against them now.

What Redis can do in a moment, or elsewhere, is tried again within `patience_ms`: only commands of
which it is certain that they were not executed. What was written and not answered is never
repeated here.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import structlog
import trio
from attrs import define, field
from redis.backoff import FullJitterBackoff
from redis.exceptions import ResponseError

from leasekeeper.errors import Outcome
from leasekeeper.resp.cluster import read_redirection
from leasekeeper.resp.connection import Connection, pack
from leasekeeper.resp.errors import NotWritten, Unanswered
from leasekeeper.resp.nodes import Fleet, Nodes
from leasekeeper.resp.pool import Pool
from leasekeeper.resp.replies import Answer, Reply, Verdict, code_of, verdict_on
from leasekeeper.resp.scripts import Argument, Script
from leasekeeper.resp.settings import Address, Settings

_TOGETHER_MAX: Final = 1000
"""How many commands are submitted at once: what comes after them waits for all of them."""

_REDIRECTIONS_MAX: Final = 3
"""So many are followed at once. More are a quarrel between nodes, and need time."""

_SAY_AGAIN_S: Final = 60.0
_BACKOFF: Final = FullJitterBackoff(cap=0.2, base=0.01)
_FAILURES_MAX: Final = 5
_ASKING: Final = pack(("ASKING",))

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)


@define(eq=False)
class Errand:
    """One command, or two that belong together, and what became of it."""

    packed: bytes = field(repr=False)
    key: str | None = None
    at: Address | None = None
    """The only node that will do."""
    count: int = 1
    extra_ms: int = 0
    call: tuple[Script, tuple[Argument, ...], bytes] | None = field(default=None, repr=False)
    """Of a script: itself, the rest of the command, and what is packed behind it."""
    asked_at: float = field(factory=trio.current_time, init=False)
    result: list[Reply] | Unanswered | ResponseError | None = field(default=None, init=False)
    asking: Pool | None = field(default=None, init=False)
    """Where the next attempt goes, as an ASK wants it."""
    redirections: int = field(default=0, init=False)
    problem: str = field(default="", init=False)
    """Why it has no result yet, if that takes time."""

    def send_source(self) -> bool:
        """Brings the source of the script along, for a Redis that does not know it; once."""
        if self.call is None:
            return False
        (script, rest, then), self.call = self.call, None
        self.packed = pack(("EVAL", script.source, *rest)) + then
        return True


@define(eq=False)
class Courier:
    """Takes errands to the nodes they are for."""

    settings: Settings
    nodes: Nodes
    fleet: Fleet
    _said_at: dict[str, float] = field(factory=dict, init=False)

    async def deliver(self, errand: Errand) -> None:
        """Gives the errand its result."""
        connection = self._connection_for(errand)
        if connection is not None:
            await self._submit(connection, (errand,))
        if errand.result is None:
            await self._deliver((errand,))

    async def deliver_all(self, errands: Iterable[Errand]) -> None:
        """Gives each errand its result. What one node fails to do holds up no other node's."""
        by_node: dict[Pool | None, list[Errand]] = {}
        for errand in errands:
            by_node.setdefault(self._pool_for(errand), []).append(errand)
        async with trio.open_nursery() as nursery:
            for together in by_node.values():
                nursery.start_soon(self._deliver, together)

    async def _deliver(self, errands: Sequence[Errand]) -> None:
        deadline = errands[0].asked_at + self.settings.patience_ms / 1000
        failures = 0
        due = [errand for errand in errands if errand.result is None]
        while due and trio.current_time() < deadline:
            news = self.fleet.events.news.next()
            had_connection = await self._attempt(due)
            due = [errand for errand in due if errand.result is None]
            failures = min(_FAILURES_MAX, failures + 1)
            with trio.move_on_at(deadline):
                if not had_connection:
                    await news.wait()
                elif any(errand.problem for errand in due):
                    await trio.sleep(_BACKOFF.compute(failures))
        for errand in due:
            pool = self._pool_for(errand)
            problem = pool.problem if pool is not None and not pool.is_up else errand.problem
            errand.result = Unanswered(Outcome.NONE, problem or "out of time")

    async def _attempt(self, errands: Sequence[Errand]) -> bool:
        """Tries each once. False if there was no connection for any."""
        loads: dict[Connection, list[Errand]] = {}
        for errand in errands:
            connection = self._connection_for(errand)
            if connection is not None:
                loads.setdefault(connection, []).append(errand)
        for connection, load in loads.items():
            for start in range(0, len(load), _TOGETHER_MAX):
                await self._submit(connection, load[start : start + _TOGETHER_MAX])
        return bool(loads) or any(errand.result for errand in errands)

    def _connection_for(self, errand: Errand) -> Connection | None:
        pool = errand.asking or self._pool_for(errand)
        connection = None
        if pool is not None:
            connection = pool.pick_idle() if errand.extra_ms else pool.pick()
        if connection is not None:
            errand.problem = ""
        elif pool is not None:
            errand.problem = pool.problem
        elif errand.at is not None:
            errand.result = Unanswered(Outcome.NONE, f"{errand.at} is no master in use")
        else:
            errand.problem = "no master is known"
        return connection

    def _pool_for(self, errand: Errand) -> Pool | None:
        if errand.at is not None:
            return self.fleet.get(errand.at)
        return self.nodes.pool_for(errand.key)

    async def _submit(self, connection: Connection, errands: Sequence[Errand]) -> None:
        """Has the commands of all of them written at once."""
        if len(errands) == 1 and errands[0].asking is None:
            packed, count, extra_ms = errands[0].packed, errands[0].count, errands[0].extra_ms
        else:
            packed = b"".join(
                [_ASKING + each.packed if each.asking else each.packed for each in errands]
            )
            count = sum(each.count + (each.asking is not None) for each in errands)
            extra_ms = sum(each.extra_ms for each in errands)
        try:
            answers = await connection.ask(packed, count, extra_ms)
        except NotWritten as lost:
            for errand in errands:
                errand.problem = lost.reason
        except Unanswered as problem:
            for errand in errands:
                errand.result = Unanswered(problem.outcome, problem.reason)
        else:
            at = 0
            for errand in errands:
                at += errand.asking is not None  # for the OK of ASKING
                errand.asking = None
                self._judge(errand, answers[at : at + errand.count], connection.address)
                at += errand.count

    def _judge(self, errand: Errand, answers: list[Answer], address: Address) -> None:
        """Takes the answers, or sees what the first of them wants."""
        error = answers[0]
        if not isinstance(error, ResponseError):
            errand.result = [each for each in answers if not isinstance(each, ResponseError)]
            return
        verdict = verdict_on(error)
        if verdict is Verdict.FORBIDDEN:
            self._say_sometimes("redis refused this user", code_of(error), address)
        if verdict in (Verdict.REFUSED, Verdict.FORBIDDEN):
            errand.result = Unanswered(Outcome.NONE, f"{address} refused: {code_of(error)}")
        elif verdict is Verdict.SEND_SOURCE and errand.send_source():
            pass  # and at once
        elif errand.at is None and (redirection := read_redirection(str(error), address)):
            self._redirect(errand, verdict, *redirection)
        elif verdict in (Verdict.LATER, Verdict.REDISCOVER):
            errand.problem = f"{address} cannot now: {code_of(error)}"
            pool = self.fleet.get(address)
            if verdict is Verdict.REDISCOVER and pool is not None:
                pool.retire_all(errand.problem)
            self.nodes.suspect()
        else:
            errand.result = error

    def _redirect(self, errand: Errand, verdict: Verdict, slot: int, target: Address) -> None:
        errand.redirections += 1
        if errand.redirections > _REDIRECTIONS_MAX:
            errand.problem = f"{target} and others send each other this command"
        if verdict is Verdict.ASK:
            errand.asking = self.nodes.asked_to(target)
        else:
            self.nodes.moved(slot, target)

    def _say_sometimes(self, event: str, code: str, address: Address) -> None:
        """It may be so for every command, and the log is for people."""
        now = trio.current_time()
        if now - self._said_at.get(code, -_SAY_AGAIN_S) >= _SAY_AGAIN_S:
            self._said_at[code] = now
            _log.warning(event, code=code, address=str(address))
