"""How tests of the client run: on both event loops, under whoever's pytest configuration."""

from collections.abc import Awaitable, Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Any

import anyio
import pytest

BACKENDS = ["trio", "asyncio"]


def on_both(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Make an async test a plain one that runs on Trio and on asyncio.

    A plain function, because the project's pytest-trio mode would claim an async one.
    """

    def run(*args: Any, backend: str, **kwargs: Any) -> None:
        async def within_time() -> None:
            with anyio.fail_after(20):
                await test(*args, **kwargs)

        anyio.run(within_time, backend=backend)

    wraps(test)(run)
    shape = signature(test)
    backend = Parameter("backend", Parameter.KEYWORD_ONLY)
    run.__signature__ = shape.replace(  # type: ignore[attr-defined]
        parameters=[*shape.parameters.values(), backend]
    )
    plain: Callable[..., None] = pytest.mark.parametrize("backend", BACKENDS)(run)
    return plain


class Clock:
    """Monotonic time that a test may push forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        import time

        return time.monotonic() + self.ahead
