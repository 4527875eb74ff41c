"""Plots where matplotlib is not installed: CI does not install the group `bench`."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import __main__ as short
from bench import drawing, plots
from bench.scale import __main__ as scale


@pytest.mark.parametrize("main", [short.main, scale.main])
def test_it_is_said_before_anything_is_measured_that_plots_want_matplotlib(
    main: Callable[[], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(drawing, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["bench", "--plots", str(tmp_path / "plots")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("plots want matplotlib: uv sync --inexact --group bench")


def test_what_an_earlier_run_lacks_is_left_out() -> None:
    whole = dict.fromkeys(plots.HAND_OFF_FIGURES, 1.0)
    rounds = {"redis": [whole, whole], "etcd": [{"p50_ms": 1.0}], "forgotten": [whole]}
    kept = list(plots.served({"P3": rounds}, ["P3", "P3b"], plots.HAND_OFF_FIGURES))
    assert [each.label for each in kept] == ["leasekeeper on Redis", "forgotten"]
