"""The cache scripts inside a Redis whose clock stands still, called as the store calls them.

`Wire` stands in for the store's client: one connection to each node, on which every call is
answered before it returns. So no task is needed, and a machine that shrinks can drive the store
itself.
"""

import json
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Final, TypeVar, cast

import hiredis
from attrs import define, field
from redis.crc import key_slot
from redis.exceptions import ResponseError

from leasekeeper.core.fills import Conflict, Content
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.handshake import Identity
from leasekeeper.resp.replies import Reply
from leasekeeper.resp.scripts import Argument, Call, Script
from leasekeeper.resp.settings import Address
from leasekeeper.store.redis import scripts
from leasekeeper.store.redis.cache_calling import CacheCall, CacheCaller
from leasekeeper.store.redis.caches import RedisCaches, content_args
from leasekeeper.store.redis.entries import integer, listed, word
from leasekeeper.store.redis.keys import Layout, partition_of
from leasekeeper.store.redis.runs import Runs
from tests.properties.caches_core import Meta, without_nothing
from tests.redises import HOST, REPLY_S, RunningRedis, packed

if TYPE_CHECKING:
    from leasekeeper.resp.client import Client

T = TypeVar("T")

CLOCK_KEYS: Final = ("clock", "hard", "soft", "ends", "writes")
RULES: Final = scripts.CACHE_WAITS_FOR.source.partition("-- waits_for:")[0]
PUT: Final = Script(
    "put",
    RULES
    + """
local e = load(KEYS[6])
local number = put(e, KEYS[6], content_at(6))
return answer({number or 'conflict'})
""",
)
WRITTEN: Final = Script(
    "written", RULES + "\nwritten(load(KEYS[6]), tonumber(ARGV[6]))\nreturn answer({'written'})\n"
)
GIVEN_UP: Final = Script(
    "given_up",
    RULES + "\ngiven_up(load(KEYS[6]), tonumber(ARGV[6]))\nreturn answer({'given_up'})\n",
)
"""What write-behind makes of the shared rules; its own scripts do more beside it."""
ALL: Final = (
    *(each for each in vars(scripts).values() if isinstance(each, Script)),
    PUT,
    WRITTEN,
    GIVEN_UP,
)

PLAIN: Final = """
local function plain(it)
  if type(it) == 'number' then
    return string.format('%.0f', it)
  elseif type(it) ~= 'table' then
    return it
  end
  local made = {}
  for name, each in pairs(it) do
    made[name] = plain(each)
  end
  return made
end
"""
"""Numbers as text, for JSON would round them."""
LOOK_INTO: Final = (
    PLAIN
    + """
local found = {}
for _, key in ipairs(KEYS) do
  local meta, value = unpack(redis.call('HMGET', key, 'meta', 'value'))
  local ends = redis.call('PEXPIRETIME', key)
  found[#found + 1] = {meta and cjson.encode(plain(cmsgpack.unpack(meta))) or '', value or '', ends}
end
return found
"""
)
"""What is kept of some keys: as JSON, the value, and when it expires."""
LOOK_INTO_WRITES: Final = (
    PLAIN
    + """
local kept, found = redis.call('HGETALL', KEYS[1]), {}
for i = 1, #kept, 2 do
  found[kept[i]] = plain(cmsgpack.unpack(kept[i + 1]))
end
return cjson.encode(found)
"""
)
"""The write-throughs of each tag, and when they end."""


def now_or_never(call: Coroutine[object, object, T]) -> T:
    """The result of what has nothing to wait for."""
    try:
        call.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    raise AssertionError("it waits")


@define(eq=False)
class Node:
    """A connection to one Redis. It hears all servers' channels, unless `deaf`."""

    redis: RunningRedis
    on_message: Callable[[str, bytes], None]
    deaf: bool
    _socket: socket.socket = field(init=False)
    _reader: hiredis.Reader = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._reader = hiredis.Reader(replyError=ResponseError)
        self._socket = socket.create_connection((HOST, self.redis.port), REPLY_S)
        self.ask(["HELLO", 3], ["DEBUG", "SET-ACTIVE-EXPIRE", 0])
        self.ask(*(["SCRIPT", "LOAD", each.source] for each in ALL))
        if not self.deaf:
            self.ask(["PSUBSCRIBE", "*"])

    def close(self) -> None:
        """Ends the connection."""
        self._socket.close()

    def ask(self, *commands: Sequence[Argument]) -> list[Reply]:
        """What Redis replies to each; an error is raised."""
        replies = self.ask_all(commands)
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise reply
        return cast("list[Reply]", replies)

    def ask_all(self, commands: Sequence[Sequence[Argument]]) -> list[Reply | ResponseError]:
        """What Redis replies to each, be it an error."""
        self._socket.sendall(b"".join(map(packed, commands)))
        replies: list[Reply | ResponseError] = []
        while len(replies) < len(commands):
            reply = self._reader.gets()
            if reply is False:
                self._reader.feed(self._socket.recv(65536))
            elif isinstance(reply, hiredis.PushNotification):
                push = cast("list[Reply]", list(reply))
                if push[0] == b"psubscribe":
                    replies.append(None)
                else:
                    self.on_message(word(push[2]).decode(), word(push[3]))
            else:
                replies.append(cast("Reply", reply))
        return replies


@define(eq=False)
class Wire:
    """The nodes, and what is sent to them. `told` has server and key (or "queue NAME") of each
    news."""

    redises: Sequence[RunningRedis]
    partitions: int
    layout: Layout = field(factory=Layout)
    told: list[tuple[str, str]] = field(factory=list)
    nodes: list[Node] = field(init=False)
    caches: dict[str, RedisCaches] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        deaf = len(self.redises) > 1  # news that cross from node to node come later
        self.nodes = [Node(each, self._hear, deaf) for each in self.redises]

    def close(self) -> None:
        """Ends the connections."""
        for each in self.nodes:
            each.close()

    def begin(self, us: int, memory_ms: int, records_max: int) -> None:
        """Empties Redis, sets its clock, and lets three servers begin."""
        self.set_clock(us)
        self.flush()
        self.told.clear()
        for server in "abc":
            self.caches[server] = self._server(server, memory_ms, records_max)

    def _server(self, server: str, memory_ms: int, records_max: int) -> RedisCaches:
        client = cast("Client", self)
        runs = Runs()
        for each in self.redises:
            mode = "cluster" if len(self.redises) > 1 else "standalone"
            runs.connected(Identity(address_of(each), mode, run_id=each.info("server")["run_id"]))

        def hear(text: bytes) -> None:
            self._hear(self.layout.channels + server, text)

        caller = CacheCaller(client, self.layout, server, memory_ms, hear, runs, records_max)
        return RedisCaches(caller, lambda: self.partitions)

    def set_clock(self, us: int) -> None:
        """Of all nodes alike."""
        for each in self.redises:
            each.freeze_clock(us)

    def flush(self) -> None:
        """Empties all nodes."""
        for each in self.nodes:
            each.ask(["FLUSHALL"])

    def _hear(self, channel: str, text: bytes) -> None:
        kind, _, name = text.decode().partition(" ")
        assert kind in {"cache", "queue"}
        news = name if kind == "cache" else text.decode()
        self.told.append((channel.removeprefix(self.layout.channels), news))

    # --- As resp.client.Client ----------------------------------------------------------------

    def address_of(self, key: str) -> Address | None:
        """The node that has a key."""
        return address_of(self._node(key).redis)

    async def eval(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Reply:
        """One script."""
        return self._node(keys[0]).ask(_evalsha(Call(script, keys, args)))[0]

    async def eval_many(self, calls: Sequence[Call]) -> list[Reply | Unanswered | ResponseError]:
        """Many scripts, together for each node."""
        replies: dict[int, Reply | ResponseError] = {}
        for node in self.nodes:
            places = [at for at, call in enumerate(calls) if self._node(call.keys[0]) is node]
            answers = node.ask_all([_evalsha(calls[at]) for at in places])
            replies |= dict(zip(places, answers, strict=True))
        return [replies[at] for at in range(len(calls))]

    def _node(self, key: str) -> Node:
        return self.nodes[key_slot(key.encode()) * len(self.nodes) // 16384]

    # --- What write-behind does ---------------------------------------------------------------

    def put(self, server: str, key: str, content: Content) -> int | Conflict:
        """Calls `put` of the shared rules."""
        [answer] = self._call(server, PUT, key, *content_args(content))
        return Conflict() if answer == b"conflict" else integer(answer)

    def written(self, server: str, key: str, seq: int) -> None:
        """Calls `written` of the shared rules."""
        self._call(server, WRITTEN, key, seq)

    def given_up(self, server: str, key: str, seq: int) -> None:
        """Calls `given_up` of the shared rules."""
        self._call(server, GIVEN_UP, key, seq)

    def _call(self, server: str, script: Script, key: str, *args: Argument) -> list[Reply]:
        call = CacheCall(partition_of(key, self.partitions), script, (key,), args)
        return now_or_never(self.caches[server].caller.call(call))

    # --- What is kept -------------------------------------------------------------------------

    def on_partition(self, partition: int, *commands: Sequence[Argument]) -> list[Reply]:
        """The replies of the node that has it."""
        return self._node(self.layout.entry(partition, "")).ask(*commands)

    def without_clock(self) -> list[int]:
        """The partitions whose clock is not there."""
        clocks = {each: self.layout.partition_keys(each)[0] for each in range(self.partitions)}
        missing: list[int] = []
        for node in self.nodes:
            here = {each: key for each, key in clocks.items() if self._node(key) is node}
            there = node.ask(*(["EXISTS", key] for key in here.values()))
            missing += [each for each, is_there in zip(here, there, strict=True) if not is_there]
        return missing

    def kept_of(self, keys: Sequence[str]) -> dict[str, "Kept"]:
        """What there is of each key that is there."""
        found: dict[str, Kept] = {}
        by_partition: dict[int, list[str]] = {}
        for key in keys:
            by_partition.setdefault(partition_of(key, self.partitions), []).append(key)
        for partition, here in by_partition.items():
            entries = [self.layout.entry(partition, key) for key in here]
            command: list[Argument] = ["EVAL", LOOK_INTO, len(entries), *entries]
            [reply] = self.on_partition(partition, command)
            for key, each in zip(here, listed(reply), strict=True):
                meta, value, ends_ms = listed(each)
                if integer(ends_ms) != -2:
                    shown = _lists(json.loads(word(meta)))
                    assert isinstance(shown, dict)
                    found[key] = Kept(without_nothing(shown), word(value), integer(ends_ms))
        return found

    def clock_of(self, partition: int) -> "Clock | None":
        """What there is of a partition's clock."""
        keys = self.layout.partition_keys(partition)
        clock, hard, soft, ends, writes = keys
        commands: list[list[Argument]] = [["HGETALL", clock]]
        commands += [["ZRANGE", each, 0, -1, "WITHSCORES"] for each in (hard, soft, ends)]
        commands.append(["EVAL", LOOK_INTO_WRITES, 1, writes])
        commands += [["PEXPIRETIME", each] for each in keys]
        reply, *rest = self.on_partition(partition, *commands)
        assert isinstance(reply, dict)
        if not reply:
            return None
        facts = {name.decode(): word(value).decode() for name, value in reply.items()}
        return Clock(
            seq=int(facts["seq"]),
            floor=int(facts["floor"]),
            life_ms=int(facts["life"]),
            hard=_scores(rest[0]),
            soft=_scores(rest[1]),
            ends=_scores(rest[2]),
            writes={
                tag: {write: int(end_ms) for write, end_ms in open_writes.items()}
                for tag, open_writes in json.loads(word(rest[3])).items()
            },
            expires_ms=dict(zip(CLOCK_KEYS, map(integer, rest[4:]), strict=True)),
        )


@define
class Kept:
    """An entry in Redis; `ends_ms`: when it expires, -1: never."""

    meta: dict[str, Meta]
    value: bytes
    ends_ms: int


@define
class Clock:
    """A clock in Redis; `expires_ms` of each of its keys, -2: it is not there."""

    seq: int
    floor: int
    life_ms: int
    hard: dict[str, int]
    soft: dict[str, int]
    ends: dict[str, int]
    writes: dict[str, dict[str, int]]
    expires_ms: dict[str, int]


def address_of(redis: RunningRedis) -> Address:
    """Where it listens."""
    return Address(HOST, redis.port)


def _evalsha(call: Call) -> list[Argument]:
    return ["EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args]


def _scores(reply: Reply) -> dict[str, int]:
    scores: dict[str, int] = {}
    for pair in listed(reply):
        member, score = listed(pair)
        assert isinstance(score, float)
        scores[word(member).decode()] = int(score)
    return scores


def _lists(meta: Meta) -> Meta:
    """Lua knows no difference between an empty list and an empty table."""
    if isinstance(meta, dict):
        return {name: _lists(each) for name, each in meta.items()} if meta else []
    return [_lists(each) for each in meta] if isinstance(meta, list) else meta
