"""`serve --store` and what belongs to it: which combinations work, and what is refused."""

import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import run

import pytest
import trio

from leasekeeper.cli.job import Job, StoreOptions
from leasekeeper.errors import ConfigurationError
from leasekeeper.server.app import Server
from leasekeeper.server.config import ServerConfig, TcpAddress
from leasekeeper.store.api import Store, StoreEvent
from leasekeeper.store.memory import MemoryStore
from leasekeeper.store.redis.store import RedisStore
from tests.cli.running import leasekeeper

CANARY = "canary-77"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """The stores of servers that would have run."""
    stores: list[Store] = []

    def run(_: object, config: ServerConfig, store: Store) -> None:
        del config
        stores.append(store)

    monkeypatch.setattr("leasekeeper.cli.job.trio.run", run)
    return stores


def test_every_option_reaches_the_store(opened: list[Store]) -> None:
    options = "--prefix team:a --fence-memory-ms 1 --replicas 2 --replicas-ms 3 --restart-hold-ms 0"
    waiters = ("--waiters-per-name", "4")
    said = leasekeeper("serve", "--store", "redis://127.0.0.1:1", *options.split(), *waiters)
    assert said.exit_code == 0, said.output
    (store,) = opened
    assert isinstance(store, RedisStore)
    had = store.options
    assert (had.prefix, had.fence_memory_ms, had.waiting_max) == ("team:a", 1, 4)
    assert (had.replicas, had.replicas_ms, had.restart_hold_ms) == (2, 3, 0)


def test_a_variable_or_a_file_may_name_the_store(opened: list[Store], tmp_path: Path) -> None:
    path = tmp_path / "leasekeeper.toml"
    path.write_text('[serve]\nstore = "redis://127.0.0.1:1"\n')
    assert leasekeeper("--config", path, "serve").exit_code == 0
    assert leasekeeper("serve", LEASEKEEPER_STORE="redis://127.0.0.1:2").exit_code == 0
    ports = [each.settings.addresses[0].port for each in opened if isinstance(each, RedisStore)]
    assert ports == [1, 2]


def test_the_embedded_store_takes_the_layout_of_a_shared_one(opened: list[Store]) -> None:
    """Whoever starts servers with either store need not leave these out."""
    said = leasekeeper("serve", "--prefix", "a", "--fence-memory-ms", "5")
    assert said.exit_code == 0, said.output
    assert isinstance(opened[0], MemoryStore)


def test_volatile_writes_may_be_allowed_of_either_store(opened: list[Store]) -> None:
    """By a flag or a variable; without, they are refused."""
    url = ("--store", "redis://127.0.0.1:1")
    for options in ((), url):
        assert leasekeeper("serve", *options).exit_code == 0
        assert leasekeeper("serve", *options, "--allow-volatile-writes").exit_code == 0
        said = leasekeeper("serve", *options, LEASEKEEPER_ALLOW_VOLATILE_WRITES="1")
        assert said.exit_code == 0
    embedded = [each.allow_volatile_writes for each in opened if isinstance(each, MemoryStore)]
    shared = [each.options.allow_volatile_writes for each in opened if isinstance(each, RedisStore)]
    assert embedded == shared == [False, True, True]


def test_the_embedded_store_does_not_load_the_code_for_redis() -> None:
    program = "import sys, leasekeeper.cli.serve; sys.exit('redis' in sys.modules)"
    assert run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--workers", "2"],
        ["--replicas", "1"],
        ["--replicas", "0"],
        ["--replicas-ms", "1000"],
        ["--restart-hold-ms", "0"],
        ["--prefix", ""],
        ["--prefix", "a b"],
        ["--prefix", "{a}"],
        ["--prefix", "a" * 51],
        ["--prefix", "a\n"],
        ["--store", "127.0.0.1"],
        ["--store", f"http://:{CANARY}@127.0.0.1"],
        ["--store", f"redis://:{CANARY}#@127.0.0.1"],
        ["--store", f"redis+sentinel://:{CANARY}@127.0.0.1"],
    ],
)
def test_what_cannot_work_is_refused_in_one_line(opened: list[Store], options: list[str]) -> None:
    said = leasekeeper("serve", *options)
    assert said.exit_code == 2
    (line,) = said.stderr.splitlines()
    assert options[0] in line
    assert CANARY not in line
    assert not opened


def test_help_does_not_show_the_password_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "leasekeeper.toml"
    path.write_text(f'[serve]\nstore = "redis://:{CANARY}@127.0.0.1"\n')
    assert CANARY not in leasekeeper("--config", path, "serve", "--help").output


def test_no_repr_shows_the_url() -> None:
    assert CANARY not in repr(Job(ServerConfig(), StoreOptions(CANARY), "info"))


class Unusable(MemoryStore):
    """A store that finds something wrong in a task of its own."""

    async def run(
        self,
        on_event: Callable[[StoreEvent], None],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Raises a group of groups."""
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            inner.start_soon(self._fail)
            outer.start_soon(trio.sleep_forever)

    async def _fail(self) -> None:
        raise ConfigurationError("this store cannot be used")


def test_what_the_store_finds_wrong_is_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("leasekeeper.cli.job.MemoryStore", Unusable)
    said = leasekeeper("serve")
    assert (said.exit_code, said.stderr) == (2, "Error: this store cannot be used\n")


def test_other_failures_keep_their_traceback() -> None:
    async def fail(server: Server) -> None:
        del server
        raise ExceptionGroup("both", [ConfigurationError("no"), ZeroDivisionError()])

    with pytest.raises(ExceptionGroup, match="both"):
        Job(ServerConfig((TcpAddress("127.0.0.1", 0),)), StoreOptions(), "error").run(fail)
