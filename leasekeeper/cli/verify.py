"""`leasekeeper verify`: whether a history keeps the promises."""

import gc
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Final

import click

from leasekeeper.cli.client import complain, plain
from leasekeeper.verify import CHECKS, HistoryError, Report, as_json, read
from leasekeeper.verify import verify as verified
from leasekeeper.verify.result import Result
from leasekeeper.verify.summary import Summary
from leasekeeper.verify.vocabulary import NEVER, Outcome

UNREADABLE: Final = 65
"""EX_DATAERR of sysexits.h: this is no history."""
_VIOLATED: Final = 1
_SHOWN_MAX: Final = 10
"""So many violations of each check are printed; JSON has more."""

_Row = Sequence[str]


@click.command()
@click.argument("history", type=click.File("rb"), metavar="HISTORY.jsonl")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(CHECKS),
    metavar="CHECK",
    help=f"Carry out this check only; may be given several times. They are {', '.join(CHECKS)}.",
)
@click.option("--json", "json_wanted", is_flag=True, help="Print one JSON document.")
def verify(history: IO[bytes], only: tuple[str, ...], json_wanted: bool) -> None:
    """Check a history of what clients saw.

    The format, and what each check looks at, are in spec/history.md; `-` reads standard input.

    Exits with 0 if nothing is violated, with 1 if anything is, and with 65 if it is no history.
    """
    try:
        with _collecting_nothing():
            report = verified(read(history), only or CHECKS)
    except HistoryError as error:
        click.get_current_context().exit(complain(UNREADABLE, plain(str(error))))
    if json_wanted:
        click.echo(json.dumps(as_json(report), indent=2))
    else:
        _print(report)
    click.get_current_context().exit(_VIOLATED if report.violated else 0)


@contextmanager
def _collecting_nothing() -> Iterator[None]:
    """A history is millions of objects without a cycle; looking for some takes half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# --- How it looks -----------------------------------------------------------------------------


def _print(report: Report) -> None:
    summary = report.summary
    lasted = _seconds(summary.end - summary.begin)
    click.echo(f"{summary.lines:,} lines of {summary.processes} processes, over {lasted}")
    if summary.header.unfenced:
        click.echo("The resource did not look at fences.")
    _print_operations(summary)
    _print_faults(summary)
    click.echo(f"\n{_unavailable(summary)}")
    if summary.healed is not None:
        click.echo(_healed(summary))
    click.echo()
    head = ("CHECK", "LOOKED AT", "VIOLATIONS", "EXCUSED")
    _print_table([head, *(_result_row(each) for each in report.results)])
    for result in report.results:
        _print_violations(result, summary.begin)
    violated = [each.check for each in report.results if each.violated]
    click.echo()
    click.secho(
        f"Violated: {', '.join(violated)}." if violated else "Nothing is violated.",
        fg="red" if violated else "green",
    )


def _print_operations(summary: Summary) -> None:
    if not summary.operations:
        return
    click.echo()
    rows = [("OPERATION", *(each.upper() for each in Outcome))]
    for op, counts in sorted(summary.operations.items()):
        rows.append((op, *(f"{counts[each]:,}" for each in Outcome)))
    _print_table(rows)


def _print_faults(summary: Summary) -> None:
    if not summary.faults:
        return
    click.echo()
    rows = [("FAULT", "TIMES", "LONGEST", "SLOWEST RECOVERY")]
    for kind in sorted({each.fault.kind for each in summary.faults}):
        some = [each for each in summary.faults if each.fault.kind == kind]
        lasted = [e.fault.ended - e.fault.began for e in some if e.fault.ended != NEVER]
        recovered = [each.recovered_us for each in some if each.recovered_us is not None]
        rows.append((plain(kind), str(len(some)), _longest(lasted), _longest(recovered)))
    _print_table(rows)


def _unavailable(summary: Summary) -> str:
    gap = summary.unavailable
    if gap is None:
        return "Nothing was asked."
    return f"At most {_seconds(gap.us)} without an answer, from {_at(gap.begin, summary.begin)} on."


def _healed(summary: Summary) -> str:
    assert summary.healed is not None
    when = f"After the last heal, at {_at(summary.healed, summary.begin)}"
    if summary.recovered_us is None:
        return f"{when}, nothing succeeded."
    settled = "nothing was under way"
    if summary.settled_us is not None:
        settled = f"all that was under way had ended after {_seconds(summary.settled_us)}"
    return f"{when}, the first success took {_seconds(summary.recovered_us)}; {settled}."


def _result_row(result: Result) -> _Row:
    excused = result.excused.total()
    kinds = ", ".join(f"{plain(kind)} {count:,}" for kind, count in result.excused.items())
    return (
        result.check,
        f"{result.looked_at:,} {result.unit}",
        f"{result.violated:,}",
        f"{excused:,} ({kinds})" if excused else "0",
    )


def _print_violations(result: Result, begin: int) -> None:
    for violation in result.violations[:_SHOWN_MAX]:
        click.echo()
        click.secho(f"{result.check}: {plain(violation.text)}", bold=True)
        rows = [
            (f"  line {each.line:,}", _at(each.at, begin), plain(each.text))
            for each in sorted(violation.evidence, key=lambda each: (each.at, each.line))
        ]
        _print_table(rows)
    more = result.violated - _SHOWN_MAX
    if more > 0:
        click.echo(f"\n{result.check}: and {more:,} more")


def _print_table(rows: Iterable[_Row]) -> None:
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _longest(durations: Sequence[int]) -> str:
    return _seconds(max(durations)) if durations else "-"


def _seconds(us: int) -> str:
    return f"{us / 1e6:.3f} s"


def _at(at: int, begin: int) -> str:
    """A moment, in seconds since the history's first."""
    return f"{(at - begin) / 1e6:.6f} s"
