"""`ls`, `show`, `break` and `watch`, for people and for programs."""

import json
import re
from collections.abc import Iterator

import leasekeeper_client.sync as keepers
import pytest
from leasekeeper_client import LeaseLost

from tests.cli.running import against, eventually
from tests.processes import LEASEKEEPER, RunningServer, first_line, started

pytestmark = pytest.mark.system

HEAD = ["NAME", "MODE", "FENCE", "HELD", "EXPIRES IN", "WAITING", "CLIENT", "LABEL"]
EVIL = "\x1b[2J\r\n\x00\u202e\u009bpwn"
"""Would clear the screen, forge a line, turn the text around."""


@pytest.fixture
def keeper(server: RunningServer) -> Iterator[keepers.Keeper]:
    """A client whose name is as evil as its labels."""
    with keepers.connect(server.url, client=f"client{EVIL}") as connected:
        yield connected


def test_ls_lists_by_name_and_prefix(server: RunningServer, keeper: keepers.Keeper) -> None:
    with (
        keeper.lease("ls/b", label="second"),
        keeper.lease("ls/a", label="first", shared=True),
        keeper.lease("other"),
    ):
        head, *rows = against(server, "ls", "ls/").stdout.splitlines()
        names = [line.split()[0] for line in against(server, "ls").stdout.splitlines()[1:]]
        limited = against(server, "ls", "ls/", "--limit", "1").stdout.splitlines()
    assert re.split("  +", head) == HEAD
    assert [row.split()[:2] for row in rows] == [["ls/a", "shared"], ["ls/b", "exclusive"]]
    assert [row.split()[-1] for row in rows] == ["first", "second"]
    assert {"ls/a", "ls/b", "other"} <= set(names)
    assert names == sorted(names)
    assert len(limited) == 2
    assert limited[1].startswith("ls/a ")


def test_ls_prints_objects_as_the_protocol_has_them(
    server: RunningServer, keeper: keepers.Keeper
) -> None:
    with keeper.lease("json/a", ttl=9, label=EVIL) as lease, keeper.lease("json/b"):
        said = against(server, "ls", "json/", "--json").stdout
        limited = against(server, "ls", "json/", "--json", "--limit", "1").stdout
    first, second = map(json.loads, said.splitlines())
    assert (first["name"], second["name"]) == ("json/a", "json/b")
    assert first["fence"] == lease.fence
    assert first["label"] == EVIL
    assert 0 < first["ttl_ms"] <= 9000
    assert first.keys() == {
        *("name", "mode", "fence", "label", "held_ms", "ttl_ms", "client", "foreign", "waiting")
    }
    assert len(limited.splitlines()) == 1
    assert "\x1b" not in said


def test_what_others_chose_is_harmless_on_a_terminal(
    server: RunningServer, keeper: keepers.Keeper
) -> None:
    with keeper.lease("evil", label=EVIL):
        for command in (["ls", "evil"], ["show", "evil"], ["watch", "evil", "--count", "1"]):
            said = against(server, *command).stdout
            assert "?[2J?????pwn" in said
            assert said.replace("\n", "").isprintable()
            assert len(said.splitlines()) == (2 if command[0] == "ls" else 1)


def test_show_tells_who_holds_and_who_waits(server: RunningServer) -> None:
    free = against(server, "show", "shown")
    assert (free.exit_code, free.stdout) == (0, "shown is free\n")
    waiter = [*LEASEKEEPER, "lock", "shown", "--label", "next", "--", "true"]
    with (
        keepers.connect(server.url, client="me") as keeper,
        keeper.lease("shown", label="mine") as lease,
        started(waiter, LEASEKEEPER_URL=server.url) as process,
    ):
        eventually(lambda: len(keeper.inspect("shown").waiting) == 1)
        held, waits = against(server, "show", "shown").stdout.splitlines()
        state = json.loads(against(server, "show", "shown", "--json").stdout)
        process.terminate()
        process.wait(20)
    assert held.startswith("shown is held (exclusive) by mine (me) for ")
    assert f"fence {lease.fence}, expires in " in held
    assert waits.startswith("  1. next (leasekeeper@")
    assert " waits (exclusive) for " in waits
    assert state.keys() == {"name", "holders", "waiting", "waiting_total"}
    assert state["holders"][0]["fence"] == lease.fence
    assert state["waiting"][0]["position"] == state["waiting_total"] == 1


def test_break_puts_out_and_says_whether_there_was_anybody(
    server: RunningServer, keeper: keepers.Keeper
) -> None:
    with pytest.raises(LeaseLost) as lost, keeper.lease("put/out") as lease:  # noqa: PT012
        said = against(server, "break", "put/out", "--reason", "mend")
        assert lease.lost_event.wait(10)
    assert (said.exit_code, said.stdout) == (0, "1 put out\n")
    assert lost.value.reason == "broken"
    assert against(server, "break", "put/out").exit_code == 1
    nobody = against(server, "break", "put/out", "--json")
    assert (nobody.exit_code, json.loads(nobody.stdout)) == (1, {"broken": 0})


def test_watch_prints_the_present_and_every_change(server: RunningServer) -> None:
    """The second state arrives while it runs, so its output is not held back in a buffer."""
    command = [*LEASEKEEPER, "watch", "watched", "--json", "--count", "3"]
    with (
        keepers.connect(server.url) as keeper,
        started(command, LEASEKEEPER_URL=server.url) as process,
    ):
        assert process.stdout is not None
        assert json.loads(first_line(process.stdout))["holders"] == []
        with keeper.lease("watched") as lease:
            assert json.loads(first_line(process.stdout))["holders"][0]["fence"] == lease.fence
        assert json.loads(first_line(process.stdout))["holders"] == []
        assert process.wait(20) == 0


def test_an_interrupted_watch_ends_quietly(server: RunningServer) -> None:
    with started([*LEASEKEEPER, "watch", "quiet"], LEASEKEEPER_URL=server.url) as process:
        assert process.stdout is not None
        assert first_line(process.stdout) == "quiet is free\n"
        process.send_signal(2)
        _, complaints = process.communicate(timeout=20)
        assert process.returncode == 130
        assert complaints == b""


@pytest.mark.parametrize("command", ["show", "break", "watch"])
def test_a_name_that_is_none_is_bad_usage(server: RunningServer, command: str) -> None:
    said = against(server, command, "no name")
    assert said.exit_code == 2
    assert "Traceback" not in said.stderr
