"""One run: faults at random while clients work, then peace, and a verdict over what they wrote."""

import contextlib
import random
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from attrs import define, field, frozen
from leasekeeper_client import KeeperError, sync

from tests.nemesis.faults import Kind, Stage, kinds_for
from tests.nemesis.fleet import Fleet, Shape, running_fleet
from tests.nemesis.history import RECOVERY_US, Line, Scribe, all_lines

PAUSE_S: Final = (1.5, 4.0)
RECOVERY_S: Final = RECOVERY_US / 1e6
FINISH_S: Final = RECOVERY_S + 10.0
PROBE_TTL_S: Final = 2.0
PROBE_PAUSE_S: Final = 0.1
PROBE_ANSWER_S: Final = 3.0
TWO_AT_ONCE: Final = 0.25
WEIGHTS: Final = {"clients": 4, "servers": 4, "lines": 3, "links": 3, "store": 5, "clock": 1}
"""How often faults of each layer are chosen."""
CLOCK_PEACE_S: Final = 90.0
"""Longer than a step of the clock: fences may fall if data are lost while it is set back."""
WRITTEN_S: Final = 40.0
"""In how long all queued writes are carried out, those included that were tried and failed..."""
SOME_WRITTEN_S: Final = 10.0
"""... and for how long to look where some may be lost."""


@frozen(kw_only=True)
class Plan:
    """What is to be run."""

    shape: Shape
    seconds: float
    faults: tuple[str, ...] = ()
    lasting: tuple[float, float] | None = None
    """How long each fault lasts, instead of what its kind says."""


@define
class Struck:
    """A fault that was, and how long after its end all was well."""

    kinds: str
    lasted_s: float
    recovery_s: float


@define
class Found:
    """What the harness itself has seen; the history says the rest."""

    struck: list[Struck] = field(factory=list)
    problems: list[str] = field(factory=list)
    probes: int = 0
    longest_gap_s: float = 0.0
    """The longest time in which a client with all addresses got no lease on a fresh name."""
    recovery_s: float = 0.0
    """From the end of all faults until every server granted again."""


@define(eq=False)
class Prober:
    """Takes a fresh name again and again, as a client with all addresses, and times the gaps."""

    urls: list[str]
    found: Found
    _over: threading.Event = field(factory=threading.Event, init=False)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """In a thread, while the block lasts."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join(RECOVERY_S)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._over.is_set():
            with (
                contextlib.suppress(KeeperError),
                sync.connect(self.urls, client="prober", answer_timeout=PROBE_ANSWER_S) as keeper,
            ):
                while not self._over.is_set():
                    try:
                        probe(keeper, f"probe/{self.found.probes}")
                    except KeeperError:
                        pass
                    else:
                        self.found.probes += 1
                        now = time.monotonic()
                        self.found.longest_gap_s = max(self.found.longest_gap_s, now - last)
                        last = now
                    self._over.wait(PROBE_PAUSE_S)
        gap = time.monotonic() - last
        self.found.longest_gap_s = max(self.found.longest_gap_s, gap)


def probe(keeper: sync.Keeper, name: str) -> None:
    """Takes a name that nobody else has, and gives it back.

    Raises:
        KeeperError: It cannot be had.
    """
    with keeper.lease(name, ttl=PROBE_TTL_S, wait=0):
        pass


@define(eq=False)
class Nemesis:
    """The run. Everything is chosen by one source of chance, so that a seed tells what was done."""

    plan: Plan
    fleet: Fleet
    scribe: Scribe
    random: random.Random
    found: Found
    kinds: list[Kind]
    _struck: set[Kind] = field(factory=set)
    _probes: int = 0
    _clock_at: float = -CLOCK_PEACE_S

    def run(self) -> None:
        """Faults until the time is over, then peace, and the end of the clients."""
        self.healthy(RECOVERY_S)
        with Prober(self.fleet.urls(), self.found).running():
            deadline = time.monotonic() + self.plan.seconds
            while time.monotonic() < deadline and not self.found.problems:
                time.sleep(self.random.uniform(*PAUSE_S))
                self.strike()
            self.heal()
        self.finish()

    def strike(self) -> None:
        """One fault, or two at a time; then all has to be well again."""
        chosen = self.choose()
        self._struck.update(chosen)
        seconds = self.random.uniform(*(self.plan.lasting or chosen[0].seconds))
        began_at = time.monotonic()
        with contextlib.ExitStack() as ending:
            stages = [Stage(self.fleet, self.scribe, self.random, kind) for kind in chosen]
            for stage in stages:
                ending.enter_context(stage.kind.strike(stage))
            print(f"{chosen_names(chosen)}: {', '.join(stages[0].targets)}", flush=True)
            time.sleep(seconds)
        ended_at = time.monotonic()
        recovery_s = self.healthy(RECOVERY_S)
        self.fleet.store.settle()
        for stage in stages:
            stage.over()
        self.found.struck.append(Struck(chosen_names(chosen), ended_at - began_at, recovery_s))
        self.found.problems += self.fleet.problems()

    def choose(self) -> list[Kind]:
        """What comes next. Data are not lost while the clock is, or lately was, out of step."""
        calm = time.monotonic() - self._clock_at > CLOCK_PEACE_S
        possible = [kind for kind in self.kinds if calm or not kind.loses_data] or self.kinds
        first = self._one_of(possible)
        chosen = [first]
        if self.random.random() < TWO_AT_ONCE:
            others = [kind for kind in possible if fit(first, kind)]
            chosen += [self._one_of(others)] if others else []
        if any(kind.layer == "clock" for kind in chosen):
            self._clock_at = time.monotonic()
        return chosen

    def _one_of(self, kinds: list[Kind]) -> Kind:
        """First a layer: there are many kinds of bad lines, and not all should be of lines."""
        layers = sorted({kind.layer for kind in kinds})
        (layer,) = self.random.choices(layers, [WEIGHTS[each] for each in layers])
        return self.random.choice([kind for kind in kinds if kind.layer == layer])

    def healthy(self, within_s: float) -> float:
        """Waits until every server grants a fresh name; returns how long that took."""
        began_at = time.monotonic()
        for server in self.fleet.servers:
            while not self.grants(server.url):
                if time.monotonic() > began_at + within_s:
                    self.found.problems.append(f"no lease of {server.process.name} again")
                    return time.monotonic() - began_at
                time.sleep(PROBE_PAUSE_S)
        return time.monotonic() - began_at

    def grants(self, url: str) -> bool:
        """Whether this server gives a lease on a fresh name."""
        self._probes += 1
        try:
            with sync.connect(
                url, connect_timeout=PROBE_ANSWER_S, answer_timeout=PROBE_ANSWER_S
            ) as keeper:
                probe(keeper, f"health/{self._probes}")
        except KeeperError:
            return False
        return True

    def heal(self) -> None:
        """All faults end here."""
        self.fleet.mend()
        self.fleet.store.settle()
        self.scribe.event("heal")
        self.found.recovery_s = self.healthy(RECOVERY_S)

    def finish(self) -> None:
        """Clients finish what they have begun; queued writes are carried out; the end is read."""
        late = self.fleet.stop_clients(FINISH_S)
        if late:
            self.found.problems.append(f"have not finished: {', '.join(late)}")
        lossy = any("writes" in kind.excused(self.plan.shape.topology) for kind in self._struck)
        deadline = time.monotonic() + (SOME_WRITTEN_S if lossy else WRITTEN_S)
        while unwritten(all_lines(self.fleet.directory)) and time.monotonic() < deadline:
            time.sleep(0.5)
        self.fleet.ask("final")


def fit(one: Kind, other: Kind) -> bool:
    """Whether both may strike at once: no two of one layer, no loss under a wrong clock, and no
    start of a server without a store."""
    losing = one.loses_data or other.loses_data
    hidden = one.hides_store or other.hides_store
    starting = one.starts_servers or other.starts_servers
    if one.layer == other.layer or (hidden and starting):
        return False
    return not (losing and "clock" in (one.layer, other.layer))


def chosen_names(kinds: list[Kind]) -> str:
    """As they are said."""
    return " and ".join(kind.name for kind in kinds)


def unwritten(lines: Iterable[Line]) -> bool:
    """Whether something that was queued is not carried out."""
    keys: dict[tuple[str, str], str] = {}
    wanted: dict[str, int] = {}
    written: dict[str, int] = {}
    for line in lines:
        match line["type"], line["op"]:
            case "begin", "put":
                keys[line["process"], line["id"]] = line["key"]
            case "ok", "put":
                key = keys[line["process"], line["id"]]
                wanted[key] = max(wanted.get(key, 0), int(line["seq"]))
            case "event", "stored":
                written[line["key"]] = int(line["seq"])
    return any(seq > written.get(key, 0) for key, seq in wanted.items())


def run(plan: Plan, directory: Path) -> Found:
    """Runs it; what was written is in the directory then."""
    found, scribe = Found(), Scribe.of(directory, "nemesis")
    with running_fleet(plan.shape, directory) as fleet:
        skewed = fleet.store.skewed
        kinds = kinds_for(plan.shape.topology, plan.faults, skewed=skewed)
        Nemesis(plan, fleet, scribe, random.Random(plan.shape.seed), found, kinds).run()
    return found
