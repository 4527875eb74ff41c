"""Tasks that get a key, and functions that load it when they are told to."""

from collections.abc import Callable
from typing import Any

import anyio
from anyio.abc import TaskStatus


class Loads:
    """A loading function that counts, and waits for the word."""

    def __init__(self) -> None:
        self.count = 0
        self.cancelled = 0
        self.begun = anyio.Event()
        self.go_on = anyio.Event()

    async def __call__(self) -> int:
        self.count += 1
        number = self.count
        self.begun.set()
        try:
            await self.go_on.wait()
        except BaseException:
            self.cancelled += 1
            raise
        return number


class Caller:
    """A task that gets a key, and can be cancelled on its own."""

    def __init__(self, keeper: Any, load: Callable[[], Any], **options: Any) -> None:
        self.keeper = keeper
        self.load = load
        self.options = {"ttl": 60, **options}
        self.scope = anyio.CancelScope()
        self.got: object = None
        self.error: Exception | None = None
        self.over = anyio.Event()

    async def __call__(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        try:
            with self.scope:
                self.got = await self.keeper.cache.get_or_fill("k", self.load, **self.options)
        except Exception as exc:
            self.error = exc
        finally:
            self.over.set()


def loading(value: Any) -> Callable[[], Any]:
    """A function that loads this value."""

    async def load() -> Any:
        await anyio.lowlevel.checkpoint()
        return value

    return load


async def never() -> Any:
    """A function that is not to be called."""
    raise AssertionError("it was called")


async def forever() -> Any:
    """A function that does not end by itself."""
    await anyio.sleep_forever()


async def failing() -> Any:
    """A function that fails."""
    raise ZeroDivisionError
