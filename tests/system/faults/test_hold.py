"""The restart hold by itself: what servers tell each other of losses, and when it is over.

Without Redis, and on a clock that jumps; what it is good for is in `test_data_loss`.
"""

from functools import partial

import pytest
import trio
from attrs import define, field, frozen
from trio.testing import MockClock

from leasekeeper.resp.handshake import Identity
from leasekeeper.resp.settings import Address
from leasekeeper.store.alarms import trio_ms
from leasekeeper.store.redis.hold import (
    ANYWHERE,
    FLUSH_SETTLE_MS,
    MASTER,
    SETTLE_MS,
    RestartHold,
    Word,
)

LONGEST_MS = 3_600_000
ONE, TWO = Address("one", 1), Address("two", 2)


@define(eq=False)
class Talk:
    """Servers that hear each other's words, and their own, as Redis carries them."""

    lines: list[str] = field(factory=list)
    holds: list[RestartHold] = field(factory=list)
    _pending: list[str] = field(factory=list)

    def hold(self, longest_ms: int = LONGEST_MS) -> RestartHold:
        made = RestartHold(longest_ms, self._say, lambda: None)
        self.holds.append(made)
        return made

    def _say(self, word: Word) -> None:
        self._pending.append(word.line(trio_ms()))

    def carry(self) -> None:
        """Until nobody has anything to say; a quarrel without end fails."""
        for _ in range(20):
            lines, self._pending = self._pending, []
            self.lines += lines
            for line in lines:
                for each in self.holds:
                    each.heard(line)
            if not self._pending:
                return
        raise AssertionError(f"they do not come to an end: {self.lines[-6:]}")


@frozen
class Run:
    """One life of a Redis."""

    address: Address = ONE
    run_id: str = "a"
    replid: str = "r"
    replid2: str = "0"
    mode: str = "standalone"

    @property
    def identity(self) -> Identity:
        return Identity(
            self.address,
            self.mode,
            run_id=self.run_id,
            replid=self.replid,
            replid2=self.replid2,
            is_master=True,
        )


def connect(hold: RestartHold, *runs: Run) -> None:
    for run in runs:
        hold.connected(run.identity)


async def test_no_loss_is_seen_in_a_new_connection_to_the_same(autojump_clock: MockClock) -> None:
    hold = Talk().hold()
    hold.given(30_000)
    connect(hold, Run(), Run(), Run())
    assert hold.left_ms == 0


@pytest.mark.parametrize("then", [Run(run_id="b"), Run(replid="s"), Run(TWO, "b", "s", "r")])
async def test_another_run_pauses_until_the_leases_are_over(
    autojump_clock: MockClock, then: Run
) -> None:
    """HOLD-2, HOLD-3."""
    hold = Talk().hold()
    connect(hold, Run())
    hold.given(30_000)
    await trio.sleep(10)
    connect(hold, then)
    assert hold.left_ms == hold.left_at(MASTER) == 20_000
    await trio.sleep(20)
    assert hold.left_ms == 0


async def test_a_server_that_knows_of_no_lease_waits_for_the_word_of_others(
    autojump_clock: MockClock,
) -> None:
    """It may not have heard yet."""
    hold = Talk().hold()
    connect(hold, Run(), Run(run_id="b"))
    assert hold.left_ms == SETTLE_MS
    other = Talk().hold()
    connect(other, Run())
    other.flushed(ONE)
    assert other.left_ms == FLUSH_SETTLE_MS


async def test_a_server_that_is_sure_of_a_flush_says_what_it_knew(
    autojump_clock: MockClock,
) -> None:
    """HOLD-3, HOLD-6: the word of its last lease may have come to nobody."""
    talk = Talk()
    ignorant, wise = talk.hold(), talk.hold()
    for hold in (ignorant, wise):
        connect(hold, Run())
    wise.given(30_000)
    talk._pending.clear()
    for hold in (ignorant, wise):
        hold.flushed(ONE)
    ignorant.confirm(sure=False)
    talk.carry()
    assert ignorant.left_ms == FLUSH_SETTLE_MS
    wise.confirm()
    talk.carry()
    assert ignorant.left_ms >= 30_000
    assert not ignorant.doubtful


async def test_the_server_that_knows_most_decides(autojump_clock: MockClock) -> None:
    """HOLD-3: whoever notices first."""
    talk = Talk()
    ignorant, wise = talk.hold(), talk.hold()
    wise.given(30_000)
    talk.lines.clear()
    talk._pending.clear()
    for hold in (ignorant, wise):
        connect(hold, Run(), Run(run_id="b"))
    talk.carry()
    assert ignorant.left_ms >= 30_000
    assert sum(line.startswith("lost") for line in talk.lines) <= 3


async def test_words_that_take_their_time_lengthen_no_pause_for_ever(
    autojump_clock: MockClock,
) -> None:
    """Each server counts from when it hears, so each has a little more than who told it."""
    talk = Talk()
    holds = [talk.hold() for _ in range(5)]
    holds[0].given(10_000)
    talk.carry()
    for hold in holds:
        connect(hold, Run(), Run(run_id="b"))
    for _ in range(20):
        await trio.sleep(0.1)
        talk.carry()
    assert max(hold.left_ms for hold in holds) <= 15_000 - 2_000


async def test_a_server_that_was_deaf_hears_of_the_pause_when_it_asks(
    autojump_clock: MockClock,
) -> None:
    talk = Talk()
    hold = talk.hold()
    hold.given(30_000)
    connect(hold, Run(), Run(run_id="b"))
    talk.carry()
    late = talk.hold()
    connect(late, Run(), Run(run_id="b"))
    late.ask()
    talk.carry()
    assert late.left_ms >= 30_000


async def test_the_longest_pause_is_what_the_operator_says(autojump_clock: MockClock) -> None:
    hold = Talk().hold(5000)
    connect(hold, Run())
    hold.given(30_000)
    connect(hold, Run(run_id="b"))
    assert hold.left_ms == 5000


async def test_without_a_pause_there_is_none(autojump_clock: MockClock) -> None:
    """`--restart-hold-ms 0`: nor is anything said."""
    talk = Talk()
    hold = talk.hold(0)
    connect(hold, Run())
    hold.given(30_000)
    connect(hold, Run(run_id="b"))
    hold.flushed(ONE)
    hold.join(5000)
    hold.heard("lost 5000 master")
    talk.carry()
    assert hold.left_ms == 0
    assert not talk.lines


async def test_in_a_cluster_each_master_is_paused_by_itself(autojump_clock: MockClock) -> None:
    """HOLD-2: and a replica that takes over is known by its past."""
    hold = Talk().hold()
    runs = [
        Run(ONE, "a", "r", mode="cluster"),
        Run(TWO, "b", "s", mode="cluster"),
        Run(Address("three", 3), "c", "t", "r", mode="cluster"),
    ]
    connect(hold, *runs[:2])
    hold.given(30_000)
    connect(hold, runs[2])
    assert hold.left_at("three:3") == 30_000
    assert hold.left_at("one:1") == hold.left_at("two:2") == 0
    hold.flushed(TWO)
    assert hold.left_at("two:2") == 30_000
    assert hold.left_at("one:1") == 0


async def test_a_new_node_of_a_cluster_pauses_nothing(autojump_clock: MockClock) -> None:
    hold = Talk().hold()
    connect(hold, Run(mode="cluster"))
    hold.given(30_000)
    connect(hold, Run(TWO, "b", "s", mode="cluster"))
    assert hold.left_ms == 0


async def test_a_pause_that_is_joined_is_for_all_and_said_to_nobody(
    autojump_clock: MockClock,
) -> None:
    """Or a server that starts would pause all shards of all servers."""
    talk = Talk()
    hold = talk.hold()
    hold.join(5000)
    assert hold.left_at("one:1") == hold.left_at(ANYWHERE) == 5000
    talk.carry()
    assert not talk.lines


# --- Doubt ----------------------------------------------------------------------------------------


async def test_a_flush_is_in_doubt_whatever_number_of_connections_tells(
    autojump_clock: MockClock,
) -> None:
    """HOLD-6: and others are not told of what may be nothing."""
    talk = Talk()
    hold = talk.hold()
    connect(hold, Run())
    hold.given(30_000)
    talk.carry()
    talk.lines.clear()
    for _ in range(5):
        hold.flushed(ONE)
    assert hold.doubtful
    assert hold.left_ms > 0
    hold.dismiss()
    assert hold.left_ms == 0
    talk.carry()
    assert not talk.lines


async def test_a_confirmed_flush_is_dismissed_by_nothing(autojump_clock: MockClock) -> None:
    hold = Talk().hold()
    connect(hold, Run())
    hold.given(30_000)
    hold.flushed(ONE)
    hold.confirm()
    hold.flushed(ONE)
    hold.dismiss()
    assert hold.left_ms == 30_000


@pytest.mark.parametrize("order", [1, -1])
async def test_a_restart_leaves_no_doubt(autojump_clock: MockClock, order: int) -> None:
    """Whichever is heard of first."""
    hold = Talk().hold()
    connect(hold, Run())
    hold.given(30_000)
    news = [partial(hold.flushed, ONE), partial(connect, hold, Run(run_id="b"))]
    for hear in news[::order]:
        hear()
    hold.dismiss()
    assert hold.left_ms == 30_000


@pytest.mark.parametrize(
    "line", ["", "hello there", "lost", "lost x master", "leases -1", "gone 1"]
)
async def test_what_is_not_understood_is_passed_over(autojump_clock: MockClock, line: str) -> None:
    hold = Talk().hold()
    hold.heard(line)
    assert hold.left_ms == 0
