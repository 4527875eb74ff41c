"""Names that are watched, and who wants to know."""

from functools import partial
from typing import Final

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from leasekeeper_client._connection import Connection
from leasekeeper_client._json import JsonObject
from leasekeeper_client._rpc import Answer, Call, constant
from leasekeeper_client.errors import TRANSIENT, KeeperError
from leasekeeper_client.model import NameState, name_state_from

RETRY_MIN: Final = 0.05


@define(eq=False)
class Watcher:
    """One who watches. It has room for one state: a slow watcher sees the latest."""

    name: str
    state: NameState | None = None
    failure: KeeperError | None = None
    news: anyio.Event = field(factory=anyio.Event)

    def tell(self, state: NameState) -> None:
        """Replace what it has not looked at yet."""
        self.state = state
        self.news.set()

    def fail(self, failure: KeeperError) -> None:
        """There will be no news any more."""
        self.failure = failure
        self.news.set()

    async def next(self) -> NameState:
        """Wait for a state that was not returned yet.

        Raises:
            KeeperError: The name cannot be watched (any more).
        """
        while self.state is None:
            if self.failure is not None:
                raise self.failure
            await self.news.wait()
            self.news = anyio.Event()
        state, self.state = self.state, None
        return state


class Watches:
    """Watches each name once, for all its watchers, and again on every new connection."""

    def __init__(self) -> None:
        self._watchers: dict[str, list[Watcher]] = {}
        self._latest: dict[str, NameState] = {}
        self._connection: Connection | None = None
        self._failure: KeeperError | None = None

    def some(self) -> bool:
        """Return whether anything is watched."""
        return bool(self._watchers)

    def enter(self, watcher: Watcher, tasks: TaskGroup) -> None:
        """Begin to watch."""
        watchers = self._watchers.setdefault(watcher.name, [])
        watchers.append(watcher)
        if self._failure is not None:
            watcher.fail(self._failure)
        elif watcher.name in self._latest:
            watcher.tell(self._latest[watcher.name])
        elif len(watchers) == 1:
            self._watch(watcher.name, tasks)

    def leave(self, watcher: Watcher) -> None:
        """Cease to watch."""
        watchers = self._watchers[watcher.name]
        watchers.remove(watcher)
        if watchers:
            return
        del self._watchers[watcher.name]
        self._latest.pop(watcher.name, None)
        if self._connection is not None and self._connection.alive:
            self._connection.submit(Call("lease.unwatch", constant(name=watcher.name), bound=True))

    def opened(self, connection: Connection, tasks: TaskGroup) -> None:
        """Watch every name on the new connection."""
        self._connection = connection
        for name in self._watchers:
            self._watch(name, tasks)

    def failed(self, failure: KeeperError) -> None:
        """There will be no connection again."""
        self._failure = failure
        for watchers in self._watchers.values():
            for watcher in watchers:
                watcher.fail(failure)

    def changed(self, params: JsonObject) -> None:
        """The server says that the holders of a name are others now."""
        self._tell(name_state_from(params))

    def _tell(self, state: NameState) -> None:
        watchers = self._watchers.get(state.name)
        if watchers:
            self._latest[state.name] = state
            for watcher in watchers:
                watcher.tell(state)

    def _watch(self, name: str, tasks: TaskGroup) -> None:
        connection = self._connection
        if connection is None or not connection.alive or name not in self._watchers:
            return  # `opened` will do it, or nobody cares
        call = Call(
            "lease.watch",
            constant(name=name),
            bound=True,
            on_result=self._watched,
            on_error=partial(self._not_watched, name, tasks),
        )
        connection.submit(call)

    def _watched(self, answer: Answer) -> None:
        self._tell(name_state_from(answer.result))

    def _not_watched(self, name: str, tasks: TaskGroup, error: KeeperError) -> None:
        if isinstance(error, TRANSIENT):
            tasks.start_soon(self._watch_later, name, tasks, error.retry_after)
        else:
            for watcher in self._watchers.get(name, []):
                watcher.fail(error)

    async def _watch_later(self, name: str, tasks: TaskGroup, pause: float) -> None:
        connection = self._connection
        await anyio.sleep(max(pause, RETRY_MIN))
        if connection is self._connection:
            self._watch(name, tasks)
