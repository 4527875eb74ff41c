"""A soak: `python -m tests.nemesis.soak --minutes 60`. Everything goes on, and nothing may grow.

Clients take locks, read and change what is cached, and queue writes; every 20 s one of the plain
faults strikes. Every 5 s it is noted how large the servers and Redis are. After a quarter of the
time, which is for warming up, a straight line through what was noted has to be nearly level.
"""

import argparse
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

from tests.nemesis.faults import KINDS
from tests.nemesis.fleet import Fleet, Server, Shape, running_fleet
from tests.nemesis.history import Scribe
from tests.nemesis.nemesis import Found, Nemesis, Plan
from tests.nemesis.report import conclude
from tests.redises import HOST

FORGETFUL: Final = ("--fence-memory-ms", "30000")
"""Redis keeps the last fence of every name that was ever used, but not for an hour."""
SAMPLE_S: Final = 5.0
FAULT_S: Final = 20.0
ANSWER_S: Final = 5.0
FAULTS: Final = ("pause_client", "kill_client", "pause_server", "client_cut", "redis_cut")
"""Servers and Redis stay the same processes, so that what they hold can be compared."""
CONNECTIONS: Final = "connections"


@frozen
class Bound:
    """How fast something may grow, in an hour: so much, and so much of what there is."""

    unit: str
    absolute: float
    relative: float

    def allows(self, slope_per_hour: float, mean: float, hours: float) -> bool:
        """Whether growth is within it. A short run cannot tell much, so it is allowed more."""
        return slope_per_hour * min(hours, 1.0) <= self.absolute + self.relative * mean


BOUNDS: Final = {
    "rss": Bound("MiB", 8.0, 0.05),
    "fds": Bound("", 8.0, 0.2),
    "connections": Bound("", 5.0, 0.2),
    "keys": Bound("", 100.0, 0.2),
    "memory": Bound("MiB", 4.0, 0.1),
}
"""By the last word of what is sampled."""


@define(eq=False)
class Samples:
    """What was noted: for each thing, when and how much."""

    series: dict[str, list[tuple[float, float]]] = field(factory=dict)

    def note(self, what: str, value: float) -> None:
        """One more."""
        self.series.setdefault(what, []).append((time.monotonic(), value))

    def take(self, fleet: Fleet) -> None:
        """Looks at everything that is there to be looked at."""
        for server in fleet.servers:
            self._look_at(server)
        for redis in fleet.store.masters():
            self.note("redis keys", float(str(redis.cli("DBSIZE"))))
            self.note("redis memory", int(redis.info("memory")["used_memory"]) / 2**20)

    def _look_at(self, server: Server) -> None:
        name, popen = server.process.name, server.process.popen
        if popen is None or popen.poll() is not None:
            return
        proc = Path(f"/proc/{popen.pid}")
        pages = int((proc / "statm").read_text().split()[1])
        self.note(f"{name} rss", pages * 4096 / 2**20)
        self.note(f"{name} fds", len(list((proc / "fd").iterdir())))
        connections = metric(server, CONNECTIONS)
        if connections is not None:
            self.note(f"{name} connections", connections)


def metric(server: Server, name: str) -> float | None:
    """What it tells of itself, if it does."""
    try:
        url = f"http://{HOST}:{server.admin_port}/metrics"
        with urllib.request.urlopen(url, timeout=ANSWER_S) as answer:
            text = answer.read().decode()
    except OSError:
        return None
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line that fits best, per second."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def judge(samples: Samples) -> bool:
    """Prints what was noted, and whether it grew; returns whether nothing did."""
    print(f"{'':<20}{'first':>10}{'last':>10}{'mean':>10}{'an hour':>10}")
    good = True
    for what, points in sorted(samples.series.items()):
        kept = points[len(points) // 4 :]
        if len(kept) < 2:
            continue
        bound, mean = BOUNDS[what.split()[-1]], sum(y for _, y in kept) / len(kept)
        per_hour, hours = 3600 * slope(kept), (kept[-1][0] - kept[0][0]) / 3600
        level = bound.allows(per_hour, mean, hours)
        good = good and level
        row = "".join(f"{each:>10.1f}" for each in (kept[0][1], kept[-1][1], mean, per_hour))
        print(f"{what:<20}{row} {bound.unit}{'' if level else '  GROWS'}")
    return good


@define(eq=False)
class Soak:
    """The run."""

    nemesis: Nemesis
    samples: Samples

    def run(self, seconds: float) -> None:
        """Samples and faults, until the time is over; then peace."""
        deadline = time.monotonic() + seconds
        fault_at = time.monotonic() + FAULT_S
        while time.monotonic() < deadline and not self.nemesis.found.problems:
            self.samples.take(self.nemesis.fleet)
            if time.monotonic() >= fault_at:
                fault_at += FAULT_S
                self.nemesis.strike()
            time.sleep(SAMPLE_S)
        self.nemesis.heal()
        self.nemesis.finish()


def soak(plan: Plan, directory: Path) -> bool:
    """Runs it, prints it, and returns whether all is well."""
    samples, found, scribe = Samples(), Found(), Scribe.of(directory, "nemesis")
    kinds = [kind for kind in KINDS if kind.name in FAULTS]
    with running_fleet(plan.shape, directory) as fleet:
        nemesis = Nemesis(plan, fleet, scribe, random.Random(plan.shape.seed), found, kinds)
        Soak(nemesis, samples).run(plan.seconds)
    good = conclude(plan, found, directory)
    print()
    return judge(samples) and good


def main() -> int:
    """Runs, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.nemesis.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    told = parser.parse_args()
    shape = Shape(
        topology="single", seed=told.seed, servers=2, clients=6, admin=True, options=FORGETFUL
    )
    directory = Path(tempfile.mkdtemp(prefix="leasekeeper-soak-"))
    print(f"seed {told.seed}, in {directory}", flush=True)
    good = soak(Plan(shape=shape, seconds=60 * told.minutes), directory)
    if good:
        shutil.rmtree(directory)
    else:
        print(f"seed {told.seed}: what was written is in {directory}")
    return 0 if good else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
