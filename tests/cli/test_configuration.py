"""`serve`: help, bounds, where its settings come from, and configurations that cannot work."""

import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from leasekeeper.server.config import ServerConfig, TcpAddress, UnixAddress, WireLimits
from leasekeeper.service.limits import Limits
from leasekeeper.store.api import Store
from tests.cli.running import leasekeeper
from tests.processes import LEASEKEEPER, first_line, started


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[ServerConfig]:
    """What servers would have been told, had any been started."""
    configs: list[ServerConfig] = []

    def run(_: object, config: ServerConfig, store: Store) -> None:
        del store
        configs.append(config)

    monkeypatch.setattr("leasekeeper.cli.serve.trio.run", run)
    return configs


@pytest.fixture
def any_port() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "leasekeeper.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("command", ["", "serve", "lock", "ls", "show", "break", "watch"])
def test_every_command_has_help_without_cut_sentences(command: str) -> None:
    said = leasekeeper(*command.split(), "--help")
    assert said.exit_code == 0
    assert said.output.startswith("Usage: ")
    assert "..." not in said.output.replace("ARGS]...", "").replace("-- COMMAND...", "")


def test_the_usage_of_lock_shows_the_dashes() -> None:
    assert "NAME -- COMMAND..." in leasekeeper("lock", "--help").output


def test_help_bounds_lists_every_bound() -> None:
    said = leasekeeper("serve", "--help-bounds")
    assert said.exit_code == 0
    words = said.output.split()
    for each in (*attrs.fields(Limits), *attrs.fields(WireLimits)):
        flag = "--" + each.name.replace("_", "-")
        assert words[words.index(flag) + 1] == str(each.default)
        assert set(each.metadata["meaning"].split()) <= set(words)


def test_a_file_configures(served: list[ServerConfig], tmp_path: Path) -> None:
    path = toml(
        tmp_path,
        """
        [serve]
        listen = ["127.0.0.1:1", "unix:/run/lk.sock"]
        allow-origin = "https://app.example"
        allow-unauthenticated = true
        grace_ms = 2000
        renewal-jitter = 0.5
        fragments = 9
        """,
    )
    assert leasekeeper("--config", path, "serve").exit_code == 0
    (config,) = served
    assert config.listen == (TcpAddress("127.0.0.1", 1), UnixAddress(Path("/run/lk.sock")))
    assert config.allowed_origins == {"https://app.example"}
    assert config.allow_unauthenticated
    assert config.limits == Limits(grace_ms=2000, renewal_jitter=0.5)
    assert config.wire == WireLimits(fragments=9)


def test_flags_win_over_variables_and_those_over_the_file(
    served: list[ServerConfig], tmp_path: Path
) -> None:
    path = toml(tmp_path, "[serve]\ngrace-ms = 1\nheartbeat-ms = 1\nfragments = 1\n")
    env = {"LEASEKEEPER_HEARTBEAT_MS": "2", "LEASEKEEPER_FRAGMENTS": "2"}
    command = ("--config", path, "serve", "--fragments", "3")
    assert leasekeeper(*command, **env).exit_code == 0
    (config,) = served
    assert (config.limits.grace_ms, config.limits.heartbeat_ms) == (1, 2)
    assert config.wire.fragments == 3


def test_lists_follow_the_same_precedence(served: list[ServerConfig], tmp_path: Path) -> None:
    env = {"LEASEKEEPER_CONFIG": str(toml(tmp_path, '[serve]\nlisten = ["127.0.0.1:1"]\n'))}
    leasekeeper("serve", **env)
    env["LEASEKEEPER_LISTEN"] = "127.0.0.1:2 127.0.0.1:3"
    leasekeeper("serve", **env)
    leasekeeper("serve", "--listen", "127.0.0.1:4", **env)
    ports = [
        [address.port for address in config.listen if isinstance(address, TcpAddress)]
        for config in served
    ]
    assert ports == [[1], [2, 3], [4]]


def test_a_setting_outside_of_tables_is_for_every_command_that_has_it(
    served: list[ServerConfig], tmp_path: Path
) -> None:
    secret = tmp_path / "token"
    secret.write_text("canary\n")
    path = toml(tmp_path, f'token-file = "{secret}"\nlog-level = "error"\n')
    assert leasekeeper("--config", path, "serve").exit_code == 0
    assert served[0].token == "canary"


def test_a_client_takes_its_settings_from_the_file_by_the_names_of_its_flags(
    tmp_path: Path,
) -> None:
    said = leasekeeper("--config", toml(tmp_path, '[ls]\nurl = "http://no"\njson = true\n'), "ls")
    assert said.exit_code == 2
    assert "begins with ws://" in said.stderr


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[serve]\nbogus = 1\n", "bogus"),
        ("bogus = 1\n", "bogus"),
        ("[bogus]\nlisten = 1\n", "bogus"),
        ("serve = 1\n", "serve"),
        ("[serve]\nlisten = 7420\n", "listen"),
        ("[serve]\ngrace-ms = true\n", "grace-ms"),
        ("[serve]\ngrace-ms = [1]\n", "grace-ms"),
        ("[serve]\nallow-unauthenticated = 'no'\n", "allow-unauthenticated"),
        ("[serve.listen]\na = 1\n", "listen"),
        ("[serve]\nhelp-bounds = true\n", "help-bounds"),
        ("[lock]\ncommand = ['true']\n", "command"),
        ("[serve\n", "line 1"),
    ],
)
def test_a_file_that_cannot_be_right_is_refused_in_one_line(
    served: list[ServerConfig], tmp_path: Path, text: str, names: str
) -> None:
    path = toml(tmp_path, text)
    said = leasekeeper("--config", path, "serve")
    assert said.exit_code == 2
    (line,) = said.stderr.splitlines()
    assert str(path) in line
    assert names in line
    assert not served


@pytest.mark.parametrize(
    "options",
    [
        ["--listen", "7420"],
        ["--listen", "0.0.0.0:0"],
        ["--store", "localhost"],
        ["--workers", "2"],
        ["--token-file", "/does/not/exist"],
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(options: list[str]) -> None:
    said = leasekeeper("serve", *options)
    assert said.exit_code == 2
    (line,) = said.stderr.splitlines()
    assert options[0] in line or "--allow-unauthenticated" in line


def test_an_address_in_use_is_refused_in_one_line(any_port: int) -> None:
    said = leasekeeper("serve", "--listen", f"127.0.0.1:{any_port}")
    assert said.exit_code == 2
    assert str(any_port) in said.stderr.splitlines()[-1]
    assert "Traceback" not in said.stderr


@pytest.mark.system
def test_a_server_says_where_it_listens_and_ends_with_0(tmp_path: Path) -> None:
    """Two addresses: a line for each, nothing else on standard output."""
    path = tmp_path / "lk.sock"
    listen = ["--listen", "127.0.0.1:0", "--listen", f"unix:{path}"]
    with started([*LEASEKEEPER, "serve", *listen]) as process:
        assert process.stdout is not None
        first, second = first_line(process.stdout), first_line(process.stdout)
        assert first.startswith("leasekeeper listening on ws://127.0.0.1:")
        assert int(first.rpartition(":")[2]) > 0
        assert second == f"leasekeeper listening on ws+unix://{path}\n"
        for url in (first.split()[-1], second.split()[-1]):
            assert leasekeeper("ls", "--url", url).exit_code == 0
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert rest == b""
