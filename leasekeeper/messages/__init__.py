"""The wire vocabulary: frozen attrs classes, nothing else.

Durations are integers of milliseconds and end in `_ms`; fences are integers below 2**53. What a
value may be stands in its type, as `Text` or `Range`, where the decoder enforces it and the
generated schema shows it. Lease ids are capabilities (law L7) and stay out of every `repr`.
"""

from collections.abc import Mapping
from typing import Final

from leasekeeper.messages.caches import (
    CacheAbortWrite,
    CacheBeginWrite,
    CacheCommitWrite,
    CacheFail,
    CacheFill,
    CacheFilled,
    CacheGet,
    CacheHit,
    CacheInvalidate,
    CacheNegative,
    CacheSet,
    CacheToFill,
    CacheWriting,
    CacheWritten,
    Refresh,
)
from leasekeeper.messages.leases import (
    HolderView,
    LeaseAcquire,
    LeaseAcquireAll,
    LeaseBreak,
    LeaseBroken,
    LeaseChanged,
    LeaseContended,
    LeaseGrant,
    LeaseGrants,
    LeaseInspect,
    LeaseList,
    LeaseLost,
    LeasePage,
    LeaseRelease,
    LeaseReleased,
    LeaseRenew,
    LeaseRenewed,
    LeaseResume,
    LeaseState,
    LeaseUnwatch,
    LeaseWatch,
    ListedLease,
    WaiterView,
)
from leasekeeper.messages.sessions import (
    CancelAnswer,
    Done,
    HeartbeatSeen,
    RpcCancel,
    ServerDraining,
    SessionHeartbeat,
    SessionOpen,
    SessionOpened,
)
from leasekeeper.messages.values import (
    FILL_DEFAULT_MS,
    FILL_MAX_MS,
    FILL_MIN_MS,
    GET_WAIT_DEFAULT_MS,
    INTEGER_MAX,
    INTENT_DEFAULT_MS,
    LIFE_MAX_MS,
    NAMES_MAX,
    ORIGINAL_WAIT,
    TAGS_MAX,
    TTL_DEFAULT_MS,
    TTL_MAX_MS,
    TTL_MIN_MS,
    Absent,
    CacheState,
    Etag,
    FillMs,
    FillOutcome,
    FreshMs,
    HolderLimit,
    HoldMs,
    Items,
    Json,
    Key,
    Label,
    LeaseId,
    Liveness,
    LostReason,
    Mark,
    Mode,
    Name,
    Null,
    OnDrop,
    Range,
    RequestId,
    StaleMs,
    Tags,
    Text,
    Token,
    TtlMs,
    WaitMs,
)
from leasekeeper.messages.writes import (
    ClaimedWrite,
    DeadPage,
    DeadWrite,
    WriteQueued,
    WritesAck,
    WritesClaim,
    WritesClaimed,
    WritesDead,
    WritesPut,
    WritesRetry,
    WritesRevive,
    WritesRevived,
    WritesSettled,
)

Params = (
    SessionOpen
    | SessionHeartbeat
    | RpcCancel
    | LeaseAcquire
    | LeaseAcquireAll
    | LeaseRenew
    | LeaseRelease
    | LeaseResume
    | LeaseInspect
    | LeaseList
    | LeaseBreak
    | LeaseWatch
    | LeaseUnwatch
    | CacheGet
    | CacheFill
    | CacheFail
    | CacheSet
    | CacheInvalidate
    | CacheBeginWrite
    | CacheCommitWrite
    | CacheAbortWrite
    | WritesPut
    | WritesClaim
    | WritesAck
    | WritesRetry
    | WritesDead
    | WritesRevive
)

Result = (
    SessionOpened
    | HeartbeatSeen
    | CancelAnswer
    | LeaseGrant
    | LeaseGrants
    | LeaseRenewed
    | LeaseReleased
    | LeaseState
    | LeasePage
    | LeaseBroken
    | Done
    | CacheHit
    | CacheToFill
    | CacheNegative
    | CacheFilled
    | CacheWriting
    | CacheWritten
    | WriteQueued
    | WritesClaimed
    | WritesSettled
    | DeadPage
    | WritesRevived
)

Notification = LeaseLost | LeaseContended | LeaseChanged | ServerDraining

METHODS: Final[Mapping[str, tuple[type[Params], tuple[type[Result], ...]]]] = {
    "session.open": (SessionOpen, (SessionOpened,)),
    "session.heartbeat": (SessionHeartbeat, (HeartbeatSeen,)),
    "rpc.cancel": (RpcCancel, (CancelAnswer,)),
    "lease.acquire": (LeaseAcquire, (LeaseGrant,)),
    "lease.acquire_all": (LeaseAcquireAll, (LeaseGrants,)),
    "lease.renew": (LeaseRenew, (LeaseRenewed,)),
    "lease.release": (LeaseRelease, (LeaseReleased,)),
    "lease.resume": (LeaseResume, (LeaseGrant,)),
    "lease.inspect": (LeaseInspect, (LeaseState,)),
    "lease.list": (LeaseList, (LeasePage,)),
    "lease.break": (LeaseBreak, (LeaseBroken,)),
    "lease.watch": (LeaseWatch, (LeaseState,)),
    "lease.unwatch": (LeaseUnwatch, (Done,)),
    "cache.get": (CacheGet, (CacheHit, CacheToFill, CacheNegative)),
    "cache.fill": (CacheFill, (CacheFilled,)),
    "cache.fail": (CacheFail, (Done,)),
    "cache.set": (CacheSet, (Done,)),
    "cache.invalidate": (CacheInvalidate, (Done,)),
    "cache.begin_write": (CacheBeginWrite, (CacheWriting,)),
    "cache.commit_write": (CacheCommitWrite, (CacheWritten,)),
    "cache.abort_write": (CacheAbortWrite, (CacheWritten,)),
    "writes.put": (WritesPut, (WriteQueued,)),
    "writes.claim": (WritesClaim, (WritesClaimed,)),
    "writes.ack": (WritesAck, (WritesSettled,)),
    "writes.retry": (WritesRetry, (WritesSettled,)),
    "writes.dead": (WritesDead, (DeadPage,)),
    "writes.revive": (WritesRevive, (WritesRevived,)),
}
"""For each method its parameters, and the forms that its result may have."""

NOTIFICATIONS: Final[Mapping[type[Notification], str]] = {
    LeaseLost: "lease.lost",
    LeaseContended: "lease.contended",
    LeaseChanged: "lease.changed",
    ServerDraining: "server.draining",
}

__all__ = [
    "FILL_DEFAULT_MS",
    "FILL_MAX_MS",
    "FILL_MIN_MS",
    "GET_WAIT_DEFAULT_MS",
    "INTEGER_MAX",
    "INTENT_DEFAULT_MS",
    "LIFE_MAX_MS",
    "METHODS",
    "NAMES_MAX",
    "NOTIFICATIONS",
    "ORIGINAL_WAIT",
    "TAGS_MAX",
    "TTL_DEFAULT_MS",
    "TTL_MAX_MS",
    "TTL_MIN_MS",
    "Absent",
    "CacheAbortWrite",
    "CacheBeginWrite",
    "CacheCommitWrite",
    "CacheFail",
    "CacheFill",
    "CacheFilled",
    "CacheGet",
    "CacheHit",
    "CacheInvalidate",
    "CacheNegative",
    "CacheSet",
    "CacheState",
    "CacheToFill",
    "CacheWriting",
    "CacheWritten",
    "CancelAnswer",
    "ClaimedWrite",
    "DeadPage",
    "DeadWrite",
    "Done",
    "Etag",
    "FillMs",
    "FillOutcome",
    "FreshMs",
    "HeartbeatSeen",
    "HoldMs",
    "HolderLimit",
    "HolderView",
    "Items",
    "Json",
    "Key",
    "Label",
    "LeaseAcquire",
    "LeaseAcquireAll",
    "LeaseBreak",
    "LeaseBroken",
    "LeaseChanged",
    "LeaseContended",
    "LeaseGrant",
    "LeaseGrants",
    "LeaseId",
    "LeaseInspect",
    "LeaseList",
    "LeaseLost",
    "LeasePage",
    "LeaseRelease",
    "LeaseReleased",
    "LeaseRenew",
    "LeaseRenewed",
    "LeaseResume",
    "LeaseState",
    "LeaseUnwatch",
    "LeaseWatch",
    "ListedLease",
    "Liveness",
    "LostReason",
    "Mark",
    "Mode",
    "Name",
    "Notification",
    "Null",
    "OnDrop",
    "Params",
    "Range",
    "Refresh",
    "RequestId",
    "Result",
    "RpcCancel",
    "ServerDraining",
    "SessionHeartbeat",
    "SessionOpen",
    "SessionOpened",
    "StaleMs",
    "Tags",
    "Text",
    "Token",
    "TtlMs",
    "WaitMs",
    "WaiterView",
    "WriteQueued",
    "WritesAck",
    "WritesClaim",
    "WritesClaimed",
    "WritesDead",
    "WritesPut",
    "WritesRetry",
    "WritesRevive",
    "WritesRevived",
    "WritesSettled",
]
