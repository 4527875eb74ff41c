"""All checks of a history, and what they found, as JSON has it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from attrs import frozen

from leasekeeper.verify import caches, exclusion, fences, queues, resources, writes
from leasekeeper.verify.faults import Faults
from leasekeeper.verify.history import CHECKS, History
from leasekeeper.verify.result import Result, Violation
from leasekeeper.verify.summary import Recovery, Summary, summarise
from leasekeeper.verify.vocabulary import NEVER

_CHECKS: Final[Mapping[str, Callable[[History, Faults], Result]]] = {
    "fences": fences.check,
    "exclusion": exclusion.check,
    "resource": resources.check_resource,
    "fifo": queues.check_fifo,
    "stuck": queues.check_stuck,
    "updates": resources.check_updates,
    "loads": caches.check_loads,
    "stale": caches.check_stale,
    "writes": writes.check,
}
assert tuple(_CHECKS) == CHECKS


@frozen
class Report:
    """What there is to say of a history."""

    summary: Summary
    results: Sequence[Result]

    @property
    def violated(self) -> bool:
        """Whether anything is wrong that nothing excuses."""
        return any(each.violated for each in self.results)


def verify(history: History, only: Collection[str] = CHECKS) -> Report:
    """Carries out these checks.

    Raises:
        HistoryError: the history contradicts itself in a way that no service can bring about.
    """
    faults = Faults(history)
    results = [check(history, faults) for name, check in _CHECKS.items() if name in only]
    return Report(summarise(history, faults), results)


# --- JSON -------------------------------------------------------------------------------------


def as_json(report: Report) -> Mapping[str, object]:
    """The whole report as values that JSON knows."""
    return {
        "violated": report.violated,
        "history": _summary(report.summary),
        "checks": [_result(each) for each in report.results],
    }


def _summary(summary: Summary) -> Mapping[str, object]:
    gap = summary.unavailable
    return {
        "lines": summary.lines,
        "processes": summary.processes,
        "begin": summary.begin,
        "end": summary.end,
        "clock_error_us": summary.header.clock_error_us,
        "recovery_us": summary.header.recovery_us,
        "unfenced": summary.header.unfenced,
        "operations": {
            op: {str(outcome): count for outcome, count in counts.items()}
            for op, counts in summary.operations.items()
        },
        "faults": [_recovery(each) for each in summary.faults],
        "unavailable": None if gap is None else {"begin": gap.begin, "end": gap.end},
        "healed": summary.healed,
        "recovered_us": summary.recovered_us,
        "settled_us": summary.settled_us,
    }


def _recovery(recovery: Recovery) -> Mapping[str, object]:
    fault = recovery.fault
    return {
        "fault": fault.kind,
        "target": fault.target,
        "begin": fault.began,
        "end": None if fault.ended == NEVER else fault.ended,
        "recovered_us": recovery.recovered_us,
    }


def _result(result: Result) -> Mapping[str, object]:
    return {
        "check": result.check,
        "looked_at": result.looked_at,
        "unit": result.unit,
        "violated": result.violated,
        "violations": [_violation(each) for each in result.violations],
        "excused": dict(result.excused),
    }


def _violation(violation: Violation) -> Mapping[str, object]:
    return {
        "violation": violation.text,
        "lines": [
            {"line": each.line, "at": each.at, "says": each.text} for each in violation.evidence
        ],
    }
