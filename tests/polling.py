"""Waiting for what nobody tells of."""

from collections.abc import Awaitable, Callable

import trio

POLL_S = 0.01


async def eventually(is_so: Callable[[], Awaitable[bool]], within_s: float = 60.0) -> None:
    """Asks until it is so.

    Raises:
        TooSlowError: It is not so in time.
    """
    with trio.fail_after(within_s):
        while not await is_so():  # noqa: ASYNC110 # there is no event in another process
            await trio.sleep(POLL_S)
