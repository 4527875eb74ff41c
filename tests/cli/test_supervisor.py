"""The supervisor alone, with small programs for workers: what it starts, replaces and ends."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from tempfile import TemporaryDirectory

import pytest
from attrs import define

from tests.cli.running import WITHIN_S, alive, eventually, python
from tests.processes import first_line, started

pytestmark = pytest.mark.system

SUPERVISE = """
import sys, trio
from leasekeeper.cli.job import log_to_stderr
from leasekeeper.cli.supervisor import Supervisor
from leasekeeper.server.listening import Places

count, diary, program = sys.argv[1:]
log_to_stderr("info")
supervisor = Supervisor(
    command=(sys.executable, "-c", program, diary),
    count=int(count),
    places=Places([], {}),
    job=lambda index, sockets: b"the job\\n",
    environment={},
    on_ready=lambda: print("all are ready", flush=True),
)
sys.exit(trio.run(supervisor.run))
"""

WORKER = """
import os, sys, time

def say(word):
    with open(sys.argv[1], "a") as diary:
        diary.write(f"{word} {os.getpid()}\\n")

def are(word):
    with open(sys.argv[1]) as diary:
        return diary.read().count(word)

def ready():
    os.write(sys.stdout.fileno(), b"ready")

def until_told():
    sys.stdin.read()

say("started")
"""
"""What every worker's program begins with."""

OBEDIENT = "ready(); until_told(); say('drained')"
STUBBORN = "ready(); until_told(); say('told'); time.sleep(60)"


@define
class Supervised:
    """A supervisor's process, and the diary that its workers keep."""

    process: Popen[bytes]
    diary: Path

    def who(self, word: str = "started") -> list[int]:
        """The process ids of those who said so, in the order in which they did."""
        lines = self.diary.read_text().splitlines() if self.diary.exists() else []
        return [int(pid) for said, pid in map(str.split, lines) if said == word]

    def is_ready(self) -> bool:
        """Whether it comes to say that all are."""
        assert self.process.stdout is not None
        return first_line(self.process.stdout) == "all are ready\n"

    def logged(self) -> dict[str, object]:
        """The next line of its log."""
        assert self.process.stderr is not None
        line: dict[str, object] = json.loads(first_line(self.process.stderr, WITHIN_S))
        return line

    def ended(self) -> tuple[int, str, str]:
        """Its exit code, and what it still said. It has left no worker behind."""
        output, complaints = self.process.communicate(timeout=WITHIN_S)
        assert not any(map(alive, self.who()))
        return self.process.returncode, output.decode(), complaints.decode()


@contextmanager
def supervised(program: str, count: int = 2) -> Iterator[Supervised]:
    """A supervisor of so many workers that run this program."""
    with TemporaryDirectory() as place:
        diary = Path(place) / "diary"
        command = [*python(SUPERVISE), str(count), str(diary), WORKER + program]
        with started(command) as process:
            yield Supervised(process, diary)


# --- The first start ------------------------------------------------------------------------------


def test_it_is_ready_when_all_workers_are_and_says_so_once() -> None:
    with supervised("time.sleep(0.2); say('ready'); " + OBEDIENT, count=3) as all_of_them:
        assert all_of_them.is_ready()
        assert len(all_of_them.who("ready")) == 3
        all_of_them.process.terminate()
        code, output, _ = all_of_them.ended()
        assert (code, output) == (0, "")
        assert len(all_of_them.who("drained")) == 3


def test_a_worker_that_cannot_work_is_tried_once() -> None:
    with supervised("print('Error: no', file=sys.stderr); sys.exit(2)", count=3) as all_of_them:
        assert all_of_them.ended() == (2, "", "Error: no\n")
        assert len(all_of_them.who()) == 1


def test_a_later_worker_that_cannot_work_ends_all() -> None:
    program = "sys.exit(2) if are('started') == 3 else None; " + STUBBORN
    with supervised(program, count=3) as all_of_them:
        assert all_of_them.ended() == (2, "", "")


def test_a_worker_that_crashes_before_it_was_ready_ends_all() -> None:
    with supervised("sys.exit(7)") as all_of_them:
        code, output, complaints = all_of_them.ended()
        assert (code, output) == (1, "")
        assert json.loads(complaints)["code"] == 7
        assert len(all_of_them.who()) == 1


def test_a_signal_during_the_start_ends_it() -> None:
    with supervised("time.sleep(60)") as all_of_them:
        eventually(lambda: bool(all_of_them.who()))
        all_of_them.process.terminate()
        assert all_of_them.ended() == (0, "", "")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not let us choose cores")
def test_every_worker_has_a_core() -> None:
    with supervised(OBEDIENT, count=3) as all_of_them:
        assert all_of_them.is_ready()
        cores = sorted(os.sched_getaffinity(0))
        had = [os.sched_getaffinity(pid) for pid in all_of_them.who()]
        assert sorted(map(min, had)) == sorted(cores[index % len(cores)] for index in range(3))
        assert {len(each) for each in had} == {1}


# --- Replacing ------------------------------------------------------------------------------------


def test_a_worker_that_died_is_replaced() -> None:
    with supervised(OBEDIENT) as all_of_them:
        assert all_of_them.is_ready()
        first, second = all_of_them.who()
        os.kill(first, signal.SIGKILL)
        eventually(lambda: len(all_of_them.who()) == 3)
        line = all_of_them.logged()
        assert (line["event"], line["worker"], line["code"]) == ("worker ended", 0, -9)
        assert alive(second)
        all_of_them.process.terminate()
        code, output, _ = all_of_them.ended()
        assert (code, output) == (0, "")


def test_a_crash_loop_does_not_spin() -> None:
    with supervised("sys.exit(2) if are('started') > 1 else None; " + OBEDIENT, 1) as all_of_them:
        assert all_of_them.is_ready()
        os.kill(all_of_them.who()[0], signal.SIGKILL)
        pauses = [all_of_them.logged()["another_in_ms"] for _ in range(5)]
        assert pauses == [100, 200, 400, 800, 1600]
        assert len(all_of_them.who()) == 5
        all_of_them.process.terminate()
        assert all_of_them.ended()[0] == 0


def test_a_worker_may_talk() -> None:
    with supervised("ready(); print('x' * 500_000); say('talked'); until_told()") as all_of_them:
        eventually(lambda: len(all_of_them.who("talked")) == 2)


# --- The end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_waits_for_workers_that_drain_slowly(number: signal.Signals) -> None:
    with supervised("ready(); until_told(); time.sleep(1); say('drained')") as all_of_them:
        assert all_of_them.is_ready()
        all_of_them.process.send_signal(number)
        assert all_of_them.ended()[0] == 0
        assert len(all_of_them.who("drained")) == 2


def test_a_worker_that_does_not_end_well_is_no_success() -> None:
    with supervised("ready(); until_told(); sys.exit(3)") as all_of_them:
        assert all_of_them.is_ready()
        all_of_them.process.terminate()
        assert all_of_them.ended()[0] == 1


def test_a_worker_that_was_just_being_replaced_does_not_delay_the_end() -> None:
    program = "time.sleep(60) if are('started') > 2 else None; " + OBEDIENT
    with supervised(program) as all_of_them:
        assert all_of_them.is_ready()
        os.kill(all_of_them.who()[0], signal.SIGKILL)
        eventually(lambda: len(all_of_them.who()) == 3)
        all_of_them.process.terminate()
        assert all_of_them.ended()[0] == 0


def test_a_second_signal_ends_all_at_once() -> None:
    with supervised(STUBBORN) as all_of_them:
        assert all_of_them.is_ready()
        all_of_them.process.terminate()
        eventually(lambda: len(all_of_them.who("told")) == 2)
        since = time.monotonic()
        all_of_them.process.terminate()
        assert all_of_them.ended()[0] == 1
        assert time.monotonic() - since < 5


def test_workers_do_not_outlive_a_killed_supervisor() -> None:
    with supervised(OBEDIENT) as all_of_them:
        assert all_of_them.is_ready()
        all_of_them.process.kill()
        eventually(lambda: not any(map(alive, all_of_them.who())))
        assert len(all_of_them.who("drained")) == 2
