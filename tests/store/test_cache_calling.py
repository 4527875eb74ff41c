"""Calls of the cache scripts while masters change, by a Redis that says what it is told to."""

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Final, TypeVar, cast

import pytest
from attrs import define, field
from redis.exceptions import ResponseError

from leasekeeper.errors import Outcome, Unavailable
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.handshake import Identity
from leasekeeper.resp.replies import Reply
from leasekeeper.resp.scripts import Argument, Call, Script
from leasekeeper.resp.settings import Address
from leasekeeper.store.redis.cache_calling import CacheCall, CacheCaller
from leasekeeper.store.redis.caches import seen_of
from leasekeeper.store.redis.keys import Layout
from leasekeeper.store.redis.runs import UNKNOWN_RUN, Runs

if TYPE_CHECKING:
    from leasekeeper.resp.client import Client

T = TypeVar("T")
Answer = Reply | Unanswered | ResponseError

A, B = Address("a", 1), Address("b", 1)
LOOK: Final = Script("look", "")
STALE: Final[Reply] = [b"stale_run", []]
DONE: Final[Reply] = [b"done", []]
TRUSTED: Final[Reply] = [b"distrusted", []]


def now_or_never(call: Coroutine[object, object, T]) -> T:
    """The result of what has nothing to wait for."""
    with pytest.raises(StopIteration) as done:
        call.send(None)
    return cast("T", done.value.value)


@define(eq=False)
class Scripted:
    """A client. `answers` are its replies; one that is called is what happens meanwhile."""

    answers: list[Answer | Callable[[], Answer]]
    address: Address | None = A
    runs: list[str] = field(factory=list)
    """The run ids that it was called with."""
    names: list[str] = field(factory=list)
    forced: list[Argument] = field(factory=list)

    def address_of(self, key: str) -> Address | None:
        del key
        return self.address

    def _next(self, script: Script, args: Sequence[Argument]) -> Answer:
        self.names.append(script.name)
        self.runs.append(str(args[2]))
        if script.name == "cache_distrust":
            self.forced.append(args[5])
        answer = self.answers.pop(0)
        return answer() if callable(answer) else answer

    async def eval(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Reply:
        del keys
        answer = self._next(script, args)
        if isinstance(answer, Unanswered | ResponseError):
            raise answer
        return answer

    async def eval_many(self, calls: Sequence[Call]) -> list[Answer]:
        return [self._next(call.script, call.args) for call in calls]


def identity(address: Address, run: str, mode: str = "standalone") -> Identity:
    return Identity(address, mode, run_id=run, is_master=True)


@define(eq=False)
class Setting:
    client: Scripted
    caller: CacheCaller
    events: list[bytes]

    def call(self, *, repeatable: bool = True) -> list[Reply]:
        call = CacheCall(0, LOOK, ("k",), repeatable=repeatable)
        return now_or_never(self.caller.call(call))

    def call_all(self, count: int) -> list[list[Reply]]:
        return now_or_never(self.caller.call_all([CacheCall(each, LOOK) for each in range(count)]))


def setting(*answers: Answer | Callable[[], Answer], run: str = "r1") -> Setting:
    client, events = Scripted(list(answers)), list[bytes]()
    caller = CacheCaller(cast("Client", client), Layout(), "one", 1000, events.append)
    if run:
        caller.runs.connected(identity(A, run))
    return Setting(client, caller, events)


def test_a_call_is_made_once() -> None:
    one = setting([b"done", 7, [b"cache k"]])
    assert one.call() == [b"done", 7]
    assert one.client.runs == ["r1"]
    assert one.events == [b"cache k"]


def test_another_process_is_distrusted_before_the_call_is_made_again() -> None:
    one = setting(STALE, TRUSTED, DONE)
    assert one.call() == [b"done"]
    assert one.client.names == ["look", "cache_distrust", "look"]
    assert one.client.runs == ["r1", "*", "r1"]
    assert one.client.forced == [0]


def test_a_reply_across_a_new_connection_to_another_process_says_nothing() -> None:
    """The call may have been carried out there, with the id of the old one."""

    def restarted() -> Reply:
        one.caller.runs.connected(identity(A, "r2"))
        return [b"old", [b"cache k"]]

    one = setting(restarted, STALE, TRUSTED, DONE)
    assert one.call() == [b"done"]
    assert one.client.runs == ["r1", "r2", "*", "r2"]
    assert one.events == [b"cache k"]


def test_a_reply_from_another_node_says_nothing() -> None:
    """A slot has moved, to a node that was promoted."""

    def moved() -> Reply:
        one.client.address = B
        one.caller.runs.connected(identity(B, "r2", "cluster"))
        return [b"old", []]

    one = setting(moved, DONE)
    assert one.call() == [b"done"]
    assert one.client.runs == ["r1", "r2"]


def test_what_cannot_be_repeated_is_of_unknown_outcome() -> None:
    def restarted() -> Reply:
        one.caller.runs.connected(identity(A, "r2"))
        return [b"old", []]

    one = setting(restarted)
    with pytest.raises(Unavailable) as caught:
        one.call(repeatable=False)
    assert caught.value.outcome is Outcome.UNKNOWN


def test_what_cannot_be_repeated_is_made_again_if_nothing_was_done() -> None:
    one = setting(STALE, TRUSTED, DONE)
    assert one.call(repeatable=False) == [b"done"]


def test_before_a_connection_nothing_is_believed() -> None:
    """The script does nothing, and then there is one."""

    def connected() -> Reply:
        one.caller.runs.connected(identity(A, "r1"))
        return STALE

    one = setting(connected, TRUSTED, DONE, run="")
    assert one.call() == [b"done"]
    assert one.client.runs == [UNKNOWN_RUN, "*", "r1"]


def test_a_master_that_was_replaced_and_is_back_is_distrusted() -> None:
    """Its clock says what it always said, and it has not heard of what happened in between."""
    one = setting(STALE, TRUSTED, DONE, DONE)
    one.caller.runs.connected(identity(B, "r2"))
    one.caller.runs.connected(identity(A, "r1"))
    assert one.call() == [b"done"]
    assert one.client.runs == [UNKNOWN_RUN, "*", "r1"]
    assert one.client.forced == [1]
    assert one.call() == [b"done"]  # and from then on it is not


def test_further_connections_change_nothing() -> None:
    """To the same process, or to the nodes of a cluster."""
    runs = Runs()
    runs.connected(identity(A, "r1", "cluster"))
    aim = runs.aim_at(A)
    for _ in range(2):
        runs.connected(identity(B, "r2", "cluster"))
        runs.connected(identity(A, "r1", "cluster"))
    assert runs.aim_at(A) == aim
    assert aim.run == "r1"


def test_masters_that_change_for_ever_are_no_endless_loop() -> None:
    one = setting(*[STALE, TRUSTED] * 10)
    with pytest.raises(Unavailable) as caught:
        one.call()
    assert caught.value.outcome is Outcome.UNKNOWN
    assert len(one.client.names) <= 10


@pytest.mark.parametrize("outcome", Outcome)
def test_what_is_known_of_a_call_without_an_answer_is_told(outcome: Outcome) -> None:
    """And if it may have had its effect, so may its events."""
    one = setting(Unanswered(outcome, "x"))
    with pytest.raises(Unavailable) as caught:
        one.call()
    assert caught.value.outcome is outcome
    assert one.events == ([] if outcome is Outcome.NONE else [b"cache k"])


def test_a_call_that_was_made_before_is_never_of_no_effect() -> None:
    def restarted() -> Reply:
        one.caller.runs.connected(identity(A, "r2"))
        return [b"old", []]

    one = setting(restarted, Unanswered(Outcome.NONE, "x"))
    with pytest.raises(Unavailable) as caught:
        one.call()
    assert caught.value.outcome is Outcome.UNKNOWN


def test_many_calls_have_all_answers_or_none() -> None:
    """L11: an invalidation has returned when every partition has acknowledged it."""
    assert setting(DONE, DONE, DONE).call_all(3) == [[b"done"]] * 3
    assert setting(DONE, STALE, DONE, TRUSTED, DONE).call_all(3) == [[b"done"]] * 3
    for answers, outcome in (
        ([DONE, Unanswered(Outcome.NONE, "x")], Outcome.UNKNOWN),
        ([Unanswered(Outcome.UNKNOWN, "x"), Unanswered(Outcome.NONE, "x")], Outcome.UNKNOWN),
        ([Unanswered(Outcome.NONE, "x"), Unanswered(Outcome.NONE, "x")], Outcome.NONE),
        ([ResponseError("ERR"), DONE], Outcome.UNKNOWN),
    ):
        with pytest.raises(Unavailable) as caught:
            setting(*answers).call_all(2)
        assert caught.value.outcome is outcome


def test_a_partition_that_cannot_be_distrusted_is_not_used() -> None:
    one = setting(STALE, Unanswered(Outcome.NONE, "x"))
    with pytest.raises(Unavailable):
        one.call()
    again = one.client
    again.answers = [STALE, TRUSTED, DONE]
    assert one.call() == [b"done"]


@pytest.mark.parametrize("part", [[b"failed", b"\xff", 5], [b"shared", 7, 1000, b"\xff"], [b"?"]])
def test_what_somebody_else_wrote_is_no_answer_and_no_crash(part: list[Reply]) -> None:
    with pytest.raises(Unavailable):
        seen_of([part])
