"""What a check has to say: how much it looked at, what is wrong, and what was excused."""

from collections import Counter
from typing import Final

from attrs import define, field, frozen

from leasekeeper.verify.faults import Fault
from leasekeeper.verify.vocabulary import NEVER, Event, Operation

KEPT_MAX: Final = 1_000
"""So many violations of a check are kept to be shown; all are counted."""


@frozen
class Evidence:
    """A line of the history, and what it says, in a few words."""

    line: int
    at: int
    text: str


@frozen
class Violation:
    """What is wrong, and the lines that show it."""

    text: str
    evidence: tuple[Evidence, ...]


@define
class Result:
    """What one check found. It decides nothing: the checks do."""

    check: str
    unit: str
    """What is looked at, in plural."""
    looked_at: int = 0
    violated: int = 0
    violations: list[Violation] = field(factory=list)
    """The first of them."""
    excused: Counter[str] = field(factory=Counter)
    """What would be violations but for a fault, by the kind of that fault."""

    def wrong(self, text: str, *evidence: Evidence, excuse: Fault | None = None) -> None:
        """Notes a violation, or that it is excused."""
        if excuse is not None:
            self.excused[excuse.kind] += 1
            return
        self.violated += 1
        if len(self.violations) < KEPT_MAX:
            self.violations.append(Violation(text, evidence))


def begun(operation: Operation, text: str) -> Evidence:
    """The begin of an operation."""
    return Evidence(operation.line, operation.began, f"{operation.process} {text}")


def ended(operation: Operation, text: str) -> Evidence:
    """The end of an operation, or its begin if it has none."""
    if operation.ended == NEVER:
        return begun(operation, text)
    return Evidence(operation.end_line, operation.ended, f"{operation.process} {text}")


def told(event: Event, text: str) -> Evidence:
    """An event."""
    return Evidence(event.line, event.at, f"{event.process} {text}")
