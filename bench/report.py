"""Medians and spread over the rounds, as a Markdown table and as JSON."""

import math
import os
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from bench.shapes import Figures

Rounds = dict[str, list[Figures]]
"""What was measured of one shape: for each kind of server, the figures of each round."""


@frozen
class Row:
    """One figure of the report."""

    shape: str
    what: str
    server: str
    unit: str
    values: Sequence[float]
    """One a round."""
    goal: str = ""
    met: bool | None = None

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.values)


@frozen
class Goal:
    """What the design asks of a figure."""

    text: str
    holds: Callable[[float], bool]


GOALS: Final = {
    "cycles": Goal(">= 30,000", lambda rate: rate >= 30_000),
    "ratio": Goal(">= 60 %", lambda percent: percent >= 60),
    "p50": Goal("<= 0.5", lambda ms: ms <= 0.5),
    "p99": Goal("<= 2", lambda ms: ms <= 2),
    "order": Goal("0", lambda count: count == 0),
}
"""P1: 1.5 times live-mutex 0.2 on the reference machine. The others hold on any machine."""


def judged(row: Row, goal: Goal) -> Row:
    """The row beside its goal."""
    values = (row.shape, row.what, row.server, row.unit, row.values)
    return Row(*values, goal=goal.text, met=goal.holds(row.median))


def column(rounds: Rounds, server: str, figure: str) -> list[float]:
    """One figure of one server, round by round."""
    return [figures[figure] for figures in rounds[server]]


def rows_of(shape: str, rounds: Rounds) -> list[Row]:
    """The rows of one shape."""
    match shape:
        case "P1":
            return one_connection_rows(rounds)
        case "P2":
            return one_request_each_rows(rounds)
        case _:
            return hand_off_rows(rounds)


def one_connection_rows(rounds: Rounds) -> list[Row]:
    """P1: ours, and the ceiling of the load."""
    what, unit = "50 workers, one connection: lock cycles", "1/s"
    figures = {server: column(rounds, server, "rate") for server in rounds}
    ours = Row("P1", what, "leasekeeper", unit, figures["leasekeeper"])
    ceiling = Row("P1", what, "WebSocket echo", unit, figures["websocket"])
    grouped = column(rounds, "leasekeeper", "answers_per_frame")
    together = Row("P1", "answers in a frame, on average", "leasekeeper", "", grouped)
    return [judged(ours, GOALS["cycles"]), ceiling, together]


def one_request_each_rows(rounds: Rounds) -> list[Row]:
    """P2: ours, the yardsticks, and ours as a share of the raw echo, round by round."""
    what, unit = "50 connections, one request each: messages", "1/s"
    figures = {server: column(rounds, server, "rate") for server in rounds}
    pairs = zip(figures["leasekeeper"], figures["lines"], strict=True)
    ratio = Row("P2", "share of the raw echo", "leasekeeper", "%", [100 * a / b for a, b in pairs])
    return [
        Row("P2", what, "leasekeeper", unit, figures["leasekeeper"]),
        Row("P2", what, "raw Trio TCP echo", unit, figures["lines"]),
        Row("P2", what, "WebSocket echo", unit, figures["websocket"]),
        judged(ratio, GOALS["ratio"]),
    ]


def hand_off_rows(rounds: Rounds) -> list[Row]:
    """P3: latency and order."""
    what = "20 waiters, one lock: hand-off "
    p50, p99, out_of_order, hand_offs = (
        column(rounds, "leasekeeper", figure)
        for figure in ("p50_ms", "p99_ms", "out_of_order", "hand_offs")
    )
    return [
        judged(Row("P3", what + "p50", "leasekeeper", "ms", p50), GOALS["p50"]),
        judged(Row("P3", what + "p99", "leasekeeper", "ms", p99), GOALS["p99"]),
        judged(Row("P3", "grants out of order", "leasekeeper", "", out_of_order), GOALS["order"]),
        Row("P3", "hand-offs measured", "leasekeeper", "", hand_offs),
    ]


def number(value: float) -> str:
    """Thousands without decimals, small figures with them."""
    if math.isnan(value):
        return "?"
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def table(rows: Sequence[Row]) -> str:
    """The figures in Markdown."""
    lines = [
        "| shape | figure | server | median | least | most | goal | met |",
        "|---|---|---|---:|---:|---:|---|---|",
    ]
    for row in rows:
        cells = (number(value) for value in (row.median, min(row.values), max(row.values)))
        unit = f" ({row.unit})" if row.unit else ""
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        figure = row.what + unit
        lines.append(
            f"| {row.shape} | {figure} | {row.server} | {' | '.join(cells)} | {row.goal} | {met} |"
        )
    return "\n".join(lines)


def busy_table(measured: dict[str, Rounds]) -> str:
    """Which side was the bottleneck, and what one cycle, message or hand-off costs the server.

    The cost hardly changes when other programs take their share of the cores; the figures do.
    """
    lines = [
        "| shape | server | server's core | load's core | server's CPU for each |",
        "|---|---|---:|---:|---:|",
    ]
    for shape, rounds in measured.items():
        for server, figures in rounds.items():
            shares = [
                statistics.median(column(rounds, server, figure))
                for figure in ("server_cpu", "load_cpu")
            ]
            cost_us = statistics.median(1e6 * each["server_cpu"] / each["rate"] for each in figures)
            cells = f"{shares[0]:.0%} | {shares[1]:.0%} | {cost_us:.0f} µs"
            lines.append(f"| {shape} | {server} | {cells} |")
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """Where it was measured, as far as figures depend on it."""
    model = platform.processor() or platform.machine()
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        named = [
            text for text in cpu_info.read_text().splitlines() if text.startswith("model name")
        ]
        model = named[0].partition(":")[2].strip() if named else model
    return {
        "cpu": f"{os.cpu_count()} x {model}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.release()}",
        "load_average": f"{os.getloadavg()[0]:.1f}",
    }
