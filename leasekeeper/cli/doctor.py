"""`leasekeeper doctor`: whether a Redis is fit to keep leases, before a server has to find out."""

import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from logging import CRITICAL
from typing import Final

import click
import structlog
import trio
from attrs import evolve

from leasekeeper.cli.client import plain
from leasekeeper.cli.job import MEMORY, StoreOptions, run
from leasekeeper.errors import ConfigurationError
from leasekeeper.store.redis.findings import Finding, Level

_COLOURS: Final = {Level.OK: "green", Level.WARN: "yellow", Level.REFUSE: "red"}
_WIDTH_MAX: Final = 100
_INDENT: Final = "  "


@click.command()
@click.option(
    "--store",
    "url",
    default=MEMORY,
    show_default=False,  # it would show what a file says, and there may be a password in it
    envvar="LEASEKEEPER_STORE",
    metavar="memory|URL",
    help="The store, as `leasekeeper serve` is given it. There is nothing to examine in `memory`, "
    "the default.",
)
@click.option(
    "--prefix",
    default="lk",
    show_default=True,
    envvar="LEASEKEEPER_PREFIX",
    help="As for `leasekeeper serve`: permissions are tried with it.",
)
@click.option(
    "--replicas",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    envvar="LEASEKEEPER_REPLICAS",
    help="As for `leasekeeper serve`: so many are expected to be connected.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(url: str, prefix: str, replicas: int, as_json: bool) -> None:
    """Examine the Redis that keeps the leases.

    Every master is asked about itself, and the scripts of the server are run on it, beside the
    names in use; nothing stays behind.

    Exits with 0 if leases can be kept there, be it with warnings, and with 2 if not: then a
    server would not start, or would not grant anything. With 2, too, if no connection comes about.
    """
    options = StoreOptions(url=url, prefix=prefix, replicas=replicas)
    options.check()
    findings: Sequence[Finding] = ()
    if options.is_shared:
        with _quiet():
            findings = _examined(options, as_json)
    if as_json:
        click.echo(json.dumps(_document(findings), indent=2))
    elif options.is_shared:
        _print_findings(findings)
    else:
        click.echo("The store `memory` is part of the server: there is nothing to examine.")
    click.get_current_context().exit(2 if _worst(findings) is Level.REFUSE else 0)


def _examined(options: StoreOptions, as_json: bool) -> Sequence[Finding]:
    try:
        return run(_examine, options)
    except ConfigurationError as error:
        if not as_json:
            raise
        found, _, advice = str(error).partition(": ")
        return [Finding(Level.REFUSE, "connection", found, advice)]


async def _examine(options: StoreOptions) -> Sequence[Finding]:
    # Only here: the code for Redis takes a moment to load, and other commands do without.
    from leasekeeper.resp.client import Client
    from leasekeeper.resp.errors import Unanswered
    from leasekeeper.resp.settings import parse_url
    from leasekeeper.store.redis.keys import Layout
    from leasekeeper.store.redis.preflight import Examiner, try_subscribing

    settings = evolve(parse_url(options.url), pool_min=1)
    client = Client(settings, on_connected=lambda _: None, on_flushed=lambda _: None)
    layout = Layout(options.prefix)
    async with trio.open_nursery() as nursery:
        await nursery.start(client.run)
        try:
            findings = await Examiner(client, layout, options.replicas).examine()
        except Unanswered as problem:
            raise ConfigurationError(f"{problem.reason}: see that it runs") from problem
        where = findings[0].where if len(client.masters) == 1 else "any node"
        findings.append(evolve(await try_subscribing(client, layout), where=where))
        nursery.cancel_scope.cancel()
    return findings


@contextmanager
def _quiet() -> Iterator[None]:
    """No log: what there is to say is in the findings."""
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)


# --- How it looks -----------------------------------------------------------------------------


def _worst(findings: Sequence[Finding]) -> Level:
    levels = {each.level for each in findings}
    return next((level for level in (Level.REFUSE, Level.WARN) if level in levels), Level.OK)


def _document(findings: Sequence[Finding]) -> dict[str, object]:
    return {
        "verdict": _worst(findings),
        "findings": [
            {
                "node": each.where or None,
                "check": each.subject,
                "verdict": each.level,
                "found": each.found,
                "advice": each.advice or None,
            }
            for each in findings
        ],
    }


def _print_findings(findings: Sequence[Finding]) -> None:
    width = min(_WIDTH_MAX, shutil.get_terminal_size((_WIDTH_MAX, 0)).columns)
    subjects = max(len(each.subject) for each in findings)
    levels = max(len(each) for each in Level)
    margin = " " * (len(_INDENT) + subjects + 2 + levels + 2)
    for where, some in groupby(findings, lambda each: each.where):
        click.secho(plain(where), bold=True)
        for each in some:
            verdict = click.style(each.level.ljust(levels), fg=_COLOURS[each.level])
            lines = _wrapped(plain(each.found), width - len(margin))
            click.echo(f"{_INDENT}{each.subject.ljust(subjects)}  {verdict}  {lines[0]}")
            for line in lines[1:]:
                click.echo(f"{margin}{line}")
            for at, line in enumerate(_wrapped(plain(each.advice), width - len(margin) - 3)):
                click.echo(f"{margin}{'   ' if at else '-> '}{line}")
        click.echo()
    click.echo(_summary(findings))


def _wrapped(text: str, width: int) -> Sequence[str]:
    """In lines; a command is not broken within a word."""
    return textwrap.wrap(text, max(30, width), break_long_words=False, break_on_hyphens=False)


def _summary(findings: Sequence[Finding]) -> str:
    refused = sum(each.level is Level.REFUSE for each in findings)
    warned = sum(each.level is Level.WARN for each in findings)
    warnings = f"{warned} warning{'s' * (warned != 1)}"
    if refused:
        return f"Leases cannot be kept here: {refused} refused, {warnings}."
    return f"Leases can be kept here, with {warnings}." if warned else "Leases can be kept here."
