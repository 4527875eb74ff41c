"""Histories of an ideal service: many processes, waiting, expiry, faults, and unknown outcomes.

`ideal_history(seed)` is the same for the same seed, and breaks no promise.
"""

from collections.abc import Generator, Iterable
from functools import cache
from random import Random
from typing import Any, Final

import orjson
from attrs import define, field

from tests.verify.clockwork import Clock, Signal, Task
from tests.verify.services import Cache, Fences, Fill, Keeper, Lease, Resource, Writes

Line = dict[str, Any]
Steps = Generator[int | Signal, object, bool]

MS: Final = 1_000
RECOVERY_US: Final = 4_000 * MS
NAMES: Final = ("orders", "report", "pool")
KEYS: Final = {"user:1": ["users"], "user:2": ["users", "vip"], "price": []}
TTL_US: Final = 400 * MS
FAULTS_UNTIL_US: Final = 6_000 * MS
ENDS_US: Final = 12_000 * MS
QUEUE: Final = "outbox"


class Dies(Exception):
    """The process is killed, in the middle of what it does."""


@define
class Process:
    """One that writes a history of what it does."""

    name: str
    awake_at: int = 0
    killed: bool = False
    ids: int = 0


@define
class World:
    """The service, its users, and what happens to them."""

    rng: Random
    faults: bool = True
    clock: Clock = field(factory=Clock)
    lines: list[Line] = field(factory=list)
    fences: Fences = field(factory=Fences)
    down_until: int = 0
    """Until then the service answers nobody."""
    values: int = 0

    keeper: Keeper = field(init=False)
    cache: Cache = field(init=False)
    writes: Writes = field(init=False)
    rows: dict[str, int] = field(factory=lambda: dict.fromkeys(KEYS, 0))
    stored: dict[str, str] = field(factory=dict)
    processes: list[Process] = field(init=False)
    resources: dict[str, Resource] = field(init=False)
    ends: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.keeper = Keeper(self.clock, self.fences)
        self.cache = Cache(self.clock, self.fences, KEYS)
        self.writes = Writes(self.fences)
        self.processes = [Process(f"p{number}") for number in range(self.rng.randint(3, 6))]
        self.resources = {name: Resource(name) for name in NAMES}
        self.ends = self.clock.now + ENDS_US

    def run(self) -> list[Line]:
        """From the first line to the last."""
        for key, tags in KEYS.items():
            self.say("event", self.processes[0], "tagged", key=key, tags=tags)
        for process in self.processes:
            self.clock.start(self.works(process))
            self.clock.start(self.reads(process))
        for key in KEYS:
            self.clock.start(self.changes(self.rng.choice(self.processes), key))
        self.clock.start(self.puts(self.rng.choice(self.processes)))
        self.clock.start(self.flushes())
        if self.faults:
            self.clock.start(self.breaks())
        self.clock.run(self.ends)
        self.say_the_end()
        return self.lines

    # --- What is said -------------------------------------------------------------------------

    def say(self, type_: str, process: Process, op: str, **members: object) -> None:
        """One line; the dead say nothing."""
        if process.killed:
            raise Dies
        line = {"type": type_, "at": self.clock.now, "process": process.name, "op": op}
        self.lines.append(line | members)

    def begin(self, process: Process, op: str, **members: object) -> int:
        """The begin of an operation; its id."""
        process.ids += 1
        self.say("begin", process, op, id=process.ids, **members)
        return process.ids

    def say_the_end(self) -> None:
        """What is there in the end."""
        judge = Process("harness")
        for resource in self.resources.values():
            self.say("event", judge, "final", resource=resource.name, values=resource.values)
        for key, value in self.stored.items():
            self.say("event", judge, "stored_final", queue=QUEUE, key=key, value=value)

    # --- The way to the service and back ------------------------------------------------------

    def travel(self, process: Process) -> Steps:
        """A request, or an answer, is under way. False if it is lost."""
        yield self.rng.randint(50, 2_000)
        lost = False
        while self.clock.now < self.down_until:
            if not lost:
                self.say("event", process, "dropped")
            lost = True
            yield self.down_until - self.clock.now
        while self.clock.now < process.awake_at:
            yield process.awake_at - self.clock.now
        return not lost and (not self.faults or self.rng.random() > 0.02)

    def sleep(self, process: Process, at_most_us: int) -> Steps:
        """The process does something else."""
        yield self.rng.randint(1, at_most_us)
        while self.clock.now < process.awake_at:
            yield process.awake_at - self.clock.now
        return True

    # --- Leases -------------------------------------------------------------------------------

    def works(self, process: Process) -> Task:
        """Takes leases and writes under them, until the end comes near."""
        try:
            while self.clock.now < self.ends - 3_000 * MS:
                yield from self.sleep(process, 300 * MS)
                yield from self.takes(process)
        except Dies:
            return

    def takes(self, process: Process) -> Steps:
        """One lease, from asking for it to the end of it."""
        name = self.rng.choice(NAMES)
        shared = name == "pool" and self.rng.random() < 0.8
        wait_ms = self.rng.choice((0, 500, None, None))
        limit = 2 if shared else None
        self.values += 1
        id_ = f"l{self.values}"
        lease = Lease(name, id_, not shared, limit, TTL_US, Signal(self.clock))
        number = self.begin(
            process,
            "acquire",
            name=name,
            lease=id_,
            mode="shared" if shared else "exclusive",
            limit=limit,
            wait_ms=wait_ms,
        )
        known = yield from self.travel(process)
        accepted = self.keeper.acquire(lease, wait=wait_ms != 0)
        if accepted and not lease.granted.happened:
            yield from self.waits(process, lease, wait_ms)
        known = (yield from self.travel(process)) and known
        if not known:
            self.say("unknown", process, "acquire", id=number)
        elif not lease.fence:
            self.say("fail", process, "acquire", id=number, code=-32001)
        elif lease.expires <= self.clock.now + 10 * MS:
            self.say("unknown", process, "acquire", id=number)
        else:
            until = lease.expires - 5 * MS
            self.say("ok", process, "acquire", id=number, fence=lease.fence, until=until)
            yield from self.holds(process, lease, until)
            return True
        self.keeper.release(name, id_)
        return False

    def waits(self, process: Process, lease: Lease, wait_ms: int | None) -> Steps:
        """Until it is granted, or its time is over."""
        yield self.rng.randint(50, 500)
        if self.clock.now >= max(self.down_until, process.awake_at):
            self.say("event", process, "queued", name=lease.name, lease=lease.id)
        if wait_ms is not None:
            self.clock.later(wait_ms * MS, lease.granted.set)
        yield lease.granted
        if not lease.fence:
            self.keeper.release(lease.name, lease.id)
        return True

    def holds(self, process: Process, lease: Lease, until: int) -> Steps:
        """Works under the lease, renews it now and then, and gives it back, or not."""
        about = {"name": lease.name, "lease": lease.id}
        for _ in range(self.rng.randint(0, 4)):
            yield from self.sleep(process, 60 * MS)
            yield from self.writes_under(process, lease)
            if self.rng.random() < 0.5:
                yield from self.travel(process)
                held = self.keeper.renew(lease)
                renewed = lease.expires - 5 * MS
                known = yield from self.travel(process)
                if not held or until <= self.clock.now:
                    self.say("event", process, "lost", **about, fence=lease.fence, reason="late")
                    return False
                if known:
                    until = renewed
                    self.say("event", process, "held", **about, fence=lease.fence, until=until)
        if self.rng.random() < 0.1:
            return True  # it forgets to give it back
        number = self.begin(process, "release", **about)
        known = yield from self.travel(process)
        if known or self.rng.random() < 0.5:
            self.keeper.release(lease.name, lease.id)
        known = (yield from self.travel(process)) and known
        self.say("ok" if known else "unknown", process, "release", id=number)
        return True

    def writes_under(self, process: Process, lease: Lease) -> Steps:
        """It may come late: the resource will know."""
        self.values += 1
        resource, value = self.resources[lease.name], f"v{self.values}"
        number = self.begin(
            process,
            "write",
            resource=resource.name,
            name=lease.name,
            lease=lease.id,
            fence=lease.fence,
            value=value,
        )
        yield self.rng.randint(100, 3_000)
        lost = self.rng.random()
        taken = lost > 0.03 and resource.write(lease.fence, value)
        if taken:
            self.say_applied(resource, lease.fence, value)
        yield self.rng.randint(100, 3_000)
        if lost < 0.06:
            self.say("unknown", process, "write", id=number)
        elif taken:
            self.say("ok", process, "write", id=number)
        else:
            self.say("fail", process, "write", id=number, code="stale")
        return taken

    def say_applied(self, resource: Resource, fence: int, value: str) -> None:
        """The resource's own word."""
        index = len(resource.values) - 1
        self.say(
            "event",
            Process("resource"),
            "applied",
            resource=resource.name,
            index=index,
            fence=fence,
            value=value,
        )

    # --- The cache ----------------------------------------------------------------------------

    def reads(self, process: Process) -> Task:
        """Reads keys, and loads what is not there."""
        try:
            while self.clock.now < self.ends - 2_000 * MS:
                yield from self.sleep(process, 200 * MS)
                yield from self.read(process, self.rng.choice(list(KEYS)))
        except Dies:
            return

    def read(self, process: Process, key: str) -> Steps:
        """One key, once."""
        number = self.begin(process, "read", key=key)
        known = yield from self.travel(process)
        own, version = False, -1
        entry = self.cache.entry(key)
        while entry.version is None:
            if entry.fill is not None:
                yield entry.fill.done
                continue
            fill = self.cache.fill(key)
            version = yield from self.loads(process, key, fill)
            own = version >= 0
            if own:
                break
        else:
            version = entry.version
        known = (yield from self.travel(process)) and known
        if known:
            self.say("ok", process, "read", id=number, version=version, own=own, stale=False)
        else:
            self.say("unknown", process, "read", id=number)
        return known

    def loads(self, process: Process, key: str, fill: Fill) -> Generator[int | Signal, object, int]:
        """Loads the key for all; -1 if it does not succeed."""
        try:
            yield from self.travel(process)
            number = self.begin(process, "load", key=key, fence=fill.fence)
            yield from self.sleep(process, 15 * MS)
            version = self.rows[key]
            yield from self.sleep(process, 15 * MS)
            if self.rng.random() < 0.05:
                self.say("fail", process, "load", id=number)
                return -1
            self.say("ok", process, "load", id=number, version=version)
            self.cache.hand_over(key, fill, version)
            return version
        finally:
            self.cache.give_up(key, fill)

    def changes(self, process: Process, key: str) -> Task:
        """Gives the row new versions, and tells the cache."""
        version = 0
        try:
            while self.clock.now < self.ends - 2_000 * MS:
                yield from self.sleep(process, 800 * MS)
                version += 1
                number = self.begin(process, "change", key=key, version=version, tags=KEYS[key])
                yield from self.sleep(process, 4 * MS)
                lost = self.rng.random()
                if lost > 0.05:
                    self.rows[key] = version
                yield from self.sleep(process, 4 * MS)
                self.say("unknown" if lost < 0.1 else "ok", process, "change", id=number)
                yield from self.invalidates(process, key)
        except Dies:
            return

    def invalidates(self, process: Process, key: str) -> Steps:
        """By the key, or by one of its tags."""
        tags = [self.rng.choice(KEYS[key])] if KEYS[key] and self.rng.random() < 0.5 else []
        keys = [] if tags else [key]
        number = self.begin(process, "invalidate", keys=keys, tags=tags)
        known = yield from self.travel(process)
        if known or self.rng.random() < 0.5:
            self.cache.invalidate(keys, tags)
        known = (yield from self.travel(process)) and known
        self.say("ok" if known else "unknown", process, "invalidate", id=number)
        return known

    # --- Write-behind -------------------------------------------------------------------------

    def puts(self, process: Process) -> Task:
        """Queues values."""
        try:
            while self.clock.now < self.ends - 3_000 * MS:
                yield from self.sleep(process, 150 * MS)
                key = self.rng.choice(("a", "b"))
                self.values += 1
                value = f"v{self.values}"
                number = self.begin(process, "put", queue=QUEUE, key=key, value=value)
                known = yield from self.travel(process)
                seq = 0
                if known or self.rng.random() < 0.5:
                    seq = self.writes.put(key, value)
                known = (yield from self.travel(process)) and known
                if known:
                    self.say("ok", process, "put", id=number, seq=seq)
                else:
                    self.say("unknown", process, "put", id=number)
        except Dies:
            return

    def flushes(self) -> Task:
        """Writes what is queued, one after the other."""
        database = Process("database")
        while True:
            yield self.rng.randint(1, 200 * MS)
            if not self.writes.waiting:
                continue
            key = self.rng.choice(list(self.writes.waiting))
            seq, value = self.writes.waiting.pop(key)
            fence = self.fences.next()
            yield self.rng.randint(100, 5_000)
            about = {"queue": QUEUE, "key": key, "value": value, "seq": seq, "fence": fence}
            self.say("event", database, "stored", **about)
            self.stored[key] = value

    # --- Faults -------------------------------------------------------------------------------

    def breaks(self) -> Task:
        """One fault after the other, and then none."""
        harness = Process("harness")
        kinds = ["pause_client", "kill_server", "clock_step", "kill_client", "pause_client"]
        self.rng.shuffle(kinds)
        for kind in kinds:
            yield self.rng.randint(300, 1_000) * MS
            lasts = self.rng.randint(50, 900) * MS
            victim = self.rng.choice(self.processes[1:])
            about: dict[str, object] = {"fault": kind, "target": victim.name}
            if kind == "clock_step":
                about |= {"target": "store", "excuses": ["exclusion"]}
            self.say("event", harness, "fault", phase="begin", **about)
            match kind:
                case "pause_client":
                    victim.awake_at = self.clock.now + lasts
                case "kill_server":
                    self.down_until = self.clock.now + lasts
                case "kill_client":
                    victim.killed = True
                    continue
                case _:
                    yield 10
                    self.keeper.expire_all()
                    lasts = 10
            yield lasts
            self.say("event", harness, "fault", phase="end", **about)
        self.say("event", harness, "heal")


@cache
def _ideal(seed: int, faults: bool) -> bytes:
    return written(World(Random(seed), faults).run())


def header(**members: object) -> Line:
    """The first line of a history."""
    return {"type": "history", "version": 1, "recovery_us": RECOVERY_US} | members


def written(lines: Iterable[Line]) -> bytes:
    """The lines as they stand in a file, with a header before them."""
    return b"\n".join(map(orjson.dumps, (header(), *lines)))


def ideal_history(seed: int, *, faults: bool = True) -> list[Line]:
    """Lines that may be spoiled, without the header."""
    return [orjson.loads(line) for line in _ideal(seed, faults).splitlines()[1:]]
