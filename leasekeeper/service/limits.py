"""Every bound of the service, with its default. Past a bound comes a typed error (law L12)."""

from attrs import frozen


@frozen
class Limits:
    """Bounds and times of sessions, leases and waiters. Times are in milliseconds."""

    leases_per_session: int = 1_000
    waiters_per_session: int = 1_000
    waiters_per_name: int = 10_000
    watches_per_session: int = 1_000
    sessions_detached: int = 10_000
    """Dropped sessions remembered at once; past it the oldest ends early."""

    grace_ms: int = 5_000
    """How long a dropped connection keeps its leases and its places in queues."""
    heartbeat_ms: int = 10_000
    """What a session of liveness "heartbeat" is told to keep to."""
    waiter_alive_ms: int = 15_000
    """A waiter whose server has not vouched for it for so long is skipped."""
    contended_every_ms: int = 1_000
    """At most one `lease.contended` per lease in this time."""
    renewal_jitter: float = 0.2
    """A renewal comes due between (1 - this) and 1 times TTL / 3 after the last."""
    store_retry_ms: int = 200
    """After the store was unavailable, how long until it is asked again."""

    holders_shown: int = 100
    waiters_shown: int = 100
    holders_in_busy: int = 16
