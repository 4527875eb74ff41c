"""`leasekeeper ls`, `show`, `break` and `watch`: who has what, who waits, and putting them out."""

import json
from pathlib import Path

import click
from leasekeeper_client import Holder, ListedLease, NameState, Waiter

from leasekeeper.cli.client import Reach, connected, plain, reach, run, server_options

_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")


@click.command()
@click.argument("prefix", default="")
@server_options
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Print at most N leases.")
@_as_json
def ls(
    prefix: str, urls: tuple[str, ...], token_file: Path | None, limit: int | None, as_json: bool
) -> None:
    """List the leases that are held, by name.

    With PREFIX, only those whose names begin with it.
    """
    run(lambda: _ls(reach(urls, token_file), prefix, limit, as_json))


async def _ls(where: Reach, prefix: str, limit: int | None, as_json: bool) -> None:
    rows = []
    async with connected(where) as keeper:
        leases = keeper.list(prefix or None)
        try:
            async for lease in leases:
                if as_json:
                    click.echo(json.dumps(_lease_json(lease)))
                else:
                    rows.append(_lease_row(lease))
                limit = limit and limit - 1
                if limit == 0:
                    break
        finally:
            await leases.aclose()
    if not as_json:
        head = ("NAME", "MODE", "FENCE", "HELD", "EXPIRES IN", "WAITING", "CLIENT", "LABEL")
        _print_table([head, *rows])


@click.command()
@click.argument("name")
@server_options
@_as_json
def show(name: str, urls: tuple[str, ...], token_file: Path | None, as_json: bool) -> None:
    """Show who holds NAME and who waits for it."""

    async def inspect() -> None:
        async with connected(reach(urls, token_file)) as keeper:
            _print_state(await keeper.inspect(name), as_json=as_json)

    run(inspect)


@click.command("break")
@click.argument("name")
@server_options
@click.option("--reason", metavar="TEXT", help="Told to the holders.")
@_as_json
def break_(
    name: str, urls: tuple[str, ...], token_file: Path | None, reason: str | None, as_json: bool
) -> None:
    """Take NAME away from all its holders.

    They are told so, and the next in the queue gets it. Exits with 1 if nobody held it.
    """

    async def put_out() -> int:
        async with connected(reach(urls, token_file)) as keeper:
            broken = await keeper.break_lease(name, reason)
        click.echo(json.dumps({"broken": broken}) if as_json else f"{broken} put out")
        return 0 if broken else 1

    run(put_out)


@click.command()
@click.argument("name")
@server_options
@click.option(
    "--count",
    type=click.IntRange(1),
    metavar="N",
    help="End after printing N states; the first is the present one.",
)
@_as_json
def watch(
    name: str, urls: tuple[str, ...], token_file: Path | None, count: int | None, as_json: bool
) -> None:
    """Print who holds NAME, now and on every change.

    It goes on until interrupted, or for --count states.
    """
    run(lambda: _watch(reach(urls, token_file), name, count, as_json))


async def _watch(where: Reach, name: str, count: int | None, as_json: bool) -> None:
    async with connected(where) as keeper:
        states = keeper.watch(name)
        try:
            async for state in states:
                _print_state(state, as_json=as_json)
                count = count and count - 1
                if count == 0:
                    break
        finally:
            await states.aclose()


# --- How it looks -----------------------------------------------------------------------------


def _print_state(state: NameState, *, as_json: bool) -> None:
    if as_json:
        described = {
            "name": state.name,
            "holders": [_holder_json(each) for each in state.holders],
            "waiting": [_waiter_json(each) for each in state.waiting],
            "waiting_total": state.waiting_total,
        }
        click.echo(json.dumps(described))
        return
    if not state.holders:
        click.echo(f"{state.name} is free")
    for holder in state.holders:
        click.echo(
            f"{state.name} is held ({holder.mode}) by {_who(holder.client, holder.label)} "
            f"for {_age(holder.held)}, fence {holder.fence}, expires in {_age(holder.ttl)}"
        )
    for waiter in state.waiting:
        who = _who(waiter.client, waiter.label)
        click.echo(f"  {waiter.position}. {who} waits ({waiter.mode}) for {_age(waiter.waiting)}")
    more = state.waiting_total - len(state.waiting)
    if more:
        click.echo(f"  and {more} more")


def _lease_row(lease: ListedLease) -> tuple[str, ...]:
    holder = lease.holder
    return (
        lease.name,
        holder.mode,
        str(holder.fence or "foreign"),
        _age(holder.held),
        _age(holder.ttl),
        str(lease.waiting),
        plain(holder.client) or "-",
        plain(holder.label) or "-",
    )


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def _who(client: str | None, label: str | None) -> str:
    known = [plain(each) for each in (label, client) if each]
    return f"{known[0]} ({known[1]})" if len(known) == 2 else "".join(known) or "somebody"


def _age(seconds: float | None) -> str:
    """A duration, short: 0.3s, 12s, 3m05s, 2h07m."""
    if seconds is None:
        return "?"
    if seconds < 10:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m"


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)


def _holder_json(holder: Holder) -> dict[str, object]:
    """As in the protocol."""
    return {
        "fence": holder.fence,
        "mode": holder.mode,
        "label": holder.label,
        "held_ms": _ms(holder.held),
        "ttl_ms": _ms(holder.ttl),
        "client": holder.client,
        "foreign": holder.foreign,
    }


def _waiter_json(waiter: Waiter) -> dict[str, object]:
    """As in the protocol."""
    return {
        "position": waiter.position,
        "mode": waiter.mode,
        "label": waiter.label,
        "waiting_ms": _ms(waiter.waiting),
        "client": waiter.client,
    }


def _lease_json(lease: ListedLease) -> dict[str, object]:
    """As in the protocol."""
    return {"name": lease.name, **_holder_json(lease.holder), "waiting": lease.waiting}
