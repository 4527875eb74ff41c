"""Medians and spread over the rounds, as a Markdown table and as JSON."""

import math
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from attrs import frozen

from bench.observed import Figures
from bench.processes import KINDS

Rounds = dict[str, list[Figures]]
"""What was measured of one shape: for each kind of server, the figures of each round."""


@frozen
class Goal:
    """What the design asks of a figure."""

    text: str
    holds: Callable[[float], bool]
    is_law: bool = False
    """Whether missing it is a bug, and not slowness."""


@frozen
class Row:
    """One figure of the report."""

    shape: str
    what: str
    server: str
    unit: str
    values: Sequence[float]
    """One a round."""
    goal: Goal | None = None

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.values)

    @property
    def met(self) -> bool | None:
        """Whether it is what the design asks for; None where it asks for nothing."""
        return None if self.goal is None else self.goal.holds(self.median)

    @property
    def breaks_a_law(self) -> bool:
        """A bug, on however slow a machine, and in any round."""
        goal = self.goal
        return goal is not None and goal.is_law and not all(map(goal.holds, self.values))


def column(rounds: Rounds, server: str, figure: str) -> list[float]:
    """One figure of one server, round by round."""
    return [figures[figure] for figures in rounds[server]]


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
        goal = row.goal.text if row.goal else ""
        figure = row.what + unit
        lines.append(
            f"| {row.shape} | {figure} | {row.server} | {' | '.join(cells)} | {goal} | {met} |"
        )
    return "\n".join(lines)


def busy_table(measured: dict[str, Rounds]) -> str:
    """Who was the bottleneck, and what one lock cycle, message, hand-off, renewal, ... costs.

    The cost hardly changes when other programs take their share of the cores; the figures do.
    """
    lines = [
        "| shape | server | CPU of servers | of Redis | of the load | servers' for each | Redis' |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for shape, rounds in measured.items():
        for server, figures in rounds.items():
            shares = [share(figures, who) for who in ("server_cpu", "redis_cpu", "load_cpu")]
            costs = [cost(figures, who) for who in ("server_cpu", "redis_cpu")]
            cells = " | ".join([shape, KINDS[server].title, *shares, *costs])
            lines.append(f"| {cells} |")
    return "\n".join(lines)


def share(figures: Sequence[Figures], who: str) -> str:
    """Of one core; two servers may have more than one."""
    if who not in figures[0]:
        return ""
    return f"{statistics.median(each[who] for each in figures):.0%}"


def cost(figures: Sequence[Figures], who: str) -> str:
    """CPU time for each of what the shape counts."""
    if who not in figures[0]:
        return ""
    return f"{statistics.median(1e6 * each[who] / each['rate'] for each in figures):.0f} µs"


def head(how: str, where: Mapping[str, str], versions: Mapping[str, str]) -> str:
    """What is above the tables: how it was measured, where, and beside what."""
    lines = [f"{how}.", f"{where['cpu']}; {where['python']}; {where['system']};"]
    lines.append(f"load average before: {where['load_average']}.")
    if versions:
        beside = ", ".join(f"{name} {version}" for name, version in versions.items())
        lines.append(f"Beside {beside}.")
    if float(where["load_average"]) > 1:
        lines += ["", "**Other programs were busy: compare costs, not figures.**"]
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
