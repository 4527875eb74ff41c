"""What `connect` was told, in one place."""

import random
import ssl
from collections.abc import Callable

from attrs import field, frozen

from leasekeeper_client._websocket import Address


def full_jitter(ceiling: float) -> float:
    """Return a delay between nothing and the ceiling (seconds), so that clients do not march."""
    return random.uniform(0.0, ceiling)


@frozen
class Settings:
    """What `connect` was told. Times are seconds.

    Attributes:
        addresses: The servers, in the order in which to try them.
        client: The name shown to others.
        token: The secret, if the servers want one.
        ssl_context: For wss; None means the system's certificates.
        connect_timeout: For the first connection, over all addresses.
        dial_timeout: For one try at one address.
        answer_timeout: How long a server may take to answer what should not wait.
        clock: Monotonic time.
        jitter: How to shorten a delay at random.
    """

    addresses: tuple[Address, ...]
    clock: Callable[[], float]
    client: str | None = None
    token: str | None = field(default=None, repr=False)
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    connect_timeout: float = 10.0
    dial_timeout: float = 5.0
    answer_timeout: float = 10.0
    backoff_first: float = 0.1
    backoff_max: float = 5.0
    outstanding_max: int = 10_000
    jitter: Callable[[float], float] = full_jitter
