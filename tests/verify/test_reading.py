"""Reading a history: what is none is told with its line; and the example in the specification."""

import re
from pathlib import Path

import pytest

from leasekeeper.verify import History, HistoryError, read, verify
from leasekeeper.verify.vocabulary import NEVER, Acquire, Outcome, Release
from tests.verify.ideal import header, ideal_history, written

SPEC = Path(__file__).resolve().parents[2] / "spec" / "history.md"
HEAD = '{"type": "history", "version": 1}'


def begin(more: str = "", op: str = "release") -> str:
    """The begin of a release, or of something else."""
    rest = '"name": "n", "lease": "a"' + more
    return f'{{"type": "begin", "at": 5, "process": "p", "id": 1, "op": "{op}", {rest}}}'


def ends(at: int = 6, op: str = "release", id_: str = "1") -> str:
    """Its end."""
    return f'{{"type": "ok", "at": {at}, "process": "p", "id": {id_}, "op": "{op}"}}'


def event(more: str) -> str:
    """Some event."""
    return f'{{"type": "event", "at": 5, "process": "p", {more}}}'


def reading(*lines: str) -> History:
    """What is read from these lines."""
    return read([line.encode() for line in lines])


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([], 'line 1: a history begins with a line of type "history"'),
        ([begin()], 'line 1: a history begins with a line of type "history"'),
        (["[]"], "line 1: a line must be a JSON object"),
        ([HEAD, '{"type": "beg'], "line 2: this is not JSON: .*"),
        (['{"type": "history"}'], 'line 1: "version" must be 1, not missing'),
        (['{"type": "history", "version": 2}'], 'line 1: "version" must be 1, not 2'),
        (
            [HEAD.replace("}", ', "recovery_us": -1}')],
            'line 1: "clock_error_us" and "recovery_us" must not be negative',
        ),
        ([HEAD, HEAD], 'line 2: only the first line may be of type "history"'),
        ([HEAD, '{"type": "x"}'], 'line 2: "type" must be "begin" or "ok" or .*, not \'x\''),
        ([HEAD, '{"type": "ok"}'], 'line 2: "at" must be an integer, not missing'),
        (
            [HEAD, '{"type": "ok", "at": 1.5, "process": "p"}'],
            'line 2: "at" must be an integer, not 1.5',
        ),
        (
            [HEAD, '{"type": "ok", "at": true, "process": "p"}'],
            'line 2: "at" must be an integer, not true',
        ),
        ([HEAD, begin(op="lock")], 'line 2: "op" must be "acquire" or .*, not \'lock\''),
        ([HEAD, event('"op": "lock"')], 'line 2: "op" must be "held" or .*, not \'lock\''),
        (
            [HEAD, begin(', "wait_ms": "1"', op="acquire")],
            "line 2: \"wait_ms\" must be an integer or null, not '1'",
        ),
        (
            [HEAD, begin(', "mode": "both"', op="acquire")],
            'line 2: "mode" must be "exclusive" or "shared", not \'both\'',
        ),
        (
            [HEAD, event('"op": "final", "resource": "r", "values": [1]')],
            'line 2: "values" must be a list of strings, but has 1',
        ),
        (
            [
                HEAD,
                event(
                    '"op": "fault", "fault": "f", "target": "t", "phase": "begin", '
                    '"excuses": ["fence"]'
                ),
            ],
            "line 2: \"excuses\": there is no check 'fence'",
        ),
        ([HEAD, begin(), begin()], "line 3: process 'p' has begun an operation with id 1 before"),
        ([HEAD, begin(), ends(), ends()], "line 4: the operation 1 of process 'p' has ended .*"),
        ([HEAD, ends(), ends(), begin()], "line 3: the operation 1 of process 'p' has ended .*"),
        ([HEAD, begin(), ends(at=4)], "line 3: the operation 1 of process 'p' begins .line 2. .*"),
        ([HEAD, begin(), ends(op="write")], "line 3: .* is 'release' in line 2, and 'write' .*"),
        ([HEAD, begin(), ends(id_='"1"')], "line 3: nothing says that '1' of 'p' has begun"),
    ],
)
def test_what_is_no_history_is_told_with_its_line(lines: list[str], said: str) -> None:
    with pytest.raises(HistoryError) as raised:
        reading(*lines)
    assert re.fullmatch(said, str(raised.value)), str(raised.value)


def test_an_end_of_a_fault_that_has_not_begun_is_told() -> None:
    history = reading(HEAD, event('"op": "fault", "fault": "f", "target": "t", "phase": "end"'))
    with pytest.raises(HistoryError, match="line 2: no 'f' of 't' has begun"):
        verify(history)


def test_lines_come_in_any_order_and_may_have_more_members() -> None:
    history = reading(HEAD, ends(), "", begin(', "why": "x"'), begin(', "id": 2', "acquire"))
    (release,) = history.of(Release)
    assert (release.began, release.ended, release.outcome) == (5, 6, Outcome.OK)
    assert (release.line, release.end_line) == (4, 2)
    (acquire,) = history.of(Acquire)
    assert (acquire.ended, acquire.outcome, acquire.wait_ms) == (NEVER, Outcome.UNKNOWN, None)
    assert acquire.exclusive


def test_the_example_of_the_specification_violates_what_it_says() -> None:
    (example,) = re.findall(r"^```jsonl\n(.*?)^```$", SPEC.read_text(), re.MULTILINE | re.DOTALL)
    report = verify(read(example.encode().splitlines()))
    assert [each.check for each in report.results if each.violated] == ["updates"]
    looked_at = {each.check: each.looked_at for each in report.results if each.looked_at}
    assert looked_at == {"fences": 2, "exclusion": 2, "resource": 1, "fifo": 1, "updates": 2}


def test_the_summary_says_how_long_nothing_was_answered() -> None:
    lines = ideal_history(0, faults=False)
    at = 20_000_000
    for number, (end, outage) in enumerate([("ok", 0), ("fail", -32020), ("ok", 0)]):
        about = {"process": "late", "id": number, "op": "release"}
        lines.append({"type": "begin", "at": at, "name": "n", "lease": "l", **about})
        lines.append({"type": end, "at": at + 1_000_000, "code": outage, **about})
        at += 2_000_000
    summary = verify(read(written(lines).splitlines())).summary
    assert summary.unavailable is not None
    # From the begin of what failed to the end of what succeeded.
    assert (summary.unavailable.begin, summary.unavailable.end) == (22_000_000, 25_000_000)
    assert summary.operations["release"][Outcome.FAIL] == 1
    assert summary.healed is None


def test_the_summary_says_how_soon_things_went_on() -> None:
    def said(type_: str, at: int, **members: object) -> dict[str, object]:
        return {"type": type_, "at": at, "process": "p", **members}

    def fault(phase: str) -> dict[str, object]:
        return {"op": "fault", "fault": "f", "target": "t", "phase": phase}

    release = {"op": "release", "id": 1}
    lines = [
        said("begin", 10, name="n", lease="l", **release),
        said("event", 20, **fault("begin")),
        said("event", 30, **fault("end")),
        said("event", 40, op="heal"),
        said("ok", 45, **release),
    ]
    summary = verify(read(written(lines).splitlines())).summary
    assert [each.recovered_us for each in summary.faults] == [15]
    assert (summary.recovered_us, summary.settled_us) == (5, 5)


def test_a_header_has_defaults() -> None:
    assert reading(HEAD).header.recovery_us == 20_000_000
    assert read(written([]).splitlines()).header.recovery_us == header()["recovery_us"]
