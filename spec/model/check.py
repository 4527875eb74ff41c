"""Checks the formal model of the lock protocol: what must hold, what must fail, what must happen.

`python spec/model/check.py` lets spin search every state of `lease.pml` and `queue.pml`. A property
must hold in all of them. A variant, which leaves out one rule of the protocol, must fail, by the
property that the rule is there for. And states of interest must be reachable, or the model would
hold because nothing happens in it. `--fast` searches smaller configurations, `--only WORD` those
rows whose name has that word, and `--trace` prints the steps that lead to each failure.

Exit status: 0 if all is as expected, 1 if not, 69 if spin or gcc is missing.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
UNAVAILABLE: Final = 69
"""EX_UNAVAILABLE of sysexits.h."""
MEMORY_MB: Final = 1900
LIMIT_S: Final = 600
DEPTH_MAX: Final = 1_000_000
STEP: Final = "STEP "

BELIEFS: Final = "at most one client believes"
FENCES: Final = "fences rise"
STALE: Final = "no stale write is applied"
SERVED: Final = "every live waiter is granted"
DEAD: Final = "the dead delay nobody for long"
REACHED: Final = "it happens"

FAILS_WITH: Final = {
    BELIEFS: "(belief[0]>0)&&(belief[1]>0)",
    FENCES: "fence>highest",
    STALE: "write_order",
    SERVED: "acceptance cycle",
    DEAD: "since_death",
    REACHED: "assertion violated (",
}
"""What spin's report has of each property if it is violated."""


@dataclass(frozen=True)
class Row:
    """One search. `must_fail`: the property is expected to be violated."""

    name: str
    model: str
    checks: str
    macros: tuple[str, ...]
    must_fail: bool = False
    slow: bool = False
    """Not for `--fast`."""

    @property
    def is_liveness(self) -> bool:
        """Whether cycles are searched for, rather than states."""
        return self.checks == SERVED

    @property
    def flags(self) -> list[str]:
        """The macros, as spin takes them."""
        return [f"-D{macro}" for macro in self.macros]


@dataclass(frozen=True)
class Found:
    """What a search found. `cut`: why it did not see every state; empty if it did."""

    states: int
    transitions: int
    depth: int
    errors: int
    cut: str
    report: str
    steps: tuple[str, ...]


def rows() -> Iterator[Row]:
    """Everything that is checked, in the order of the table."""
    yield from holding()
    yield from failing()
    yield from happening()


BELIEVE: Final = ("CHECK_BELIEFS", "TIMELESS")
FENCE: Final = ("CHECK_FENCES", "TTL=1", "TICKS=3", "CALM", "GRANTS=3")
WRITE: Final = ("WRITES", "TTL=1", "TICKS=2", "CALM", "GRANTS=2")
LOSS: Final = ("CALM", "GRANTS=3")
AGAIN: Final = ("CALM", "TRIES=2", "GRANTS=3")


def holding() -> Iterator[Row]:
    """The protocol as it is: no state violates its properties."""
    yield Row("no loss", "lease", BELIEFS, BELIEVE)
    yield Row("no loss, two tries", "lease", BELIEFS, (*BELIEVE, "TRIES=2"), slow=True)
    yield Row("flushed", "lease", BELIEFS, (*BELIEVE, *LOSS, "FLUSH"), slow=True)
    yield Row("flushed, two tries", "lease", BELIEFS, (*BELIEVE, *AGAIN, "FLUSH"), slow=True)
    yield Row("restarted", "lease", BELIEFS, (*BELIEVE, *LOSS, "RESTART"), slow=True)
    yield Row("no loss, two tries", "lease", FENCES, (*FENCE, "TRIES=2"))
    yield Row("flushed", "lease", FENCES, (*FENCE, "FLUSH"), slow=True)
    yield Row("restarted", "lease", FENCES, (*FENCE, "RESTART"), slow=True)
    yield Row("no loss", "lease", STALE, WRITE)
    yield Row("flushed", "lease", STALE, (*WRITE, "FLUSH"), slow=True)
    yield Row("restarted", "lease", STALE, (*WRITE, "RESTART"), slow=True)
    for client in range(3):
        macros = (f"WATCHED={client}", "DEATHS=2")
        yield Row(f"client {client} lives on", "queue", SERVED, macros)
    yield Row("a server dies", "queue", DEAD, ("DEATHS=2",))


def failing() -> Iterator[Row]:
    """Variants, each without one rule, and with the property that rule is there for."""

    def without(name: str, checks: str, *macros: str, model: str = "lease") -> Row:
        return Row(name, model, checks, (*macros, name), must_fail=True)

    yield without("NO_FENCING", STALE, *WRITE)
    yield without("PLAIN_INCR", FENCES, *FENCE, "RESTART")
    yield without("PLAIN_INCR", STALE, *WRITE, "RESTART")
    yield without("NO_RESTART_HOLD", BELIEFS, *BELIEVE, *LOSS, "FLUSH")
    yield without("RENEW_RESURRECTS", BELIEFS, *BELIEVE, *AGAIN)
    yield without("DELETE_WITHOUT_COMPARE", BELIEFS, *BELIEVE, *AGAIN)
    yield without("DEADLINE_FROM_RECEIPT", BELIEFS, *BELIEVE)
    yield without("FORGETS_WHAT_IT_GAVE_BACK", BELIEFS, *BELIEVE, *LOSS, "FLUSH")
    yield without("UNANNOUNCED", BELIEFS, *BELIEVE, *LOSS, "FLUSH")
    yield without("DEAD_STAY_QUEUED", SERVED, model="queue")
    yield without("WHOLE_TTL_FOR_THE_DEAD", DEAD, model="queue")


def happening() -> Iterator[Row]:
    """States of interest: the claim that one is never reached must fail."""

    def reach(name: str, *macros: str, model: str = "lease", slow: bool = True) -> Row:
        wanted = f"WANTED={name}"
        return Row(name, model, REACHED, (*macros, wanted), must_fail=True, slow=slow)

    yield reach("LATE_WRITE_REFUSED", *WRITE, slow=False)
    yield reach("WAITER_GRANTED_AFTER_EXPIRY", *BELIEVE)
    yield reach("GRANT_CAME_TOO_LATE", *BELIEVE)
    yield reach("PROVISIONAL_CONFIRMED", *BELIEVE)
    yield reach("LOST_EVENT_MADE_UP_FOR", *BELIEVE)
    yield reach("LOSS_WHILE_BELIEVED", *BELIEVE, *LOSS, "FLUSH")
    yield reach("GRANT_HELD_BACK", *BELIEVE, *LOSS, "FLUSH", slow=False)
    yield reach("GRANT_GIVEN_BACK", *BELIEVE, *LOSS, "FLUSH")
    yield reach("LEASE_PUT_BACK", *BELIEVE, *LOSS, "FLUSH")
    yield reach("PUT_BACK_REFUSED", *BELIEVE, *LOSS, "FLUSH")
    yield reach("SERVER_DIES_WITH_WAITER", model="queue", slow=False)
    yield reach("DEAD_WAITER_GRANTED", model="queue")
    yield reach("DEAD_WAITER_DROPPED", model="queue")
    yield reach("WAITER_GRANTED_AFTER_EXPIRY", model="queue")
    yield reach("LOST_EVENT_MADE_UP_FOR", model="queue")


def run(command: Sequence[str], where: Path) -> str:
    """What a command prints; it may end with any status.

    Raises:
        subprocess.TimeoutExpired: It took longer than LIMIT_S.
    """
    done = subprocess.run(
        command,
        cwd=where,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    return done.stdout


def search(row: Row, where: Path) -> Found:
    """Searches all states, or until the first violation: that is then the shortest, of states."""
    for source in HERE.glob("*.pml"):
        shutil.copy(source, where)
    model = f"{row.model}.pml"
    said = run(["spin", "-a", *row.flags, model], where)
    # A small search is over sooner than the compiler would be with making it faster.
    options = ["-O1" if row.slow and not row.must_fail else "-O0", "-w", f"-DMEMLIM={MEMORY_MB}"]
    if row.is_liveness:
        options += ["-DNFAIR=3"]
        how = ["-a", "-f"]
    else:
        # Breadth first finds the shortest trace; depth first needs less memory for all states.
        options += ["-DSAFETY", "-DNOCLAIM", "-DBFS" if row.must_fail else "-DCOLLAPSE"]
        how = []
    said += run(["gcc", *options, "-o", "pan", "pan.c"], where)
    if not (where / "pan").exists():
        raise SystemExit(f"{row.name}: the model was not understood\n{said}")
    report = run(["./pan", f"-m{DEPTH_MAX}", *how], where)
    steps: list[str] = []
    if (where / f"{model}.trail").exists():
        lines = run(["spin", "-t", *row.flags, model], where).splitlines()
        steps = [line.strip().removeprefix(STEP) for line in lines if is_step(line)]
    return Found(
        number(r"(\d+) states, stored", report),
        number(r"(\d+) transitions", report),
        number(r"depth reached (\d+)", report),
        number(r"errors: (\d+)", report),
        cut_off(report),
        report,
        tuple(steps),
    )


def is_step(line: str) -> bool:
    """Whether a line of a replayed trail is one of the model's own, or begins the cycle."""
    return line.strip().startswith((STEP, "<<<<<START OF CYCLE"))


def number(pattern: str, report: str) -> int:
    """The number that a report has at a pattern.

    Raises:
        SystemExit: There is none: the search did not get that far.
    """
    match = re.search(pattern, report)
    if match is None:
        raise SystemExit(f"no {pattern!r} in what the search reports:\n{report}")
    return int(match[1])


def cut_off(report: str) -> str:
    """Why a search did not see every state; nothing if it did."""
    for sign in ("max search depth too small", "Search not completed", "out of memory", "MEMLIM"):
        if sign in report:
            return sign
    return ""


def verdict(row: Row, found: Found) -> str:
    """What is wrong with what was found; nothing if it is as expected."""
    if not row.must_fail:
        if found.errors:
            return "FAILS"
        return f"NOT ALL SEEN: {found.cut}" if found.cut else ""
    if not found.errors:
        return "HOLDS"
    # Spin leaves out spaces within an assertion.
    report = found.report.replace(" ", "")
    expected = FAILS_WITH[row.checks].replace(" ", "")
    return "" if expected in report else "FAILS OTHERWISE"


WIDTHS: Final = (28, 31, 9, 10, 6, 6)


def line(*cells: object) -> str:
    """A line of the table."""
    first = [f"{cell:<{width}}" for cell, width in zip(cells[:2], WIDTHS[:2], strict=True)]
    numbers = [f"{cell:>{width}}" for cell, width in zip(cells[2:-1], WIDTHS[2:], strict=True)]
    return "  ".join([*first, *numbers, str(cells[-1])])


def check(row: Row, *, trace: bool) -> bool:
    """Searches, and prints a line of the table. Whether it is as expected."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="leasekeeper-model-") as where:
        try:
            found = search(row, Path(where))
        except subprocess.TimeoutExpired:
            print(line(row.name, row.checks, "-", "-", "-", LIMIT_S, "NOT ALL SEEN: too slow"))
            return False
    seconds = f"{time.monotonic() - begun:.1f}"
    wrong = verdict(row, found)
    as_hoped = "reached" if row.checks == REACHED else "fails" if row.must_fail else "holds"
    numbers = (found.states, found.transitions, found.depth, seconds)
    print(line(row.name, row.checks, *numbers, wrong or as_hoped), flush=True)
    if trace or (wrong and not row.must_fail):
        print("".join(f"    {at:>2}. {step}\n" for at, step in enumerate(found.steps, 1)), end="")
    return not wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Checks every row that is asked for."""
    parser = argparse.ArgumentParser(description="Checks the formal model of the lock protocol.")
    parser.add_argument("--fast", action="store_true", help="smaller configurations only")
    parser.add_argument("--only", default="", metavar="WORD", help="rows whose name has this word")
    parser.add_argument("--trace", action="store_true", help="the steps to each failure")
    asked = parser.parse_args(arguments)
    if missing := [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]:
        print(f"{' and '.join(missing)} not found: apt-get install spin gcc", file=sys.stderr)
        return UNAVAILABLE
    print(line("configuration", "property", "states", "trans.", "depth", "s", "result"))
    chosen = [r for r in rows() if asked.only in r.name and not (asked.fast and r.slow)]
    right = [check(row, trace=asked.trace) for row in chosen]
    wrong = len(right) - sum(right)
    print(f"{len(right)} checked, {wrong or 'none'} of them other than expected.")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
