"""What is right and wrong with a Redis, judged from what it says of itself. No I/O."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from attrs import frozen

STEP_MS: Final = 500
"""A clock that is off by more than this since it was last seen was stepped."""
APART_MS: Final = 1000
"""Clocks that are further apart than this deserve a word."""

_OLDEST: Final = (6, 2)
"""The Lua and the connections would work with 6.0, too, but nobody mends that any more."""
_RECENT: Final = (7, 0)
_MEMORY_MAX: Final = 0.8


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """It works, with a consequence that an operator should know of."""
    REFUSE = "refuse"
    """Leases cannot be granted on this Redis."""


@frozen
class Finding:
    """One thing that was looked at, and how it is."""

    level: Level
    subject: str
    found: str
    advice: str = ""
    """What to do about it; nothing if it is right."""
    where: str = ""
    """The node."""
    passing: bool = False
    """A state rather than a setting. It is no reason to refuse everything: Redis does so itself."""


def version(info: Mapping[str, str]) -> Finding:
    """Whether this version will do."""
    said = info.get("redis_version", "")
    try:
        major, minor, *_ = (int(part) for part in said.split("."))
    except ValueError:
        return Finding(
            Level.WARN, "version", "cannot be read", "make sure that it is Redis 7 or newer"
        )
    name = f"Redis {said}"
    if fork := info.get("valkey_version"):
        name = f"Valkey {fork} (as {name})"
    if (major, minor) < _OLDEST:
        return Finding(
            Level.REFUSE,
            "version",
            f"{name} is older than 6.2: it gets no fixes, and leasekeeper is not tested with it",
            "upgrade to Redis 7 or newer",
        )
    if (major, minor) < _RECENT:
        return Finding(
            Level.WARN, "version", f"{name} gets no fixes any more", "upgrade to Redis 7 or newer"
        )
    return Finding(Level.OK, "version", name)


def eviction(info: Mapping[str, str]) -> Finding:
    """Whether Redis may delete leases to make room."""
    policy = info.get("maxmemory_policy")
    if not policy:
        return Finding(
            Level.WARN,
            "eviction",
            "maxmemory-policy cannot be read",
            "make sure that it is noeviction, or leases may be deleted",
        )
    if policy == "noeviction":
        return Finding(Level.OK, "eviction", "maxmemory-policy is noeviction")
    # Also without a maxmemory: whoever sets one later does not think of leases.
    return Finding(
        Level.REFUSE,
        "eviction",
        f"maxmemory-policy is {policy}: Redis may delete leases to make room",
        "CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
    )


def memory(info: Mapping[str, str]) -> Finding:
    """Whether Redis will soon refuse to write."""
    used, most = _count(info, "used_memory"), _count(info, "maxmemory")
    if used is None or most is None:
        return Finding(
            Level.WARN, "memory", "cannot be read", "watch that maxmemory is not reached"
        )
    if not most:
        return Finding(Level.OK, "memory", f"{_size(used)} used, no maxmemory")
    found = f"{_size(used)} used, {used / most:.0%} of maxmemory"
    if used > _MEMORY_MAX * most:
        advice = "raise maxmemory, or find out what fills it: when it is full, nothing is granted"
        return Finding(Level.WARN, "memory", found, advice)
    return Finding(Level.OK, "memory", found)


def persistence(info: Mapping[str, str], save: str | None, fsync: str | None) -> Finding:
    """What a crash of Redis loses. `save` and `fsync` are its settings, None: cannot be read."""
    if "aof_enabled" not in info:
        found, advice = "cannot be read", "find out what a restart of Redis loses"
    elif info["aof_enabled"] == "1":
        if fsync == "always":
            return Finding(Level.OK, "persistence", "AOF, synced at every write")
        advice = "appendfsync always loses nothing, and makes every grant as slow as the disk"
        if fsync == "everysec":
            found = "AOF, synced every second: a crash of its machine loses the last one"
        elif fsync is None:
            found = "AOF; whether it is synced at every write cannot be read"
        else:
            found = f"AOF, appendfsync {fsync}: a crash of its machine may lose half a minute"
    elif save:
        found = "snapshots only: a crash loses the leases since the last, and grants then pause"
        advice = "CONFIG SET appendonly yes, and the same in redis.conf"
    elif save is None:
        found = "no AOF; whether there are snapshots cannot be read"
        advice = "turn AOF on, or know that grants pause when Redis restarts"
    else:
        found = "none: a restart loses all leases, and grants then pause"
        advice = "CONFIG SET appendonly yes, and the same in redis.conf"
    return Finding(Level.WARN, "persistence", found, advice)


def has_aof(info: Mapping[str, str]) -> bool:
    """Whether what was written is there again after a restart of Redis."""
    return info.get("aof_enabled") == "1"


def replicas(info: Mapping[str, str], wanted: int) -> Finding:
    """Whether enough replicas are connected for what every grant waits for."""
    online = sum(
        "state=online" in value
        for name, value in info.items()
        if name.startswith("slave") and name.removeprefix("slave").isdecimal()
    )
    found = f"{online} online, {wanted} wanted"
    if online >= wanted:
        return Finding(Level.OK, "replicas", found)
    return Finding(
        Level.WARN,
        "replicas",
        f"{found}: nothing is granted until they are there",
        "bring up the missing replicas, or lower --replicas",
    )


def clock(apart_ms: float) -> Finding:
    """How far Redis is ahead of this machine. Nothing rests on it, for no clock is sent."""
    found = f"{abs(apart_ms) / 1000:.1f} s {'ahead of' if apart_ms > 0 else 'behind'} this machine"
    if abs(apart_ms) <= APART_MS:
        return Finding(Level.OK, "clock", "agrees with this machine's")
    return Finding(
        Level.WARN,
        "clock",
        found,
        "let NTP keep both: leases do not mind, but a correction may be a step",
    )


def clock_step(step_ms: float) -> Finding | None:
    """Whether Redis' clock was set in between, and by how much."""
    if abs(step_ms) <= STEP_MS:
        return None
    effect = "leases ended early" if step_ms > 0 else "leases last longer"
    return Finding(
        Level.WARN,
        "clock step",
        f"its clock was set {'forward' if step_ms > 0 else 'back'} "
        f"by {abs(step_ms) / 1000:.1f} s: {effect}",
        "let NTP slew the clock of Redis' machine rather than step it",
    )


def _count(info: Mapping[str, str], name: str) -> int | None:
    text = info.get(name, "")
    return int(text) if text.isdecimal() else None


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 1000:
            break
        size, unit = size / 1024, larger
    return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
