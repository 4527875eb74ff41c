"""What a caller wants: the arguments of `lease` and its kin, checked, and as they go out."""

import re
from collections.abc import Callable
from typing import Final, TypedDict

from attrs import field, frozen

from leasekeeper_client._hold import Hold, OnDrop
from leasekeeper_client._json import JsonObject, milliseconds

NAME: Final = re.compile(r"[A-Za-z0-9._:/@+-]{1,255}")
TTL_MIN: Final = 0.1
TTL_MAX: Final = 3600.0
NAMES_MAX: Final = 16


class LeaseOptions(TypedDict, total=False):
    """The options of every way to take a lease.

    Attributes:
        ttl: Seconds for which the lease outlives its last renewal (0.1 to 3600; 30 by default).
            It is renewed as long as this program runs and can reach a server. Without a
            connection it lasts no longer than the server's grace (5 s by default).
        wait: Seconds to wait in the queue; 0 tries once; None, the default, waits for ever.
        label: What others see beside the lease.
        max_hold: Seconds after which the lease ends, renewed or not.
        on_drop: `"keep"`, the default: a lease survives a short loss of the connection.
            `"release"`: it ends with the connection, and may be given to another the moment the
            server sees that end, which can be before the client does.
        on_contended: Called with the number of waiters, at most once a second, while others wait.
            It runs in the client's reader (for the sync client: in its thread), so it must be
            quick and must not block.
    """

    ttl: float
    wait: float | None
    label: str | None
    max_hold: float | None
    on_drop: OnDrop
    on_contended: Callable[[int], None] | None


@frozen(kw_only=True)
class Plan:
    """One acquire, as its caller wants it. Times are seconds.

    Raises:
        ValueError: Something is out of range.
    """

    names: tuple[str, ...]
    together: bool = False
    ttl: float = 30.0
    wait: float | None = None
    shared: bool = False
    limit: int | None = None
    label: str | None = None
    max_hold: float | None = None
    on_drop: OnDrop = "keep"
    on_contended: Callable[[int], None] | None = field(default=None, repr=False)

    def __attrs_post_init__(self) -> None:
        for name in self.names:
            check_name(name)
        if self.together and not 2 <= len(set(self.names)) == len(self.names) <= NAMES_MAX:
            raise ValueError(f"lease_all takes 2 to {NAMES_MAX} different names")
        if not TTL_MIN <= self.ttl <= TTL_MAX:
            raise ValueError(f"ttl must be {TTL_MIN} to {TTL_MAX} seconds, not {self.ttl}")
        if self.wait is not None and not 0 <= self.wait < float("inf"):
            raise ValueError("wait must be 0 or more seconds, or None to wait for ever")
        if self.limit is not None and (self.limit < 1 or not self.shared):
            raise ValueError("limit must be 1 or more, and goes with shared=True")
        if self.max_hold is not None and not self.max_hold > 0:
            raise ValueError("max_hold must be more than 0 seconds")

    @property
    def method(self) -> str:
        """The method that acquires it."""
        return "lease.acquire_all" if self.together else "lease.acquire"

    def holds(self, lease_id: str) -> tuple[Hold, ...]:
        """Return the holds to be, one for each name."""
        return tuple(
            Hold(name, lease_id, self.ttl, self.max_hold, self.on_drop) for name in self.names
        )

    def params(self, lease_id: str, until: float | None, now: float) -> JsonObject:
        """Return the parameters when the request is sent now and the wait ends at `until`."""
        wait_ms = None if until is None else milliseconds(max(0.0, until - now))
        params: dict[str, object] = {
            "lease": lease_id,
            "ttl_ms": milliseconds(self.ttl),
            "wait_ms": wait_ms,
            "mode": "shared" if self.shared else "exclusive",
            "on_drop": self.on_drop,
        }
        params |= {"names": list(self.names)} if self.together else {"name": self.names[0]}
        if self.limit is not None:
            params["limit"] = self.limit
        if self.label is not None:
            params["label"] = self.label
        if self.max_hold is not None:
            params["max_hold_ms"] = milliseconds(self.max_hold)
        return params


def check_name(name: str) -> None:
    """Check the name of a lease.

    Raises:
        ValueError: It is not 1 to 255 characters of `[A-Za-z0-9._:/@+-]`.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not 1 to 255 characters of [A-Za-z0-9._:/@+-]")
