"""Calls of the cache scripts: aimed at one Redis process, and made again if another answers."""

from collections.abc import Callable, Collection, Sequence
from typing import Final

from attrs import define, field, frozen
from redis.exceptions import ResponseError

from leasekeeper.core.versions import TAG_RECORDS_MAX
from leasekeeper.errors import Outcome, Unavailable
from leasekeeper.resp.client import Client
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.replies import Reply
from leasekeeper.resp.scripts import Argument, Call, Script
from leasekeeper.resp.settings import Address
from leasekeeper.store.redis.calling import Listening, unavailable
from leasekeeper.store.redis.entries import listed, word
from leasekeeper.store.redis.keys import Layout
from leasekeeper.store.redis.runs import Aim, Runs
from leasekeeper.store.redis.scripts import CACHE_DISTRUST

_ATTEMPTS: Final = 4
"""A call is made again when a master was replaced; more often than that, something is wrong."""
_RETRY_MS: Final = 500
ANY_RUN: Final = "*"
"""Stands for whichever process answers."""


@frozen
class CacheCall:
    """A script to run in a partition, on some of its keys, with its own arguments."""

    partition: int
    script: Script
    keys: Sequence[str] = ()
    args: Sequence[Argument] = field(default=(), repr=False)
    queue: str = ""
    """That of writes whose keys the script has, too."""
    repeatable: bool = True
    """Whether it may be made again if it may have had its effect already."""


@define(eq=False)
class CacheCaller:
    """Runs scripts in partitions.

    `on_event` hears of each event before the reply is returned. Whoever is cancelled here hears of
    the keys of his call, for its events may be lost.
    """

    client: Client
    layout: Layout
    server: str
    memory_ms: int
    on_event: Callable[[bytes], None]
    runs: Runs = field(factory=Runs)
    records_max: int = TAG_RECORDS_MAX
    _doubted: set[int] = field(factory=set, init=False)
    """Partitions that another process kept last."""

    async def call(self, call: CacheCall) -> list[Reply]:
        """One script: one round trip, unless a master was replaced.

        Raises:
            Unavailable: it has no answer.
        """
        aim = self._aim(call.partition)
        packed = self._packed(call, aim)
        try:
            with self._listening(call):
                reply = await self.client.eval(packed.script, packed.keys, packed.args)
        except (Unanswered, ResponseError) as problem:
            raise _unavailable(problem, call) from problem
        answer = self._taken(call, aim, reply)
        if answer is None:
            [answer] = await self.call_all([call], began=True)
        return answer

    async def call_all(
        self, calls: Sequence[CacheCall], *, began: bool = False
    ) -> list[list[Reply]]:
        """Many scripts, together for each node; their answers are in the order of the calls.

        `began`: they may have had their effect already.

        Raises:
            Unavailable: one of them has no answer. If any of the others may have had its effect,
                the outcome is unknown.
        """
        answers: list[list[Reply] | None] = [None] * len(calls)
        for _ in range(_ATTEMPTS):
            due = [at for at, answer in enumerate(answers) if answer is None]
            if not due:
                break
            await self._distrust({calls[at].partition for at in due} & self._doubted)
            again = await self._attempt([calls[at] for at in due], began=began)
            began = True
            for at, answer in zip(due, again, strict=True):
                answers[at] = answer
        done = [answer for answer in answers if answer is not None]
        if len(done) < len(calls):
            raise Unavailable(Outcome.UNKNOWN, _RETRY_MS)
        return done

    async def _attempt(
        self, calls: Sequence[CacheCall], *, began: bool
    ) -> list[list[Reply] | None]:
        aims = [self._aim(call.partition) for call in calls]
        packed = [self._packed(call, aim) for call, aim in zip(calls, aims, strict=True)]
        with self._listening(*calls):
            replies = await self.client.eval_many(packed)
        answers: list[list[Reply] | None] = []
        problems: list[Unavailable] = []
        for call, aim, reply in zip(calls, aims, replies, strict=True):
            if isinstance(reply, Unanswered | ResponseError):
                problems.append(_unavailable(reply, call))
            else:
                answers.append(self._taken(call, aim, reply))
        if problems:
            known = not began and not answers
            known = known and all(each.outcome is Outcome.NONE for each in problems)
            raise Unavailable(Outcome.NONE if known else Outcome.UNKNOWN, _RETRY_MS)
        return answers

    async def _distrust(self, partitions: Collection[int]) -> None:
        """Has what was kept in these partitions by another process not believed any more.

        Raises:
            Unavailable: that could not be done, so neither can anything else there.
        """
        aims = {each: self._aim(each) for each in partitions}
        if not aims:
            return
        calls = [
            self._call(
                CacheCall(each, CACHE_DISTRUST, args=(int(self.runs.has_returned(aim.address)),)),
                ANY_RUN,
            )
            for each, aim in aims.items()
        ]
        replies = await self.client.eval_many(calls)
        for partition, reply in zip(aims, replies, strict=True):
            if isinstance(reply, Unanswered | ResponseError):
                raise _unavailable(reply, CacheCall(partition, CACHE_DISTRUST))
            self._doubted.discard(partition)
            self.runs.distrusted(aims[partition])

    def _aim(self, partition: int) -> Aim:
        return self.runs.aim_at(self.node_of(partition))

    def node_of(self, partition: int) -> Address | None:
        """The node that has a partition, as far as is known."""
        return self.client.address_of(self.layout.entry(partition, ""))

    def _packed(self, call: CacheCall, aim: Aim) -> Call:
        return self._call(call, aim.run)

    def _call(self, call: CacheCall, run: str) -> Call:
        keys = self.layout.partition_keys(call.partition)
        keys += self.layout.queue_keys(call.partition, call.queue) if call.queue else []
        keys += [self.layout.entry(call.partition, key) for key in call.keys]
        common = (self.server, self.layout.channels, run, self.memory_ms, self.records_max)
        return Call(call.script, keys, (*common, *call.args))

    def _taken(self, call: CacheCall, aim: Aim, reply: Reply) -> list[Reply] | None:
        """The answer; None if it is to be asked for again."""
        *answer, events = listed(reply)
        for event in listed(events):
            self.on_event(word(event))
        is_stale = answer == [b"stale_run"]
        if is_stale:
            self._doubted.add(call.partition)
        elif aim == self._aim(call.partition):
            return answer
        elif not call.repeatable:
            raise Unavailable(Outcome.UNKNOWN, _RETRY_MS)
        return None

    def _listening(self, *calls: CacheCall) -> Listening:
        def missed() -> None:
            for key in {key for call in calls for key in call.keys}:
                self.on_event(f"cache {key}".encode())
            for queue in {call.queue for call in calls if call.queue}:
                self.on_event(f"queue {queue}".encode())

        return Listening(missed)


def _unavailable(problem: Unanswered | ResponseError, call: CacheCall) -> Unavailable:
    return unavailable(problem, call.keys[0] if call.keys else None, call.script)
