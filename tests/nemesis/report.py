"""The verdict of the checker, and the table of a run."""

import subprocess
import sys
from pathlib import Path

from attrs import frozen

from tests.nemesis.faults import LEFT_OUT
from tests.nemesis.history import gather
from tests.nemesis.nemesis import Found, Plan

CHECK_S = 600.0


@frozen
class Verdict:
    """What the checker says of a history."""

    good: bool
    text: str


def judge(plan: Plan, directory: Path) -> Verdict:
    """Gathers the history, and has it checked."""
    history = gather(directory, unfenced=plan.shape.unfenced)
    done = subprocess.run(
        [sys.executable, "-m", "leasekeeper", "verify", str(history)],
        capture_output=True,
        text=True,
        check=False,
        timeout=CHECK_S,
    )
    return Verdict(done.returncode == 0, done.stdout + done.stderr)


def table(found: Found) -> str:
    """Faults as they were combined, and how long it was out; the checker says the rest."""
    return "\n".join([*faults(found), "", *outages(found)])


def faults(found: Found) -> list[str]:
    """How often, how long they lasted, and how soon all was well after that."""
    rows = [f"{'faults':<40}{'times':>6}{'lasted s':>10}{'recovery s':>12}"]
    for name in sorted({each.kinds for each in found.struck}):
        these = [each for each in found.struck if each.kinds == name]
        lasted, recovery = sum(e.lasted_s for e in these), max(e.recovery_s for e in these)
        rows.append(f"{name:<40}{len(these):>6}{lasted:>10.1f}{recovery:>12.1f}")
    return rows


def outages(found: Found) -> list[str]:
    """What the probes saw."""
    probes = [
        f"{found.probes} probes; the longest time without a grant was {found.longest_gap_s:.1f} s"
    ]
    return [
        *(probes if found.probes else []),
        f"after the last fault every server granted again within {found.recovery_s:.1f} s",
        *(f"left out: {each}" for each in LEFT_OUT),
    ]


def conclude(plan: Plan, found: Found, directory: Path) -> bool:
    """Prints it all; returns whether all is well."""
    verdict = judge(plan, directory)
    print(table(found))
    print()
    print(verdict.text.rstrip())
    for problem in found.problems:
        print(f"problem: {problem}")
    return verdict.good and not found.problems
