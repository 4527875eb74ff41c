"""The cache workload: rows are read through the cache, and changed; writes are queued."""

import random
from typing import Any, Final

import anyio
from anyio import to_thread
from attrs import define, field
from leasekeeper_client import Busy, Keeper, KeeperError, WriteExpired, current_load
from leasekeeper_client.errors import may_have_been_done

from tests.nemesis.history import Operation, Scribe
from tests.nemesis.resource import ask

KEEP_S: Final = 20.0
FILL_S: Final = 2.0
WAIT_S: Final = 5.0
LOAD_MAX_S: Final = 0.3
WRITE_S: Final = 3.0
READ_PAUSE_S: Final = 0.3
CHANGE_PAUSE_S: Final = 4.0
PUT_PAUSE_S: Final = 2.0
CLAIM_S: Final = 3.0
AT_ONCE: Final = 4
TAG: Final = "everything"
WRITTEN: Final = ("w/0", "w/1", "w/2")


def end(operation: Operation, error: KeeperError) -> None:
    """Writes down how it went wrong: whether it may have been done all the same."""
    (operation.unknown if may_have_been_done(error) else operation.fail)(code=error.code or 0)


class Refused(Exception):
    """The database has a later write of the key already."""


@define(eq=False)
class CacheUser:
    """Reads and changes rows. All of them have one tag."""

    keeper: Keeper
    scribe: Scribe
    resource_port: int
    keys: tuple[str, ...]
    random: random.Random

    async def read_on(self, stopping: anyio.Event) -> None:
        """Reads, one key after the other."""
        while not stopping.is_set():
            await self._read(self.random.choice(self.keys))
            await anyio.sleep(READ_PAUSE_S * self.random.random())

    async def change_on(self, stopping: anyio.Event) -> None:
        """Changes rows, and tells the cache in one of three ways."""
        while not stopping.is_set():
            key = self.random.choice(self.keys)
            way = self.random.choice((self._invalidate_key, self._invalidate_tag, self._write))
            await way(key)
            await anyio.sleep(CHANGE_PAUSE_S * self.random.random())

    async def _ask(self, do: str, **request: object) -> dict[str, Any]:
        return await to_thread.run_sync(lambda: ask(self.resource_port, do, **request))

    async def _read(self, key: str) -> None:
        reading, loads = self.scribe.begin("read", key=key), 0

        async def load() -> dict[str, int]:
            nonlocal loads
            loads += 1
            return {"version": await self._load(key)}

        try:
            value = await self.keeper.cache.get_or_fill(
                key, load, ttl=KEEP_S, tags=(TAG,), wait=WAIT_S, fill=FILL_S
            )
        except KeeperError as error:
            reading.fail(code=error.code or 0)
        else:
            reading.ok(version=value["version"], stale=False, own=loads > 0)

    async def _load(self, key: str) -> int:
        load = current_load()
        # During a write-through everybody loads for himself: such a load is not shared.
        loading = self.scribe.begin("load", key=key, fence=load.fence, shared=load.shared)
        try:
            version = int((await self._ask("row", key=key))["version"])
            await anyio.sleep(LOAD_MAX_S * self.random.random())
        except BaseException:
            loading.fail()
            raise
        loading.ok(version=version)
        return version

    async def _change(self, key: str) -> int:
        version = int((await self._ask("reserve"))["version"])
        changing = self.scribe.begin("change", key=key, version=version, tags=[TAG])
        await self._ask("commit", key=key, version=version)
        changing.ok()
        return version

    async def _invalidate_key(self, key: str) -> None:
        await self._change(key)
        await self._invalidate([key], [])

    async def _invalidate_tag(self, key: str) -> None:
        await self._change(key)
        await self._invalidate([], [TAG])

    async def _invalidate(self, keys: list[str], tags: list[str]) -> None:
        telling = self.scribe.begin("invalidate", keys=keys, tags=tags)
        try:
            await self.keeper.cache.invalidate(*keys, tags=tags)
        except KeeperError as error:
            end(telling, error)
        else:
            telling.ok()

    async def _write(self, key: str) -> None:
        telling: Operation | None = None
        try:
            async with self.keeper.cache.write_through(key, ttl=WRITE_S) as write:
                version = await self._change(key)
                write.set({"version": version}, ttl=KEEP_S, tags=(TAG,))
                telling = self.scribe.begin("invalidate", keys=[key], tags=[])
        except WriteExpired:
            if telling is not None:
                telling.unknown()
        except KeeperError as error:
            if telling is not None:
                end(telling, error)
        else:
            if telling is not None:
                telling.ok()


@define(eq=False)
class Putter:
    """Queues values to be written."""

    keeper: Keeper
    scribe: Scribe
    queue: str
    random: random.Random
    _puts: int = field(default=0, init=False)

    async def run(self, stopping: anyio.Event) -> None:
        """One after the other."""
        while not stopping.is_set():
            self._puts += 1
            key, value = self.random.choice(WRITTEN), f"{self.scribe.process}-{self._puts}"
            putting = self.scribe.begin("put", queue=self.queue, key=key, value=value)
            try:
                seq = await self.keeper.cache.write_behind(self.queue).put(key, value)
            except Busy as busy:
                putting.fail(code=busy.code)
            except KeeperError as error:
                end(putting, error)
            else:
                putting.ok(seq=seq)
            await anyio.sleep(PUT_PAUSE_S * self.random.random())


@define(eq=False)
class Writer:
    """Carries out what is queued, until cancelled."""

    keeper: Keeper
    resource_port: int
    queue: str

    async def run(self) -> None:
        """Whatever happens, it goes on."""
        while True:
            try:
                async for write in self.keeper.writes(self.queue, max=AT_ONCE, claim=CLAIM_S):
                    async with write:
                        row = {"key": write.key, "value": write.value}
                        await self._store(**row, seq=write.seq, fence=write.fence)
            except KeeperError:
                await anyio.sleep(0.1)

    async def _store(self, **row: object) -> None:
        answer = await to_thread.run_sync(
            lambda: ask(self.resource_port, "store", queue=self.queue, **row)
        )
        if not answer["ok"]:
            raise Refused(row)
