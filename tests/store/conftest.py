"""The stores that the contract holds for: embedded, one Redis, and a cluster of three."""

from collections.abc import AsyncIterator

import pytest

from tests.redis_groups import Redises
from tests.store.actors import Actor, Place

REDIS = pytest.param("redis", marks=pytest.mark.system)
CLUSTER = pytest.param("cluster", marks=pytest.mark.system)


def shared_place(kind: str, redises: Redises) -> Place:
    """The one Redis, or the cluster."""
    if kind == "redis":
        single = redises.single()
        return Place(single.url, (single,))
    cluster = redises.cluster()
    return Place(cluster.url, tuple(cluster.nodes))


@pytest.fixture(params=["memory", REDIS, CLUSTER])
def place(request: pytest.FixtureRequest, redises: Redises) -> Place:
    """Each kind of store, empty."""
    return Place("memory") if request.param == "memory" else shared_place(request.param, redises)


@pytest.fixture(params=[REDIS, CLUSTER])
def shared(request: pytest.FixtureRequest, redises: Redises) -> Place:
    """Each kind of store that several servers share, empty."""
    return shared_place(request.param, redises)


@pytest.fixture
async def one(place: Place) -> AsyncIterator[Actor]:
    """One server at work."""
    async with place.acting() as actor:
        yield actor
