"""How a caller wants a cached value: the arguments of `get_or_fill`, checked."""

from collections.abc import Iterable
from typing import Final, Literal, Required, TypeAlias, TypedDict

from attrs import field, frozen

from leasekeeper_client._json import milliseconds
from leasekeeper_client._plan import check_name

OnError: TypeAlias = Literal["raise", "load"]
LIFE_MAX: Final = 30 * 24 * 3600.0
FILL_MIN: Final = 0.1
FILL_MAX: Final = 600.0
TAGS_MAX: Final = 16
ETAG_MAX: Final = 255


class FillOptions(TypedDict, total=False):
    """The options of every way to get a value that is loaded if it has to be.

    Attributes:
        ttl: Seconds for which the value is fresh (0.001 to thirty days).
        stale: Seconds after that for which it may be served while somebody loads it anew; 0 by
            default.
        tags: By which it can be invalidated, at most 16. The names are like those of keys.
        wait: Seconds to wait while somebody else loads it (30 by default); 0 asks once; None waits
            for ever. The time of a load of one's own does not count.
        fill: Seconds that a load may take (0.1 to 600; 10 by default). Longer, and it is cancelled,
            and somebody else may load.
        stale_ok: Whether a value past its `ttl`, within its `stale`, will do (the default).
        on_error: `"raise"`, the default: when the cache cannot be asked, that is an error.
            `"load"`: load without the cache then, one at a time in this program, but nothing keeps
            the rest of the fleet from doing the same. Nobody is protected from a stampede.
    """

    ttl: Required[float]
    stale: float
    tags: Iterable[str]
    wait: float | None
    fill: float
    stale_ok: bool
    on_error: OnError


def as_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return tags as a tuple.

    Raises:
        ValueError: It is one string, of which each character would be a tag.
    """
    if isinstance(tags, str):
        raise ValueError(f"tags are several strings, not {tags!r}")
    return tuple(tags)


@frozen(kw_only=True)
class Terms:
    """`FillOptions`, checked. Times are seconds.

    Raises:
        ValueError: Something is out of range.
    """

    ttl: float
    stale: float = 0.0
    tags: tuple[str, ...] = field(default=(), converter=as_tags)
    wait: float | None = 30.0
    fill: float = 10.0
    stale_ok: bool = True
    on_error: OnError = "raise"

    def __attrs_post_init__(self) -> None:
        check_keeping(self.ttl, self.stale, self.tags)
        check_fill("fill", self.fill)
        if self.wait is not None and not 0 <= self.wait < float("inf"):
            raise ValueError("wait must be 0 or more seconds, or None to wait for ever")
        if self.on_error not in ("raise", "load"):
            raise ValueError("on_error must be 'raise' or 'load'")


def check_keeping(
    ttl: float, stale: float = 0.0, tags: tuple[str, ...] = (), etag: str | None = None
) -> None:
    """Check how a value is to be kept.

    Raises:
        ValueError: Something is out of range.
    """
    if not 0 < ttl <= LIFE_MAX:
        raise ValueError(f"ttl must be more than 0 and at most {LIFE_MAX} seconds, not {ttl}")
    if not 0 <= stale <= LIFE_MAX:
        raise ValueError(f"stale must be 0 to {LIFE_MAX} seconds, not {stale}")
    check_tags(tags)
    if etag is not None and not 1 <= len(etag) <= ETAG_MAX:
        raise ValueError(f"an etag has 1 to {ETAG_MAX} characters")


def check_tags(tags: tuple[str, ...]) -> None:
    """Check the tags of a value.

    Raises:
        ValueError: They are too many, or one of them is none.
    """
    if len(tags) > TAGS_MAX:
        raise ValueError(f"a value has at most {TAGS_MAX} tags")
    for tag in tags:
        check_name(tag)


def check_fill(what: str, span: float) -> None:
    """Check how long a load or a write may take.

    Raises:
        ValueError: It is out of range.
    """
    if not FILL_MIN <= span <= FILL_MAX:
        raise ValueError(f"{what} must be {FILL_MIN} to {FILL_MAX} seconds, not {span}")


def keeping(ttl: float, stale: float, tags: tuple[str, ...], etag: str | None) -> dict[str, object]:
    """Return the parameters that say how a value is kept.

    Raises:
        ValueError: Something is out of range.
    """
    check_keeping(ttl, stale, tags, etag)
    params: dict[str, object] = {"ttl_ms": milliseconds(ttl)}
    if stale:
        params["stale_ms"] = milliseconds(stale)
    if tags:
        params["tags"] = list(tags)
    if etag is not None:
        params["etag"] = etag
    return params
