"""Whether Redis is as it has to be: at the start, after each new connection, and now and then.

A Redis that answers PING may still be no good: it may delete leases to make room, or refuse the
scripts to this user. So every master is asked about itself, and the real scripts are rehearsed on
it. At the start, what is refused ends the server; later, it pauses grants until it is right again,
while leases are renewed and released as ever.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from secrets import token_hex
from typing import Final, TypeAlias

import structlog
import trio
from attrs import define, evolve, field
from redis.exceptions import ResponseError

from leasekeeper.core.lock import Claim
from leasekeeper.errors import ConfigurationError, Outcome, Unavailable
from leasekeeper.messages import Mode
from leasekeeper.resp.client import Client, Reply
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.handshake import Identity
from leasekeeper.resp.scripts import Argument, Script
from leasekeeper.resp.settings import Address
from leasekeeper.store.redis import findings, scripts
from leasekeeper.store.redis.cache_calling import ANY_RUN
from leasekeeper.store.redis.entries import claim_args
from leasekeeper.store.redis.findings import Finding, Level
from leasekeeper.store.redis.keys import Layout

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

_SETTLE_S: Final = 1.0
"""Connections come several at a time; after the last of them is soon enough."""
_REPAIR_MS: Final = 2000
"""How often it is looked whether what paused grants is right again."""
_UNKNOWN_MS: Final = 500
_SUBSCRIBE_S: Final = 5.0
_NAMES_MAX: Final = 2000
"""So many names are tried to find one in a slot of every master."""

# --- What is rehearsed ----------------------------------------------------------------------------

_TTL_MS: Final = 30_000
"""Longer than a rehearsal: what a cancelled one leaves is gone soon after."""
_HOLDER: Final = Claim("holder", _TTL_MS, owner="a.1", alive_ms=_TTL_MS)
_WAITER: Final = evolve(_HOLDER, lease="waiter", owner="b.1", mode=Mode.SHARED, limit=2)

_REHEARSAL: Final[Sequence[tuple[str, Script, Sequence[Argument], Reply]]] = (
    ("a", scripts.ACQUIRE, (*claim_args(_HOLDER), 0, 1, 1), b"granted"),
    ("b", scripts.ACQUIRE, (*claim_args(_WAITER), 1, 1, 1), b"queued"),
    ("a", scripts.RENEW, ("holder", ""), b"renewed"),
    ("b", scripts.TOUCH, (_TTL_MS, "waiter"), None),
    ("a", scripts.RELEASE, ("holder", "a"), b"held"),
    ("a", scripts.RESUME, ("waiter", "a.2", ""), b"held"),
    ("b", scripts.TOUCH, (0, "waiter"), None),
    ("b", scripts.INSPECT, (1, 1, 0, 0), None),
    ("b", scripts.BREAK, ("", 1), 1),
)
"""Which server runs which script, and how the answer begins; None: with the time.

Two servers, so that events are published; both modes and a queue, so that all commands are used.
"""
_Scene: TypeAlias = tuple[Script, Sequence[str], Sequence[Argument]]
_CONTENT: Final = ("value", "x", _TTL_MS, 0, "", "tag")
_CACHE_REHEARSAL: Final[Sequence[tuple[Script, Sequence[Argument], Reply]]] = (
    (scripts.CACHE_DISTRUST, (0,), b"distrusted"),
    (scripts.CACHE_LOOK, ("fill", _TTL_MS, "a.1", "0", "0", 1), None),
    (scripts.CACHE_MARK_TAGS, ("soft", "", 0, "tag"), b"marked"),
    (scripts.CACHE_BEGIN_WRITE, ("write", _TTL_MS, "tag"), b"begun"),
    (scripts.CACHE_CLOSE_WRITE, ("write", 0, *_CONTENT), b"closed"),
    (scripts.CACHE_FILL, ("fill", 0, *_CONTENT), b"voided"),
    (scripts.CACHE_SET, _CONTENT, b"set"),
    (scripts.CACHE_INVALIDATE, ("hard",), b"invalidated"),
)
"""The same for the cache, by one server."""

_ADVICE: Final[Mapping[str, str]] = {
    "OOM": "raise maxmemory, or find out what fills it",
    "MISCONF": "free the disk that Redis cannot write its snapshots to; its log says more",
    "NOREPLICAS": "bring up its replicas, or lower min-replicas-to-write",
    "BUSY": "end the script that keeps it busy: SCRIPT KILL",
    "CLUSTERDOWN": "repair the cluster: CLUSTER INFO, CLUSTER NODES",
    "READONLY": "wait for the failover to end, or name the master",
}

_VOLATILE: Final = (
    "this Redis has no AOF, so its restart would lose the write: CONFIG SET appendonly yes, or "
    "serve with --allow-volatile-writes"
)

_BY_ACL: Final = "The user executing the script can't"
_LINE_OF_SCRIPT: Final = re.compile(r"@?user_script: ?(\d+)")
_CALL: Final = re.compile(r"call\('(\w+)'")


@define(eq=False)
class Examiner:
    """Looks at every master. Between two looks, it remembers their clocks."""

    client: Client
    layout: Layout
    replicas: int
    _rehearsals: Layout = field(init=False, repr=False)
    """A prefix where nobody lists names, or wants one."""
    _ahead_s: dict[Address, float] = field(factory=dict, init=False)
    """By how much the clock of each was ahead of our monotonic one."""
    _secretive: set[Address] = field(factory=set, init=False)
    """Those that do not let this user read their configuration: they are not asked again."""
    keeps: dict[Address, bool] = field(factory=dict, init=False)
    """Whether each of them has an AOF, as far as is known."""

    @_rehearsals.default
    def _beside_the_names(self) -> Layout:
        return Layout(f"{self.layout.prefix}:preflight")

    async def examine(self) -> list[Finding]:
        """What there is to say of each node. A node out of reach has but one finding.

        Raises:
            Unanswered: it is not known now which nodes there are.
        """
        masters = self.client.masters
        if not masters:
            raise Unanswered(Outcome.NONE, "no master is known")
        names = self._names(masters)
        by_node: dict[Address, list[Finding]] = {}

        async def look_at(address: Address) -> None:
            by_node[address] = await self._look_at(address, names.get(address))

        async with trio.open_nursery() as nursery:
            for address in masters:
                nursery.start_soon(look_at, address)
        return [
            evolve(finding, where=str(address))
            for address in masters
            for finding in by_node[address]
        ]

    def _names(self, masters: Sequence[Address]) -> dict[Address, str]:
        """For each master a name that lies in one of its slots; none for one with hardly any."""
        token = token_hex(8)
        names: dict[Address, str] = {}
        for number in range(_NAMES_MAX):
            name = f"{token}-{number}"
            address = self.client.address_of(self._rehearsals.lock(name))
            if address is not None:
                names.setdefault(address, name)
            if len(names) == len(masters):
                break
        return names

    async def _look_at(self, address: Address, name: str | None) -> list[Finding]:
        try:
            asked_at = trio.current_time()
            info = await self._info(address)
            took_ms = (trio.current_time() - asked_at) * 1000
            if info.get("loading") == "1":  # meanwhile it says that it has no AOF
                raise Unanswered(Outcome.NONE, f"{address} loads its data")
            self.keeps[address] = findings.has_aof(info)
            return [
                Finding(Level.OK, "connection", f"answers in {took_ms:.1f} ms"),
                findings.version(info),
                findings.eviction(info),
                findings.memory(info),
                findings.persistence(
                    info,
                    await self._setting(address, "save"),
                    await self._setting(address, "appendfsync"),
                ),
                *(await self._look_at_replicas(address, info) if self.replicas else ()),
                *await self._look_at_clock(address),
                *(await self._rehearse(address, name) if name else ()),
                *await self._try_scan(address),
            ]
        except Unanswered as problem:
            found = _without(address, problem.reason)
            advice = "see that it runs, and that nothing is in between"
            return [Finding(Level.REFUSE, "connection", found, advice, passing=True)]

    async def _info(self, address: Address) -> dict[str, str]:
        reply = await self._ask(address, "INFO")
        text = reply.decode(errors="replace") if isinstance(reply, bytes) else ""
        pairs = (line.partition(":") for line in text.splitlines())
        return {name: value for name, colon, value in pairs if colon}

    async def _setting(self, address: Address, name: str) -> str | None:
        if address in self._secretive:
            return None
        reply = await self._ask(address, "CONFIG", "GET", name)
        if isinstance(reply, ResponseError):
            self._secretive.add(address)
        value = reply.get(name.encode()) if isinstance(reply, dict) else None
        return value.decode(errors="replace") if isinstance(value, bytes) else None

    async def _look_at_replicas(
        self, address: Address, info: Mapping[str, str]
    ) -> Sequence[Finding]:
        waited = await self._ask(address, "WAIT", 0, 1)
        if isinstance(waited, ResponseError):
            return [self._forbidden("replicas", "may not WAIT for replicas")]
        return [findings.replicas(info, self.replicas)]

    async def _look_at_clock(self, address: Address) -> Sequence[Finding]:
        asked_at, ours_s = trio.current_time(), time.time()
        reply = await self._ask(address, "TIME")
        took_s = trio.current_time() - asked_at
        match reply:
            case [bytes(seconds), bytes(micros)] if took_s * 1000 < findings.STEP_MS:
                theirs_s = int(seconds) + int(micros) / 1e6 - took_s / 2
            case _:
                return []  # it says nothing, or so slowly that it means nothing
        ahead_s = theirs_s - asked_at
        before_s = self._ahead_s.get(address, ahead_s)
        self._ahead_s[address] = ahead_s
        step = findings.clock_step((ahead_s - before_s) * 1000)
        apart = findings.clock((theirs_s - ours_s) * 1000)
        return [apart, step] if step else [apart]

    async def _try_scan(self, address: Address) -> Sequence[Finding]:
        reply = await self._ask(address, "SCAN", "0", "COUNT", 1)
        if not isinstance(reply, ResponseError):
            return []
        finding = self._forbidden("listing", "may not SCAN, so leases cannot be listed")
        return [evolve(finding, level=Level.WARN)]

    async def _ask(self, address: Address, *args: Argument) -> Reply | ResponseError:
        """A command that may be refused to this user, or to everybody."""
        try:
            return await self.client.command(*args, address=address)
        except ResponseError as error:
            return error
        except Unanswered as problem:
            if _is_forbidden(problem):
                return ResponseError(problem.reason)
            raise

    # --- The scripts --------------------------------------------------------------------------

    async def _rehearse(self, address: Address, name: str) -> Sequence[Finding]:
        """Runs the real scripts."""
        # Those that Redis knows need no EVAL, but one that was restarted knows none.
        if isinstance(await self._ask(address, "EVAL", "return 1", 0), ResponseError):
            return [self._forbidden("scripts", "may not EVAL")]
        keys = self._rehearsals.keys(name) + self._rehearsals.rehearsed_keys(name)
        for (script, its_keys, args), expected in self._rehearsal(name):
            try:
                reply = await self.client.eval(script, its_keys, args)
            except (Unanswered, ResponseError) as problem:
                if isinstance(problem, Unanswered) and problem.outcome is Outcome.UNKNOWN:
                    raise
                await self._ask(address, "DEL", *keys)
                return [self._failed(address, script, problem)]
            first = reply[0] if isinstance(reply, list) and reply else reply
            if expected is not None and first != expected:
                found = f"{script.name} answered {first!r} instead of {expected!r}"
                advice = "use Redis or Valkey, if this is not a flush that came in between"
                return [Finding(Level.REFUSE, "scripts", found, advice, passing=True)]
        await self._ask(address, "DEL", *keys)
        return [Finding(Level.OK, "scripts", "run, and leave nothing behind")]

    def _rehearsal(self, name: str) -> Iterator[tuple[_Scene, Reply]]:
        """What is run, and how the answer begins."""
        layout = self._rehearsals
        for server, script, args, expected in _REHEARSAL:
            common = (name, server, layout.channels, 1, 1)
            yield (script, layout.keys(name), (*common, *args)), expected
        for script, args, expected in _CACHE_REHEARSAL:
            common_to_caches = ("a", layout.channels, ANY_RUN, 1, 1)
            yield (script, layout.rehearsed_keys(name), (*common_to_caches, *args)), expected

    def _failed(
        self, address: Address, script: Script, problem: Unanswered | ResponseError
    ) -> Finding:
        if isinstance(problem, Unanswered) and not _is_forbidden(problem):
            found = f"{script.name}: {_without(address, problem.reason)}"
            advice = _ADVICE.get(found.rpartition(" ")[2], "its log may say more")
            return Finding(Level.REFUSE, "scripts", found, advice, passing=True)
        text = str(problem)
        if _BY_ACL not in text and not _is_forbidden(problem):
            found = f"{script.name} failed: {text}"
            return Finding(Level.REFUSE, "scripts", found, "use Redis 7 or newer, or Valkey")
        what = f"may not EVALSHA with the keys {self.layout.prefix}:*"
        if line := _LINE_OF_SCRIPT.search(text):
            commands = _CALL.findall(script.source.splitlines()[int(line[1]) - 1])
            what = f"may not {' or '.join(commands)} in {script.name}"
        return self._forbidden("scripts", what)

    def _forbidden(self, subject: str, what: str) -> Finding:
        user, prefix = self.client.settings.username or "default", self.layout.prefix
        return Finding(
            Level.REFUSE,
            subject,
            f"this user {what}",
            f"ACL SETUSER {user} ~{prefix}:* &{prefix}:* +@read +@write +@scripting +@pubsub "
            "+@connection +time +info +wait +config|get +cluster|slots",
        )


def _is_forbidden(problem: Unanswered | ResponseError) -> bool:
    return isinstance(problem, Unanswered) and problem.reason.endswith(" NOPERM")


def _without(address: Address, reason: str) -> str:
    """The node is named beside it."""
    return reason.removeprefix(f"{address} ")


async def try_subscribing(client: Client, layout: Layout) -> Finding:
    """Whether this user hears of events; a server that runs finds that out by itself."""
    refused: ConfigurationError | None = None
    is_done = False
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(_SUBSCRIBE_S):
            channels = (f"{layout.channels}preflight", layout.servers)
            try:
                await nursery.start(client.subscribe, channels, lambda *_: None, lambda: None)
                is_done = True
            except ConfigurationError as error:
                refused = error
        nursery.cancel_scope.cancel()
    if is_done:
        return Finding(Level.OK, "events", "can be subscribed to")
    found, _, advice = str(refused or "no answer: see that it runs").partition(": ")
    return Finding(Level.REFUSE, "events", found, advice, passing=refused is None)


# --- The machine ----------------------------------------------------------------------------------


@define(eq=False)
class Preflight:
    """Keeps examining, and knows why nothing may be granted now, if so.

    It does not refuse anything: who grants asks for `reason`.
    """

    layout: Layout
    replicas: int
    every_ms: int
    reason: str | None = field(default=None, init=False)
    _client: Client = field(init=False, repr=False)
    _examiner: Examiner | None = field(default=None, init=False, repr=False)
    _soon: trio.Event = field(factory=trio.Event, init=False, repr=False)
    _refused: dict[str, list[Finding]] = field(factory=dict, init=False)
    """By node."""
    _said: dict[tuple[str, str], tuple[Level, str]] = field(factory=dict, init=False, repr=False)
    """By node and subject: how it was, and what to do about it."""

    def use(self, client: Client) -> None:
        """Ties the knot: the client tells of its connections, and is asked."""
        self._client = client

    def connected(self, _: Identity) -> None:
        """There is a new connection: Redis may have been restarted, or be another one."""
        self._soon.set()

    @property
    def paused_ms(self) -> int:
        """When to ask again, while there is a reason; 0: there is none."""
        return _REPAIR_MS if self.reason else 0

    def paused(self) -> Unavailable:
        """What is said to those who ask for leases while there is a reason."""
        return Unavailable(Outcome.NONE, _REPAIR_MS, f"grants are paused: {self.reason}")

    def write_refusal(self) -> str | None:
        """Why no write is to be queued, and what to do about it; None: Redis would not lose it.

        Raises:
            Unavailable: that is not known yet; a master is new.
        """
        keeps = self._examiner.keeps if self._examiner is not None else {}
        masters = [keeps.get(each) for each in self._client.masters]
        if False in masters:
            return _VOLATILE
        if None in masters or not masters:
            raise Unavailable(Outcome.NONE, _UNKNOWN_MS, "it is not known yet what Redis keeps")
        return None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Examines until cancelled; started() after the first time.

        Raises:
            ConfigurationError: that found what cannot work.
        """
        examiner = self._examiner = Examiner(self._client, self.layout, self.replicas)
        found = await self._examine(examiner)
        if refused := [each for some in self._refused.values() for each in some]:
            first, more = refused[0], len(refused) - 1
            others = f" (and {more} more: leasekeeper doctor shows all)" if more else ""
            raise ConfigurationError(f"{first.where}: {first.found}; {first.advice}{others}")
        self._say(found)
        task_status.started()
        while True:
            wait_ms = min(self.every_ms, _REPAIR_MS) if self.reason else self.every_ms
            with trio.move_on_after(wait_ms / 1000):
                await self._soon.wait()
                await trio.sleep(_SETTLE_S)
            self._soon = trio.Event()
            self._say(await self._examine(examiner))
            self._conclude()

    async def _examine(self, examiner: Examiner) -> dict[str, list[Finding]]:
        """What was found at each node; nothing if there is no telling."""
        by_node: dict[str, list[Finding]] = {}
        try:
            for finding in await examiner.examine():
                by_node.setdefault(finding.where, []).append(finding)
        except Unanswered as problem:
            _log.debug("redis was not examined", problem=problem.reason)
            return {}
        # Of a node out of reach is believed what was last seen.
        self._refused = {
            node: [each for each in some if each.level is Level.REFUSE and not each.passing]
            if _is_reached(some)
            else self._refused.get(node, [])
            for node, some in by_node.items()
        }
        return by_node

    def _say(self, by_node: Mapping[str, Sequence[Finding]]) -> None:
        """Logs what is wrong and was not, and what is right again."""
        before = self._said
        for node, some in by_node.items():
            if _is_reached(some):
                self._said = {key: how for key, how in self._said.items() if key[0] != node}
            for each in some:
                key, now = (node, each.subject), (each.level, each.advice)
                was, self._said[key] = before.get(key), now
                facts = {"node": node, "check": each.subject, "found": each.found}
                if each.level is not Level.OK and was != now:
                    _log.warning("redis is not as it should be", **facts, advice=each.advice)
                elif each.level is Level.OK and was and was[0] is not Level.OK:
                    _log.info("redis is as it should be again", **facts)

    def _conclude(self) -> None:
        reasons = [each.found for some in self._refused.values() for each in some]
        before, self.reason = self.reason, reasons[0] if reasons else None
        if self.reason and self.reason != before:
            _log.warning("grants are paused", reason=self.reason)
        elif before and not self.reason:
            _log.info("grants go on")


def _is_reached(some: Sequence[Finding]) -> bool:
    return all(each.level is Level.OK for each in some if each.subject == "connection")
