"""What one connection asks, in which order it happens, and how the answers are grouped.

Trio shuffles the tasks that are ready, so what is ordered by luck alone fails here soon.
"""

import json

import orjson
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.harness import Peer, Served, raw_frame, serving

TEXT = 0x1
HOW = ["one_batch", "many_frames_at_once", "many_frames", "two_batches"]


async def send(peer: Peer, requests: list[dict[str, object]], how: str) -> None:
    match how:
        case "one_batch":
            await peer.send(requests)
        case "many_frames_at_once":
            await peer.send_raw(b"".join(raw_frame(TEXT, orjson.dumps(r)) for r in requests))
        case "many_frames":
            for request in requests:
                await peer.send(request)
        case "two_batches":
            half = len(requests) // 2
            await peer.send(requests[:half])
            await peer.send(requests[half:])


async def queued_labels(served: Served, name: str, count: int) -> list[str]:
    other = await served.connect()
    while True:
        state = await other.call("lease.inspect", name=name)
        if state["waiting_total"] == count:
            return [each["label"] for each in state["waiting"]]
        await trio.sleep(0.01)


# --- The order of requests ------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("how", HOW)
async def test_requests_of_a_connection_queue_in_the_order_they_were_sent(
    how: str, batch: bool, autojump_clock: MockClock
) -> None:
    """Law L4 begins at the client: FIFO is by the order of sending."""
    async with serving() as served:
        for turn in range(5):
            peer, name = await served.connect(batch=batch), f"n{turn}"
            await peer.call("lease.acquire", name=name)
            requests = [
                peer.request("lease.acquire", name=name, wait_ms=None, label=str(number))
                for number in range(80)
            ]
            await send(peer, requests, how)
            labels = await queued_labels(served, name, 80)
            assert labels == [str(number) for number in range(80)]


@pytest.mark.parametrize("how", HOW)
async def test_requests_that_undo_each_other_take_effect_in_order(
    how: str, autojump_clock: MockClock
) -> None:
    async with serving() as served:
        peer = await served.connect()
        for turn in range(10):
            lease = f"{turn:032x}"
            requests = []
            for _ in range(10):
                requests.append(peer.request("lease.acquire", name="a", lease=lease))
                requests.append(peer.request("lease.inspect", name="a"))
                requests.append(peer.request("lease.release", name="a", lease=lease))
                requests.append(peer.request("lease.inspect", name="a"))
            await send(peer, requests, how)
            answers = [await peer.answer(int(str(each["id"]))) for each in requests]
            fences = [answer["fence"] for answer in answers[0::4]]
            assert fences == sorted(set(fences))
            assert [[h["fence"] for h in answer["holders"]] for answer in answers[1::4]] == [
                [fence] for fence in fences
            ]
            assert all(answer["released"] for answer in answers[2::4])
            assert all(answer["holders"] == [] for answer in answers[3::4])


@pytest.mark.parametrize("how", HOW)
async def test_a_cancel_finds_the_request_that_was_sent_before_it(
    how: str, autojump_clock: MockClock
) -> None:
    async with serving() as served:
        holder, peer = await served.connect(), await served.connect()
        await holder.call("lease.acquire", name="a")
        for _ in range(10):
            waits, cancels = [], []
            requests = []
            for _ in range(20):
                waits.append(peer.request("lease.acquire", name="a", wait_ms=None))
                cancels.append(peer.request("rpc.cancel", id=waits[-1]["id"]))
                requests += [waits[-1], cancels[-1]]
            await send(peer, requests, how)
            for each in cancels:
                assert await peer.answer(each["id"]) == {"cancelled": True}
        assert (await holder.call("lease.inspect", name="a"))["waiting_total"] == 0


async def test_grants_of_one_connection_are_told_in_queue_order(
    autojump_clock: MockClock,
) -> None:
    async with serving() as served:
        peer = await served.connect(batch=True)
        first = await peer.call("lease.acquire", name="a")
        waits = [
            peer.request("lease.acquire", name="a", wait_ms=None, lease=f"{n:032x}")
            for n in range(50)
        ]
        await peer.send(waits)
        await trio.testing.wait_all_tasks_blocked()
        before, lease = first["fence"], first["lease"]
        for number, wait in enumerate(waits):
            await peer.call("lease.release", name="a", lease=lease)
            grant = await peer.answer(wait["id"])
            assert grant["fence"] > before
            before, lease = grant["fence"], f"{number:032x}"


async def test_the_same_id_twice_is_refused_while_the_first_is_outstanding() -> None:
    async with serving() as served:
        holder, peer = await served.connect(), await served.connect()
        held = await holder.call("lease.acquire", name="a")
        ask = {"jsonrpc": "2.0", "id": "x", "method": "lease.acquire"}
        await peer.send({**ask, "params": {"name": "a", "wait_ms": None}})
        await peer.send({**ask, "params": {"name": "b"}})
        assert (await peer.receive())["error"]["code"] == -32600
        await holder.call("lease.release", name="a", lease=held["lease"])
        assert (await peer.receive())["result"]["name"] == "a"
        await peer.send({**ask, "params": {"name": "b"}})
        assert (await peer.receive())["result"]["name"] == "b"


# --- How answers are grouped ----------------------------------------------------------------------


async def test_a_batch_is_answered_with_one_array_when_all_are_ready(
    autojump_clock: MockClock,
) -> None:
    """JSON-RPC 2.0, section 6."""
    async with serving() as served:
        holder, peer = await served.connect(), await served.connect()
        held = await holder.call("lease.acquire", name="a")
        wait = peer.request("lease.acquire", name="a", wait_ms=None)
        quick = [peer.request("lease.inspect", name="b") for _ in range(3)]
        note = {"jsonrpc": "2.0", "method": "lease.inspect", "params": {"name": "b"}}
        await peer.send([quick[0], wait, note, {"nonsense": True}, *quick[1:]])
        await trio.testing.wait_all_tasks_blocked()
        assert peer.frames == []
        await holder.call("lease.release", name="a", lease=held["lease"])
        await peer.until(lambda: bool(peer.frames))
        (frame,) = peer.frames
        assert len(json.loads(frame)) == 5


async def test_a_batch_of_notifications_is_not_answered(autojump_clock: MockClock) -> None:
    async with serving() as served:
        peer = await served.connect()
        note = {"jsonrpc": "2.0", "method": "lease.inspect", "params": {"name": "b"}}
        await peer.send([note] * 3)
        await peer.call("lease.inspect", name="a")
        assert len(peer.frames) == 1


async def test_a_batch_session_gets_each_answer_when_it_is_ready(
    autojump_clock: MockClock,
) -> None:
    async with serving() as served:
        peer = await served.connect(batch=True)
        await peer.call("lease.acquire", name="a")
        wait = peer.request("lease.acquire", name="a", wait_ms=None)
        quick = peer.request("lease.inspect", name="b")
        await peer.send([wait, quick])
        await peer.answer(quick["id"])
        assert not peer.answered(wait["id"])


async def test_a_batch_session_gets_all_that_is_ready_in_one_frame(
    autojump_clock: MockClock,
) -> None:
    """What became ready while the last frame was under way leaves together."""
    async with serving() as served:
        peer = await served.connect("lockstep", batch=True)
        peer.pause()
        asked = [await peer.ask("lease.inspect", name=f"n{n}") for n in range(40)]
        await trio.testing.wait_all_tasks_blocked()
        peer.frames.clear()
        peer.resume()
        for each in asked:
            await peer.answer(each)
        assert len(peer.frames) <= 3
        assert isinstance(json.loads(peer.frames[-1]), list)


async def test_a_pipelined_frame_is_answered_in_fewer_frames_than_answers(
    autojump_clock: MockClock,
) -> None:
    """What is ready together goes together."""
    async with serving() as served:
        peer = await served.connect(batch=True)
        peer.frames.clear()
        batch = [peer.request("lease.inspect", name=f"n{n}") for n in range(400)]
        await peer.send(batch)
        for each in batch:
            await peer.answer(each["id"])
        assert len(peer.frames) <= 200


async def test_a_session_that_did_not_ask_gets_no_arrays(autojump_clock: MockClock) -> None:
    async with serving() as served:
        peer = await served.connect("lockstep", batch=False)
        peer.pause()
        asked = [await peer.ask("lease.inspect", name=f"n{n}") for n in range(40)]
        await trio.testing.wait_all_tasks_blocked()
        peer.resume()
        for each in asked:
            await peer.answer(each)
        assert all(isinstance(json.loads(frame), dict) for frame in peer.frames)


async def test_grouped_frames_are_bounded_in_size(autojump_clock: MockClock) -> None:
    async with serving() as served:
        peer = await served.connect("lockstep", batch=True)
        peer.pause()
        for _ in range(14):
            await peer.send({"jsonrpc": "2.0", "id": "x" * 60_000, "method": "nonsense"})
        await trio.testing.wait_all_tasks_blocked()
        peer.resume()
        await peer.until(lambda: sum(map(len, peer.frames)) > 14 * 60_000)
        assert max(map(len, peer.frames)) < 400_000


async def test_notifications_and_answers_keep_their_order(autojump_clock: MockClock) -> None:
    async with serving() as served:
        for batch in (False, True):
            peer = await served.connect(batch=batch)
            grant = await peer.call("lease.acquire", name="a")
            requests = [
                peer.request("lease.break", name="a"),
                peer.request("lease.renew", name="a", lease=grant["lease"]),
            ]
            for each in requests:
                await peer.send(each)
            await peer.until(lambda p=peer, r=requests: p.answered(r[1]["id"]))  # type: ignore[misc]
            said = [each for frame in peer.frames for each in _members(json.loads(frame))]
            lost = next(n for n, each in enumerate(said) if each.get("method") == "lease.lost")
            renewed = next(n for n, each in enumerate(said) if each.get("id") == requests[1]["id"])
            assert lost < renewed


def _members(message: object) -> list[dict[str, object]]:
    return message if isinstance(message, list) else [message]  # type: ignore[list-item]
