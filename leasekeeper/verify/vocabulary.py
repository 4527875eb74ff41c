"""What a history says: operations with their begin and end, and events. Frozen classes, no more.

All times are microseconds of one clock. `spec/history.md` says what each member means.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import ClassVar, Final, Literal

from attrs import frozen

NEVER: Final = 1 << 62
"""Later than any time that a history says: the end of what has none."""


class Outcome(StrEnum):
    """How an operation ended."""

    OK = "ok"
    FAIL = "fail"
    """It had no effect."""
    UNKNOWN = "unknown"
    """It may have had its effect, or may have it yet."""


# --- Operations -------------------------------------------------------------------------------


@frozen(kw_only=True)
class Operation:
    """What a process asked for, and what came of it."""

    op: ClassVar[str]

    process: str
    id: str | int
    line: int
    """That of its begin."""
    began: int
    ended: int = NEVER
    end_line: int = 0
    outcome: Outcome = Outcome.UNKNOWN
    code: int | str | None = None
    """Why it failed."""

    @property
    def ok(self) -> bool:
        """Whether it is known to have had its effect."""
        return self.outcome is Outcome.OK


@frozen(kw_only=True)
class Acquire(Operation):
    """To get a lease; `fence` and `until` say something only if it is ok."""

    op = "acquire"

    name: str
    lease: str
    mode: Literal["exclusive", "shared"] = "exclusive"
    limit: int | None = None
    wait_ms: int | None = None
    """None: for ever."""
    fence: int = 0
    until: int = 0

    @property
    def exclusive(self) -> bool:
        """Whether it wants the name for itself alone."""
        return self.mode == "exclusive"


@frozen(kw_only=True)
class Release(Operation):
    """To give a lease back."""

    op = "release"

    name: str
    lease: str


@frozen(kw_only=True)
class Write(Operation):
    """To append a value to a resource, under a lease."""

    op = "write"

    resource: str
    name: str
    lease: str
    fence: int
    value: str


@frozen(kw_only=True)
class Load(Operation):
    """To read a row of the database on behalf of the whole fleet."""

    op = "load"

    key: str
    fence: int
    until: int | None = None
    """When the fill's own time is over: whoever loads on from then on is no filler."""
    shared: bool = True
    """Whether it is for all who wait; what one loads for himself may overlap with anything."""
    version: int = 0


@frozen(kw_only=True)
class Read(Operation):
    """To get a key's value out of the cache; the rest says something only if it is ok."""

    op = "read"

    key: str
    version: int | None = None
    """None: there was no value."""
    stale: bool = False
    own: bool = False


@frozen(kw_only=True)
class Change(Operation):
    """To give a row of the database a new version."""

    op = "change"

    key: str
    version: int
    tags: Sequence[str] | None = None


@frozen(kw_only=True)
class Invalidate(Operation):
    """To make the cache forget."""

    op = "invalidate"

    keys: Sequence[str] = ()
    tags: Sequence[str] = ()


@frozen(kw_only=True)
class Put(Operation):
    """To queue a value for the database; `seq` says something only if it is ok."""

    op = "put"

    queue: str
    key: str
    value: str
    seq: int = 0


# --- Events -----------------------------------------------------------------------------------


@frozen(kw_only=True)
class Event:
    """What a process came to know."""

    process: str
    line: int
    at: int


@frozen(kw_only=True)
class Held(Event):
    """The belief in a lease was renewed."""

    name: str
    lease: str
    fence: int
    until: int


@frozen(kw_only=True)
class Lost(Event):
    """The belief in a lease has ended."""

    name: str
    lease: str
    fence: int
    reason: str | None = None


@frozen(kw_only=True)
class Queued(Event):
    """The client knows that it waits."""

    name: str
    lease: str


@frozen(kw_only=True)
class Dropped(Event):
    """The process lost its connection, at about this time."""


@frozen(kw_only=True)
class Applied(Event):
    """The resource applied a write."""

    resource: str
    index: int
    fence: int
    value: str


@frozen(kw_only=True)
class FinalValues(Event):
    """What the resource holds at the end."""

    resource: str
    values: Sequence[str]


@frozen(kw_only=True)
class Stored(Event):
    """The database took a queued value."""

    queue: str
    key: str
    value: str
    seq: int
    fence: int


@frozen(kw_only=True)
class StoredFinal(Event):
    """What the database holds at the end."""

    queue: str
    key: str
    value: str


@frozen(kw_only=True)
class Tagged(Event):
    """The tags that a key's value is stored with."""

    key: str
    tags: Sequence[str]


@frozen(kw_only=True)
class FaultSaid(Event):
    """A fault begins or ends."""

    fault: str
    target: str
    phase: Literal["begin", "end"]
    excuses: Sequence[str] = ()


@frozen(kw_only=True)
class Heal(Event):
    """All faults have ended."""
