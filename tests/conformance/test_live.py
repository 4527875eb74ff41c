"""Every scenario, played against a server of ours: one test each, called ``topic::title``."""

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Final

import pytest
import trio

from tests.conformance.live import play_against, scenarios
from tests.conformance.servers import Servers
from tests.conformance.vectors import SPEC, Scenario

pytestmark = pytest.mark.system

PYTHON_BLOCK: Final = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with contextlib.ExitStack() as stack:
        yield Servers(stack)


@pytest.mark.parametrize("scenario", scenarios("memory"), ids=lambda scenario: scenario.id)
async def test_scenario(scenario: Scenario, servers: Servers) -> None:
    await play_against(servers, scenario)


async def test_the_python_client_in_the_specification_works(servers: Servers) -> None:
    (source,) = PYTHON_BLOCK.findall((SPEC / "protocol.md").read_text(encoding="utf-8"))
    with servers.given({}) as server:
        program = source.replace("ws://127.0.0.1:7420/", server.url)
        assert program != source
        with trio.fail_after(20):
            done = await trio.run_process(
                [sys.executable, "-c", program], capture_stdout=True, capture_stderr=True
            )
    assert re.fullmatch(rb"working, with fence \d+\n", done.stdout)
