"""The nemesis in miniature: what is promised holds; and where nothing checks fences, it finds out.

Whole runs are `python -m tests.nemesis`. Here a fixed seed chooses; the times are still the
machine's own, so bounds are generous.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
from attrs import evolve

from tests.nemesis.faults import kinds_for
from tests.nemesis.fleet import Shape
from tests.nemesis.history import Line
from tests.nemesis.nemesis import Found, Plan, run, unwritten
from tests.nemesis.report import judge, table
from tests.nemesis.soak import Bound, slope

SHORT = Shape(topology="single", seed=7, servers=2, clients=3, names=2, keys=2, lockers=2)
CONTROL = Shape(topology="single", seed=1, servers=1, clients=3, names=1, keys=0, lockers=2)
UNFENCED = evolve(CONTROL, unfenced=True)
LONG_PAUSE_S = (5.0, 5.5)
"""More than twice the TTL: the next holder has the lease, and has written."""


def ran(plan: Plan, directory: Path) -> Found:
    """The run; what went on is in the output of a test that fails."""
    found = run(plan, directory)
    print(table(found))
    return found


@pytest.mark.system
def test_faults_break_no_promise(tmp_path: Path) -> None:
    faults = ("pause_client", "kill_server", "cut_redis", "client_half_open")
    plan = Plan(shape=SHORT, seconds=5, faults=faults, lasting=(1.0, 3.0))
    found = ran(plan, tmp_path)
    verdict = judge(plan, tmp_path)
    assert verdict.good, verdict.text
    assert not found.problems
    assert found.struck
    assert found.probes


def paused(shape: Shape, directory: Path) -> list[str]:
    """What the checker finds violated after clients were paused in the middle of a change."""
    plan = Plan(shape=shape, seconds=9, faults=("pause_client",), lasting=LONG_PAUSE_S)
    found = ran(plan, directory)
    assert not found.problems
    verdict = judge(plan, directory)
    print(verdict.text)
    said = verdict.text.splitlines()[-1]
    return said.removeprefix("Violated: ").removesuffix(".").split(", ") if not verdict.good else []


@pytest.mark.system
def test_a_pause_loses_updates_where_no_fence_is_checked(tmp_path: Path) -> None:
    """The control: a harness that finds nothing here could find nothing at all."""
    assert paused(UNFENCED, tmp_path) == ["resource", "updates"]


@pytest.mark.system
def test_a_pause_loses_nothing_where_fences_are_checked(tmp_path: Path) -> None:
    """The same as the control, but for the check."""
    assert paused(CONTROL, tmp_path) == []


def test_a_fault_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="no such faults for embedded: flushall"):
        kinds_for("embedded", ("flushall",), skewed=True)


def put(key: str, seq: int) -> list[Line]:
    """A write that was queued."""
    whose = {"process": "c", "id": str(seq), "op": "put"}
    return [{"type": "begin", "key": key, **whose}, {"type": "ok", "seq": seq, **whose}]


def stored(key: str, seq: int) -> Line:
    """A write that was carried out."""
    return {"type": "event", "op": "stored", "key": key, "seq": seq}


@pytest.mark.parametrize(
    ("lines", "left"),
    [
        ([], False),
        (put("a", 1), True),
        ([*put("a", 1), stored("a", 1)], False),
        ([*put("a", 1), *put("a", 2), stored("a", 1)], True),
        ([*put("a", 1), stored("b", 1)], True),
        ([*put("a", 1), *put("a", 2), stored("a", 2)], False),
    ],
)
def test_what_is_queued_and_not_written_is_seen(lines: Sequence[Line], left: bool) -> None:
    assert unwritten(lines) is left


def test_growth_is_told_from_noise() -> None:
    bound = Bound("MiB", 8.0, 0.05)
    level = [(5.0 * n, 50.0 + n % 3) for n in range(700)]
    leaking = [(5.0 * n, 50.0 + n / 20) for n in range(700)]
    assert bound.allows(3600 * slope(level), 50.0, hours=1.0)
    assert not bound.allows(3600 * slope(leaking), 50.0, hours=1.0)
