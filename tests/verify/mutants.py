"""Ideal histories with one thing wrong, each with the check that must find it.

A mutant returns None where a history has no place for its mistake.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random
from typing import Final

from attrs import frozen

from tests.verify.ideal import KEYS, RECOVERY_US, Line

Lines = list[Line]
Mutant = Callable[[Lines, Random], Lines | None]

MUTANTS: Final[dict[str, tuple[str, Mutant]]] = {}


def breaks(check: str) -> Callable[[Mutant], Mutant]:
    """Names the check that must find it."""

    def noted(mutant: Mutant) -> Mutant:
        MUTANTS[mutant.__name__] = (check, mutant)
        return mutant

    return noted


@frozen
class Op:
    """The two lines of an operation."""

    begin: Line
    end: Line | None

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return self.end is not None and self.end["type"] == "ok"

    @property
    def began(self) -> int:
        """When."""
        return int(self.begin["at"])

    @property
    def ended(self) -> int:
        """When, if it has an end."""
        assert self.end is not None
        return int(self.end["at"])

    def __getitem__(self, member: str) -> object:
        if member in self.begin or self.end is None:
            return self.begin[member]
        return self.end[member]


def ops(lines: Lines, op: str) -> list[Op]:
    """All operations of this kind."""
    ends = {(e["process"], e["id"]): e for e in lines if e["type"] in {"ok", "fail", "unknown"}}
    begins = [each for each in lines if each["type"] == "begin" and each["op"] == op]
    return [Op(each, ends.get((each["process"], each["id"]))) for each in begins]


def events(lines: Lines, op: str) -> list[Line]:
    """All events of this kind."""
    return [each for each in lines if each["type"] == "event" and each["op"] == op]


def grants(lines: Lines) -> Mapping[str, Sequence[Op]]:
    """What was granted exclusively, by name, in order."""
    by_name: dict[str, list[Op]] = defaultdict(list)
    for op in ops(lines, "acquire"):
        if op.ok and op["mode"] == "exclusive":
            by_name[str(op["name"])].append(op)
    return {name: sorted(some, key=lambda op: op.ended) for name, some in by_name.items()}


def successive(lines: Lines) -> Sequence[tuple[Op, Op]]:
    """Grants of a name of which the second was asked for after the first was answered."""
    return [
        (one, two)
        for some in grants(lines).values()
        for one in some
        for two in some
        if one.ended < two.began
    ]


def spans(lines: Lines) -> Iterator[tuple[int, int, object]]:
    """When faults began and ended, and connections were dropped; and whose, if not everybody's."""
    said = events(lines, "fault")
    for fault in said:
        if fault["phase"] == "begin":
            ends = [
                each["at"]
                for each in said
                if each["phase"] == "end"
                and (each["fault"], each["target"]) == (fault["fault"], fault["target"])
                and each["at"] >= fault["at"]
            ]
            yield fault["at"], min(ends, default=fault["at"]), None
    for drop in events(lines, "dropped"):
        yield drop["at"] - 1_000_000, drop["at"] + 1_000_000, drop["process"]


Spans = list[tuple[int, int, object]]


def quiet(disturbed: Spans, begin: int, end: int, process: object) -> bool:
    """Whether nothing disturbed the process in this stretch."""
    return not any(
        first <= end and begin <= last and whose in {None, process}
        for first, last, whose in disturbed
    )


def intruder(type_: str, at: int, op: str, **members: object) -> Line:
    """A line of somebody who should not be there."""
    return {"type": type_, "at": at, "process": "intruder", "id": 1, "op": op, **members}


def healed(lines: Lines) -> int:
    """When all faults were over."""
    return int(events(lines, "heal")[-1]["at"])


# --- Leases -----------------------------------------------------------------------------------


def _refence(lines: Lines, lease: object, fence: object) -> None:
    for line in lines:
        if line["op"] in {"held", "lost"} and line["lease"] == lease:
            line["fence"] = fence


@breaks("fences")
def swap_two_fences(lines: Lines, rng: Random) -> Lines | None:
    """Two grants, one after the other, in the wrong order."""
    pairs = successive(lines)
    if not pairs:
        return None
    one, two = rng.choice(pairs)
    assert one.end
    assert two.end
    one.end["fence"], two.end["fence"] = two.end["fence"], one.end["fence"]
    _refence(lines, one["lease"], one["fence"])
    _refence(lines, two["lease"], two["fence"])
    return lines


@breaks("fences")
def repeat_a_fence(lines: Lines, rng: Random) -> Lines | None:
    """Two grants with one fence."""
    choices = [some for some in grants(lines).values() if len(some) > 1]
    if not choices:
        return None
    one, two = rng.sample(rng.choice(choices), 2)
    assert two.end
    two.end["fence"] = one["fence"]
    _refence(lines, two["lease"], one["fence"])
    return lines


@breaks("exclusion")
def extend_a_belief(lines: Lines, rng: Random) -> Lines | None:
    """A holder neither gives up nor hears of it, and the next is granted."""
    steps = [each["at"] for each in events(lines, "fault") if each.get("excuses")]
    lasting = _lasting(lines)
    choices = [
        (one, two)
        for one, two in successive(lines)
        if not any(one.began <= at <= two.ended + 10 for at in steps)
        and str(two["lease"]) in lasting
    ]
    if not choices:
        return None
    one, two = rng.choice(choices)
    assert one.end
    one.end["until"] = two.ended + 10
    gone = {"held", "lost", "release"}
    ends = {
        (op.begin["process"], op.begin["id"])
        for op in ops(lines, "release")
        if op["lease"] == one["lease"]
    }
    return [
        line
        for line in lines
        if not (line["op"] in gone and line.get("lease") == one["lease"])
        and (line["process"], line.get("id")) not in ends
    ]


def _lasting(lines: Lines) -> set[str]:
    """Leases that were not given back as soon as they were had."""
    over = {str(e["lease"]): e["at"] for e in lines if e["op"] == "lost" or "lease" in e}
    return {
        str(op["lease"])
        for op in ops(lines, "acquire")
        if op.ok and over[str(op["lease"])] > op.ended + 100
    }


@breaks("exclusion")
def share_with_too_many(lines: Lines, rng: Random) -> Lines | None:
    """More share a name than one of them allows."""
    over = _ends(lines)
    shared = [
        (op, min(int(str(op["until"])), over.get(str(op["lease"]), op.ended + 10**9)))
        for op in ops(lines, "acquire")
        if op.ok and op["mode"] == "shared"
    ]
    steps = [each["at"] for each in events(lines, "fault") if each.get("excuses")]
    choices = [
        two
        for one, one_ends in shared
        for two, two_ends in shared
        if one.ended < two.ended < two.ended + 100 < min(one_ends, two_ends)
        and not any(one.began <= at <= one_ends for at in steps)
    ]
    if not choices:
        return None
    rng.choice(choices).begin["limit"] = 1
    return lines


def _ends(lines: Lines) -> dict[str, int]:
    """When leases were given back or lost."""
    ends: dict[str, int] = {}
    for line in lines:
        if line["op"] in {"release", "lost"} and "lease" in line:
            ends[line["lease"]] = min(line["at"], ends.get(line["lease"], line["at"]))
    return ends


@breaks("fifo")
def overtake_a_waiter(lines: Lines, rng: Random) -> Lines | None:
    """Somebody comes later and is granted sooner."""
    disturbed = list(spans(lines))
    queued = {str(each["lease"]): int(each["at"]) for each in events(lines, "queued")}
    waits = [
        op
        for some in grants(lines).values()
        for op in some
        if str(op["lease"]) in queued
        and queued[str(op["lease"])] + 3 < op.ended
        and quiet(disturbed, op.began, op.ended, op["process"])
    ]
    if not waits:
        return None
    wait = rng.choice(waits)
    at, name, fence = queued[str(wait["lease"])], wait["name"], wait["fence"]
    assert isinstance(fence, int)
    return [
        *lines,
        intruder("begin", at + 1, "acquire", name=name, lease="intruder"),
        intruder("ok", at + 2, "acquire", fence=fence - 1, until=at + 2),
    ]


@breaks("stuck")
def drop_a_completion_after_heal(lines: Lines, rng: Random) -> Lines | None:
    """One who waits when all is well again waits for ever."""
    heal, last = healed(lines), max(int(line["at"]) for line in lines)
    dead = {e["target"] for e in events(lines, "fault") if e["fault"] == "kill_client"}
    waits = [
        op
        for op in ops(lines, "acquire")
        if op.end is not None
        and op.ended >= heal
        and (op.began < heal or op["wait_ms"] is None)
        and max(op.began, heal) + RECOVERY_US <= last
        and op["process"] not in dead
    ]
    if not waits:
        return None
    end = rng.choice(waits).end
    return [line for line in lines if line is not end]


# --- Resources --------------------------------------------------------------------------------


@breaks("resource")
def apply_a_stale_write(lines: Lines, rng: Random) -> Lines | None:
    """A resource takes a write that comes after one with a greater fence."""
    applied = events(lines, "applied")
    last = rng.choice(applied)
    same = [each for each in applied if each["resource"] == last["resource"]]
    top = max(same, key=lambda each: int(each["index"]))
    stale = {"index": top["index"] + 1, "fence": top["fence"] - 1, "value": "stale"}
    return [*lines, top | stale | {"at": top["at"] + 1}]


@breaks("resource")
def swap_two_applied(lines: Lines, rng: Random) -> Lines | None:
    """Two writes with different fences are applied in the wrong order."""
    applied = events(lines, "applied")
    pairs = [
        (one, two)
        for one in applied
        for two in applied
        if one["resource"] == two["resource"] and one["fence"] < two["fence"]
    ]
    if not pairs:
        return None
    one, two = rng.choice(pairs)
    one["index"], two["index"] = two["index"], one["index"]
    return lines


@breaks("updates")
def lose_an_update(lines: Lines, rng: Random) -> Lines | None:
    """A write that was acknowledged is not there at the end."""
    written = [op["value"] for op in ops(lines, "write") if op.ok]
    value = rng.choice(written)
    for final in events(lines, "final"):
        final["values"] = [each for each in final["values"] if each != value]
    return lines


@breaks("updates")
def double_an_update(lines: Lines, rng: Random) -> Lines | None:
    """A write is there twice."""
    final = rng.choice([each for each in events(lines, "final") if each["values"]])
    final["values"].append(rng.choice(final["values"]))
    return lines


@breaks("updates")
def invent_an_update(lines: Lines, rng: Random) -> Lines | None:
    """What nobody wrote is there."""
    rng.choice(events(lines, "final"))["values"].append("invented")
    return lines


# --- The cache --------------------------------------------------------------------------------


@breaks("loads")
def overlap_two_loads(lines: Lines, rng: Random) -> Lines | None:
    """Somebody loads what is being loaded."""
    around, disturbed = 10_000, list(spans(lines))
    voids = [*ops(lines, "change"), *ops(lines, "invalidate")]
    reads = ops(lines, "read")
    choices = []
    for load in ops(lines, "load"):
        if not load.ok or load.ended < load.began + 4:
            continue
        asked = [
            read.began
            for read in reads
            if read["process"] == load["process"]
            and read["key"] == load["key"]
            and read.began <= load.began
            and (read.end is None or read.ended >= load.began)
        ]
        begin = min([load.began, *asked]) - around
        free = not any(op.began <= load.ended and begin <= _effect_until(op) for op in voids)
        if free and quiet(disturbed, begin, load.ended, load["process"]):
            choices.append(load)
    if not choices:
        return None
    load = rng.choice(choices)
    middle = (load.began + load.ended) // 2
    return [
        *lines,
        intruder("begin", middle, "load", key=load["key"], fence=1),
        intruder("ok", load.ended, "load", version=load["version"]),
    ]


def _effect_until(op: Op) -> int:
    if op.end is None:
        return op.began + RECOVERY_US
    return op.ended + (0 if op.ok else RECOVERY_US)


@breaks("stale")
def return_an_old_version(lines: Lines, rng: Random) -> Lines | None:
    """A read has what was changed, and invalidated, before it began."""
    invalidates = [op for op in ops(lines, "invalidate") if op.ok]
    changes = [op for op in ops(lines, "change") if op.ok]
    reads = [op for op in ops(lines, "read") if op.ok]
    rng.shuffle(reads)
    choices = (
        (read, change)
        for read in reads
        for change in changes
        if change["key"] == read["key"] and change.ended < read.began
        if any(
            change.ended <= told.began and told.ended <= read.began and _concerns(told, change)
            for told in invalidates
        )
    )
    read, change = next(choices, (None, None))
    if read is None or change is None:
        return None
    version = change["version"]
    assert read.end
    assert isinstance(version, int)
    read.end["version"] = version - 1
    return lines


def _concerns(told: Op, change: Op) -> bool:
    keys, tags = told["keys"], told["tags"]
    assert isinstance(keys, list)
    assert isinstance(tags, list)
    return change["key"] in keys or bool({*tags} & {*KEYS[str(change["key"])]})


# --- Write-behind -----------------------------------------------------------------------------


@breaks("writes")
def lose_a_put(lines: Lines, rng: Random) -> Lines | None:
    """What was put last is never written."""
    last: dict[object, Op] = {}
    for op in ops(lines, "put"):
        if op.ok:
            last[op["key"]] = max(last.get(op["key"], op), op, key=lambda op: int(str(op["seq"])))
    put = rng.choice(list(last.values()))
    seq = int(str(put["seq"]))
    left = [
        line
        for line in lines
        if not (line["op"] == "stored" and line["key"] == put["key"] and line["seq"] >= seq)
    ]
    for final in events(left, "stored_final"):
        if final["key"] == put["key"]:
            before = [e for e in events(left, "stored") if e["key"] == put["key"]]
            final["value"] = before[-1]["value"] if before else ""
    return left


@breaks("writes")
def reorder_stored(lines: Lines, rng: Random) -> Lines | None:
    """An older value is written over a newer one."""
    stored = events(lines, "stored")
    pairs = [(a, b) for a in stored for b in stored if a["key"] == b["key"] and a["at"] < b["at"]]
    if not pairs:
        return None
    one, two = rng.choice(pairs)
    one["at"], two["at"] = two["at"], one["at"]
    return lines


@breaks("writes")
def store_what_nobody_put(lines: Lines, rng: Random) -> Lines | None:
    """The database has a value from nowhere."""
    rng.choice(events(lines, "stored"))["value"] = "invented"
    return lines
