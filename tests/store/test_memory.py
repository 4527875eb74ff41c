"""The embedded store: what it adds to the rules of one name."""

from collections.abc import Callable
from itertools import count

from attrs import define, field
from trio.testing import MockClock

from leasekeeper.core.lock import Claim, Granted
from leasekeeper.messages import Mode
from leasekeeper.store.memory import MemoryStore


@define
class Wall:
    """A wall clock that is set by hand, and counts how often it is read."""

    us: int = 1_800_000_000_000_000
    reads: int = field(default=0, init=False)

    def __call__(self) -> int:
        self.reads += 1
        return self.us


def claims() -> Callable[[], Claim]:
    """Claims with lease ids of their own."""
    numbers = count()
    return lambda: Claim(lease=f"{next(numbers):032x}", ttl_ms=30_000)


async def test_a_page_looks_at_no_more_names_than_it_lists(autojump_clock: MockClock) -> None:
    """L13: the cost of a list does not grow with what others hold. One read of the clock a name."""
    wall, claim = Wall(), claims()
    store = MemoryStore(wall=wall)
    for number in range(2000):
        await store.acquire(f"n{number:04}", claim(), wait=False)
    before = wall.reads
    page = await store.list_leases("n1", 10, None)
    assert [each.name for each in page.leases] == [f"n{number}" for number in range(1000, 1010)]
    assert wall.reads - before <= 11
    before = wall.reads
    assert (await store.list_leases("zzz", 1000, None)).leases == ()
    assert wall.reads == before


async def test_pages_follow_each_other_without_gap_or_repeat(autojump_clock: MockClock) -> None:
    """Also within one name that many share."""
    store, claim = MemoryStore(), claims()
    for number in range(25):
        lease = claim().lease
        shared = Claim(lease=lease, ttl_ms=30_000, mode=Mode.SHARED)
        await store.acquire("shared" if number % 2 else f"n{number}", shared, wait=False)
    seen: list[tuple[str, int]] = []
    cursor: str | None = None
    while True:
        page = await store.list_leases("", 4, cursor)
        assert len(page.leases) <= 4
        seen += [(each.name, each.fence) for each in page.leases]
        cursor = page.cursor
        if cursor is None:
            break
    assert len(seen) == 25
    assert seen == sorted(set(seen))


async def test_fences_of_all_names_rise_though_the_wall_clock_falls(
    autojump_clock: MockClock,
) -> None:
    """L2, L9: and nothing is remembered of a name that is not in use."""
    wall, claim = Wall(), claims()
    store = MemoryStore(wall=wall)
    fences = []
    for number in range(100):
        one = claim()
        granted = await store.acquire(f"n{number % 3}", one, wait=False)
        assert isinstance(granted, Granted)
        fences.append(granted.fence)
        await store.release(f"n{number % 3}", one.lease)
        wall.us -= 1_000_000
    assert fences == sorted(set(fences))
    assert fences[-1] < 2**53
    assert not store._locks
    assert not store._names
    assert not len(store._alarms)


async def test_a_restarted_store_goes_on_above_its_predecessor(autojump_clock: MockClock) -> None:
    """L2: by the wall clock, though it remembers nothing."""
    wall, claim = Wall(), claims()
    before = await MemoryStore(wall=wall).acquire("n", claim(), wait=False)
    wall.us += 1_000
    after = await MemoryStore(wall=wall).acquire("n", claim(), wait=False)
    assert isinstance(before, Granted)
    assert isinstance(after, Granted)
    assert after.fence > before.fence
