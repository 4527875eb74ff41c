"""Every scenario again, played against a server of ours on a Redis."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.conformance.live import play_against, scenarios
from tests.conformance.servers import Servers
from tests.conformance.vectors import Scenario
from tests.redis_groups import Redises

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def servers(redises: Redises) -> Iterator[Servers]:
    with contextlib.ExitStack() as stack:
        yield Servers(stack, redises.single().url)


@pytest.mark.parametrize("scenario", scenarios("shared"), ids=lambda scenario: scenario.id)
async def test_scenario(scenario: Scenario, servers: Servers) -> None:
    await play_against(servers, scenario)
