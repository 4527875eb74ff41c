"""Each mistake in the scripts is found by the machine that compares them with the core."""

from collections.abc import Iterator

import pytest

from tests.mutants.scripts import LUA, search
from tests.properties.test_stores_agree import START_US
from tests.redises import RunningRedis, running_redis

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def redis() -> Iterator[RunningRedis]:
    """Its clock stands still."""
    with running_redis(skewed=True) as running:
        running.freeze_clock(START_US)
        yield running


@pytest.mark.parametrize("name", LUA)
def test_a_mistake_in_the_scripts_is_found(name: str, redis: RunningRedis) -> None:
    """As one in the core would be."""
    with LUA[name].made():
        assert search(redis) is not None


def test_nothing_is_found_in_the_scripts_as_they_are(redis: RunningRedis) -> None:
    """By the same means."""
    assert search(redis) is None
