"""What an operator may set of a Redis store."""

from attrs import frozen


@frozen
class Options:
    """What an operator may set. Times are in milliseconds."""

    prefix: str = "lk"
    fence_memory_ms: int = 3_600_000
    """How long a name's last fence is kept after its last use."""
    replicas: int = 0
    """A grant is told only when so many replicas have it."""
    replicas_ms: int = 1000
    """How long they may take."""
    restart_hold_ms: int = 3_600_000
    """The longest pause of grants after Redis lost data; 0: none."""
    waiting_max: int = 10_000
    preflight_ms: int = 30_000
    """How often it is looked whether Redis is still as it has to be."""
    allow_volatile_writes: bool = False
    """Whether writes are queued although this Redis has no AOF."""
