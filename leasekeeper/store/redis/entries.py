"""What Redis keeps of a lease id, and what scripts report: text to values and back.

The forms are those of `lua/rules.lua` and `spec/redis-layout.md`.
"""

from collections.abc import Sequence
from typing import Final

import orjson
from attrs import frozen

from leasekeeper.core.lock import (
    Claim,
    Contended,
    Granted,
    HolderLost,
    Moved,
    WaiterGranted,
)
from leasekeeper.errors import Outcome, Unavailable
from leasekeeper.messages import HolderView, LostReason, Mode, OnDrop, WaiterView
from leasekeeper.resp.replies import Reply
from leasekeeper.store.api import StoreEvent
from leasekeeper.store.caches import KeyNews
from leasekeeper.store.writes import QueueNews

_LETTERS: Final = {Mode.EXCLUSIVE: "x", Mode.SHARED: "s"}
_MODES: Final = {letter: mode for mode, letter in _LETTERS.items()}
_FIELDS: Final = 13
_RETRY_MS: Final = 500


@frozen
class Entry:
    """A holder or a waiter. Times are in ms of Redis TIME; `fence` is 0 for a waiter."""

    claim: Claim
    asked_ms: int
    since_ms: int
    fence: int
    until_ms: int
    final: bool

    def holder(self, now_ms: int, left_ms: int) -> HolderView:
        """As others may see it."""
        claim, held_ms = self.claim, max(0, now_ms - self.since_ms)
        return HolderView(
            self.fence, claim.mode, claim.label, held_ms, max(0, left_ms), claim.client
        )

    def waiter(self, now_ms: int, position: int) -> WaiterView:
        """As others may see it."""
        claim, waiting_ms = self.claim, max(0, now_ms - self.since_ms)
        return WaiterView(position, claim.mode, claim.label, waiting_ms, claim.client)


def claim_args(claim: Claim) -> tuple[str, str, int, int, int, int, int, str, str]:
    """The claim as arguments of acquire.lua: lease, mode, ... note."""
    return (
        claim.lease,
        _LETTERS[claim.mode],
        claim.limit or 0,
        claim.ttl_ms,
        claim.max_hold_ms or 0,
        claim.alive_ms,
        wait_arg(claim.wait_ms),
        claim.owner or "-",
        _note(claim),
    )


def wait_arg(wait_ms: int | None) -> int:
    """-1 stands for "for ever"."""
    return -1 if wait_ms is None else wait_ms


def entry_of_held(claim: Claim, fence: int) -> str:
    """The text of a holder's entry, without its times."""
    _, mode, limit, ttl_ms, max_hold_ms, alive_ms, wait_ms, owner, note = claim_args(claim)
    return (
        f"{mode} {limit} {ttl_ms} {max_hold_ms} {alive_ms} {wait_ms} {owner} 0 0 {fence} 0 0 {note}"
    )


def parse_entry(lease: str, text: bytes) -> Entry:
    """The entry of a lease id.

    Raises:
        Unavailable: it is none; somebody else wrote it.
    """
    try:
        return _entry(lease, text)
    except (ValueError, LookupError, AttributeError) as error:
        raise Unavailable(Outcome.UNKNOWN, _RETRY_MS) from error


def _entry(lease: str, text: bytes) -> Entry:
    (
        mode, limit, ttl_ms, max_hold_ms, alive_ms, wait_ms, owner,
        asked_ms, since_ms, fence, until_ms, final, note,
    ) = text.decode().split(" ", _FIELDS - 1)  # fmt: skip
    noted = orjson.loads(note)
    claim = Claim(
        lease=lease,
        ttl_ms=int(ttl_ms),
        mode=_MODES[mode],
        limit=int(limit) or None,
        label=noted.get("label"),
        client=noted.get("client"),
        owner=owner,
        max_hold_ms=int(max_hold_ms) or None,
        alive_ms=int(alive_ms),
        wait_ms=None if wait_ms == "-1" else int(wait_ms),
        auto_renew=noted.get("auto_renew", True),
        on_drop=OnDrop(noted.get("on_drop", OnDrop.KEEP)),
    )
    return Entry(claim, int(asked_ms), int(since_ms), int(fence), int(until_ms), final == "1")


def _note(claim: Claim) -> str:
    """What only servers read; nothing of it where all is as usual."""
    note: dict[str, str | bool] = {}
    if claim.label is not None:
        note["label"] = claim.label
    if claim.client is not None:
        note["client"] = claim.client
    if not claim.auto_renew:
        note["auto_renew"] = False
    if claim.on_drop is not OnDrop.KEEP:
        note["on_drop"] = claim.on_drop
    return orjson.dumps(note).decode()


@frozen
class Provisional:
    """A grant that another server made: it lasts as long as this server's word for the waiter."""

    name: str
    granted: WaiterGranted


@frozen
class NameChanged:
    """The holders of a watched name changed."""

    name: str


@frozen
class NameDue:
    """Time changes something in a name in `in_ms`; 0: there was more to do than one step does."""

    name: str
    in_ms: int


def parse_event(
    text: bytes,
) -> StoreEvent | KeyNews | QueueNews | Provisional | NameChanged | NameDue:
    """An event as `rules.lua`, or `cache_rules.lua`, writes it.

    Raises:
        ValueError: it is none.
    """
    kind, name, *rest = text.decode().split(" ", 6)
    match kind:
        case "granted":
            return _granted(name, rest)
        case "lost":
            lease, fence, reason, owner, *detail = rest
            told = " ".join(detail) or None
            lost = HolderLost(lease, int(fence), LostReason(reason), told, owner)
            return StoreEvent(name, lost)
        case "moved":
            lease, owner = rest
            return StoreEvent(name, Moved(lease, owner))
        case "contended":
            [waiting] = rest
            return StoreEvent(name, Contended(int(waiting)))
        case "changed":
            return NameChanged(name)
        case "cache":
            return KeyNews(name)
        case "queue":
            return QueueNews(name)
        case "due":
            [in_ms] = rest
            return NameDue(name, int(in_ms))
        case _:
            raise ValueError(f"no event: {kind}")


def _granted(name: str, rest: Sequence[str]) -> StoreEvent | Provisional:
    lease, fence, left_ms, waited_ms, tail = rest
    provisional, _, owner = tail.partition(" ")
    grant = Granted(int(fence), int(left_ms), int(waited_ms))
    event = WaiterGranted(lease, grant, owner)
    return Provisional(name, event) if provisional == "1" else StoreEvent(name, event)


def integer(reply: Reply) -> int:
    """An integer of a reply."""
    assert isinstance(reply, int), reply
    return reply


def word(reply: Reply) -> bytes:
    """A string of a reply."""
    assert isinstance(reply, bytes), reply
    return reply


def listed(reply: Reply) -> list[Reply]:
    """A list of a reply."""
    assert isinstance(reply, list), reply
    return reply


def grant_of(rest: Sequence[Reply]) -> Granted:
    """What a script says of a grant: its fence, TTL and wait."""
    fence, ttl_ms, waited_ms = (integer(each) for each in rest[:3])
    return Granted(fence, ttl_ms, waited_ms)
