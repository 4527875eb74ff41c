"""What this server counts and times, for Prometheus.

All of it is in a registry of its own, so that two servers in one process do not mix. Labels have
few values, known beforehand, so their children are made once: to count is one `inc()` or
`observe()`. No label is ever a name, a lease id, a client or a cache key: the number of time series
is the same after a million names.
"""
# ruff: noqa: RUF009 # the calls in the body of Metrics make fields, each with a factory

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, TypeAlias, TypeVar, get_args

from attrs import Factory, define, field
from prometheus_client import CollectorRegistry, Gauge, PlatformCollector, ProcessCollector

from leasekeeper.messages import LostReason, Mode
from leasekeeper.service.meters import Counter, Counters, Histogram, Histograms

Hit: TypeAlias = Literal["fresh", "stale", "negative"]
Grant: TypeAlias = Literal["miss", "refresh", "promotion", "unshared"]
Fill: TypeAlias = Literal["stored", "voided", "superseded", "too_late", "too_large"]
Invalidated: TypeAlias = Literal["keys", "tags"]

T = TypeVar("T")
K = TypeVar("K", bound=str)

# In seconds. Of one round trip to Redis, of loads and waits of callers, and of waits in a queue.
_SHORT: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1, 3)
_LOAD: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_QUEUE: Final = (0.0005, 0.001, 0.0025, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300)
_LAG: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


def _in_registry(make: Callable[[CollectorRegistry], T]) -> T:
    """A field that is made once its instance has a registry."""
    factory: T = Factory(lambda self: make(self.registry), takes_self=True)
    made: T = field(init=False, repr=False, default=factory)
    return made


def _gauge(name: str, meaning: str) -> Gauge:
    return _in_registry(lambda registry: Gauge(name, meaning, registry=registry))


def _counters(name: str, meaning: str, label: str, values: Sequence[K]) -> Mapping[K, Counter]:
    """A counter for each value that the label can have."""

    def make(registry: CollectorRegistry) -> Mapping[K, Counter]:
        family = Counters(name, meaning, label)
        registry.register(family)
        return {value: family.of(value) for value in values}

    return _in_registry(make)


def _counter(name: str, meaning: str) -> Counter:
    def make(registry: CollectorRegistry) -> Counter:
        family = Counters(name, meaning)
        registry.register(family)
        return family.of()

    return _in_registry(make)


def _histograms(name: str, meaning: str, bounds: Sequence[float], label: str) -> Histograms:
    def make(registry: CollectorRegistry) -> Histograms:
        family = Histograms(name, meaning, bounds, label)
        registry.register(family)
        return family

    return _in_registry(make)


def _histogram(name: str, meaning: str, bounds: Sequence[float]) -> Histogram:
    def make(registry: CollectorRegistry) -> Histogram:
        family = Histograms(name, meaning, bounds)
        registry.register(family)
        return family.of()

    return _in_registry(make)


@define(eq=False)
class Metrics:
    """The metrics of one server. A gauge may be given a function that is read at each scrape.

    It does not serve them (`leasekeeper.admin` does), and nothing is decided by them.
    """

    registry: CollectorRegistry = field(factory=CollectorRegistry, init=False, repr=False)

    # --- Leases -------------------------------------------------------------------------------

    leases_held: Gauge = _gauge("leases_held", "Leases held by sessions of this server.")
    leases_waiting: Gauge = _gauge(
        "leases_waiting", "Lease ids of this server's sessions that are asked or waited for."
    )
    lease_grants: Mapping[Mode, Counter] = _counters(
        "lease_grants_total",
        "Grants to sessions of this server. A lease that is resumed is not granted again.",
        "mode",
        tuple(Mode),
    )
    lease_acquire_wait: Histogram = _histogram(
        "lease_acquire_wait_seconds",
        "From a request for a lease to its grant; of those that were granted.",
        _QUEUE,
    )
    lease_hand_off: Histogram = _histogram(
        "lease_hand_off_seconds",
        "From a release through this server to the next holder, also of this server, being told.",
        _SHORT,
    )
    leases_lost: Mapping[LostReason, Counter] = _counters(
        "leases_lost_total",
        "Leases that their holders did not give up themselves.",
        "reason",
        tuple(LostReason),
    )
    lease_renewal_lag: Histogram = _histogram(
        "lease_renewal_lag_seconds",
        "How much later than it was due a renewal was carried out.",
        _LAG,
    )

    # --- Cache --------------------------------------------------------------------------------

    cache_hits: Mapping[Hit, Counter] = _counters(
        "cache_hits_total",
        "Reads that were answered from the cache: with a fresh value, a stale one, or none known.",
        "kind",
        get_args(Hit),
    )
    cache_misses: Counter = _counter(
        "cache_misses_total", "Reads that were not answered from the cache."
    )
    cache_fill_grants: Mapping[Grant, Counter] = _counters(
        "cache_fill_grants_total",
        "Callers that were told to load: for a miss, an early refresh, in place of a filler that "
        "failed, or for themselves alone.",
        "kind",
        get_args(Grant),
    )
    cache_coalesced_waiters: Counter = _counter(
        "cache_coalesced_waiters_total", "Callers that began to wait for somebody else's fill."
    )
    cache_promotions: Counter = _counter(
        "cache_promotions_total", "Waiters that were told to load, for the filler was gone."
    )
    cache_fills: Mapping[Fill, Counter] = _counters(
        "cache_fills_total",
        "Loaded values that were sent, by what became of them: only those stored are cached.",
        "outcome",
        get_args(Fill),
    )
    cache_fill_failures: Counter = _counter(
        "cache_fill_failures_total", "Fills that their fillers reported as failed."
    )
    cache_invalidations: Mapping[Invalidated, Counter] = _counters(
        "cache_invalidations_total",
        "Keys and tags that were invalidated.",
        "what",
        get_args(Invalidated),
    )
    cache_deadlocks: Counter = _counter(
        "cache_deadlocks_total",
        "Waits that were refused, for the filler waits for the same caller.",
    )
    cache_fill: Histogram = _histogram(
        "cache_fill_seconds", "From a grant to load to the value.", _LOAD
    )
    cache_wait: Histogram = _histogram(
        "cache_wait_seconds", "How long a caller waited for somebody else's fill.", _LOAD
    )
    cache_waiting: Gauge = _gauge(
        "cache_waiting", "Callers that wait for somebody else's fill now."
    )

    # --- Write-behind -------------------------------------------------------------------------

    writes_queued: Counter = _counter("writes_queued_total", "Writes that were queued, or revived.")
    writes_claimed: Counter = _counter(
        "writes_claimed_total", "Queued writes that were handed to a writer."
    )
    writes_acked: Counter = _counter(
        "writes_acked_total", "Queued writes that a writer has carried out."
    )
    writes_retried: Counter = _counter(
        "writes_retried_total", "Queued writes that failed, and will be handed out again."
    )
    writes_dead: Counter = _counter(
        "writes_dead_total", "Queued writes that were given up after too many failures."
    )

    # --- Redis, and the process ---------------------------------------------------------------

    redis_operation_duration: Histograms = _histograms(
        "redis_operation_duration_seconds",
        "From a script or command to its reply; many that are sent together count once.",
        _SHORT,
        "operation",
    )
    connections: Gauge = _gauge("connections", "Clients that are connected.")
    event_loop_lag: Histogram = _histogram(
        "event_loop_lag_seconds",
        "How much later than it asked to a task is run: by this much is everything else late, too.",
        _LAG,
    )

    def __attrs_post_init__(self) -> None:
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def observe_redis(self, operation: str, seconds: float) -> None:
        """A script or command of Redis was answered, or failed. `operation` is its name alone."""
        self.redis_operation_duration.of(operation).observe(seconds)
