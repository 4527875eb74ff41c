"""How the Redis store is: what its client, its recovery and its preflight know, in one answer."""

from leasekeeper.resp.client import Client
from leasekeeper.store.api import Health
from leasekeeper.store.redis.preflight import Preflight
from leasekeeper.store.redis.recovery import PAUSED_BY_LOSS, Recovery


def health_of(client: Client, preflight: Preflight, recovery: Recovery) -> Health:
    """Asks Redis nothing: a look at it is free, and says what was last known."""
    paused_ms = preflight.paused_ms or recovery.hold.left_ms
    reason = preflight.reason or PAUSED_BY_LOSS
    return Health("redis", client.is_up, paused_ms, reason if paused_ms else None)
