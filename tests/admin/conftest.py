"""An admin server that looks after a server of the harness; no test leaves a traceback behind."""

from collections.abc import AsyncIterator

import pytest

from leasekeeper.admin.app import Admin
from tests.admin.asking import Asked, looking_after
from tests.harness import Served, serving
from tests.server.conftest import failures, no_unforeseen_failures

__all__ = ["failures", "no_unforeseen_failures"]


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """A server that accepts connections."""
    async with serving() as served:
        served.server.accepting = True
        yield served


@pytest.fixture
async def asked(served: Served) -> AsyncIterator[Asked]:
    """Its admin server."""
    async with looking_after(Admin(served.server)) as asked:
        yield asked
