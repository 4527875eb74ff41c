"""Runs seeds: `python -m tests.simulation --seeds 10000`, or one of them, with all that happens in
it: `python -m tests.simulation --seed 1234`."""

import argparse
import gc
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from multiprocessing import Pool

from attrs import define, field

from tests.simulation.runs import SECONDS, Outcome, run_seed


@define
class Report:
    """What many seeds have come to."""

    seeds: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(factory=Counter)
    faults: Counter[str] = field(factory=Counter)
    violations: list[Outcome] = field(factory=list)

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.seeds += 1
        self.seconds += outcome.seconds
        self.counts.update(outcome.counts)
        self.faults.update(outcome.faults)
        if outcome.violation is not None:
            self.violations.append(outcome)

    def lines(self, took_s: float, seconds_each: float) -> Iterator[str]:
        """For people."""
        rate = f"{self.seeds / took_s:.1f} seeds/s, {self.seconds / took_s:.0f} times real time"
        yield f"{self.seeds} seeds, {self.seconds / 3600:.1f} simulated hours, {rate}"
        yield "operations: " + _shown(self.counts)
        yield "faults: " + _shown(self.faults)
        yield f"violations: {len(self.violations)}"
        for outcome in self.violations:
            yield f"  seed {outcome.seed}: {describe(outcome.violation)}"
            yield f"    python -m tests.simulation --seed {outcome.seed} " + _each(seconds_each)


def describe(problem: BaseException | None) -> str:
    """In a line."""
    return f"{type(problem).__name__}: {problem}"


def _shown(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _each(seconds: float) -> str:
    return f"--seconds-each {seconds:g}"


def _run(job: tuple[int, float]) -> Outcome:
    outcome = run_seed(*job)
    if outcome.violation is not None:  # whose traceback cannot be sent to another process
        outcome.violation = AssertionError(describe(outcome.violation))
    return outcome


def run_many(seeds: Iterable[int], seconds: float, jobs: int) -> Iterator[Outcome]:
    """Their outcomes, as they come."""
    todo = ((seed, seconds) for seed in seeds)
    if jobs == 1:
        yield from map(_run, todo)
        return
    with Pool(jobs) as pool:
        yield from pool.imap_unordered(_run, todo, chunksize=8)


def show_one(seed: int, seconds: float) -> int:
    """Runs one, and tells all of it."""
    outcome = run_seed(seed, seconds, tell=print)
    report = Report()
    report.add(outcome)
    for line in report.lines(1.0, seconds):
        print(line)
    print("digest", outcome.digest)
    if outcome.violation is not None:
        traceback.print_exception(outcome.violation)
    return int(outcome.violation is not None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=100, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seconds-each", type=float, default=SECONDS, help="simulated, of each")
    parser.add_argument("--seed", type=int, help="only this one, with all that happens")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    if options.seed is not None:
        return show_one(options.seed, options.seconds_each)
    gc.freeze()
    report, begun = Report(), time.monotonic()
    seeds = range(options.first, options.first + options.seeds)
    try:
        for outcome in run_many(seeds, options.seconds_each, options.jobs):
            report.add(outcome)
            if outcome.violation is not None:
                print(f"seed {outcome.seed}: {describe(outcome.violation)}", flush=True)
    except BaseException as problem:
        group = BaseExceptionGroup("", [problem])
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        print("interrupted")
    for line in report.lines(time.monotonic() - begun, options.seconds_each):
        print(line)
    return int(bool(report.violations))


if __name__ == "__main__":
    sys.exit(main())
