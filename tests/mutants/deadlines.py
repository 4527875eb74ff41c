"""A client of the library, a slow network, and the moment at which its lease is over."""

import trio
from attrs import evolve
from leasekeeper_client import LeaseLost, connect

from leasekeeper.errors import CloseCode
from tests.simulation.chance import run_repeatable
from tests.simulation.laws import Violation
from tests.simulation.programs import PROGRAM, Program, dialled
from tests.simulation.world import World

SLOW_S = 0.4


async def _hold(ttl: float) -> None:
    """In the end the network carries nothing any more, which only the server notices."""
    async with trio.open_nursery() as nursery:
        world = World("deadlines", nursery)
        world.network.bad, world.network.slow_s = False, SLOW_S
        world.weather, world.routes = evolve(world.weather, slow=0.0, fails=0.0), None
        await world.start()
        program = Program(world, "program")
        PROGRAM.set(program)
        try:
            async with (
                connect("ws://a:1", clock=trio.current_time) as keeper,
                keeper.lease("n", ttl=ttl) as lease,
            ):
                await trio.sleep(3 * ttl / 4)
                program.dead = True
                for link in program.links:
                    link.vanish()
                for connection in world.running["a"].server.connections:
                    connection.close_soon(CloseCode.NO_SIGN_OF_LIFE, "as if it had noticed")
                await _watch(world, program.belief(lease, False, None).stands)
        except LeaseLost:
            pass
        nursery.cancel_scope.cancel()


async def _watch(world: World, stands: object) -> None:
    assert callable(stands)
    for _ in range(1_500):
        await trio.sleep(0.02)
        held = "n" in world.store._locks and world.store._locks["n"]._holders
        if stands() and not held:
            raise Violation("L3", "a client believes in a lease that is over")
        if not held:
            return


def search(ttls: tuple[float, ...] = (3.0, 20.0)) -> tuple[int, str] | None:
    """What is wrong, and after how many tries; None if nothing is."""
    for tries, ttl in enumerate(ttls, start=1):
        Violation.seen.clear()
        with dialled():
            try:
                run_repeatable(f"{ttl}", lambda ttl=ttl: _hold(ttl))  # type: ignore[misc]
            except* Violation as problems:
                problem: BaseException = problems
                while isinstance(problem, BaseExceptionGroup):
                    problem = problem.exceptions[0]
                found = str(problem)
            else:
                continue
            return tries, found
    return None
