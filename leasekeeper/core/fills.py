"""What is asked, said and kept of a cached key: plain values, and no rules."""

from attrs import define, field, frozen


@frozen
class Content:
    """What is to be stored: a value, or the knowledge that there is none (`value` None)."""

    value: bytes | None = field(repr=False)
    ttl_ms: int
    stale_ms: int = 0
    tags: tuple[str, ...] = ()
    etag: str | None = None


@frozen
class Ask:
    """How a server looks at a key for its callers.

    `fill` is the fill id that is granted, if one is to be; None: nobody can load it. `early` is
    -ln(u), u uniform in (0, 1]: chance for XFetch. `server` wants to hear of changes, if it waits.
    """

    fill: str | None = field(default=None, repr=False)
    fill_ms: int = 10_000
    owner: str = ""
    early: float = 0.0
    server: str | None = None
    jitter: float = 1.0
    """In [0, 1]: chance for the back-off, should the last filler have been one too many to die."""


@frozen
class Failed:
    """The last load failed, and nobody is asked to try again before `retry_after_ms`."""

    error: str
    retry_after_ms: int


@frozen
class FillGrant:
    """A fill. If not `shared`, it is not stored, and others load for themselves as well."""

    fence: int
    fill_ms: int
    shared: bool = True
    etag: str | None = None


@frozen
class Found:
    """A value. `ttl_ms` is what is left of its TTL; not fresh: it is stale, but may be used."""

    value: bytes = field(repr=False)
    age_ms: int
    ttl_ms: int
    fresh: bool


@frozen
class Seen:
    """What there is of a key: a value or none, and what is being done about it."""

    found: Found | None = None
    negative_ms: int | None = None
    """It was found out that there is no such thing; believed for so long."""
    grant: FillGrant | None = None
    filling_ms: int | None = None
    """Another fill is under way, for at most so long."""
    failed: Failed | None = None


@frozen
class Conflict:
    """Writes of two kinds on one key: one is queued, or a write-through is open."""


@frozen
class Closed:
    """A write-through is over. `stored`: its value is cached; `in_time`: it was still open."""

    stored: bool
    in_time: bool


@frozen
class News:
    """A server that waits for this key should look again."""

    server: str


@define
class Fill:
    """One grant. It is exclusive until `until_ms`, and may be handed over until `late_ms`."""

    fence: int
    granted_ms: int
    fill_ms: int
    owner: str = ""
    base: int = 0
    """The fence of the value that its filler was shown, should that be as good as new."""
    waits_for: str | None = None
    """The key that its filler waits for in turn."""

    @property
    def until_ms(self) -> int:
        """When another may be granted."""
        return self.granted_ms + self.fill_ms

    @property
    def late_ms(self) -> int:
        """When it is forgotten."""
        return self.granted_ms + 2 * self.fill_ms


@frozen
class Intent:
    """A write-through that was begun."""

    fence: int
    until_ms: int
    tags: tuple[str, ...] = ()


@frozen
class Stored:
    """What was stored by the fill, set or write of this fence, which was granted then."""

    content: Content
    fence: int
    granted_ms: int
    stored_ms: int
    fill: str = field(default="", repr=False)

    @property
    def delta_ms(self) -> int:
        """How long it took to load."""
        return self.stored_ms - self.granted_ms

    @property
    def fresh_until_ms(self) -> int:
        """When its TTL ends."""
        return self.stored_ms + self.content.ttl_ms

    @property
    def stale_until_ms(self) -> int:
        """When it is of no use any more."""
        return self.fresh_until_ms + self.content.stale_ms


@frozen
class Failure:
    """How often in a row loading has failed, and when it may be tried again."""

    error: str
    retry_at_ms: int
    count: int
