"""Fixtures for the layer between the store and the network."""

import pytest
import trio

from tests.resp.fake import Network


@pytest.fixture
def network(nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> Network:
    """A network of fakes instead of the real one."""
    fakes = Network(nursery)
    monkeypatch.setattr("leasekeeper.resp.handshake.dial", fakes.dial)
    return fakes
