"""What all plots share: how they look, how they are written, and matplotlib, imported only here."""

import argparse
import contextlib
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.peers.catalogue import PYTHON
from bench.report import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

OURS: Final = "#2f6f9f"
OTHERS: Final = "#b8bec4"
INK: Final = "#222222"
MUTED: Final = "#555555"
GRID: Final = "#e4e6e8"
WIDTH_IN: Final = 8.5


def require_matplotlib(parser: argparse.ArgumentParser) -> None:
    """Ends the program with status 2, and says how to install it, if it is not installed."""
    if find_spec("matplotlib") is None:
        parser.exit(2, f"{parser.prog}: plots want matplotlib: {PYTHON}\n")


@contextlib.contextmanager
def plot(path: Path, title: str, note: str, height_in: float) -> "Iterator[Axes]":
    """Axes to draw on; the SVG is written when the block ends."""
    import matplotlib
    from matplotlib.figure import Figure

    style = matplotlib.rc_context(
        {
            # Text stays text: a reader can search it, and have it read aloud.
            "svg.fonttype": "none",
            # With this, and without a date, the same figures give the same file.
            "svg.hashsalt": "leasekeeper",
            # Room for a reader's font that is wider than ours.
            "figure.constrained_layout.w_pad": 0.12,
            "text.color": INK,
            "axes.labelcolor": INK,
            "axes.edgecolor": MUTED,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": GRID,
        }
    )
    with style:
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        figure.suptitle(title, x=0.01, horizontalalignment="left", weight="bold")
        figure.supxlabel(note, x=0.01, horizontalalignment="left", size="small", color=MUTED)
        yield figure.add_subplot()
        metadata = {"Title": title, "Description": note, "Date": None, "Creator": None}
        figure.savefig(path, format="svg", metadata=metadata)


def steps_of_1_2_5(axis: "Axis") -> None:
    """Labels a logarithmic axis at 1, 2, 5, 10, ..., in plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: number(value))


def draw_again(prog: str, draw: Callable[[Path, Any], None]) -> None:
    """A command line that draws an earlier run, without measuring: FILE DIR."""
    parser = argparse.ArgumentParser(prog=prog, description="Draw the plots of an earlier run.")
    parser.add_argument("results", type=Path, metavar="FILE", help="what its --json has written")
    parser.add_argument("directory", type=Path, metavar="DIR", help="where the SVGs go")
    asked = parser.parse_args()
    require_matplotlib(parser)
    draw(asked.directory, json.loads(asked.results.read_text()))
