"""Deadlines: nothing comes due early, nothing is forgotten, and one task can wait for them all.

They are how a free name with a waiter is granted in time (L5), whatever else goes wrong.
"""

from hypothesis import given
from hypothesis import strategies as st

from leasekeeper.core.deadlines import Deadlines

DAY_MS = 86_400_000

GRAIN_MS = 10


def test_without_keys_there_is_nothing_to_wait_for() -> None:
    deadlines = Deadlines[str]()
    assert deadlines.next_ms() is None
    assert deadlines.pop_due(10**12) == []
    assert len(deadlines) == 0


def test_a_key_comes_due_at_its_deadline_and_not_before() -> None:
    deadlines = Deadlines[str](GRAIN_MS)
    deadlines.set("a", 100)
    assert deadlines.pop_due(99) == []
    assert deadlines.pop_due(100) == ["a"]
    assert deadlines.pop_due(100) == []


def test_a_key_comes_due_late_by_less_than_a_grain() -> None:
    deadlines = Deadlines[str](GRAIN_MS)
    deadlines.set("a", 101)
    assert deadlines.next_ms() == 110
    assert deadlines.pop_due(109) == []
    assert deadlines.pop_due(110) == ["a"]


def test_the_earliest_deadline_is_the_one_to_wait_for() -> None:
    deadlines = Deadlines[str](GRAIN_MS)
    for key, at_ms in (("late", 300), ("early", 100), ("middle", 200)):
        deadlines.set(key, at_ms)
    assert deadlines.next_ms() == 100
    assert deadlines.pop_due(250) == ["early", "middle"]
    assert deadlines.next_ms() == 300


def test_a_new_deadline_replaces_the_old_one() -> None:
    """A renewed lease does not expire at its first deadline."""
    deadlines = Deadlines[str](GRAIN_MS)
    deadlines.set("a", 100)
    deadlines.set("a", 200)
    assert len(deadlines) == 1
    assert deadlines.next_ms() == 200
    assert deadlines.pop_due(199) == []
    assert deadlines.pop_due(200) == ["a"]


def test_a_deadline_may_move_closer() -> None:
    deadlines = Deadlines[str](GRAIN_MS)
    deadlines.set("a", 200)
    deadlines.set("a", 100)
    assert deadlines.next_ms() == 100
    assert deadlines.pop_due(100) == ["a"]
    assert deadlines.pop_due(200) == []


def test_a_deadline_may_be_set_twice() -> None:
    deadlines = Deadlines[str](GRAIN_MS)
    deadlines.set("a", 100)
    deadlines.set("a", 100)
    assert deadlines.pop_due(100) == ["a"]


def test_a_discarded_key_never_comes_due() -> None:
    deadlines = Deadlines[str](GRAIN_MS)
    deadlines.set("a", 100)
    deadlines.set("b", 100)
    deadlines.discard("a")
    assert "a" not in deadlines
    assert "b" in deadlines
    assert deadlines.pop_due(1000) == ["b"]


def test_discarding_an_unknown_key_is_harmless() -> None:
    deadlines = Deadlines[str](GRAIN_MS)
    deadlines.discard("a")
    assert deadlines.next_ms() is None


def test_nobody_waits_for_a_moment_without_keys() -> None:
    deadlines = Deadlines[str](GRAIN_MS)
    deadlines.set("a", 100)
    deadlines.set("b", 200)
    deadlines.discard("a")
    assert deadlines.next_ms() == 200
    deadlines.discard("b")
    assert deadlines.next_ms() is None


def test_a_moment_may_be_used_again_after_it_was_emptied() -> None:
    deadlines = Deadlines[str](GRAIN_MS)
    deadlines.set("a", 100)
    deadlines.discard("a")
    deadlines.set("b", 100)
    assert deadlines.next_ms() == 100
    assert deadlines.pop_due(100) == ["b"]
    deadlines.set("a", 50)
    assert deadlines.pop_due(100) == ["a"]


KEYS = st.integers(0, 4)
TIMES = st.integers(0, 120)


@given(
    st.integers(1, 30),
    st.lists(
        st.tuples(st.just("set"), KEYS, TIMES)
        | st.tuples(st.just("discard"), KEYS, TIMES)
        | st.tuples(st.just("pop"), KEYS, TIMES)
    ),
)
def test_deadlines_agree_with_a_plain_dict(
    grain_ms: int, steps: list[tuple[str, int, int]]
) -> None:
    """Each key in a dict, rounded up to the grain, and looked for one by one."""
    deadlines, model = Deadlines[int](grain_ms), dict[int, int]()
    for step, key, ms in steps:
        match step:
            case "set":
                deadlines.set(key, ms)
                model[key] = -(-ms // grain_ms) * grain_ms
                assert ms <= model[key] < ms + grain_ms
            case "discard":
                deadlines.discard(key)
                model.pop(key, None)
            case "pop":
                due = {each for each, at_ms in model.items() if at_ms <= ms}
                popped = deadlines.pop_due(ms)
                assert sorted(popped) == sorted(due)
                model = {each: at_ms for each, at_ms in model.items() if each not in due}
        assert deadlines.next_ms() == min(model.values(), default=None)
        assert len(deadlines) == len(model)
        assert all((each in deadlines) == (each in model) for each in range(5))


def test_deadlines_that_move_on_and_on_leave_nothing_behind() -> None:
    """A lease of a day that is renewed all the time has one deadline, not one for each renewal."""
    deadlines = Deadlines[str](grain_ms=1)
    for ms in range(10_000):
        deadlines.set("renewed", DAY_MS + ms)
        deadlines.set("held", DAY_MS)
    assert len(deadlines._buckets) == len(deadlines._heap) < 200
    assert deadlines.next_ms() == DAY_MS
    assert deadlines.pop_due(DAY_MS + 10_000) == ["held", "renewed"]
