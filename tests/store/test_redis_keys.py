"""What is in Redis: nothing for ever, nothing after the work, and nothing that crashes a server."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import pytest
import trio

from leasekeeper.core.lock import Claim, Granted, Left, WaiterGranted
from leasekeeper.errors import RpcError, Unavailable
from leasekeeper.messages import ORIGINAL_WAIT, Mode
from leasekeeper.store.api import Renewal
from leasekeeper.store.redis.store import Options
from tests.polling import eventually
from tests.store.actors import LONG_MS, WAKE_S, Actor, Place

pytestmark = pytest.mark.system

SHORT_MS = 300
FORGETFUL: Final = Options(fence_memory_ms=1000)

# --- Nothing remains ------------------------------------------------------------------------------


async def all_gone(place: Place, within_s: float) -> None:
    """Waits until there is no key."""

    async def is_empty() -> bool:
        return not place.keys()

    await eventually(is_empty, within_s)


async def everything(place: Place, one: Actor, two: Actor) -> None:
    """Does all that can be done to a name, and looks at the keys after each step."""

    async def step(call: Awaitable[object]) -> None:
        await call
        assert place.keys_for_ever() == []

    await step(one.store.watch("n"))
    held = await one.take("n")
    queue = [
        await one.queue("n"),
        await two.queue("n", two.claim(Mode.SHARED, limit=3)),
        await one.queue("n", one.claim(Mode.SHARED)),
    ]
    await step(one.look("n"))
    await step(two.touch("n", queue[1].lease))
    await step(one.renew("n", held.lease, 2 * LONG_MS))
    await step(two.store.resume("n", held.lease, two.owner(), wait_ms=ORIGINAL_WAIT))
    await step(one.store.list_leases("", 10, None))
    await step(two.release("n", held.lease))
    await step(one.granted(queue[0]))
    await step(two.store.break_("n", "x"))
    await step(two.granted(queue[1]))
    await step(one.granted(queue[2]))
    dead = await one.queue("n", one.claim(alive_ms=100))
    await step(two.queue("n", two.claim(ttl_ms=SHORT_MS)))
    await step(one.renew("n", queue[2].lease, SHORT_MS))
    await step(one.lost(queue[2].lease))
    await step(two.release("n", queue[1].lease))
    await step(two.next_told(WaiterGranted))
    await step(one.release("n", dead.lease))
    one.store.unwatch("n")


async def test_nothing_remains_after_the_work(shared: Place) -> None:
    """L9: once fences are forgotten."""
    async with shared.acting("one", FORGETFUL) as one, shared.acting("two", FORGETFUL) as two:
        await everything(shared, one, two)
        await all_gone(shared, within_s=1 + SHORT_MS / 1000 + WAKE_S)


async def test_a_fence_is_remembered_for_a_while(shared: Place) -> None:
    """KEY-4: and nothing else of a name that is not in use."""
    async with shared.acting("one", FORGETFUL) as one:
        held = await one.take("n")
        await one.queue("n", one.claim(alive_ms=SHORT_MS))
        await one.release("n", held.lease)
        await one.store.break_("n", None)
        assert shared.keys() == ["lk:{n}:fence"]
        left_ms = shared.on("n", "PTTL", "lk:{n}:fence")
        assert isinstance(left_ms, int)
        assert 500 < left_ms <= 1000


async def test_nothing_remains_of_a_server_that_died(shared: Place) -> None:
    """KEY-4: not even with nobody to look after it; its keys end by themselves."""
    async with shared.acting("one", FORGETFUL) as one:
        await one.store.watch("n")
        await one.take("n", one.claim(Mode.SHARED, limit=2, ttl_ms=SHORT_MS))
        await one.queue("n", one.claim(alive_ms=SHORT_MS))
    assert shared.keys_for_ever() == []
    assert len(shared.keys()) == 7
    for key in shared.keys():  # noqa: SIM118 # a Place is no dict
        left_ms = shared.on("n", "PTTL", key)
        assert isinstance(left_ms, int)
        assert left_ms <= 15_000


async def test_nothing_remains_of_a_pause(shared: Place) -> None:
    """L9: what says that grants are paused ends with the pause."""
    async with shared.acting("one", FORGETFUL) as one:
        held = await one.take("n", one.claim(ttl_ms=1000))
        for each in shared.nodes:
            each.cli("FLUSHALL")
        await eventually(partial(has_key, shared, "lk:hold"), WAKE_S)
        assert shared.keys_for_ever() == []
        await one.lost(held.lease)
        await all_gone(shared, within_s=15)


async def has_key(place: Place, key: str) -> bool:
    return key in place.keys()  # noqa: SIM118 # a Place is no dict


async def test_keys_begin_with_the_prefix(shared: Place) -> None:
    """And those of a name share a slot."""
    async with shared.acting("one", Options(prefix="a.b")) as one:
        await one.store.watch("n")
        held = await one.take("n", one.claim(Mode.SHARED, limit=1))
        await one.queue("n")
        assert shared.keys() == sorted(
            f"a.b:{{n}}:{part}"
            for part in ("lock", "shared", "limits", "queue", "info", "fence", "watch")
        )
        await one.release("n", held.lease)


# --- What others wrote ----------------------------------------------------------------------------

PARTS = ("lock", "shared", "limits", "queue", "info", "fence", "watch")


async def call_all(one: Actor) -> list[object]:
    """Every call on a name: what it answers, be that an error."""
    claim = one.claim()
    store = one.store
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: store.acquire("n", claim, wait=False),
        lambda: store.acquire("n", claim, wait=True),
        lambda: store.resume("n", claim.lease, one.owner(), wait_ms=None),
        lambda: one.renew("n", claim.lease),
        lambda: one.touch("n", claim.lease),
        lambda: one.look("n"),
        lambda: store.watch("n"),
        lambda: store.list_leases("", 10, None),
        lambda: store.break_("n", None),
        lambda: store.release("n", claim.lease),
    ]
    answers: list[object] = []
    for call in calls:
        try:
            answers.append(await call())
        except RpcError as error:
            answers.append(error)
    store.unwatch("n")
    return answers


@pytest.mark.parametrize("part", PARTS)
async def test_a_key_of_another_type_spoils_its_own_name_only(shared: Place, part: str) -> None:
    """L14: such a name is unavailable; others go on, and so does it when the key is gone."""
    async with shared.acting("one") as one:
        key = f"lk:{{n}}:{part}"
        shared.on("n", "RPUSH", key, "what is this")
        answers = await call_all(one)
        assert any(isinstance(each, Unavailable) for each in answers) or part in {"limits", "watch"}
        assert not any(
            isinstance(each, RpcError) and not isinstance(each, Unavailable) for each in answers
        )
        held = await one.take("m")
        await one.store.renew([Renewal("n", held.lease), Renewal("m", held.lease)])
        shared.on("n", "DEL", key)
        await one.store.break_("n", None)
        await one.take("n")


@pytest.mark.parametrize("part", PARTS)
async def test_a_key_of_another_type_under_a_waiter_spoils_nothing_for_ever(
    shared: Place, part: str
) -> None:
    """L5: when it is gone, the name goes on."""
    async with shared.acting("one") as one:
        await one.take("n", one.claim(Mode.SHARED, limit=1, ttl_ms=SHORT_MS))
        await one.store.watch("n")
        claim = await one.queue("n")
        key = f"lk:{{n}}:{part}"
        shared.on("n", "DEL", key)
        shared.on("n", "RPUSH", key, "what is this")
        await trio.sleep(SHORT_MS / 1000 + 0.3)
        other = await one.take("m")
        assert (await one.look("m")).holders[0].fence == other.fence
        shared.on("n", "DEL", key)
        await eventually(partial(has_it, one, claim), WAKE_S)
        assert len(await one.fences("n")) == 1
        assert await one.release("n", claim.lease) is Left.HELD


async def has_it(one: Actor, claim: Claim) -> bool:
    """Vouches for a waiter as the service does, and asks again if it is not in its queue."""
    if one.told_of(WaiterGranted):
        return True
    if await one.touch("n", claim.lease):
        return False
    return isinstance(await one.ask("n", claim, wait=True), Granted)


@pytest.mark.parametrize("entry", ["", "rubbish", "x 0 30000 0 30000 -1 one.1 0 0 7 0 0 [no json"])
async def test_an_entry_that_cannot_be_read_spoils_its_own_name_only(
    shared: Place, entry: str
) -> None:
    async with shared.acting("one") as one:
        held = await one.take("n")
        await one.store.watch("n")
        shared.on("n", "HSET", "lk:{n}:info", held.lease, entry)
        answers = await call_all(one)
        assert not any(
            isinstance(each, RpcError) and not isinstance(each, Unavailable) for each in answers
        )
        await trio.sleep(0.3)
        await one.take("m")


def subscribers(place: Place) -> list[str]:
    """The connections that listen."""
    said = [str(each.cli("CLIENT", "LIST", "TYPE", "pubsub")) for each in place.nodes]
    return [line.split()[0] for each in said for line in each.splitlines()]


@pytest.mark.parametrize(
    "message",
    [
        *("", "rubbish", "granted", "granted n x", "lost n x y z", "moved n", "changed", "due n"),
        *("lost 99999999999999999999", "leases -1", "lost x", "hello you", "\xff", "contended n"),
    ],
)
async def test_messages_that_cannot_be_read_are_passed_over(shared: Place, message: str) -> None:
    """EVENT-1: on the server's own channel, and on that of all."""
    async with shared.acting("one") as one:
        before = subscribers(shared)
        for channel in ("lk:server:one", "lk:servers"):
            shared.nodes[0].cli("PUBLISH", channel, message)
            shared.nodes[0].cli("PUBLISH", channel, message.encode("latin-1"))
        await trio.sleep(0.1)
        assert subscribers(shared) == before
        held = await one.take("n")
        claim = await one.queue("n")
        await one.release("n", held.lease)
        await one.granted(claim)
