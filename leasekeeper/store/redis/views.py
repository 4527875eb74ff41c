"""What can be seen of names: one, all of them, and those that are watched."""

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from heapq import nsmallest
from typing import Final

from attrs import define
from redis.exceptions import ResponseError

from leasekeeper.errors import InvalidParams, Unavailable
from leasekeeper.messages import INTEGER_MAX, HolderView, LeasePage, LeaseState, ListedLease, Mode
from leasekeeper.resp.client import Client
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.replies import Reply
from leasekeeper.resp.settings import Address
from leasekeeper.store.redis.calling import Caller, NameCall, unavailable
from leasekeeper.store.redis.entries import integer, listed, parse_entry, word
from leasekeeper.store.redis.interests import Interests
from leasekeeper.store.redis.keys import WATCH, Layout
from leasekeeper.store.redis.scripts import INSPECT

WATCH_MS: Final = 15_000
"""A server that does not say again that it watches is forgotten after this."""
_HOLDERS_READ: Final = 1000
"""Of more shared holders than these, those that end first are sorted by fence."""
_SHOWN_MAX: Final = 100
_SCAN_COUNT: Final = 1000
_NO_FOREIGN: Final = -2


@define(eq=False)
class Views:
    """Reads names. It changes nothing but what time has changed anyway."""

    client: Client
    caller: Caller
    layout: Layout
    interests: Interests

    async def inspect(self, name: str, *, holders_max: int, waiting_max: int) -> LeaseState:
        """One name.

        Raises:
            Unavailable: the store did not answer.
        """
        reply = await self.caller.call(name, INSPECT, *_inspect_args(waiting_max))
        return _state(name, reply, holders_max)

    async def see(self, name: str) -> LeaseState:
        """One name for its watchers; from now on this server hears of its changes.

        Raises:
            Unavailable: the store did not answer.
        """
        reply = await self.caller.call(name, INSPECT, *_inspect_args(_SHOWN_MAX, watch=True))
        state = _state(name, reply, _SHOWN_MAX)
        if interest := self.interests.find(name):
            interest.seen = tuple((each.fence, each.foreign) for each in state.holders)
            if (next_ms := integer(reply[1])) >= 0:
                self.interests.look(name, next_ms)
        return state

    async def look_away(self, name: str) -> None:
        """This server need not hear of the name's changes any more; it is no matter if it does."""
        key = self.layout.keys(name)[WATCH]
        if name in self.interests.watched:
            return  # again, meanwhile
        with suppress(Unanswered, ResponseError):
            await self.client.command("ZREM", key, self.caller.server, key=key)
        if name in self.interests.watched:
            with suppress(Unavailable):
                await self.see(name)

    async def list_leases(self, prefix: str, limit: int, cursor: str | None) -> LeasePage:
        """A page of held leases, ordered by name and fence.

        Each page goes over all keys of this Redis, in small steps, and reads the names it shows.

        Raises:
            InvalidParams: the cursor is none of ours.
            Unavailable: the store did not answer.
        """
        last_name, last_fence = _parse_cursor(cursor) if cursor else ("", -1)
        try:
            names = await self._names(prefix, last_name, limit + 1)
        except (Unanswered, ResponseError) as problem:
            raise unavailable(problem) from problem
        found: list[ListedLease] = []
        calls = [NameCall(name, INSPECT, _inspect_args(0)) for name in names]
        for name, answer in zip(names, await self.caller.call_many(calls), strict=True):
            if isinstance(answer, Unavailable):
                raise answer
            after = last_fence if name == last_name else -1
            found += [each for each in _listed(name, answer) if each.fence > after]
        if len(found) > limit:
            return LeasePage(tuple(found[:limit]), _cursor(found[limit - 1]))
        # Some of these names may have become free; there are more behind them all the same.
        more = len(names) > limit
        return LeasePage(tuple(found), f"{names[-1]} {INTEGER_MAX}" if more else None)

    async def _names(self, prefix: str, since: str, count: int) -> Sequence[str]:
        """The first names in use with this prefix, from `since` on."""
        first: list[str] = []
        for address in self.client.masters:
            async for names in self._scan(address, self.layout.lock_pattern(prefix)):
                first = nsmallest(count, {*first, *(each for each in names if each >= since)})
        return first

    async def _scan(self, address: Address, pattern: str) -> AsyncIterator[list[str]]:
        cursor = b"0"
        while True:
            reply = listed(
                await self.client.command(
                    "SCAN", cursor, "MATCH", pattern, "COUNT", _SCAN_COUNT, address=address
                )
            )
            cursor = word(reply[0])
            yield [self.layout.name_of(word(key).decode()) for key in listed(reply[1])]
            if cursor == b"0":
                return


def _inspect_args(waiting_max: int, *, watch: bool = False) -> tuple[int, ...]:
    return _HOLDERS_READ, waiting_max, int(watch), WATCH_MS


def _state(name: str, reply: Sequence[Reply], holders_max: int) -> LeaseState:
    now_ms = integer(reply[0])
    waiters = tuple(
        parse_entry("", word(text)).waiter(now_ms, position)
        for position, text in enumerate(listed(reply[5]), start=1)
    )
    return LeaseState(name, tuple(_holders(reply))[:holders_max], waiters, integer(reply[2]))


def _holders(reply: Sequence[Reply]) -> list[HolderView]:
    now_ms, foreign_ms, shown = integer(reply[0]), integer(reply[3]), listed(reply[4])
    holders = [
        parse_entry("", word(text)).holder(now_ms, integer(left_ms))
        for left_ms, text in zip(shown[::2], shown[1::2], strict=True)
    ]
    if foreign_ms != _NO_FOREIGN:
        left_ms = max(0, foreign_ms)
        holders.append(HolderView(0, Mode.EXCLUSIVE, None, 0, left_ms, None, foreign=True))
    return sorted(holders, key=lambda holder: holder.fence)


def _listed(name: str, reply: Sequence[Reply]) -> list[ListedLease]:
    return [
        ListedLease(
            name=name,
            fence=holder.fence,
            mode=holder.mode,
            label=holder.label,
            held_ms=holder.held_ms,
            ttl_ms=holder.ttl_ms,
            client=holder.client,
            foreign=holder.foreign,
            waiting=integer(reply[2]),
        )
        for holder in _holders(reply)
    ]


def _cursor(lease: ListedLease) -> str:
    return f"{lease.name} {lease.fence}"


def _parse_cursor(cursor: str) -> tuple[str, int]:
    name, _, fence = cursor.partition(" ")
    if not fence.isdecimal():
        raise InvalidParams("$.cursor", "expected a cursor from an earlier page")
    return name, int(fence)
