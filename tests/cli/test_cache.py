"""`leasekeeper cache run`, `get` and `invalidate`: a command's output, once for the fleet."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen

import leasekeeper_client.sync as keepers
import pytest
from leasekeeper_client import Busy

from leasekeeper.cli.cache import output_of, value_of
from tests.cli.running import WITHIN_S, against, alive, eventually, leasekeeper, python
from tests.processes import LEASEKEEPER, RunningServer, first_line, running_server, started

COUNTING = (
    "import pathlib, sys, time\n"
    "with open(sys.argv[1], 'a') as runs: runs.write('run\\n')\n"
    "time.sleep(float(sys.argv[2]))\n"
    "print('output')"
)
"""Writes down that it runs, and takes its time."""


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Where `COUNTING` writes down its runs."""
    path = tmp_path / "runs"
    path.touch()
    return path


@pytest.fixture
def keeper(server: RunningServer) -> Iterator[keepers.Keeper]:
    with keepers.connect(server.url) as connected:
        yield connected


def run(server: RunningServer, *arguments: str | Path) -> tuple[int, bytes, str]:
    """Runs `leasekeeper cache run` to its end: its exit code, output and complaints."""
    said = against(server, "cache", "run", *arguments)
    return said.exit_code, said.stdout_bytes, said.stderr


def ended(process: Popen[bytes]) -> tuple[int, bytes, str]:
    output, complaints = process.communicate(timeout=3 * WITHIN_S)
    return process.returncode, output, complaints.decode()


def test_what_is_not_utf_8_survives_being_cached() -> None:
    for output in (b"", b"text\n", "é".encode(), b"\xff\x00", bytes(range(256))):
        assert output_of(json.loads(json.dumps(value_of(output)))) == output
    assert value_of(b"text") == {"stdout": "text"}
    assert output_of([1]) == b"[1]\n"
    odd: object
    for odd in ({"stdout": 1}, {"stdout": "x", "more": 1}, {"stdout": "?", "encoding": "base64"}):
        assert json.loads(output_of(odd)) == odd


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "k", "--", "true"],
        ["run", "k", "--ttl", "0", "--", "true"],
        ["run", "k", "--ttl", "1"],
        ["run", "k", "--ttl", "1", "--fill", "601", "--", "true"],
        ["run", "bad key", "--ttl", "1", "--", "true"],
        ["run", "k", "--ttl", "1", "--tag", "bad tag", "--", "true"],
        ["get"],
        ["get", "bad key"],
        ["invalidate"],
        ["invalidate", "bad key"],
        ["explode"],
    ],
)
@pytest.mark.system
def test_bad_usage_is_2(server: RunningServer, arguments: list[str]) -> None:
    said = against(server, "cache", *arguments)
    assert said.exit_code == 2
    assert "Traceback" not in said.stderr


@pytest.mark.system
def test_a_second_run_prints_the_same_and_runs_nothing(server: RunningServer, runs: Path) -> None:
    command: tuple[str | Path, ...]
    command = ("twice", "--ttl", "60", "--", *python(COUNTING), runs, "0")
    assert run(server, *command) == (0, b"output\n", "")
    assert run(server, *command) == (0, b"output\n", "")
    assert runs.read_text() == "run\n"


@pytest.mark.system
def test_many_at_once_run_it_once(server: RunningServer, runs: Path) -> None:
    """L10, by processes of their own."""
    command = [*LEASEKEEPER, "cache", "run", "many", "--ttl", "60", "--", *python(COUNTING)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(started([*command, runs, "1"], LEASEKEEPER_URL=server.url))
            for _ in range(3)
        ]
        assert [ended(process) for process in processes] == [(0, b"output\n", "")] * 3
    assert runs.read_text() == "run\n"


@pytest.mark.system
def test_bytes_are_printed_as_they_were(server: RunningServer) -> None:
    program = python("import sys; sys.stdout.buffer.write(bytes(range(256)))")
    for _ in range(2):
        assert run(server, "bytes", "--ttl", "60", "--", *program)[1] == bytes(range(256))
    assert against(server, "cache", "get", "bytes").stdout_bytes == bytes(range(256))


@pytest.mark.system
def test_the_command_finds_its_key_and_a_fence_that_rises(
    server: RunningServer, keeper: keepers.Keeper
) -> None:
    program = python(
        "import os; print(*map(os.environ.get, ('LEASEKEEPER_' + n for n in ('KEY', 'FENCE'))))"
    )
    fences = []
    for _ in range(2):
        key, fence = run(server, "fenced", "--ttl", "60", "--", *program)[1].split()
        assert key == b"fenced"
        fences.append(int(fence))
        keeper.cache.invalidate("fenced")
    assert 0 < fences[0] < fences[1]


@pytest.mark.system
def test_a_command_that_fails_is_not_cached(server: RunningServer) -> None:
    """Who ran it has its output and code; the others are told, for the time of the back-off."""
    failing = ("fails", "--ttl", "60", "--", "sh", "-c", "echo half; exit 3")
    assert run(server, *failing) == (3, b"half\n", "")
    with keepers.connect(server.url) as keeper:
        keeper.cache.invalidate("told")

        def load() -> int:
            raise RuntimeError("no\x1b[31m luck")

        with pytest.raises(RuntimeError):
            keeper.cache.get_or_fill("told", load, ttl=60)
        said = against(server, "cache", "run", "told", "--ttl", "60", "--", "true")
    assert said.exit_code == 74
    assert said.stderr.startswith("leasekeeper: told: RuntimeError: no?[31m luck; tried again in ")
    assert against(server, "cache", "get", "fails").exit_code == 1


@pytest.mark.system
def test_commands_that_cannot_be_run(server: RunningServer, tmp_path: Path) -> None:
    code, output, complaints = run(server, "missing", "--ttl", "1", "--", "/does/not/exist")
    assert (code, output) == (127, b"")
    assert complaints == "leasekeeper: /does/not/exist: no such command\n"
    (tmp_path / "data").write_text("no program")
    assert run(server, "data", "--ttl", "1", "--", tmp_path / "data")[0] == 126


@pytest.mark.system
def test_the_wait_for_somebody_else_is_bounded(
    server: RunningServer, keeper: keepers.Keeper
) -> None:
    def load() -> str:
        said = against(server, "cache", "run", "busy", "--ttl", "1", "--wait", "0", "--", "true")
        assert (said.exit_code, said.stdout) == (75, "")
        assert said.stderr == "leasekeeper: busy is busy: somebody else still runs it\n"
        return "done"

    assert keeper.cache.get_or_fill("busy", load, ttl=1) == "done"


@pytest.mark.system
def test_a_stale_output_is_printed_at_once_and_made_anew(
    server: RunningServer, keeper: keepers.Keeper, runs: Path
) -> None:
    """Before it exits, the one that was chosen has run the command."""
    keeper.cache.set("stale", value_of(b"former\n"), ttl=0.001, stale=60)
    command: tuple[str | Path, ...]
    command = ("stale", "--ttl", "60", "--", *python(COUNTING), runs, "0")
    eventually(lambda: keeper.cache.get("stale", stale_ok=False) is None)
    assert run(server, *command) == (0, b"former\n", "")
    assert run(server, *command) == (0, b"output\n", "")
    assert runs.read_text() == "run\n"


@pytest.mark.system
def test_a_refresh_that_fails_leaves_the_former_output(
    server: RunningServer, keeper: keepers.Keeper
) -> None:
    keeper.cache.set("kept", value_of(b"former\n"), ttl=0.001, stale=60)
    eventually(lambda: keeper.cache.get("kept", stale_ok=False) is None)
    code, output, complaints = run(
        server, "kept", "--ttl", "60", "--", "sh", "-c", "echo new; exit 3"
    )
    assert (code, output) == (0, b"former\n")
    assert complaints == (
        "leasekeeper: kept: sh exited with 3; what was printed is the former output\n"
    )


@pytest.mark.system
def test_output_that_is_too_long_is_printed_and_not_cached(server: RunningServer) -> None:
    size = 3_000_000
    program = python(f"import sys; sys.stdout.write('x' * {size})")
    for _ in range(2):
        code, output, complaints = run(server, "long", "--ttl", "60", "--", *program)
        assert (code, complaints) == (0, "")
        assert output == b"x" * size
    assert against(server, "cache", "get", "long").exit_code == 1


@pytest.mark.system
def test_a_command_that_takes_too_long_is_stopped_with_its_children(
    server: RunningServer, keeper: keepers.Keeper, tmp_path: Path
) -> None:
    """Deaf as it is; and what somebody else brings meanwhile is printed."""
    pids = tmp_path / "pids"
    program = (
        "import os, pathlib, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(pids)!r}).write_text(f'{{os.getpid()}} {{child.pid}} ')\n"
        "time.sleep(60)"
    )
    command = ("slow", "--ttl", "60", "--fill", "1", "--kill-after", "0.3")
    arguments = [*LEASEKEEPER, "cache", "run", *command, "--", *python(program)]
    with started(arguments, LEASEKEEPER_URL=server.url) as process:
        eventually(lambda: pids.exists() and pids.read_text().endswith(" "))
        first = [int(pid) for pid in pids.read_text().split()]
        assert keeper.cache.get_or_fill("slow", lambda: value_of(b"theirs\n"), ttl=60)
        assert ended(process) == (0, b"theirs\n", "")
        eventually(lambda: not any(map(alive, first)))


@pytest.mark.system
def test_a_command_is_stopped_when_the_server_is_lost(tmp_path: Path) -> None:
    told = tmp_path / "told"
    program = (
        "import pathlib, signal, sys, time\n"
        f"told = pathlib.Path({str(told)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (told.touch(), sys.exit()))\n"
        "print('running', file=sys.stderr, flush=True)\n"
        "time.sleep(60)"
    )
    with running_server() as server:
        command = [*LEASEKEEPER, "cache", "run", "k", "--ttl", "9", "--wait", "0.1"]
        with started([*command, "--", *python(program)], LEASEKEEPER_URL=server.url) as process:
            assert process.stderr is not None
            assert first_line(process.stderr) == "running\n"
            server.process.kill()
            eventually(told.exists)


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_command_is_nobodys_failure(
    server: RunningServer, keeper: keepers.Keeper, number: signal.Signals
) -> None:
    """Somebody else runs it, at once."""
    key = f"interrupted-{number}"
    program = "import sys, time; print('running', file=sys.stderr, flush=True); time.sleep(60)"
    command = [*LEASEKEEPER, "cache", "run", key, "--ttl", "60", "--", *python(program)]
    with started(command, LEASEKEEPER_URL=server.url) as process:
        assert process.stderr is not None
        assert first_line(process.stderr) == "running\n"
        process.send_signal(number)
        began = time.monotonic()
        assert keeper.cache.get_or_fill(key, lambda: "mine", ttl=60) == "mine"
        assert time.monotonic() - began < 10
        assert ended(process)[:2] == (128 + number, b"")


def waiting_for(server: RunningServer, key: str) -> int:
    """How many wait for a key."""
    with keepers.connect(server.url) as keeper, pytest.raises(Busy) as caught:
        keeper.cache.get_or_fill(key, lambda: None, ttl=1, wait=0)
    return caught.value.waiting


@pytest.mark.system
def test_a_signal_while_waiting_ends_the_wait(
    server: RunningServer, keeper: keepers.Keeper
) -> None:
    def load() -> str:
        command = [*LEASEKEEPER, "cache", "run", "signalled", "--ttl", "60", "--", "true"]
        with started(command, LEASEKEEPER_URL=server.url) as process:
            eventually(lambda: waiting_for(server, "signalled") == 1)
            process.send_signal(signal.SIGTERM)
            assert ended(process) == (128 + signal.SIGTERM, b"", "")
        return "done"

    assert keeper.cache.get_or_fill("signalled", load, ttl=1) == "done"


@pytest.mark.system
def test_get_prints_outputs_as_they_were_and_other_values_as_json(
    server: RunningServer, keeper: keepers.Keeper
) -> None:
    keeper.cache.set("json", {"a": [1, None, "é\x1b"]}, ttl=60)
    keeper.cache.set("output", value_of(b"no newline"), ttl=60)
    assert json.loads(against(server, "cache", "get", "json").stdout) == {"a": [1, None, "é\x1b"]}
    assert "\x1b" not in against(server, "cache", "get", "json").stdout
    assert against(server, "cache", "get", "output").stdout == "no newline"
    nothing = against(server, "cache", "get", "nothing")
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (1, "", "")
    default = against(server, "cache", "get", "nothing", "--default", "x")
    assert (default.exit_code, default.stdout) == (0, "x\n")


@pytest.mark.system
def test_invalidate_by_key_by_tag_and_softly(server: RunningServer, keeper: keepers.Keeper) -> None:
    def fill() -> None:
        for key in ("a", "b", "c"):
            keeper.cache.set(f"inv/{key}", key, ttl=60, stale=60, tags=[f"inv/t-{key}"])

    def left(*, stale_ok: bool = True) -> str:
        got = (keeper.cache.get(f"inv/{key}", "", stale_ok=stale_ok) for key in "abc")
        return "".join(map(str, got))

    fill()
    assert against(server, "cache", "invalidate", "inv/a", "--tag", "inv/t-b").exit_code == 0
    assert left() == "c"
    fill()
    assert against(server, "cache", "invalidate", "inv/a", "inv/b", "--soft").exit_code == 0
    assert (left(), left(stale_ok=False)) == ("abc", "c")
    code, _, _ = run(server, "inv/run", "--ttl", "60", "--tag", "inv/x", "--", "true")
    assert code == 0
    assert keeper.cache.get("inv/run") == {"stdout": ""}
    assert against(server, "cache", "invalidate", "--tag", "inv/x").exit_code == 0
    assert keeper.cache.get("inv/run") is None


@pytest.mark.system
def test_a_file_may_set_options_of_the_cache(server: RunningServer, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'url = ["{server.url}"]\n[cache.run]\nttl = 60\ntag = ["file"]\n')
    ok = leasekeeper("--config", config, "cache", "run", "from-file", "--", "true")
    assert (ok.exit_code, ok.stderr) == (0, "")
    for text in ("[cache]\nttl = 60\n", "[cache.explode]\nttl = 60\n", "[cache.run]\nnone = 1\n"):
        config.write_text(text)
        said = leasekeeper("--config", config, "cache", "get", "k")
        assert said.exit_code == 2
        assert "config.toml: [cache" in said.stderr


@pytest.mark.system
def test_without_a_server_nothing_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leasekeeper.cli.client._CONNECT_S", 0.2)
    for name, *rest in (["get"], ["invalidate"], ["run", "--ttl", "1", "--", "true"]):
        said = leasekeeper("cache", name, "k", "--url", "ws://127.0.0.1:1", *rest)
        assert said.exit_code == 69
        assert said.stderr == "leasekeeper: no server at ws://127.0.0.1:1/ within 0.2 s\n"
