"""The bench, once and as short as it can be: no speed is asked for, only that all of it works."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from bench.__main__ import SHORT
from bench.hand_offs import PERCENTILES
from bench.observed import Figures
from tests.processes import START_S, clean_environment

pytestmark = pytest.mark.system

SHAPES: Final = ("P1", "P2", "P3", "P4")
QUICK: Final = (
    *("--store", "both", "--rounds", "1", "--seconds", "0.2"),
    *("--warm-up", "0.1", "--callers", "500"),
)
ROOT: Final = Path(__file__).parents[2]


@contextlib.contextmanager
def bench(*options: str | Path) -> Iterator[subprocess.Popen[str]]:
    """`just bench`; with it ends all that it has started, and that is in its process group."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench", *options],
        cwd=ROOT,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[Figures]]]:
    """What a run has written, by shape and server. Its exit status is that no law was broken."""
    path = tmp_path_factory.mktemp("bench") / "run.json"
    with bench(*SHAPES, *QUICK, "--json", path) as process:
        said, _ = process.communicate(timeout=START_S)
    assert process.returncode == 0, said
    rounds: dict[str, dict[str, list[Figures]]] = json.loads(path.read_text())["rounds"]
    return rounds


def test_every_shape_has_a_rate_on_every_server(
    measured: dict[str, dict[str, list[Figures]]],
) -> None:
    assert {shape: tuple(kinds) for shape, kinds in measured.items()} == {
        shape: SHORT[shape] for shape in SHAPES
    }
    for kinds in measured.values():
        for [figures] in kinds.values():
            assert figures["rate"] > 0
            assert all(math.isfinite(figure) for figure in figures.values())


def test_the_line_is_kept(measured: dict[str, dict[str, list[Figures]]]) -> None:
    for [figures] in measured["P3"].values():
        assert figures["out_of_order"] == 0
        assert figures["hand_offs"] > 0
        latencies = [figures[name] for name in PERCENTILES]
        assert latencies == sorted(latencies)
        assert 0 <= figures["least_share"] <= 1
        assert 0 < figures["fairness"] <= 1


def test_one_caller_loads_for_all(measured: dict[str, dict[str, list[Figures]]]) -> None:
    for [figures] in measured["P4"].values():
        assert (figures["loads"], figures["callers"]) == (1, 500)
