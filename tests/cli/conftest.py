"""One server for the whole of a test module, and `leasekeeper` in this process or its own."""

import os
from collections.abc import Iterator

import pytest

from tests.processes import RunningServer, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """A server that no test stops."""
    with running_server() as running:
        yield running


@pytest.fixture(autouse=True)
def _unconfigured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the environment configures what is tested."""
    for name in list(os.environ):
        if name.startswith("LEASEKEEPER_"):
            monkeypatch.delenv(name)
