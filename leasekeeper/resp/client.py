"""Redis, as the store sees it: the same for one Redis, sentinels and a cluster.

Failure
    Every call may raise `Unanswered`. With outcome "none" the command was certainly not executed;
    with "unknown" it was written, and is not repeated here. What else Redis has against a command
    is raised as `redis.exceptions.ResponseError`.

Time
    A call waits at most `patience_ms` for a usable connection, and for a Redis that says "not
    now"; and then at most `read_ms` for its reply.

Cancellation
    A call that is cancelled after its command was written leaves it to run its course.
"""

from collections.abc import Callable, Sequence

import trio
from attrs import define, field
from redis.exceptions import ResponseError

from leasekeeper.errors import Outcome
from leasekeeper.resp.bell import Bell
from leasekeeper.resp.connection import pack
from leasekeeper.resp.discovery import discover
from leasekeeper.resp.errands import Courier, Errand
from leasekeeper.resp.errors import Unanswered
from leasekeeper.resp.handshake import Identity
from leasekeeper.resp.nodes import Fleet
from leasekeeper.resp.pool import Events
from leasekeeper.resp.replies import Reply
from leasekeeper.resp.scripts import Argument, Call, Script
from leasekeeper.resp.settings import Address, Settings
from leasekeeper.resp.subscription import Subscription

__all__ = ["Call", "Client", "Reply"]


@define(eq=False)
class Client:
    """See the module. Calls are answered while `run` runs.

    `on_connected` is called for each new connection to a master, before it is used, and
    `on_flushed` by each connection that hears of a FLUSHALL or FLUSHDB, before any of its later
    replies: both are called several times for one cause, and have to be quick. What they raise
    ends `run`. `observe` is told the name of each script or command, and how many seconds it took,
    answered or not; of scripts that are sent together, once of each.
    """

    settings: Settings
    on_connected: Callable[[Identity], None]
    on_flushed: Callable[[Address], None]
    observe: Callable[[str, float], None] = lambda *_: None
    _courier: Courier | None = field(default=None, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps the connections until cancelled; started() when every master has one.

        Raises:
            ConfigurationError: Redis is not there at the first attempt, or not as it has to be.
        """
        nodes_in = await discover(self.settings)
        news = Bell()
        try:
            async with trio.open_nursery() as nursery:
                events = Events(self.on_connected, self.on_flushed, self._suspect, news)
                fleet = Fleet(self.settings, events, nursery)
                nodes = nodes_in(fleet)
                self._courier = Courier(self.settings, nodes, fleet)
                nursery.start_soon(nodes.run)
                while not all(pool.is_up for pool in fleet):
                    await news.next().wait()
                task_status.started()
        finally:
            self._courier = None

    def _suspect(self) -> None:
        if self._courier is not None:
            self._courier.nodes.suspect()

    @property
    def is_up(self) -> bool:
        """Whether any master is connected to. One that has just hung up may not have shown yet."""
        fleet = self._courier.fleet if self._courier is not None else ()
        return any(pool.is_up for pool in fleet)

    @property
    def masters(self) -> tuple[Address, ...]:
        """The nodes that take commands now, as far as is known."""
        return self._courier.nodes.masters if self._courier is not None else ()

    def address_of(self, key: str) -> Address | None:
        """The master that has a key, as far as is known."""
        pool = self._courier.nodes.pool_for(key) if self._courier is not None else None
        return pool.address if pool is not None else None

    async def eval(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Reply:
        """Runs a script on the node of its first key.

        Raises:
            Unanswered: see the module.
            ResponseError: the script failed.
        """
        return (await self._take(script.name, _errand(script, keys, args)))[0]

    async def eval_and_wait(
        self,
        script: Script,
        keys: Sequence[str],
        args: Sequence[Argument],
        *,
        replicas: int,
        timeout_ms: int,
    ) -> tuple[Reply, int]:
        """Runs a script, and waits until so many replicas have its effect, or the time is over.

        Returns:
            Its reply, and how many replicas have it.

        Raises:
            Unanswered: see the module.
            ResponseError: the script failed.
        """
        wait = pack(("WAIT", replicas, timeout_ms))
        errand = _errand(script, keys, args, wait, timeout_ms)
        reply, *waited = await self._take(script.name, errand)
        # A Redis that refuses to wait has run the script all the same.
        return reply, waited[0] if waited and isinstance(waited[0], int) else 0

    async def eval_many(self, calls: Sequence[Call]) -> list[Reply | Unanswered | ResponseError]:
        """Runs many scripts, together for each node. The answers are in the order of the calls.

        What another call would raise is an answer here: one bad key does not spoil the rest.
        """
        errands = [_errand(call.script, call.keys, call.args) for call in calls]
        began_s = trio.current_time()
        if self._courier is not None:
            await self._courier.deliver_all(errands)
        for name in {call.script.name for call in calls}:
            self.observe(name, trio.current_time() - began_s)
        return [_reply_or_problem(errand) for errand in errands]

    async def command(
        self, *args: Argument, key: str | None = None, address: Address | None = None
    ) -> Reply:
        """Runs a command on the node of a key, on a certain master, or on any.

        Raises:
            Unanswered: see the module.
            ResponseError: Redis refused it.
        """
        return (await self._take(str(args[0]).lower(), Errand(pack(args), key, address)))[0]

    async def subscribe(
        self,
        channels: Sequence[str],
        on_message: Callable[[str, bytes], None],
        on_subscribed: Callable[[], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Keeps subscribed until cancelled. `run` has to be started.

        Args:
            channels: their names.
            on_message: called with channel and data.
            on_subscribed: called after every subscription; messages may have been missed.
            task_status: told of the first subscription.

        Raises:
            ConfigurationError: before that, if Redis does not let this user subscribe.
        """
        assert self._courier is not None, "run() comes before subscribe()"
        await Subscription(
            self.settings,
            self._courier.nodes,
            self._courier.fleet,
            channels,
            on_message,
            on_subscribed,
        ).run(task_status=task_status)

    async def _take(self, operation: str, errand: Errand) -> list[Reply]:
        began_s = trio.current_time()
        if self._courier is not None:
            await self._courier.deliver(errand)
        self.observe(operation, trio.current_time() - began_s)
        result = _result(errand)
        if isinstance(result, Unanswered | ResponseError):
            raise result
        return result


def _reply_or_problem(errand: Errand) -> Reply | Unanswered | ResponseError:
    result = _result(errand)
    return result if isinstance(result, Unanswered | ResponseError) else result[0]


def _result(errand: Errand) -> list[Reply] | Unanswered | ResponseError:
    if errand.result is None:
        return Unanswered(Outcome.NONE, "there are no connections to Redis yet, or any more")
    return errand.result


def _errand(
    script: Script,
    keys: Sequence[str],
    args: Sequence[Argument],
    then: bytes = b"",
    extra_ms: int = 0,
) -> Errand:
    rest = (len(keys), *keys, *args)
    return Errand(
        pack(("EVALSHA", script.sha, *rest)) + then,
        keys[0],
        count=2 if then else 1,
        extra_ms=extra_ms,
        call=(script, rest, then),
    )
