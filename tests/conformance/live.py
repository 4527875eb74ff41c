"""What plays every scenario against a server of ours, whatever store it has."""

from typing import Literal, TypeAlias

from tests.conformance.player import Target, play
from tests.conformance.servers import Servers
from tests.conformance.vectors import Scenario, load_all

Kind: TypeAlias = Literal["memory", "shared"]


def scenarios(kind: Kind) -> list[Scenario]:
    """Those for a store that ends with its server, or for one that servers share."""
    return [each for each in load_all() if dict(each.given).get("store", kind) == kind]


async def play_against(servers: Servers, scenario: Scenario) -> None:
    """Plays it against the server that it asks for."""
    with servers.given(dict(scenario.given)) as server:
        await play(scenario, Target(server.url, server.drain))
