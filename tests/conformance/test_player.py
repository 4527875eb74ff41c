"""The player, against a server that is a page long: what it lets pass, and what it must not."""

import contextlib
import json
from collections.abc import AsyncIterator, Sequence

import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.server import ServerConnection, serve
from websockets.typing import Subprotocol

from tests.conformance.player import StepFailed, Target, play
from tests.conformance.vectors import Json, Scenario, Step, as_object, unfold


async def obey(connection: ServerConnection) -> None:
    """Do what the requests say: echo, notify, raw, close, silence."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            text = await connection.recv()
            try:
                request = json.loads(text)
            except ValueError:
                await answer(connection, None, error={"code": -32700, "message": "parse_error: no"})
                continue
            if isinstance(request, list):
                answers = [{"jsonrpc": "2.0", "id": r["id"], "result": {}} for r in request]
                await connection.send(json.dumps(answers))
            else:
                await carry_out(connection, request)


async def carry_out(connection: ServerConnection, request: dict[str, Json]) -> None:
    params = request.get("params", {})
    assert isinstance(params, dict)
    match request["method"]:
        case "echo":
            await answer(connection, request["id"], result=params)
        case "later":
            await trio.sleep(0.1)
            await answer(connection, request["id"], result={})
        case "notify":
            await connection.send(
                json.dumps({"jsonrpc": "2.0", "method": "note", "params": params})
            )
            await answer(connection, request["id"], result={})
        case "raw":
            await connection.send(str(params["text"]))
        case "close":
            await connection.aclose(int(str(params["code"])))
        case "silence":
            pass
        case _:
            await answer(
                connection, request["id"], error={"code": -32601, "message": "method_not_found: -"}
            )


async def answer(connection: ServerConnection, request_id: Json, **outcome: Json) -> None:
    await connection.send(json.dumps({"jsonrpc": "2.0", "id": request_id, **outcome}))


@contextlib.asynccontextmanager
async def obedient_server() -> AsyncIterator[Target]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve, listeners)
        yield Target(f"ws://127.0.0.1:{port}/")
        nursery.cancel_scope.cancel()


async def _serve(listeners: Sequence[trio.SocketListener]) -> None:
    await serve(
        obey, listeners=[*listeners], subprotocols=[Subprotocol("leasekeeper.v1")], compression=None
    )


def scenario(*steps: Json, ignore: tuple[str, ...] = ()) -> Scenario:
    (unfolded,) = unfold(
        "fake", {"title": "t", "clauses": ["X-1"], "steps": [*steps], "ignore": [*ignore]}
    )
    return unfolded


def ask(method: str, /, *, params: Json = None, **members: Json) -> Step:
    step: Step = {"on": "a", "call": method, **members}
    return step if params is None else {**step, "params": params}


def raw(text: str) -> Step:
    """Have the server send this, whatever it is."""
    return {"on": "a", "send": {"method": "raw", "params": {"text": text}}}


def shut(code: int) -> Step:
    return {"on": "a", "send": {"method": "close", "params": {"code": code}}}


A: Step = {"connect": "a", "selected": "leasekeeper.v1"}
ECHO: Step = ask("echo", params={"x": [1, None]}, result={"x": [1, None]})


@pytest.mark.parametrize(
    "steps",
    [
        [A, ECHO],
        [A, ask("nope", error={"code": -32601})],
        [
            A,
            ask("echo", params={"x": 7}, result={"x": {"$bind": "x"}}),
            ask("echo", params={"y": {"$ref": "x"}}, result={"y": 7}),
        ],
        [A, ask("echo", params={"n": "{ns}x"}, result={"n": "{ns}x"})],
        [A, ask("later", result={}, not_before_ms=80)],
        [
            A,
            {"on": "a", "start": "later", "as": "w", "params": {}},
            {"on": "a", "finish": "w", "result": {}, "not_before_ms": 80},
        ],
        [
            A,
            {"on": "a", "start": "echo", "as": "w", "params": {}},
            ECHO,
            {"on": "a", "finish": "w", "result": {}},
        ],
        [A, {"on": "a", "poll": "echo", "params": {"x": 1}, "result": {"x": 1}}],
        [
            A,
            ask("notify", params={"k": 1}, result={}),
            {"on": "a", "notified": "note", "params": {"k": 1}},
        ],
        [
            A,
            {"on": "a", "send": {"jsonrpc": "2.0", "id": "i", "method": "echo"}},
            {"on": "a", "expect": {"id": "i", "result": {}}},
        ],
        [
            A,
            {"on": "a", "send_text": "{"},
            {"on": "a", "expect": {"id": None, "error": {"code": -32700}}},
        ],
        [
            A,
            {"on": "a", "send": [{"id": 1}, {"id": 2}]},
            {"on": "a", "expect": {"$unordered": [{"id": 2}, {"id": 1}]}},
        ],
        [
            {**A, "flatten": True},
            {"on": "a", "send": [{"id": 1}, {"id": 2}]},
            {"on": "a", "expect_all": [{"id": 2}, {"id": 1}]},
        ],
        [
            A,
            {"on": "a", "send_fragments": {"$cut": '{"method": "echo", "id": 1}', "into": 40}},
            {"on": "a", "expect": {"id": 1}},
        ],
        [
            A,
            {"on": "a", "send_tcp_hex": "818800000000" + b'{"id":1x'.hex()},
            {"on": "a", "expect": {"id": None}},
        ],
        [A, {"on": "a", "ping": 3}],
        [A, {"on": "a", "expect_nothing": 30}],
        [A, shut(4000), {"on": "a", "expect_close": [4000]}],
        [
            A,
            ask("notify", result={}),
            shut(4000),
            {"on": "a", "expect_close": [4000], "after_messages": True},
        ],
        [A, {"on": "a", "send_text_hex": "ff"}, {"on": "a", "expect_close": [1007]}],
        [A, {"on": "a", "close": 1000}, {"reconnect": "a"}, ECHO],
        [A, {"on": "a", "close": None}, {"reconnect": "a"}, ECHO],
        [A, {"on": "a", "drop": True}, {"reconnect": "a"}, ECHO],
        [
            A,
            {"on": "a", "freeze": True},
            {"on": "a", "start": "notify", "as": "w", "params": {}},
            {"on": "a", "expect_nothing": 50},
            {"on": "a", "freeze": False},
            {"on": "a", "finish": "w", "result": {}},
            {"on": "a", "notified": "note"},
        ],
        [A, {"connect": "b"}, {"sleep": 10}, ECHO],
        [{"connect": "a", "subprotocols": [], "rejected": 400}],
        [{"connect": "a", "subprotocols": [], "rejected_ok": [401, 400]}, {"not": "reached"}],
        [A, {"connect": "b", "response_headers": {"sec-websocket-extensions": {"$absent": True}}}],
    ],
)
async def test_it_passes(steps: list[Json]) -> None:
    async with obedient_server() as target:
        await play(scenario(*steps), target)


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        (
            [A, ask("echo", params={"x": 1}, result={"x": 2})],
            r"\$\.x was expected to be 2, but is 1",
        ),
        ([A, ask("echo", params={"x": 1}, result={"x": True})], "to be true, but is 1"),
        ([A, ask("nope", result={})], "expected a result"),
        ([A, ask("echo", error={})], "expected a error"),
        ([A, ask("echo", result={}, not_before_ms=1000)], "too early"),
        ([A, ask("silence", result={}, within_ms=50)], "the answer did not come within 50 ms"),
        ([A, ask("close", params={"code": 4001}, result={})], "the connection ended: 4001"),
        ([A, {"on": "a", "poll": "echo", "result": {"x": 1}, "within_ms": 50}], "even after 50 ms"),
        ([A, ask("notify", result={})], "messages that no step expected"),
        (
            [A, ask("notify", result={}), {"on": "a", "close": 1000}, {"reconnect": "a"}],
            "messages that no step expected",
        ),
        ([A, ask("notify", result={}), {"on": "a", "expect_nothing": 30}], "nothing was expected"),
        (
            [
                A,
                {"on": "a", "start": "close", "as": "w", "params": {"code": 4001}},
                {"on": "a", "expect_nothing": 3000},
            ],
            "nothing was expected, but the connection ended",
        ),
        ([A, {"on": "a", "expect": {}, "within_ms": 30}], "a message did not come within 30 ms"),
        ([A, {"on": "a", "expect_all": [{}], "within_ms": 30}], "1 messages did not come"),
        (
            [A, {"on": "a", "send": [{"id": 1}]}, {"on": "a", "expect": [{"id": 2}]}],
            "to be 2, but is 1",
        ),
        (
            [A, {"on": "a", "send": [{"id": 1}]}, {"on": "a", "expect_all": [{}]}],
            "to be an object|nothing left",
        ),
        ([A, {"on": "a", "expect_close": [1000], "within_ms": 30}], "the close did not come"),
        ([A, shut(4001), {"on": "a", "expect_close": [4000]}], "closed with 4001"),
        ([A, ask("raw", params={"text": "{"}, result={}, within_ms=50)], "did not come"),
        ([A, raw("[]"), ECHO], "an empty array"),
        ([A, raw('{"jsonrpc": "2.0", "id": NaN, "result": {}}'), ECHO], "NaN is not JSON"),
        ([A, raw('{"jsonrpc": "2.0", "id": 1, "id": 1, "result": {}}'), ECHO], "comes twice"),
        ([A, raw('{"id": 1, "result": {}}'), ECHO], "no JSON-RPC"),
        (
            [A, raw('{"jsonrpc": "2.0", "id": 1, "result": {}, "error": null}'), ECHO],
            "neither an answer",
        ),
        ([A, raw('{"jsonrpc": "2.0", "method": "m"}'), ECHO], "neither an answer"),
        ([A, {"on": "a", "close": 1000}, ECHO], "the connection has ended: 1000"),
        ([A, A], "a is connected"),
        ([{"connect": "a", "rejected": 403}], "the connection was accepted"),
        ([{"connect": "a", "refused": True}], "the connection was accepted"),
        ([{"connect": "a", "selected": None}], 'to be null, but is "leasekeeper.v1"'),
        ([A, ask("echo", params={"$ref": "nothing"}, result={})], "nothing"),
        ([A, {"drain": True}], "cannot be told to drain"),
        ([A, {"on": "a", "jump": 1}], "an unknown kind of step"),
    ],
)
async def test_it_fails(steps: list[Json], why: str) -> None:
    async with obedient_server() as target:
        with pytest.raises(StepFailed, match=why):
            await play(scenario(*steps), target)


async def test_a_failure_names_the_step_the_pattern_and_what_came() -> None:
    async with obedient_server() as target:
        with pytest.raises(StepFailed) as failed:
            await play(scenario(A, ask("echo", params={"x": 1}, result={"x": 2})), target)
    text = str(failed.value)
    assert "fake::t (X-1)" in text
    assert "step 2 of 2" in text
    assert 'expected: {"x": 2}' in text
    assert 'came: {"x": 1}' in text
    assert '-> {"jsonrpc": "2.0"' in text


async def test_ignored_notifications_are_dropped() -> None:
    async with obedient_server() as target:
        await play(scenario(A, ask("notify", result={}), ignore=("note",)), target)


async def test_two_playings_have_names_of_their_own() -> None:
    async with obedient_server() as target:
        await play(scenario(A, ask("echo", params={"n": "{ns}"}, result={"n": "{ns}"})), target)
        with pytest.raises(StepFailed, match='to be "v-'):
            await play(scenario(A, ask("echo", params={"n": ""}, result={"n": "{ns}"})), target)


async def test_nobody_there_is_refused() -> None:
    async with obedient_server() as target:
        pass
    await play(scenario({"connect": "a", "refused": True}), target)
    with pytest.raises(StepFailed, match=r"step 1"):
        await play(scenario(A), target)


def test_examples_unfold_into_scenarios() -> None:
    entry: Json = {
        "title": "t",
        "clauses": ["X-1"],
        "examples": [{"v": 1}, {"v": None}],
        "steps": [{"on": "a", "send": {"$example": "v"}}],
    }
    first, second = unfold("fake", as_object(entry))
    assert [first.id, second.id] == ["fake::t [1]", "fake::t [2]"]
    assert second.steps == ({"on": "a", "send": None},)
