"""Redis servers of the tests' own. A server waits a second for one that is not a second old yet."""

from collections.abc import Iterator

import pytest

from tests.redis_groups import emptied
from tests.redises import RunningRedis, running_redis


@pytest.fixture(scope="module")
def lasting_redis() -> Iterator[RunningRedis]:
    """One for all tests of a module that leave it as it was."""
    with running_redis() as running:
        yield running


@pytest.fixture
def redis(lasting_redis: RunningRedis) -> RunningRedis:
    """The same, empty."""
    emptied(lasting_redis)
    return lasting_redis


@pytest.fixture
def own_redis() -> Iterator[RunningRedis]:
    """One that a test may do with as it likes."""
    with running_redis() as running:
        yield running
