"""The cache half of the fake server: one fill per key, waiters, and the outcomes a test chooses."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import SocketStream
from attrs import define, field

from client_fake_server import FakeServer, Message, Peer, Refused, serving


@define
class Entry:
    """What is cached under a key. `value` may be anything, `negative` says there is nothing."""

    value: Any = None
    negative: bool = False
    stale: bool = False
    due: bool = False
    """Whether the next caller is chosen to load it anew."""
    etag: str | None = None
    tags: list[str] = field(factory=list)


@define
class LiveFill:
    """A fill that somebody has."""

    id: str
    peer: Peer
    params: Message


@define
class Getter:
    """One who waits for a key."""

    peer: Peer
    request_id: Any
    params: Message


@define(eq=False)
class FakeCaches(FakeServer):
    """Cached keys in memory. Time does not pass here: tests end fills and waits themselves."""

    entries: dict[str, Entry] = field(factory=dict)
    fills: dict[str, LiveFill] = field(factory=dict)
    getters: dict[str, list[Getter]] = field(factory=dict)
    unshared: set[str] = field(factory=set)
    outcome: str = "stored"
    fill_ms: int | None = None
    """Said instead of what the caller asked for."""
    value_bytes: int | None = None
    intents: dict[str, Message] = field(factory=dict)
    in_time: bool = True
    queues_of_writes: dict[str, list[Message]] = field(factory=dict)
    claimants: list[tuple[str, Peer, Any, int]] = field(factory=list)
    settled: int = 1

    def do_session_open(self, peer: Peer, _: Any, **params: Any) -> Message:
        opened = super().do_session_open(peer, _, **params)
        if self.value_bytes is not None:
            opened["limits"]["value_bytes"] = self.value_bytes
        return opened

    async def serve(self, stream: SocketStream) -> None:
        before = len(self.peers)
        try:
            await super().serve(stream)
        finally:
            gone = [peer for peer in self.peers[before:] if peer.stream is stream]
            self.forget(*gone)

    def forget(self, *peers: Peer) -> None:
        """What these had is given to others at once."""
        for getters in self.getters.values():
            getters[:] = [getter for getter in getters if getter.peer not in peers]
        for key, fill in list(self.fills.items()):
            if fill.peer in peers:
                self.free_fill(key)

    # --- Fills ---

    def look(self, getter: Getter) -> Message | None:
        """The answer, or None: it waits."""
        params = getter.params
        key, entry = params["key"], self.entries.get(params["key"])
        if entry is not None and entry.negative:
            return {"state": "negative", "retry_after_ms": 1500}
        if entry is not None and (not entry.stale or params.get("stale_ok", True)):
            state = "stale" if entry.stale else "hit"
            answer = {"state": state, "value": entry.value, "age_ms": 5, "ttl_ms": 1000}
            due = (entry.stale or entry.due) and params.get("can_fill", True)
            if due and key not in self.fills:
                entry.due = False
                answer["refresh"] = self.grant_fill(getter)
            return answer
        if params.get("can_fill", True) and key in self.unshared:
            return {"state": "fill", **self.granting(getter, "e" * 32), "shared": False}
        if params.get("can_fill", True) and key not in self.fills:
            return {"state": "fill", **self.grant_fill(getter), "shared": True}
        return None

    def grant_fill(self, getter: Getter) -> Message:
        key, fill = getter.params["key"], f"{self.fence:032x}"
        self.fills[key] = LiveFill(fill, getter.peer, getter.params)
        return self.granting(getter, fill)

    def granting(self, getter: Getter, fill: str) -> Message:
        self.fence += 1
        entry = self.entries.get(getter.params["key"])
        etag = {"etag": entry.etag} if entry and entry.etag else {}
        fill_ms = self.fill_ms or getter.params["fill_ms"]
        return {"fill": fill, "fence": self.fence, "fill_ms": fill_ms, **etag}

    def look_again(self, key: str) -> None:
        """Tell those who wait what there is for them now."""
        for getter in list(self.getters.get(key, [])):
            answer = self.look(getter)
            if answer is not None:
                self.getters[key].remove(getter)
                getter.peer.answer(getter.request_id, answer)
        self.seen()

    def free_fill(self, key: str) -> None:
        """Its time is over, or its filler gone."""
        self.fills.pop(key, None)
        self.look_again(key)

    def put(self, key: str, value: Any, **more: Any) -> None:
        """Somebody else brings a value."""
        self.entries[key] = Entry(value, **more)
        self.fills.pop(key, None)
        self.look_again(key)

    def take_fill(self, key: str) -> None:
        """Somebody else loads it."""
        self.fills[key] = LiveFill("f" * 32, None, {})  # type: ignore[arg-type]

    def refuse_getters(self, key: str, code: int, data: Message | None = None) -> None:
        """Everybody who waits gets an error."""
        for getter in self.getters.pop(key, []):
            getter.peer.refuse(getter.request_id, code, data or {})

    # --- Methods ---

    def do_cache_get(self, peer: Peer, request_id: Any, **params: Any) -> Message | None:
        getter = Getter(peer, request_id, params)
        answer = self.look(getter)
        if answer is None and params["wait_ms"] == 0:
            raise Refused(-32001, {"retry_after_ms": 10})
        if answer is None:
            self.getters.setdefault(params["key"], []).append(getter)
        return answer

    def do_cache_fill(
        self, peer: Peer, _: Any, *, key: str, fill: str, ttl_ms: int, **more: Any
    ) -> Message:
        live = self.fills.get(key)
        outcome = self.outcome if live and live.id == fill else "too_late"
        if live and live.id == fill:
            del self.fills[key]
        if outcome == "stored":
            old = self.entries.get(key)
            value = old.value if more.get("not_modified") and old else more.get("value")
            self.entries[key] = Entry(value, etag=more.get("etag"), tags=more.get("tags", []))
        self.look_again(key)
        return {"outcome": outcome}

    def do_cache_fail(
        self, peer: Peer, _: Any, *, key: str, fill: str, error: str, **more: Any
    ) -> Message:
        live = self.fills.get(key)
        if live is None or live.id != fill:
            return {}
        del self.fills[key]
        if more.get("not_found"):
            self.entries[key] = Entry(negative=True)
        elif "private_ms" in more:
            self.unshared.add(key)
        elif not more.get("promote"):
            self.refuse_getters(key, -32005, {"error": error, "retry_after_ms": 250})
        self.look_again(key)
        return {}

    def do_cache_set(self, peer: Peer, _: Any, *, key: str, value: Any, **__: Any) -> Message:
        self.put(key, value)
        return {}

    def do_cache_invalidate(
        self,
        peer: Peer,
        _: Any,
        *,
        keys: tuple[str, ...] = (),
        tags: tuple[str, ...] = (),
        mode: str = "hard",
    ) -> Message:
        tagged = [k for k, e in self.entries.items() if not set(tags).isdisjoint(e.tags)]
        for key in (*keys, *tagged):
            self.entries.pop(key, None)
        for key in (*keys, *tagged):
            self.free_fill(key)
        return {}

    def do_cache_begin_write(
        self, peer: Peer, _: Any, *, key: str, write: str, ttl_ms: int, tags: list[str]
    ) -> Message:
        self.entries.pop(key, None)
        self.intents[write] = {"key": key, "tags": tags}
        self.fence += 1
        return {"write": write, "fence": self.fence, "ttl_ms": ttl_ms}

    def do_cache_commit_write(
        self, peer: Peer, _: Any, *, key: str, write: str, **more: Any
    ) -> Message:
        known = self.intents.pop(write, None) is not None
        in_time = known and self.in_time
        if in_time and "value" in more:
            self.entries[key] = Entry(more["value"])
        return {"stored": in_time and "value" in more, "in_time": in_time}

    def do_cache_abort_write(
        self, peer: Peer, _: Any, *, key: str, write: str, **__: Any
    ) -> Message:
        known = self.intents.pop(write, None) is not None
        return {"stored": False, "in_time": known}

    def do_rpc_cancel(self, peer: Peer, request_id: Any, *, id: Any) -> Message:
        for getters in self.getters.values():
            for getter in getters:
                if getter.peer is peer and getter.request_id == id:
                    getters.remove(getter)
                    peer.refuse(id, -32004, {})
                    return {"cancelled": True}
        for claimant in self.claimants:
            if claimant[1] is peer and claimant[2] == id:
                self.claimants.remove(claimant)
                peer.refuse(id, -32004, {})
                return {"cancelled": True}
        return super().do_rpc_cancel(peer, request_id, id=id)

    # --- Queued writes ---

    def do_writes_put(
        self, peer: Peer, _: Any, *, queue: str, key: str, value: Any, **__: Any
    ) -> Message:
        self.fence += 1
        self.entries[key] = Entry(value)
        self.queue(queue, key, value)
        return {"seq": self.fence}

    def queue(self, queue: str, key: str, value: Any, attempt: int = 1) -> None:
        """A write is due."""
        self.fence += 1
        write = {"key": key, "value": value, "seq": self.fence, "attempt": attempt}
        self.queues_of_writes.setdefault(queue, []).append(write)
        for claimant in list(self.claimants):
            if claimant[0] == queue:
                self.claimants.remove(claimant)
                _, peer, request_id, most = claimant
                peer.answer(request_id, self.claim(queue, most))

    def claim(self, queue: str, most: int) -> Message:
        writes = self.queues_of_writes.get(queue, [])
        some, writes[:] = writes[:most], writes[most:]
        claimed = []
        for each in some:
            self.fence += 1
            claimed.append({"id": f"c{self.fence}", "fence": self.fence, **each})
        return {"writes": claimed}

    def do_writes_claim(
        self, peer: Peer, request_id: Any, *, queue: str, max: int, **__: Any
    ) -> Message | None:
        if self.queues_of_writes.get(queue):
            return self.claim(queue, max)
        self.claimants.append((queue, peer, request_id, max))
        return None

    def do_writes_ack(self, peer: Peer, _: Any, *, queue: str, ids: list[str]) -> Message:
        return {"settled": self.settled}

    def do_writes_retry(
        self, peer: Peer, _: Any, *, queue: str, ids: list[str], **__: Any
    ) -> Message:
        return {"settled": self.settled}

    def do_writes_dead(
        self, peer: Peer, _: Any, *, queue: str, cursor: str | None = None
    ) -> Message:
        number = int(cursor or 0)
        letter = {
            "key": f"k{number}",
            "value": number,
            "seq": number,
            "attempts": 10,
            "error": "no luck",
        }
        return {"writes": [letter], "cursor": str(number + 1) if number < 2 else None}

    def do_writes_revive(self, peer: Peer, _: Any, *, queue: str, keys: list[str]) -> Message:
        return {"revived": len(keys)}


@asynccontextmanager
async def cache_server(**options: Any) -> AsyncIterator[FakeCaches]:
    """Serve until the body is done."""
    async with serving(FakeCaches(**options)) as server:
        yield server


def after(count: int, hook: Callable[[], object]) -> Callable[[Peer, Message], Any]:
    """A hook that does something before the request of this number, and lets all pass."""
    seen = 0

    def pass_on(_: Peer, __: Message) -> Any:
        nonlocal seen
        seen += 1
        if seen == count:
            hook()
        return NotImplemented

    return pass_on


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await anyio.lowlevel.checkpoint()
