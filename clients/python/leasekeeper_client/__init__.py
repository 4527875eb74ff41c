"""The Python client of leasekeeper: leases that cancel your critical section when they are lost.

`connect` is for Trio and asyncio; `leasekeeper_client.sync.connect` is for programs without an
event loop. Times are seconds.
"""

from leasekeeper_client._plan import LeaseOptions
from leasekeeper_client.errors import (
    Busy,
    Cancelled,
    ConnectionFailed,
    Deadlock,
    Draining,
    FillFailed,
    Forbidden,
    InvalidRequest,
    KeeperError,
    LeaseLost,
    LimitReached,
    LossReason,
    Overloaded,
    ProtocolError,
    Unauthenticated,
    Unavailable,
    UnknownMethod,
)
from leasekeeper_client.keeper import Keeper, connect
from leasekeeper_client.lease import Lease, LeaseSet
from leasekeeper_client.model import Holder, ListedLease, NameState, Waiter

__all__ = [
    "Busy",
    "Cancelled",
    "ConnectionFailed",
    "Deadlock",
    "Draining",
    "FillFailed",
    "Forbidden",
    "Holder",
    "InvalidRequest",
    "Keeper",
    "KeeperError",
    "Lease",
    "LeaseLost",
    "LeaseOptions",
    "LeaseSet",
    "LimitReached",
    "ListedLease",
    "LossReason",
    "NameState",
    "Overloaded",
    "ProtocolError",
    "Unauthenticated",
    "Unavailable",
    "UnknownMethod",
    "Waiter",
    "connect",
]
