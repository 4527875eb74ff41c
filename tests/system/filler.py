"""A caller in a process of its own: `python -m tests.system.filler URL KEY FATE FILE [NUMBER]`.

It asks for KEY, and if it is told to load it adds a line to FILE, says `loading`, and meets its
FATE: `serve` loads a value after a tenth of a second, `hang` never ends, `fail` raises once there
is a file FILE.go. The load may take NUMBER seconds. At the end it says what it got. FATE `threads`
is `serve` for NUMBER threads of the blocking client at once, `tasks` for NUMBER asyncio tasks.
"""

import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import leasekeeper_client
import leasekeeper_client.sync

VALUE: Final = "the value"


def note(path: Path) -> None:
    """One load more. Appending so little is one step, whoever else does it."""
    with path.open("a") as file:
        file.write("load\n")
    print("loading", flush=True)


async def load(fate: str, path: Path) -> str:
    note(path)
    if fate == "hang":
        await anyio.sleep(3600)
    await anyio.sleep(0.1)
    if fate == "fail":
        while not path.with_suffix(".go").exists():  # noqa: ASYNC110 # another process makes it
            await anyio.sleep(0.02)
        raise RuntimeError("no database")
    return VALUE


async def ask(url: str, key: str, fate: str, path: Path, fill_s: int) -> None:
    async with leasekeeper_client.connect(url) as keeper:
        try:
            value = await keeper.cache.get_or_fill(
                key, partial(load, fate, path), ttl=60, fill=fill_s, wait=60
            )
        except Exception as problem:
            print(type(problem).__name__, flush=True)
        else:
            print(value, flush=True)


async def ask_with_tasks(url: str, key: str, path: Path, number: int) -> None:
    got: Counter[object] = Counter()

    async def one(keeper: leasekeeper_client.Keeper) -> None:
        got[await keeper.cache.get_or_fill(key, partial(load, "serve", path), ttl=60)] += 1

    async with leasekeeper_client.connect(url) as keeper, anyio.create_task_group() as tasks:
        for _ in range(number):
            tasks.start_soon(one, keeper)
    print(dict(got), flush=True)


def ask_with_threads(url: str, key: str, path: Path, number: int) -> None:
    got: Counter[object] = Counter()

    def slowly() -> str:
        note(path)
        time.sleep(0.1)
        return VALUE

    with leasekeeper_client.sync.connect(url) as keeper:

        def one() -> None:
            value = keeper.cache.get_or_fill(key, slowly, ttl=60)
            with counting:
                got[value] += 1

        counting = threading.Lock()
        threads = [threading.Thread(target=one) for _ in range(number)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    print(dict(got), flush=True)


def main(url: str, key: str, fate: str, path: str, number: str = "30") -> None:
    loads, many = Path(path), int(number)
    if fate == "tasks":
        anyio.run(ask_with_tasks, url, key, loads, many, backend="asyncio")
    elif fate == "threads":
        ask_with_threads(url, key, loads, many)
    else:
        anyio.run(ask, url, key, fate, loads, many, backend="trio")


if __name__ == "__main__":
    main(*sys.argv[1:])
