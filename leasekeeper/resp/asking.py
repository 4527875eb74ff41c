"""Connections for one question or one purpose, outside of any pool."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import trio

from leasekeeper.resp.connection import Connection
from leasekeeper.resp.errors import CannotConnect, Unanswered
from leasekeeper.resp.handshake import Identity, open_connection
from leasekeeper.resp.replies import Reply
from leasekeeper.resp.settings import Address, Settings

T = TypeVar("T")

_NEXT_AFTER_S: Final = 0.2


def _ignore_push(_: Sequence[Reply]) -> None:
    """For who expects none."""


def _ignore_end(_: Connection) -> None:
    """For who notices when it asks."""


@asynccontextmanager
async def connected(
    address: Address,
    settings: Settings,
    *,
    on_push: Callable[[Sequence[Reply]], None] = _ignore_push,
    on_end: Callable[[Connection], None] = _ignore_end,
) -> AsyncIterator[tuple[Connection, Identity]]:
    """A connection as long as the block lasts.

    Raises:
        CannotConnect: there is none.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            yield await open_connection(nursery, address, settings, on_push=on_push, on_end=on_end)
        except Exception as error:
            # Raised again below, for from within the nursery it would come in a group.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def first_answer(
    addresses: Sequence[Address],
    settings: Settings,
    question: Callable[[Connection, Identity], Awaitable[T]],
) -> T:
    """Asks one after the other until one answers; while one is silent, the next is asked too.

    Raises:
        CannotConnect: none answers; what the first of them failed with.
    """
    answers: list[T] = []
    problems: list[CannotConnect] = []

    async def ask(address: Address, is_over: trio.Event) -> None:
        try:
            async with connected(address, settings) as (connection, identity):
                answers.append(await question(connection, identity))
        except CannotConnect as problem:
            problems.append(problem)
        except Unanswered as problem:
            problems.append(CannotConnect(problem.reason))
        else:
            nursery.cancel_scope.cancel()
        is_over.set()

    async with trio.open_nursery() as nursery:
        for address in addresses:
            is_over = trio.Event()
            nursery.start_soon(ask, address, is_over)
            with trio.move_on_after(_NEXT_AFTER_S):
                await is_over.wait()
    if not answers:
        raise problems[0]
    return answers[0]
