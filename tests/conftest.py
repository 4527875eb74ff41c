"""How hard Hypothesis tries, and the Redis servers that tests share.

HYPOTHESIS_PROFILE says how hard; else `ci` where CI is set, else `local`. The checks are the same
in every profile; only the number of examples and their seed differ.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Final

import pytest
import structlog
from hypothesis import settings

from tests.redis_groups import Redises

settings.register_profile("local", max_examples=100, deadline=None)
settings.register_profile("fast", max_examples=20, deadline=None)
# The same examples in every run: a red build is a change's fault, and prints how to repeat it.
settings.register_profile(
    "ci", max_examples=100, deadline=None, derandomize=True, print_blob=True, database=None
)
settings.register_profile("nightly", max_examples=10_000, deadline=None, print_blob=True)

settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "local")
)


_LAST: Final = tuple(
    f"tests/{each}"
    for each in (
        "server",
        "store",
        "cli",
        "resp",
        "nemesis",
        "system/test_cache_fillers",
        "system/test_write_behind",
        "system",
    )
)
"""In this order, and after all others; the longest of the system tests before the rest of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that compute go first, and those that wait for real time last: they run side by side,
    and time is the same for all."""

    def turn(item: pytest.Item) -> int:
        path = item.nodeid.partition("::")[0]
        return next((at for at, each in enumerate(_LAST, 1) if path.startswith(each)), 0)

    items.sort(key=turn)


@pytest.fixture(autouse=True)
def structlog_stays_as_it_was() -> Iterator[None]:
    """A command that runs within this process may say how it logs: the next test does not know."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def redises() -> Iterator[Redises]:
    """A Redis and a cluster of three, each handed out empty, and started when first asked for."""
    with contextlib.ExitStack() as stack:
        yield Redises(stack)
