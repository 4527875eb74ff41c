"""`leasekeeper verify`: what it prints, and how it exits."""

import json
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner, Result

from leasekeeper.cli import main
from leasekeeper.verify import CHECKS
from tests.verify.ideal import ideal_history, written
from tests.verify.mutants import lose_an_update


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A history that violates nothing."""
    path = tmp_path / "good.jsonl"
    path.write_bytes(written(ideal_history(2)))
    return path


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    """One in which an update is lost."""
    lines = lose_an_update(ideal_history(2), Random(1))
    assert lines is not None
    path = tmp_path / "bad.jsonl"
    path.write_bytes(written(lines))
    return path


def verifying(*arguments: str | Path, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, ["verify", *map(str, arguments)], input=stdin)


def test_a_good_history_exits_with_0_and_has_a_table(good: Path) -> None:
    said = verifying(good)
    assert said.exit_code == 0, said.output
    assert said.output.splitlines()[-1] == "Nothing is violated."
    for word in (*CHECKS, "acquire", "kill_server", "After the last heal, at ", "clock_step 1)"):
        assert word in said.output


def test_a_violation_exits_with_1_and_shows_its_lines(bad: Path) -> None:
    said = verifying(bad)
    assert said.exit_code == 1
    assert ": a write was lost\n  line " in said.output
    assert said.output.endswith("\nViolated: updates.\n")


def test_only_the_checks_that_are_named_are_carried_out(bad: Path) -> None:
    said = verifying(bad, "--only", "fences", "--only", "fifo")
    assert said.exit_code == 0
    assert "fifo " in said.output
    assert "updates" not in said.output
    assert verifying(bad, "--only", "updates").exit_code == 1
    assert verifying(bad, "--only", "update").exit_code == 2


def test_json_is_one_document(bad: Path) -> None:
    said = verifying(bad, "--json")
    assert said.exit_code == 1
    document = json.loads(said.output)
    assert document["violated"] is True
    checks = {each["check"]: each for each in document["checks"]}
    assert tuple(checks) == CHECKS
    (violation,) = checks["updates"]["violations"]
    assert violation["lines"][0]["line"] > 1
    assert checks["exclusion"]["excused"] == {"clock_step": 1}
    assert document["history"]["operations"]["acquire"]["ok"] > 50


def test_a_dash_reads_standard_input(good: Path) -> None:
    assert verifying("-", stdin=good.read_bytes()).exit_code == 0


@pytest.mark.parametrize("text", [b"", b"no json\n", b"\xff\n"])
def test_what_is_no_history_exits_with_65_and_one_line(text: bytes) -> None:
    said = verifying("-", stdin=text)
    assert said.exit_code == 65
    assert said.stderr.startswith("leasekeeper: line 1: ")
    assert said.stderr.count("\n") == 1


def test_a_file_that_is_not_there_is_a_mistake_in_usage(tmp_path: Path) -> None:
    assert verifying(tmp_path / "none.jsonl").exit_code == 2


def test_what_others_chose_is_safe_for_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "evil.jsonl"
    about = {"process": "\x1b[2J", "id": 1, "op": "write"}
    write = {"resource": "r", "name": "n", "lease": "l", "fence": 1, "value": "\x1b]0;x\x07"}
    lines = [
        {"type": "begin", "at": 1, **about, **write},
        {"type": "ok", "at": 2, **about},
        {"type": "event", "at": 3, "process": "r", "op": "final", "resource": "r", "values": []},
    ]
    path.write_bytes(written(lines))
    said = verifying(path)
    assert said.exit_code == 1
    assert "\x1b" not in said.output
