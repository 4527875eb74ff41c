"""Plays a scenario against a server, step by step, and says where it went another way."""

import contextlib
import json
import secrets
from collections.abc import Awaitable, Callable
from typing import Final, TypeAlias, TypeVar
from urllib.parse import urlsplit

import attrs
import trio

from tests.conformance.patterns import Value, match, match_unordered, show
from tests.conformance.peer import NO_CLOSE_FRAME, Accepted, Peer
from tests.conformance.templates import Scope, fill
from tests.conformance.vectors import (
    Json,
    Scenario,
    Step,
    as_int,
    as_list,
    as_object,
    as_text,
)

WITHIN_MS: Final = 5000
POLL_S: Final = 0.01
SCENARIO_S: Final = 60
FIRST_ID: Final = 100001
TRACE_LINES: Final = 40
SUBPROTOCOLS: Final[list[Json]] = ["leasekeeper.v1"]


class StepFailed(AssertionError):
    """A step that did not come out as the vector says."""


class Passed(Exception):
    """A step that ends the scenario well before its last step."""


@attrs.frozen
class Target:
    """The server to play against. ``drain`` tells it to stop, where the runner can."""

    url: str
    drain: Callable[[], None] | None = None


@attrs.frozen
class Started:
    """A request that has been sent and not been answered yet."""

    request_id: Json
    at: float


async def play(scenario: Scenario, target: Target) -> None:
    """Play all steps on connections of their own, which are closed cleanly at the end.

    Raises:
        StepFailed: With the step, what was expected, what came, and the last messages.
    """
    failure: StepFailed | None = None
    async with trio.open_nursery() as nursery:
        player = Player(scenario, target, nursery)
        try:
            await player.play()
        except StepFailed as failed:
            failure = failed
        finally:
            await player.close_all()
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@attrs.define(eq=False)
class Player:
    """The state of one playing: connections, bindings, requests under way."""

    scenario: Scenario
    target: Target
    nursery: trio.Nursery
    peers: dict[str, Peer] = attrs.field(factory=dict)
    scope: Scope = attrs.field(init=False)
    started: dict[str, Started] = attrs.field(factory=dict)
    ids: dict[str, dict[str, Json]] = attrs.field(factory=dict)
    trace: list[str] = attrs.field(factory=list)
    _next_id: int = FIRST_ID

    def __attrs_post_init__(self) -> None:
        host = urlsplit(self.target.url).netloc
        self.scope = Scope(ns=f"v-{secrets.token_hex(4)}/", host=host)

    async def play(self) -> None:
        for number, step in enumerate(self.scenario.steps, start=1):
            try:
                with trio.fail_after(SCENARIO_S):
                    await self._play_step(step)
                self._check_violations()
            except Passed:
                return
            except (StepFailed, ValueError, OSError, LookupError, trio.TooSlowError) as problem:
                raise StepFailed(self._report(number, step, problem)) from None
        self._check_leftovers()

    async def close_all(self) -> None:
        """End what the steps left open: cleanly, so that nothing of it lingers on the server."""
        with trio.move_on_after(1, shield=True):
            async with trio.open_nursery() as nursery:
                for peer in self.peers.values():
                    if peer.closed is None:
                        peer.freeze(False)
                        nursery.start_soon(_close_quietly, peer)
        for peer in self.peers.values():
            await peer.drop()

    async def _play_step(self, step: Step) -> None:
        self.scope.ids = self.ids.get(str(step.get("on")), {})
        for verb, action in VERBS.items():
            if verb in step:
                await action(self, step)
                return
        raise StepFailed("an unknown kind of step")

    # Reporting

    def _report(self, number: int, step: Step, problem: Exception) -> str:
        why = str(problem) or type(problem).__name__
        lines = [
            f"{self.scenario.id} ({', '.join(self.scenario.clauses)})",
            f"step {number} of {len(self.scenario.steps)}: {json.dumps(step, ensure_ascii=False)}",
            why,
            "the last messages:",
            *(f"  {line}" for line in self.trace[-TRACE_LINES:]),
        ]
        return "\n".join(lines)

    def _check_violations(self) -> None:
        for name, peer in self.peers.items():
            if peer.violation is not None:
                raise StepFailed(f"on {name}: {peer.violation}")

    def _check_leftovers(self) -> None:
        left = {name: peer.inbox for name, peer in self.peers.items() if peer.inbox}
        if left:
            shown = "\n".join(f"on {name}: {show(inbox)}" for name, inbox in left.items())
            end = StepFailed(f"at the end, messages that no step expected:\n{shown}")
            count = len(self.scenario.steps)
            raise StepFailed(self._report(count, {"end": True}, end))

    # What steps are made of

    def filled(self, template: Json) -> Json:
        return fill(template, self.scope)

    def peer(self, step: Step) -> Peer:
        return self.peers[as_text(step["on"])]

    def check(self, pattern: Json, value: Value) -> None:
        """Match, and bind.

        Raises:
            StepFailed: If it does not match.
        """
        why = match(self.filled(pattern), value, self.scope.bound)
        if why is not None:
            raise StepFailed(f"{why}\nexpected: {show(self.filled(pattern))}\ncame: {show(value)}")

    async def wait(self, step: Step, peer: Peer, holds: Callable[[], bool], for_what: str) -> None:
        """Wait for something on a connection, as long as the step allows.

        Raises:
            StepFailed: If it does not come in time, or the connection ends first.
        """
        within_ms = as_int(step.get("within_ms", WITHIN_MS))
        with trio.move_on_after(within_ms / 1000) as scope:
            await peer.until(lambda: holds() or peer.closed is not None)
        if holds():
            return
        if scope.cancelled_caught:
            raise StepFailed(f"{for_what} did not come within {within_ms} ms")
        raise StepFailed(f"{for_what} did not come; the connection ended: {peer.closed}")

    def check_not_before(self, step: Step, since: float) -> None:
        passed_ms = (trio.current_time() - since) * 1000
        if passed_ms < as_int(step.get("not_before_ms", 0)):
            raise StepFailed(f"it came after {passed_ms:.0f} ms, which is too early")

    async def request(self, step: Step, method: Json) -> Started:
        """Send a request with a new id; without ``params``, if the step has none."""
        request_id = self._next_id
        self._next_id += 1
        message: dict[str, Json] = {"jsonrpc": "2.0", "id": request_id, "method": method}
        if "params" in step:
            message["params"] = self.filled(step["params"])
        started = Started(request_id, trio.current_time())
        await self.peer(step).send_text(json.dumps(message, ensure_ascii=False))
        return started

    async def answer(self, step: Step, peer: Peer, started: Started) -> dict[str, Json]:
        taken: list[dict[str, Json]] = []

        def holds() -> bool:
            if not taken:
                answer = peer.take_answer(started.request_id)
                if answer is not None:
                    taken.append(answer)
            return bool(taken)

        await self.wait(step, peer, holds, "the answer")
        return taken[0]

    def check_answer(self, step: Step, answer: dict[str, Json]) -> None:
        for member in ("result", "error"):
            if member in step:
                if member not in answer:
                    expected = show(self.filled(step[member]))
                    raise StepFailed(f"expected a {member}: {expected}\ncame: {show(answer)}")
                self.check(step[member], answer[member])

    async def next_message(self, step: Step, peer: Peer) -> Json:
        await self.wait(step, peer, lambda: bool(peer.inbox), "a message")
        return peer.inbox.pop(0)


async def _close_quietly(peer: Peer) -> None:
    with contextlib.suppress(OSError):
        await peer.close(1000)


async def connect(player: Player, step: Step) -> None:
    name = as_text(step.get("connect", step.get("reconnect")))
    old = player.peers.get(name)
    if old is not None and old.closed is None:
        raise StepFailed(f"{name} is connected")
    if old is not None and old.inbox:
        raise StepFailed(f"on {name}, messages that no step expected: {show(old.inbox)}")
    peer = Peer(
        player.target.url,
        ignore=player.scenario.ignore,
        flatten=bool(step.get("flatten", False)),
        trace=lambda line: _trace(player, name, line),
    )
    player.peers[name] = peer
    offered = [as_text(p) for p in as_list(step.get("subprotocols", SUBPROTOCOLS))]
    headers = as_object(player.filled(step.get("headers", {})))
    try:
        with trio.fail_after(as_int(step.get("within_ms", WITHIN_MS)) / 1000):
            accepted = await peer.connect(
                player.nursery, offered, {k: as_text(v) for k, v in headers.items()}
            )
    except OSError:
        if step.get("refused"):
            return
        raise
    await _check_accepted(player, step, peer, accepted)


async def _check_accepted(player: Player, step: Step, peer: Peer, accepted: Accepted) -> None:
    if accepted.status == 101:
        if step.get("refused") or "rejected" in step:
            raise StepFailed("the connection was accepted")
        if "selected" in step:
            player.check(step["selected"], peer.subprotocol)
        player.check(step.get("response_headers", {}), accepted.headers)
        return
    await peer.drop()
    if step.get("refused") and accepted.status == 503:
        return
    if "rejected" in step:
        player.check(step["rejected"], accepted.status)
    elif accepted.status in as_list(step.get("rejected_ok", [])):
        raise Passed
    else:
        raise StepFailed(f"the upgrade was answered {accepted.status}")


def _trace(player: Player, name: str, line: str) -> None:
    player.trace.append(f"{trio.current_time() % 1000:8.3f} {name} {line}")


async def call(player: Player, step: Step) -> None:
    peer = player.peer(step)
    started = await player.request(step, step["call"])
    answer = await player.answer(step, peer, started)
    player.check_not_before(step, started.at)
    player.check_answer(step, answer)


async def start(player: Player, step: Step) -> None:
    name = as_text(step["as"])
    started = await player.request(step, step["start"])
    player.started[f"{step['on']}.{name}"] = started
    player.ids.setdefault(as_text(step["on"]), {})[name] = started.request_id


async def finish(player: Player, step: Step) -> None:
    started = player.started.pop(f"{step['on']}.{as_text(step['finish'])}")
    answer = await player.answer(step, player.peer(step), started)
    player.check_not_before(step, started.at)
    player.check_answer(step, answer)


async def poll(player: Player, step: Step) -> None:
    peer = player.peer(step)
    within_ms = as_int(step.get("within_ms", WITHIN_MS))
    deadline = trio.current_time() + within_ms / 1000
    while True:
        started = await player.request(step, step["poll"])
        answer = await player.answer(step, peer, started)
        try:
            player.check_answer(step, answer)
        except StepFailed as failed:
            if trio.current_time() > deadline:
                raise StepFailed(f"even after {within_ms} ms: {failed}") from None
        else:
            return
        await trio.sleep(POLL_S)


async def send(player: Player, step: Step) -> None:
    text = json.dumps(player.filled(step["send"]), ensure_ascii=False)
    await _send_in_time(player.peer(step).send_text, text)


async def send_text(player: Player, step: Step) -> None:
    await _send_in_time(player.peer(step).send_text, as_text(player.filled(step["send_text"])))


async def send_fragments(player: Player, step: Step) -> None:
    texts = [as_text(text) for text in as_list(player.filled(step["send_fragments"]))]
    await _send_in_time(player.peer(step).send_fragments, texts)


async def send_text_hex(player: Player, step: Step) -> None:
    data = bytes.fromhex(as_text(step["send_text_hex"]))
    await player.peer(step).send_bytes(data, binary=False)


async def send_binary_hex(player: Player, step: Step) -> None:
    data = bytes.fromhex(as_text(step["send_binary_hex"]))
    await player.peer(step).send_bytes(data, binary=True)


async def send_tcp_hex(player: Player, step: Step) -> None:
    await player.peer(step).send_tcp(bytes.fromhex(as_text(step["send_tcp_hex"])))


async def flood_pings(player: Player, step: Step) -> None:
    await _send_in_time(player.peer(step).flood_pings, as_int(step["flood_pings"]))


T = TypeVar("T")


async def _send_in_time(write: Callable[[T], Awaitable[None]], argument: T) -> None:
    """Send, but not for ever to a server that does not read: what it does is the next step's."""
    with trio.move_on_after(WITHIN_MS / 1000):
        await write(argument)


async def ping(player: Player, step: Step) -> None:
    peer = player.peer(step)
    for i in range(as_int(step["ping"])):
        with trio.move_on_after(WITHIN_MS / 1000) as scope:
            await peer.ping(f"ping {i}".encode())
        if scope.cancelled_caught or peer.closed is not None:
            raise StepFailed(f"ping {i} got no pong; the connection's end: {peer.closed}")


async def expect(player: Player, step: Step) -> None:
    since = trio.current_time()
    message = await player.next_message(step, player.peer(step))
    player.check(step["expect"], message)
    player.check_not_before(step, since)


async def notified(player: Player, step: Step) -> None:
    since = trio.current_time()
    message = await player.next_message(step, player.peer(step))
    player.check({"method": step["notified"], "params": step.get("params", {})}, message)
    player.check_not_before(step, since)


async def expect_all(player: Player, step: Step) -> None:
    peer = player.peer(step)
    patterns = as_list(player.filled(step["expect_all"]))
    count = len(patterns)
    await player.wait(step, peer, lambda: len(peer.inbox) >= count, f"{count} messages")
    messages = peer.inbox[:count]
    del peer.inbox[:count]
    why = match_unordered(patterns, messages, player.scope.bound)
    if why is not None:
        raise StepFailed(why)


async def expect_nothing(player: Player, step: Step) -> None:
    peer = player.peer(step)
    with trio.move_on_after(as_int(step["expect_nothing"]) / 1000):
        await peer.until(lambda: bool(peer.inbox) or peer.closed is not None)
    if peer.inbox:
        raise StepFailed(f"nothing was expected, but there came {show(peer.inbox[0])}")
    if peer.closed is not None:
        raise StepFailed(f"nothing was expected, but the connection ended: {peer.closed}")


async def close(player: Player, step: Step) -> None:
    peer = player.peer(step)
    if peer.closed is not None:
        raise StepFailed(f"the connection has ended: {peer.closed}")
    code = step["close"]
    with trio.fail_after(as_int(step.get("within_ms", WITHIN_MS)) / 1000):
        await peer.close(None if code is None else as_int(code))


async def drop(player: Player, step: Step) -> None:
    await player.peer(step).drop()


async def freeze(player: Player, step: Step) -> None:
    player.peer(step).freeze(bool(step["freeze"]))


async def expect_close(player: Player, step: Step) -> None:
    since = trio.current_time()
    peer = player.peer(step)
    await player.wait(step, peer, lambda: peer.closed is not None, "the close")
    if step.get("after_messages"):
        peer.inbox.clear()
    if peer.inbox:
        raise StepFailed(f"before the close, there came {show(peer.inbox[0])}")
    codes = [as_int(code) for code in as_list(step["expect_close"])]
    if step.get("or_reset"):
        codes.append(NO_CLOSE_FRAME)
    if peer.closed not in codes:
        raise StepFailed(f"closed with {peer.closed}, expected one of {codes}")
    player.check_not_before(step, since)


async def sleep(player: Player, step: Step) -> None:
    await trio.sleep(as_int(step["sleep"]) / 1000)


async def drain(player: Player, step: Step) -> None:
    if player.target.drain is None:
        raise StepFailed("this server cannot be told to drain")
    player.target.drain()


Action: TypeAlias = Callable[[Player, Step], Awaitable[None]]

VERBS: Final[dict[str, Action]] = {
    "connect": connect,
    "reconnect": connect,
    "call": call,
    "start": start,
    "finish": finish,
    "poll": poll,
    "send": send,
    "send_text": send_text,
    "send_fragments": send_fragments,
    "send_text_hex": send_text_hex,
    "send_binary_hex": send_binary_hex,
    "send_tcp_hex": send_tcp_hex,
    "ping": ping,
    "flood_pings": flood_pings,
    "expect": expect,
    "expect_all": expect_all,
    "notified": notified,
    "expect_nothing": expect_nothing,
    "close": close,
    "drop": drop,
    "freeze": freeze,
    "expect_close": expect_close,
    "sleep": sleep,
    "drain": drain,
}
