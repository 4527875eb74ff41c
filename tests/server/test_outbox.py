"""Outbox: what waits to be written to one peer, bounded in bytes."""

import sys

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from leasekeeper.server.outbox import Outbox


async def test_take_gets_all_that_waits_in_order() -> None:
    outbox = Outbox(100, 100)
    for message in (b"a", b"b", b"c"):
        assert outbox.put(message)
    assert await outbox.take() == [b"a", b"b", b"c"]


async def test_take_waits_for_something(autojump_clock: MockClock) -> None:
    outbox, taken = Outbox(100, 100), list[list[bytes] | None]()

    async def take_twice() -> None:
        taken.append(await outbox.take())
        taken.append(await outbox.take())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_twice)
        await wait_all_tasks_blocked()
        assert not taken
        outbox.put(b"a")
        await wait_all_tasks_blocked()
        assert taken == [[b"a"]]
        outbox.put(b"b")
    assert taken == [[b"a"], [b"b"]]


async def test_past_the_bound_it_says_no_and_not_before() -> None:
    outbox = Outbox(10, 100)
    assert outbox.put(b"12345")
    assert outbox.put(b"67890")
    assert not outbox.put(b"!")


async def test_the_bound_counts_what_waits_not_what_went() -> None:
    outbox = Outbox(10, 100)
    for _ in range(5):
        assert outbox.put(b"1234567890")
        assert await outbox.take() == [b"1234567890"]


async def test_finished_it_still_gives_what_was_queued_and_then_the_end() -> None:
    outbox = Outbox(10, 100)
    outbox.put(b"a")
    outbox.finish(drop=False)
    outbox.put(b"too late")
    assert await outbox.take() == [b"a"]
    assert await outbox.take() is None
    assert await outbox.take() is None


async def test_finished_and_dropped_it_is_empty() -> None:
    outbox = Outbox(10, 100)
    outbox.put(b"a")
    outbox.finish(drop=True)
    assert await outbox.take() is None


async def test_finish_wakes_the_one_who_takes(autojump_clock: MockClock) -> None:
    outbox = Outbox(10, 100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outbox.take)
        await wait_all_tasks_blocked()
        outbox.finish(drop=False)


async def test_a_cancelled_take_loses_nothing(autojump_clock: MockClock) -> None:
    outbox = Outbox(10, 100)
    with trio.move_on_after(1):
        await outbox.take()
    outbox.put(b"a")
    with trio.CancelScope() as scope:
        scope.cancel()
        await outbox.take()
    assert await outbox.take() == [b"a"]


async def test_a_nudge_wakes_who_takes(autojump_clock: MockClock) -> None:
    """There is something to write that is not in the outbox."""
    outbox = Outbox(100, 100)
    outbox.nudge()
    assert await outbox.take() == []
    with trio.move_on_after(1) as scope:
        await outbox.take()
    assert scope.cancelled_caught


# --- Held: what is put is sent by who holds it ----------------------------------------------------


async def test_held_it_wakes_nobody_until_it_is_let_go(autojump_clock: MockClock) -> None:
    outbox, taken = Outbox(100, 100), list[list[bytes] | None]()

    async def take() -> None:
        taken.append(await outbox.take())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await wait_all_tasks_blocked()
        outbox.hold()
        outbox.put(b"a")
        outbox.put(b"b")
        await wait_all_tasks_blocked()
        assert not taken
        outbox.let_go(lambda _: False)
    assert taken == [[b"a", b"b"]]


async def test_what_is_sent_when_it_is_let_go_is_not_there_any_more() -> None:
    outbox, sent = Outbox(10, 100), list[bytes]()

    def send(messages: list[bytes]) -> bool:
        sent.extend(messages)
        return True

    for _ in range(3):
        outbox.hold()
        assert outbox.put(b"1234567890")
        outbox.let_go(send)
    assert sent == 3 * [b"1234567890"]
    outbox.finish(drop=False)
    assert await outbox.take() is None


async def test_let_go_it_overtakes_nobody() -> None:
    outbox = Outbox(100, 100)
    outbox.put(b"a")
    outbox.hold()
    outbox.put(b"b")
    outbox.let_go(lambda _: True)
    assert await outbox.take() == [b"a", b"b"]


async def test_held_it_is_bounded_too() -> None:
    outbox = Outbox(10, 100)
    outbox.hold()
    assert outbox.put(b"1234567890")
    assert not outbox.put(b"!")


async def test_held_or_not_the_end_is_told() -> None:
    outbox = Outbox(100, 100)
    outbox.hold()
    outbox.put(b"a")
    outbox.finish(drop=False)
    assert await outbox.take() == [b"a"]
    outbox.let_go(lambda _: True)
    assert await outbox.take() is None


# --- Later: messages that are encoded once there is room ------------------------------------------


async def test_what_is_put_later_comes_at_once_if_there_is_room() -> None:
    outbox = Outbox(100, 100)
    assert outbox.put_later(lambda: b"a", b"a", 0)
    assert outbox.put(b"b")
    assert await outbox.take() == [b"a", b"b"]


async def test_what_waits_for_room_is_encoded_when_there_is_some_and_in_order() -> None:
    outbox, encoded = Outbox(10, 10_000), list[bytes]()

    def later(message: bytes) -> bool:
        def encode() -> bytes:
            encoded.append(message)
            return message

        return outbox.put_later(encode, message, 0)

    messages = [b"123456", b"abcdef", b"ABC", b"DEF"]
    for message in messages:
        assert later(message)
    assert encoded == [b"123456"]
    assert outbox.put(b"!")
    assert await outbox.take() == [b"123456", b"!"]
    assert await outbox.take() == [b"abcdef"]
    assert await outbox.take() == [b"ABC"]
    assert await outbox.take() == [b"DEF"]
    assert encoded == messages


async def test_what_waits_for_room_is_bounded_and_a_value_that_many_share_counts_once() -> None:
    outbox = Outbox(10, 60_000)
    first, second = bytes(40_000), bytes(40_000)
    assert outbox.put(b"1234567890")
    for _ in range(10):
        assert outbox.put_later(lambda: b"a", first, 0)
    assert not outbox.put_later(lambda: b"b", second, 0)


async def test_what_waits_for_room_costs_something_however_small_its_value() -> None:
    """Law L12: a client that reads slowly may ask for a small value without end."""
    for own_bytes, most in ((0, 1_000), (100_000, 10)):
        outbox, count = Outbox(10, 1_000_000), 0
        outbox.put(b"1234567890")
        while outbox.put_later(lambda: b"a", b"a", own_bytes):
            count += 1
            assert count <= most
        assert count >= most / 2


async def test_what_waited_and_went_does_not_count() -> None:
    outbox, value = Outbox(10, 5000), bytes(10)
    for _ in range(30):
        assert outbox.put(b"1234567890")
        assert outbox.put_later(lambda: b"a", value, 0)
        assert await outbox.take() == [b"1234567890"]
        assert await outbox.take() == [b"a"]


async def test_a_value_that_went_is_kept_no_longer() -> None:
    outbox, value = Outbox(10, 5000), bytes(10)
    before = sys.getrefcount(value)
    outbox.put(b"1234567890")
    outbox.put_later(lambda: b"a", value, 0)
    assert sys.getrefcount(value) == before + 1
    await outbox.take()
    assert sys.getrefcount(value) == before


async def test_what_there_is_room_for_leaves_room_for_others() -> None:
    """LIM-5: who reads is not closed because of what else comes meanwhile."""
    outbox, value = Outbox(100_000, 10_000_000), bytes(30_000)
    for _ in range(10):
        assert outbox.put_later(lambda: value, value, 0)
    for _ in range(5):
        await outbox.take()
        assert outbox.put(bytes(60_000))


async def test_little_is_encoded_at_a_time() -> None:
    """Law L13: the others wait meanwhile."""
    outbox = Outbox(4_000_000, 64_000_000)
    outbox.put(bytes(3_000_000))
    for _ in range(10_000):
        assert outbox.put_later(lambda: b"a", b"a", 0)
    assert len(await outbox.take() or ()) == 1
    taken = 0
    while taken < 10_000:
        messages = await outbox.take()
        assert messages is not None
        assert 0 < len(messages) <= 256
        taken += len(messages)


async def test_at_the_end_what_waits_for_room_is_dropped() -> None:
    for drop, left in ((False, [[b"1234567890"], None]), (True, [None])):
        outbox = Outbox(10, 5000)
        outbox.put(b"1234567890")
        outbox.put_later(lambda: b"a", b"a", 0)
        outbox.finish(drop=drop)
        assert outbox.put_later(lambda: b"too late", b"a", 0)
        for expected in left:
            assert await outbox.take() == expected


async def test_held_what_waits_for_room_is_not_forgotten() -> None:
    outbox = Outbox(10, 10)
    outbox.hold()
    outbox.put(b"1234567890")
    outbox.put_later(lambda: b"a", b"a", 0)
    outbox.let_go(lambda _: True)
    assert await outbox.take() == [b"a"]
