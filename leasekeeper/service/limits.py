"""Every bound of the service, with its default. Past a bound comes a typed error (law L12)."""

from typing import TypeVar

from attrs import field, frozen

T = TypeVar("T", int, float)


def bound(default: T, meaning: str) -> T:
    """A field that an operator may set; `meaning` is its help text on the command line."""
    made: T = field(default=default, metadata={"meaning": meaning})
    return made


@frozen
class Limits:
    """Bounds and times of sessions, leases and waiters. Times are in milliseconds."""

    leases_per_session: int = bound(1_000, "leases that one session may hold")
    waiters_per_session: int = bound(1_000, "waits that one session may have at once")
    waiters_per_name: int = bound(10_000, "waiters in one name's queue")
    watches_per_session: int = bound(1_000, "names that one session may watch")
    waiters_per_key: int = bound(10_000, "callers that one server lets wait for one cached key")
    fills_per_session: int = bound(1_000, "cached keys that one session may be loading at once")
    value_bytes: int = bound(1024 * 1024, "size of a cached value; a larger one is not cached")
    waiters_per_queue: int = bound(
        1_000, "callers that one server lets wait for one queue of writes"
    )
    claims_per_session: int = bound(10_000, "queued writes that one session may have claimed")
    writes_per_queue: int = bound(100_000, "writes that may wait in one queue, dead ones too")
    writes_bytes_per_queue: int = bound(
        256 * 1024 * 1024, "size of all values that wait in one queue"
    )
    writes_attempts_max: int = bound(
        16, "how often a queued write is claimed before it is given up as dead"
    )
    sessions_detached: int = bound(
        10_000, "dropped sessions remembered at once; past it the oldest ends early"
    )

    grace_ms: int = bound(5_000, "how long a dropped connection keeps its leases and places")
    heartbeat_ms: int = bound(10_000, "how often a session with heartbeats is to send one")
    waiter_alive_ms: int = bound(
        12_000, "a waiter that its server has not vouched for in this time is skipped"
    )
    contended_every_ms: int = bound(1_000, "at most one lease.contended per lease in this time")
    renewal_jitter: float = bound(
        0.2, "a renewal comes due between (1 - this) and 1 times TTL / 3 after the last"
    )
    store_retry_ms: int = bound(200, "how long after a failure the store is asked again")

    holders_shown: int = bound(100, "holders listed by inspect and watch")
    waiters_shown: int = bound(100, "waiters listed by inspect and watch")
    holders_in_busy: int = bound(16, "holders listed by the error busy")
