"""The Python client of leasekeeper: leases that cancel what they guard, a cache that loads once.

`connect` is for Trio and asyncio; `leasekeeper_client.sync.connect` is for programs without an
event loop. Times are seconds.
"""

from leasekeeper_client._intents import WriteThrough
from leasekeeper_client._plan import LeaseOptions
from leasekeeper_client._terms import FillOptions
from leasekeeper_client.cache import Cache, CachedFunction
from leasekeeper_client.codecs import Codec, JsonCodec, MsgpackCodec, ZstdCodec
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
    UnknownCodec,
    UnknownMethod,
    ValueNotFound,
    ValueTooLarge,
    WriteExpired,
)
from leasekeeper_client.keeper import Keeper, connect
from leasekeeper_client.lease import Lease, LeaseSet
from leasekeeper_client.loads import (
    Fresh,
    Load,
    Loaded,
    Loader,
    NotFound,
    NotModified,
    Private,
    current_load,
)
from leasekeeper_client.model import Holder, ListedLease, NameState, Waiter
from leasekeeper_client.writes import DeadWrite, Write, WriteBehind

__all__ = [
    "Busy",
    "Cache",
    "CachedFunction",
    "Cancelled",
    "Codec",
    "ConnectionFailed",
    "DeadWrite",
    "Deadlock",
    "Draining",
    "FillFailed",
    "FillOptions",
    "Forbidden",
    "Fresh",
    "Holder",
    "InvalidRequest",
    "JsonCodec",
    "Keeper",
    "KeeperError",
    "Lease",
    "LeaseLost",
    "LeaseOptions",
    "LeaseSet",
    "LimitReached",
    "ListedLease",
    "Load",
    "Loaded",
    "Loader",
    "LossReason",
    "MsgpackCodec",
    "NameState",
    "NotFound",
    "NotModified",
    "Overloaded",
    "Private",
    "ProtocolError",
    "Unauthenticated",
    "Unavailable",
    "UnknownCodec",
    "UnknownMethod",
    "ValueNotFound",
    "ValueTooLarge",
    "Waiter",
    "Write",
    "WriteBehind",
    "WriteExpired",
    "WriteThrough",
    "ZstdCodec",
    "connect",
    "current_load",
]
