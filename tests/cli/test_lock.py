"""`leasekeeper lock NAME -- COMMAND`: whatever happens, the command runs only under its lease."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import Popen

import leasekeeper_client.sync as keepers
import pytest

from tests.cli.running import (
    SLEEP,
    WITHIN_S,
    against,
    alive,
    eventually,
    leasekeeper,
    locked,
    locking,
    python,
)
from tests.processes import LEASEKEEPER, RunningServer, first_line, running_server, started

pytestmark = pytest.mark.system

CONNECT_S = 10.0
"""For how long a client tries to reach a first server."""


@pytest.fixture(scope="module", autouse=True)
def hopeless() -> Iterator[Popen[bytes]]:
    """`leasekeeper lock` without a server. It gives up while the other tests run."""
    command = [*LEASEKEEPER, "lock", "n", "--url", "ws://127.0.0.1:1", "--", "echo", "run"]
    with started(command) as process:
        yield process


def running(process: Popen[bytes]) -> str:
    """The first line that the command says."""
    assert process.stdout is not None
    line = first_line(process.stdout, WITHIN_S)
    assert line, "the command did not say that it runs"
    return line.strip()


def ended(process: Popen[bytes]) -> tuple[int, str]:
    """Its exit code and complaints."""
    _, complaints = process.communicate(timeout=WITHIN_S)
    return process.returncode, complaints.decode()


def is_free(server: RunningServer, name: str) -> bool:
    with keepers.connect(server.url) as keeper:
        return not keeper.inspect(name).holders


def test_the_exit_code_is_the_commands_own(server: RunningServer) -> None:
    """7 of a shell that was asked for; and none was put in between."""
    assert locked(server, "codes", "--", "sh", "-c", "exit 7") == (7, "", "")
    code, output, _ = locked(server, "codes", "--", "echo", "$HOME", ";", "*")
    assert (code, output) == (0, "$HOME ; *\n")


def test_a_command_that_died_of_a_signal(server: RunningServer) -> None:
    program = "import os; os.kill(os.getpid(), 9)"
    assert locked(server, "codes", "--", *python(program))[0] == 128 + signal.SIGKILL


def test_a_command_that_does_not_exist(server: RunningServer) -> None:
    code, _, complaints = locked(server, "codes", "--", "/does/not/exist")
    assert (code, complaints) == (127, "leasekeeper: /does/not/exist: no such command\n")
    assert is_free(server, "codes")


def test_a_command_that_cannot_be_executed(server: RunningServer, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no program")
    code, _, complaints = locked(server, "codes", "--", tmp_path / "data")
    assert code == 126
    assert complaints.startswith(f"leasekeeper: {tmp_path}/data: ")


def test_busy_names_the_holder(server: RunningServer) -> None:
    with keepers.connect(server.url, client="rival") as keeper:
        with keeper.lease("busy", label="re\x1b[31md"):
            code, _, complaints = locked(server, "busy", "--wait", "0", "--", "true")
        with keeper.lease("busy"):
            said = against(server, "lock", "busy", "--wait", "0.1", "--", "true")
    assert code == 75
    assert complaints == "leasekeeper: busy is busy: held by re?[31md\n"
    assert said.exit_code == 75
    assert said.stderr == "leasekeeper: busy is busy: held by rival\n"


@pytest.mark.parametrize("command", [["ls"], ["show", "n"], ["break", "n"], ["watch", "n"]])
def test_the_other_commands_say_the_same(
    monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.setattr("leasekeeper.cli.client._CONNECT_S", 0.2)
    said = leasekeeper(*command, "--url", "ws://127.0.0.1:1")
    assert said.exit_code == 69
    assert said.stderr == "leasekeeper: no server at ws://127.0.0.1:1/ within 0.2 s\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["n"],
        ["n", "--"],
        ["n", "--ttl", "0.01", "--", "true"],
        ["n", "--wait", "-1", "--", "true"],
        ["n", "--limit", "0", "--", "true"],
        ["n", "--bogus", "--", "true"],
        ["bad name", "--", "true"],
        ["", "--", "true"],
        ["n", "--url", "http://127.0.0.1", "--", "true"],
        ["n", "--token-file", "/does/not/exist", "--", "true"],
    ],
)
def test_bad_usage_is_2(server: RunningServer, arguments: list[str]) -> None:
    said = against(server, "lock", *arguments)
    assert said.exit_code == 2
    assert "Traceback" not in said.stderr
    assert said.stderr.splitlines()[-1].startswith("Error: ")


def test_the_command_finds_a_fence_that_rises(server: RunningServer) -> None:
    program = python(
        "import os; print(*map(os.environ.get, ('LEASEKEEPER_' + n for n in ('NAME', 'FENCE'))))"
    )
    said = [locked(server, "fenced", "--", *program)[1].split() for _ in range(2)]
    assert [name for name, _ in said] == ["fenced", "fenced"]
    assert 0 < int(said[0][1]) < int(said[1][1])


def test_shared_and_limited_holders_run_together(server: RunningServer) -> None:
    """Two of two run; the third finds it busy, and so does an exclusive one."""
    with (
        locking(server, "gpu", "--limit", "2", "--", *SLEEP) as first,
        locking(server, "gpu", "--shared", "--", *SLEEP) as second,
    ):
        running(first)
        running(second)
        third = against(server, "lock", "gpu", "--limit", "2", "--wait", "0", "--", "true")
        alone = against(server, "lock", "gpu", "--wait", "0", "--", "true")
        assert (third.exit_code, alone.exit_code) == (75, 75)


def test_a_signal_is_forwarded_to_the_whole_group_and_the_lease_released(
    server: RunningServer,
) -> None:
    """The command and its child are in a process group of their own, and both get it."""
    program = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(os.getpid(), os.getpgrp(), child.pid, flush=True)\n"
        "child.wait()"
    )
    with locking(server, "signalled", "--", *python(program)) as process:
        pid, group, grandchild = map(int, running(process).split())
        assert pid == group != os.getpgid(process.pid)
        assert os.getpgid(grandchild) == group
        process.send_signal(signal.SIGTERM)
        sent_at = time.monotonic()
        assert process.wait(WITHIN_S) == 128 + signal.SIGTERM
        assert is_free(server, "signalled")
        assert time.monotonic() - sent_at < 4
        eventually(lambda: not alive(grandchild))


def test_a_command_may_take_its_time_after_a_signal(server: RunningServer) -> None:
    """Its exit code counts, and the lease is held until it has ended."""
    program = (
        "import signal, sys, time\n"
        "def stop(*_): print('stopping', flush=True); time.sleep(0.5); sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "print('running', flush=True)\n"
        "time.sleep(60)"
    )
    with locking(server, "slow", "--", *python(program)) as process:
        running(process)
        process.send_signal(signal.SIGTERM)
        assert running(process) == "stopping"
        assert not is_free(server, "slow")
        assert process.wait(WITHIN_S) == 3
    assert is_free(server, "slow")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_waiting_leaves_the_queue(
    server: RunningServer, number: signal.Signals, tmp_path: Path
) -> None:
    with keepers.connect(server.url) as keeper, keeper.lease("queue"):
        with locking(server, "queue", "--", "touch", tmp_path / "run") as process:
            eventually(lambda: len(keeper.inspect("queue").waiting) == 1)
            process.send_signal(number)
            assert ended(process) == (128 + number, "")
        assert not keeper.inspect("queue").waiting
    assert not (tmp_path / "run").exists()


def test_a_broken_lease_stops_the_command(server: RunningServer) -> None:
    program = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('told', flush=True), sys.exit(5)))\n"
        "print('running', flush=True)\n"
        "time.sleep(60)"
    )
    with locking(server, "broken", "--", *python(program)) as process:
        running(process)
        assert against(server, "break", "broken", "--reason", "mend").exit_code == 0
        assert running(process) == "told"
        code, complaints = ended(process)
    assert code == 76
    assert "broken" in complaints
    assert "the command was stopped" in complaints


DEAF = (
    "import os, signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    "print(os.getpid(), child.pid, flush=True)\n"
    "time.sleep(60)"
)
"""Ignores SIGTERM; its child inherits that."""


def test_a_deaf_command_is_killed_with_its_children(server: RunningServer) -> None:
    lock = ("deaf", "--kill-after", "0.3", "--", *python(DEAF))
    with locking(server, *lock) as process:
        pids = [int(each) for each in running(process).split()]
        broken_at = time.monotonic()
        assert against(server, "break", "deaf").exit_code == 0
        assert ended(process)[0] == 76
        assert 0.3 <= time.monotonic() - broken_at < 4
        eventually(lambda: not any(map(alive, pids)))


BEATING = (
    "import pathlib, signal, subprocess, sys, time\n"
    "deaf, *paths = sys.argv[1:]\n"
    "if deaf == 'deaf': signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "if paths[1:]: subprocess.Popen([sys.executable, __file__, deaf, *paths[1:]])\n"
    "print('running', flush=True)\n"
    "while True:\n"
    "    pathlib.Path(paths[0]).write_text(repr(time.monotonic()))\n"
    "    time.sleep(0.01)"
)
"""Writes down again and again that it lives; so does a child of its own."""


@pytest.mark.parametrize("ears", ["hearing", "deaf"])
def test_a_command_does_not_outlive_its_lease_when_the_server_is_gone(
    tmp_path: Path, ears: str
) -> None:
    """L3: the server stands still; no process of the command does anything past the deadline.

    The lease was last confirmed before the server was stopped, so a TTL after that it is over.
    """
    ttl_s = 2.0
    script = tmp_path / "beat.py"
    script.write_text(BEATING)
    beats = [tmp_path / "parent", tmp_path / "child"]
    command: list[str | Path] = [sys.executable, script, ears, *beats]
    with (
        running_server() as server,
        locking(server, "gone", "--ttl", str(ttl_s), "--", *command) as process,
    ):
        assert [running(process), running(process)] == ["running", "running"]
        server.process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + ttl_s
        code, complaints = ended(process)
        last = [path.read_text() for path in beats]
        assert all(not text or float(text) <= deadline for text in last)
        time.sleep(0.1)
        assert [path.read_text() for path in beats] == last  # nobody is left
    assert code == 76
    assert "'gone'" in complaints
    assert "the command was stopped" in complaints


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's end")
def test_a_killed_lock_takes_its_command_with_it(server: RunningServer, tmp_path: Path) -> None:
    told = tmp_path / "told"
    program = (
        "import os, pathlib, signal, sys, time\n"
        f"told = pathlib.Path({str(told)!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: (told.touch(), sys.exit()))\n"
        "print(os.getpid(), flush=True)\n"
        "time.sleep(60)"
    )
    with locking(server, "killed", "--", *python(program)) as process:
        pid = int(running(process))
        process.kill()
        eventually(lambda: not alive(pid))
    assert told.exists()


def test_without_a_server_nothing_is_run(hopeless: Popen[bytes]) -> None:
    """At the end of the module, because it takes the time that a server is given to come up."""
    output, complaints = hopeless.communicate(timeout=CONNECT_S + 5)
    assert hopeless.returncode == 69
    assert complaints.startswith(b"leasekeeper: no server at ws://127.0.0.1:1/")
    assert len(complaints.splitlines()) == 1
    assert output == b""


def test_a_server_that_wants_a_token_is_told_apart_from_none() -> None:
    """77, not the command's own code and not "no server"."""
    with running_server(token="right") as server:
        said = leasekeeper("lock", "n", "--url", server.url, "--", "true")
    assert said.exit_code == 77
    assert len(said.stderr.splitlines()) == 1
