"""Each check on histories of a few lines: what it sees, what it must not, and what it excuses."""

from typing import Any

import orjson
import pytest

from leasekeeper.verify import CHECKS, History, HistoryError, Report, read, verify
from leasekeeper.verify.result import Result
from tests.verify.ideal import Line, header

S = 1_000_000


def _line(kind: str, at: float, process: str, op: str, members: dict[str, Any]) -> Line:
    return {"type": kind, "at": round(at * S), "process": process, "op": op, **members}


class Story:
    """A history that is told line by line. Times are in seconds."""

    def __init__(self, **head: object) -> None:
        self.lines: list[Line] = []
        self.head = header(**head)

    def event(self, at: float, process: str, op: str, **members: object) -> "Story":
        """One event."""
        self.lines.append(_line("event", at, process, op, members))
        return self

    def op(
        self,
        span: tuple[float, float | None],
        process: str,
        op: str,
        end: str = "ok",
        ended: Line | None = None,
        /,
        **members: object,
    ) -> "Story":
        """An operation, with what its end says beside its begin."""
        number = len(self.lines)
        begin, until = span
        self.lines.append(_line("begin", begin, process, op, {"id": number, **members}))
        if until is not None:
            self.lines.append(_line(end, until, process, op, {"id": number, **(ended or {})}))
        return self

    def grant(
        self,
        span: tuple[float, float],
        process: str,
        lease: str,
        fence: int,
        until: float,
        **members: object,
    ) -> "Story":
        """A lease of the name n."""
        ended = {"fence": fence, "until": int(until * S)}
        return self.op(span, process, "acquire", "ok", ended, name="n", lease=lease, **members)

    def release(self, span: tuple[float, float], process: str, lease: str, end: str) -> "Story":
        """A lease of the name n is given back."""
        return self.op(span, process, "release", end, name="n", lease=lease)

    def fault(
        self, begin: float, end: float | None, kind: str, *excuses: str, target: str = "x"
    ) -> "Story":
        """A fault that may break these."""
        about = {"fault": kind, "target": target, "excuses": list(excuses)}
        self.event(begin, "nemesis", "fault", phase="begin", **about)
        return self if end is None else self.event(end, "nemesis", "fault", phase="end", **about)

    def history(self) -> History:
        """As it is read."""
        return read([orjson.dumps(each) for each in (self.head, *self.lines)])

    def result(self, check: str) -> Result:
        """What this check finds; no other finds anything."""
        report: Report = verify(self.history())
        others = [e.check for e in report.results if e.violated and e.check != check]
        assert others == []
        return report.results[CHECKS.index(check)]


# --- fences -----------------------------------------------------------------------------------


def test_a_repeat_has_the_fence_of_the_first_and_may_come_after_a_greater_one() -> None:
    story = Story().op((1, 2), "p", "acquire", "unknown", name="n", lease="a", mode="shared")
    story.grant((3, 4), "q", "b", 20, 9, mode="shared")
    story.grant((5, 6), "p", "a", 10, 9, mode="shared")
    assert story.result("fences").violated == 0


def test_a_lease_that_was_given_back_is_new_when_it_is_asked_for_again() -> None:
    story = Story().grant((1, 2), "p", "a", 20, 9).release((3, 4), "p", "a", "ok")
    assert story.grant((5, 6), "p", "a", 10, 9).result("fences").violated == 1


def test_one_lease_with_two_fences_is_found() -> None:
    story = Story().grant((1, 2), "p", "a", 10, 9).grant((3, 4), "p", "a", 20, 9)
    assert story.result("fences").violated == 1


def test_a_lease_that_may_have_run_out_may_get_another_fence() -> None:
    story = Story().grant((1, 2), "p", "a", 10, 3).grant((4, 5), "p", "a", 20, 9)
    assert story.result("fences").violated == 0


def test_requests_at_the_same_time_may_be_granted_in_any_order() -> None:
    story = Story().grant((1, 4), "p", "a", 20, 4).grant((3, 5), "q", "b", 10, 5)
    assert story.result("fences").violated == 0


def test_an_excused_fall_hides_none_without_an_excuse() -> None:
    story = Story().grant((1, 2), "p", "a", 90, 2).fault(3, 3, "clock_back", "fences")
    story.grant((4, 5), "p", "b", 20, 5).grant((6, 7), "q", "c", 10, 7)
    result = story.result("fences")
    assert (result.violated, sum(result.excused.values())) == (1, 1)
    assert [each.at for each in result.violations[0].evidence] == [5 * S, 6 * S, 7 * S]


# --- exclusion --------------------------------------------------------------------------------


def test_an_unknown_acquire_is_no_belief() -> None:
    story = Story().op((1, 2), "p", "acquire", "unknown", name="n", lease="a")
    assert story.grant((3, 4), "q", "b", 20, 9).result("exclusion").violated == 0


@pytest.mark.parametrize("end", ["ok", "fail", "unknown"])
def test_a_belief_ends_when_its_release_begins_whatever_comes_of_it(end: str) -> None:
    story = Story().grant((1, 2), "p", "a", 10, 9).release((3, 5), "p", "a", end)
    story.event(3.5, "p", "held", name="n", lease="a", fence=10, until=12 * S)
    assert story.grant((2.5, 4), "q", "b", 20, 9).result("exclusion").violated == 0


def test_a_belief_lasts_as_long_as_it_was_renewed() -> None:
    story = Story().grant((1, 2), "p", "a", 10, 3)
    story.event(2.9, "p", "held", name="n", lease="a", fence=10, until=6 * S)
    result = story.grant((4, 5), "q", "b", 20, 9).result("exclusion")
    assert [each.text for each in result.violations] == ["n: two hold it for 1000000 us"]
    assert [each.line for each in result.violations[0].evidence] == [3, 4, 6]


def test_a_belief_ends_with_its_loss() -> None:
    story = Story().grant((1, 2), "p", "a", 10, 9)
    story.event(3, "p", "lost", name="n", lease="a", fence=10, reason="broken")
    assert story.grant((2, 4), "q", "b", 20, 9).result("exclusion").violated == 0


def test_what_the_clocks_differ_by_is_no_overlap() -> None:
    for error, violated in ((S, 0), (S - 1, 1)):
        story = Story(clock_error_us=error).grant((1, 2), "p", "a", 10, 5)
        assert story.grant((3, 4), "q", "b", 20, 9).result("exclusion").violated == violated


def test_a_fault_within_the_older_belief_excuses_an_overlap() -> None:
    for at, excused in ((2.5, 1), (6.5, 0)):
        story = Story().grant((1, 2), "p", "a", 10, 6).fault(at, at, "clock_step", "exclusion")
        result = story.grant((3, 4), "q", "b", 20, 9).result("exclusion")
        assert (result.violated, result.excused["clock_step"]) == (1 - excused, excused)


def test_sharers_stand_beside_each_other_up_to_the_smallest_limit() -> None:
    for limit, violated in ((2, 1), (3, 0)):
        story = Story()
        for number in range(3):
            span = (number + 1.0, number + 1.5)
            lease = f"l{number}"
            story.grant(span, "p", lease, 10 + number, 9, mode="shared", limit=limit + number)
        assert story.result("exclusion").violated == violated


def test_a_sharer_beside_an_exclusive_holder_is_found() -> None:
    story = Story().grant((1, 2), "p", "a", 10, 9, mode="shared")
    assert story.grant((3, 4), "q", "b", 20, 9).result("exclusion").violated == 1


# --- fifo and stuck ---------------------------------------------------------------------------


def passed() -> Story:
    """Somebody was passed in the queue."""
    story = Story().grant((1, 8), "p", "a", 20, 8)
    story.event(2, "p", "queued", name="n", lease="a")
    return story.grant((3, 4), "q", "b", 10, 5)


def test_a_waiter_that_was_passed_is_found() -> None:
    assert passed().result("fifo").violated == 1


def test_who_was_dropped_or_met_a_fault_may_be_passed() -> None:
    assert passed().event(5, "p", "dropped").result("fifo").looked_at == 0
    assert passed().fault(0, 1.5, "pause_server").result("fifo").looked_at == 0
    assert passed().event(5, "q", "dropped").result("fifo").violated == 1


def test_a_repeat_passes_nobody() -> None:
    story = Story().op((0, 0.5), "q", "acquire", "unknown", name="n", lease="b")
    story.lines += passed().lines
    for number, line in enumerate(story.lines):
        line["id"] = line.get("id", 0) + (100 if number > 1 else 0)
    assert story.result("fifo").violated == 0


def test_a_wait_without_end_after_heal_is_stuck() -> None:
    story = Story(recovery_us=5 * S).op((1, None), "p", "acquire", name="n", lease="a")
    story.event(2, "nemesis", "heal")
    assert story.event(6, "q", "dropped").result("stuck").looked_at == 0
    assert story.event(8, "q", "dropped").result("stuck").violated == 1
    assert story.fault(1.5, None, "kill_client", target="p").result("stuck").violated == 0


# --- resource and updates ---------------------------------------------------------------------


def write(end: str | None, *values: str) -> Story:
    """One write of w that ends so, and what is there at the end."""
    about = {"resource": "r", "name": "n", "lease": "a", "fence": 1, "value": "w"}
    story = Story().op((1, 2 if end else None), "p", "write", end or "ok", **about)
    return story.event(9, "r", "final", resource="r", values=list(values))


@pytest.mark.parametrize(
    ("end", "there", "violated"),
    [
        ("ok", 1, 0),
        ("ok", 0, 1),
        ("ok", 2, 1),
        ("unknown", 1, 0),
        ("unknown", 0, 0),
        ("unknown", 2, 1),
        (None, 1, 0),
        (None, 0, 0),
        ("fail", 0, 0),
        ("fail", 1, 1),
    ],
)
def test_what_a_resource_may_hold(end: str | None, there: int, violated: int) -> None:
    assert write(end, *["w"] * there).result("updates").violated == violated


def test_a_loss_is_excused_by_what_may_lose() -> None:
    result = write("ok").fault(3, 4, "disk", "updates").result("updates")
    assert (result.violated, result.excused) == (0, {"disk": 1})


def test_a_value_that_is_written_twice_is_no_history() -> None:
    story = write("ok", "w")
    story.lines += [{**line, "id": 99} for line in story.lines[:2]]
    with pytest.raises(HistoryError, match="line 5: 'w' was written before"):
        verify(story.history())


# --- loads and stale --------------------------------------------------------------------------


def two_loads(end: str = "ok", **about: object) -> Story:
    """The second begins while the first is under way."""
    ended = {"version": 1} if end == "ok" else {}
    story = Story(recovery_us=S).op((2, 4), "p", "load", end, ended, key="k", fence=1, **about)
    return story.op((3, 5), "q", "load", "ok", {"version": 1}, key="k", fence=2)


def test_two_loads_at_once_are_found() -> None:
    assert two_loads().result("loads").violated == 1


def test_a_second_load_may_begin_when_the_first_is_void_or_its_process_was_in_trouble() -> None:
    void = {"keys": ["k"], "tags": []}
    excused = [
        two_loads("fail"),
        two_loads("unknown"),
        two_loads(until=3 * S),
        two_loads(shared=False),
        two_loads().event(2.5, "p", "dropped"),
        two_loads().fault(2.5, 2.6, "pause_client"),
        two_loads().op((2.5, 6), "r", "invalidate", **void),
        two_loads().op((1, 2.5), "r", "invalidate", **void),
        two_loads().op((1, 1.5), "r", "invalidate", "unknown", **void),
        two_loads().op((2.5, 6), "r", "invalidate", keys=[], tags=["of unknown keys"]),
        two_loads().op((2.5, 6), "r", "change", key="k", version=2),
        two_loads()
        .op((1, 6), "p", "read", "fail", key="k")
        .op((1.2, 1.3), "r", "invalidate", **void),
    ]
    assert [each.result("loads").violated for each in excused] == [0] * len(excused)


def test_what_concerns_others_excuses_no_second_load() -> None:
    story = two_loads().event(1, "p", "tagged", key="k", tags=["t"])
    story.op((2.5, 6), "r", "invalidate", keys=["l"], tags=["u"])
    assert story.event(9, "p", "dropped").result("loads").violated == 1


def changed(outcome: str = "ok", told: str = "ok", **by: object) -> Story:
    """Version 2 is committed, and told."""
    story = Story().event(0, "p", "tagged", key="k", tags=["t"])
    story.op((1, 2), "p", "change", outcome, key="k", version=2)
    return story.op((3, 4), "p", "invalidate", told, **(by or {"keys": ["k"]}))


def reading(story: Story, begin: float, version: int | None, **about: object) -> int:
    """The violations there are if this is read."""
    story.op((begin, begin + 1), "q", "read", "ok", {"version": version, **about}, key="k")
    return story.result("stale").violated


def test_a_read_after_an_invalidation_has_what_was_changed_before_it() -> None:
    assert reading(changed(), 5, 2) == 0
    assert reading(changed(), 5, 1) == 1
    assert reading(changed(tags=["t"]), 5, 1) == 1
    assert reading(changed(tags=["u"]), 5, 1) == 0
    assert reading(changed(), 3.5, 1) == 0
    assert reading(changed(), 5, 1, stale=True) == 0
    assert reading(changed(), 5, None) == 0


def test_what_may_not_have_happened_binds_nobody() -> None:
    assert reading(changed(outcome="unknown"), 5, 1) == 0
    assert reading(changed(outcome="unknown"), 5, 2) == 0
    assert reading(changed(told="unknown"), 5, 1) == 0


def test_a_tag_that_a_key_has_not_always_had_does_not_count() -> None:
    story = changed(tags=["t"]).event(0.5, "p", "tagged", key="k", tags=["other"])
    assert reading(story, 5, 1) == 0


# --- writes -----------------------------------------------------------------------------------


def put(end: str | None = "ok", seq: int = 5) -> Story:
    """A value is put."""
    ended = {"seq": seq} if end == "ok" else {}
    about = {"queue": "q", "key": "k", "value": "v"}
    return Story().op((1, 2 if end else None), "p", "put", end or "ok", ended, **about)


def stored(story: Story, at: float, seq: int, fence: int, value: str = "v") -> Story:
    """It is stored."""
    about = {"queue": "q", "key": "k", "value": value, "seq": seq, "fence": fence}
    return story.event(at, "db", "stored", **about)


def test_a_put_of_unknown_outcome_may_be_stored_or_not() -> None:
    for end in ("unknown", None):
        assert put(end).result("writes").violated == 0
        assert stored(put(end), 3, 5, 1).result("writes").violated == 0
    assert stored(put("fail"), 3, 5, 1).result("writes").violated == 1


def test_the_same_write_may_be_stored_twice() -> None:
    assert stored(stored(put(), 3, 5, 1), 4, 5, 2).result("writes").violated == 0
    assert stored(stored(put(), 3, 5, 2), 4, 5, 1).result("writes").violated == 1


def test_a_put_has_time_unless_something_is_said_of_the_end() -> None:
    assert put().event(3, "p", "dropped").result("writes").violated == 0
    assert put().event(30, "p", "dropped").result("writes").violated == 1


def test_the_end_is_what_was_stored_last() -> None:
    final = {"queue": "q", "key": "k"}
    for value, violated in (("v", 0), ("w", 1)):
        story = stored(put(), 3, 5, 1).event(9, "db", "stored_final", **final, value=value)
        assert story.result("writes").violated == violated
