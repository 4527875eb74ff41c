"""All chance from one seed, so that a simulated world goes the same way whenever it is run.

Trio shuffles the tasks that are ready; programs draw lease ids, jitters and WebSocket masks. Within
`repeatable` all of it comes from the seed. What also differs from run to run is the order of sets
whose members are hashed by their address: where such an order can be seen, use `InOrder`.
"""

import logging
import random
import secrets
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast
from unittest.mock import patch

import structlog
import trio
from trio._core import _run
from trio.testing import MockClock

from leasekeeper.core import deadlines
from leasekeeper.service.keeper import Keeper

T = TypeVar("T")
R = TypeVar("R")

DATE: Final = "Fri, 15 Jan 2027 08:00:00 GMT"
"""What an HTTP response says."""
EPOCH_US: Final = 1_800_000_000_000_000
"""What the wall clock shows when Trio's shows zero."""


class InOrder(set[T]):
    """A set that is gone through in the order in which its members came."""

    def __init__(self) -> None:
        super().__init__()
        self._order: dict[T, None] = {}

    def add(self, member: T) -> None:
        super().add(member)
        self._order[member] = None

    def remove(self, member: T) -> None:
        super().remove(member)
        del self._order[member]

    def discard(self, member: object) -> None:
        super().discard(member)
        self._order.pop(cast("T", member), None)

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._order))


@contextmanager
def repeatable(seed: str) -> Iterator[None]:
    """Within it, chance is what the seed makes it, in this process."""
    secrets_before, state_before = secrets._sysrand, random.getstate()  # type: ignore[attr-defined]
    trio_before, allowed_before = _run._r, _run._ALLOW_DETERMINISTIC_SCHEDULING
    try:
        secrets._sysrand = random.Random(f"{seed}/secrets")  # type: ignore[attr-defined]
        random.seed(f"{seed}/random")
        _run._r = random.Random(f"{seed}/trio")
        vars(_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = True
        yield
    finally:
        vars(_run)["_ALLOW_DETERMINISTIC_SCHEDULING"] = allowed_before
        _run._r = trio_before
        random.setstate(state_before)
        secrets._sysrand = secrets_before  # type: ignore[attr-defined]


@contextmanager
def quiet() -> Iterator[None]:
    """Within it, nothing is logged: what goes wrong on purpose is no news."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    disabled = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(disabled)
        structlog.configure(**before)


def seed_keeper(keeper: Keeper, seed: str) -> None:
    """Makes repeatable what a keeper would draw from chance of its own."""
    keeper.leases.renewals.random = random.Random(f"{seed}/renewals")
    keeper.caches.random = random.Random(f"{seed}/caches")
    keeper.writes.random = random.Random(f"{seed}/writes")
    keeper.sessions = InOrder()


def run_repeatable(seed: str, main: Callable[[], Coroutine[Any, Any, R]]) -> R:
    """Runs this on a clock that jumps ahead when there is nothing else to do."""
    with (
        repeatable(seed),
        quiet(),
        patch.dict(vars(deadlines), set=InOrder),
        patch("email.utils.formatdate", lambda **_: DATE),
    ):
        return trio.run(main, clock=MockClock(autojump_threshold=0))


def wall_us() -> int:
    """The wall clock of the simulated world, in microseconds since 1970."""
    return EPOCH_US + int(trio.current_time() * 1_000_000)
