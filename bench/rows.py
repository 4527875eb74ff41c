"""Which figures of a shape are reported, and what the design asks of them."""

from collections.abc import Iterator
from functools import partial
from typing import Final

from bench.processes import KINDS
from bench.report import Goal, Rounds, Row, column

MIB: Final = 1 << 20

CYCLES: Final = {
    "memory": Goal(">= 30,000", lambda rate: rate >= 30_000),
    "redis": Goal(">= 20,000", lambda rate: rate >= 20_000),
}
"""1.5 times and once live-mutex 0.2 on the reference machine. The others hold on any machine."""
RATIO: Final = Goal(">= 60 %", lambda percent: percent >= 60)
P50: Final = Goal("<= 0.5", lambda ms: ms <= 0.5)
P99: Final = Goal("<= 2", lambda ms: ms <= 2)
CORE: Final = Goal("<= 25 %", lambda percent: percent <= 25)
SERVED: Final = Goal("<= 150", lambda ms: ms <= 150)
INVALIDATED: Final = Goal("< 5", lambda ms: ms < 5)
FLAT: Final = Goal("<= 4", lambda growth: growth <= 4)
"""Bytes; what is kept for good takes at least ten times as many."""
ACCEPTED: Final = Goal(">= 500", lambda rate: rate >= 500)
IDLE: Final = Goal("<= 40 KiB", lambda size: size <= 40 * 1024)
ONE: Final = Goal("1", lambda count: count == 1, is_law=True)
AT_MOST_ONE: Final = Goal("<= 1", lambda count: count <= 1, is_law=True)
NONE: Final = Goal("0", lambda count: count == 0, is_law=True)


def rows_of(shape: str, rounds: Rounds) -> list[Row]:
    """The rows of one shape."""
    match shape:
        case "P1":
            return list(one_connection_rows(rounds))
        case "P2":
            return list(one_request_each_rows(rounds))
        case "P3" | "P3b":
            return list(hand_off_rows(shape, rounds))
        case "P4":
            return list(herd_rows(rounds))
        case "P7" | "P7c":
            return list(hit_rows(shape, rounds))
        case "P5" | "P5h":
            return list(holding_rows(shape, rounds))
        case "P6":
            return list(idle_rows(rounds))
        case "P6l":
            return list(held_rows(rounds))
        case "M1":
            return list(names_rows(rounds))
        case _:
            return list(tag_rows(rounds))


def one_connection_rows(rounds: Rounds) -> Iterator[Row]:
    """P1: ours, and the ceiling of the load."""
    for kind in rounds:
        title, store = KINDS[kind].title, KINDS[kind].store
        what, goal = "50 workers, one connection: lock cycles", CYCLES[store] if store else None
        yield Row("P1", what, title, "1/s", column(rounds, kind, "rate"), goal)
        if store:
            grouped = column(rounds, kind, "answers_per_frame")
            yield Row("P1", "answers in a frame, on average", title, "", grouped)


def one_request_each_rows(rounds: Rounds) -> Iterator[Row]:
    """P2: ours, the yardsticks, and ours as a share of the raw echo, round by round.

    The goal is about connections and frames; on Redis, its round trip is in the figure too.
    """
    raw = column(rounds, "lines", "rate")
    for kind in rounds:
        title, store, rates = KINDS[kind].title, KINDS[kind].store, column(rounds, kind, "rate")
        what, goal = "50 connections, one request each: messages", None
        yield Row("P2", what, title, "1/s", rates)
        if store:
            goal = RATIO if store == "memory" else None
            shares = [100 * ours / echo for ours, echo in zip(rates, raw, strict=True)]
            yield Row("P2", "share of the raw echo", title, "%", shares, goal)


def hand_off_rows(shape: str, rounds: Rounds) -> Iterator[Row]:
    """P3 and P3b: latency, order and fairness."""
    what = "20 waiters, one lock: hand-off "
    for kind in rounds:
        figure = partial(column, rounds, kind)
        row = partial(Row, shape, server=KINDS[kind].title)
        ours = KINDS[kind].store is not None
        p50, p99, none = (P50, P99, NONE) if ours else (None, None, None)
        yield row(what=what + "p50", unit="ms", values=figure("p50_ms"), goal=p50)
        yield row(what=what + "p99", unit="ms", values=figure("p99_ms"), goal=p99)
        yield row(what="grants out of order", unit="", values=figure("out_of_order"), goal=none)
        yield row(what="hand-offs measured", unit="", values=figure("hand_offs"))
        yield row(what="fairness, Jain's index", unit="", values=figure("fairness"))
        yield row(
            what="grants of the least served, of the mean", unit="", values=figure("least_share")
        )


def herd_rows(rounds: Rounds) -> Iterator[Row]:
    """P4: how often it was loaded, and when it was there for all."""
    for kind in rounds:
        figure = partial(column, rounds, kind)
        row = partial(Row, "P4", server=KINDS[kind].title)
        what = f"{figure('callers')[0]:,.0f} callers of a missing key, "
        one, served = None, None
        if KINDS[kind].store is None:
            what += "one process: loads"
        else:
            what += f"{figure('connections')[0]:,.0f} connections: loads"
            one, served = ONE, SERVED
        yield row(what=what, unit="", values=figure("loads"), goal=one)
        last = figure("last_ms")
        yield row(what="last caller served after the fill", unit="ms", values=last, goal=served)
        yield row(what="half of them", unit="ms", values=figure("p50_ms"))


def hit_rows(shape: str, rounds: Rounds) -> Iterator[Row]:
    """P7 and P7c: ours, and as a share of a GET without us, and without a cache in us."""
    over = "50 workers, one connection" if shape == "P7" else "50 connections, one request each"
    for kind in rounds:
        title, store, rates = KINDS[kind].title, KINDS[kind].store, column(rounds, kind, "rate")
        yield Row(shape, f"{over}: values of 1 KiB", title, "1/s", rates)
        if store == "redis":
            for yardstick in ("get", "bare"):
                others = column(rounds, yardstick, "rate")
                shares = [100 * ours / other for ours, other in zip(rates, others, strict=True)]
                yield Row(shape, f"share of the {KINDS[yardstick].title}", title, "%", shares)
            if shape == "P7":
                commands = column(rounds, kind, "commands")
                yield Row(shape, "commands to Redis for a hit", title, "", commands, AT_MOST_ONE)


def holding_rows(shape: str, rounds: Rounds) -> Iterator[Row]:
    """P5: what renewing costs, and whether all is still there."""
    for kind in rounds:
        figure = partial(column, rounds, kind)
        row = partial(Row, shape, server=KINDS[kind].title)
        percent = [100 * share for share in figure("server_cpu")]
        leases, connections, ttl_ms = (
            figure(name)[0] for name in ("leases", "connections", "ttl_ms")
        )
        what = f"{leases:,.0f} leases, TTL {ttl_ms / 1000:g} s, {connections:,.0f} connections: "
        what += "server's share of a core"
        yield row(what=what, unit="%", values=percent, goal=CORE)
        percent = [100 * share for share in figure("redis_cpu")]
        yield row(what="Redis' share of a core", unit="%", values=percent)
        yield row(what="renewals", unit="1/s", values=figure("rate"))
        yield row(what="leases lost", unit="", values=figure("lost"), goal=NONE)
        yield row(what="`lease.lost` received", unit="", values=figure("told_lost"), goal=NONE)
        if shape == "P5h":
            failed = figure("heartbeats_failed")
            yield row(what="heartbeats failed", unit="", values=failed, goal=NONE)
            p99 = figure("heartbeat_p99_ms")
            yield row(what="heartbeat's answer, p99", unit="ms", values=p99)
        yield row(what="acquired at the start", unit="1/s", values=figure("acquired"))
        yield from lease_rows(shape, rounds, kind)


def idle_rows(rounds: Rounds) -> Iterator[Row]:
    """P6: what a connection takes."""
    for kind in rounds:
        figure = partial(column, rounds, kind)
        row = partial(Row, "P6", server=KINDS[kind].title)
        what = f"{figure('connections')[0]:,.0f} idle connections: accepted"
        yield row(what=what, unit="1/s", values=figure("rate"), goal=ACCEPTED)
        each_us = [
            1e6 * share / rate
            for share, rate in zip(figure("server_cpu"), figure("rate"), strict=True)
        ]
        yield row(what="server's CPU for each", unit="µs", values=each_us)
        yield row(
            what="memory of each, server",
            unit="bytes",
            values=figure("connection_bytes"),
            goal=IDLE,
        )


def held_rows(rounds: Rounds) -> Iterator[Row]:
    """P6l: what a lease takes."""
    for kind in rounds:
        figure = partial(column, rounds, kind)
        row = partial(Row, "P6l", server=KINDS[kind].title)
        leases, connections = figure("leases")[0], figure("connections")[0]
        what = f"{leases:,.0f} leases held over {connections:,.0f} connections: acquired"
        yield row(what=what, unit="1/s", values=figure("rate"))
        yield from lease_rows("P6l", rounds, kind)
        yield row(what="leases lost", unit="", values=figure("lost"), goal=NONE)


def lease_rows(shape: str, rounds: Rounds, kind: str) -> Iterator[Row]:
    """The memory of a lease that is held."""
    for whose, named in (("server", "server"), ("redis", "Redis")):
        if whose == "server" or KINDS[kind].store == "redis":
            values = column(rounds, kind, f"{whose}_lease_bytes")
            what = f"memory of a lease, {named}"
            yield Row(shape, what, KINDS[kind].title, "bytes", values)


def names_rows(rounds: Rounds) -> Iterator[Row]:
    """M1: what is left behind."""
    for kind in rounds:
        figure = partial(column, rounds, kind)
        row = partial(Row, "M1", server=KINDS[kind].title)
        what = f"{figure('names')[0]:,.0f} names, each used once"
        yield row(what=what, unit="1/s", values=figure("rate"))
        for whose in ("server", "redis") if KINDS[kind].store == "redis" else ("server",):
            for when in ("before", "after"):
                sizes = [each / MIB for each in figure(f"{whose}_bytes_{when}")]
                yield row(what=f"memory of {whose} {when}", unit="MiB", values=sizes)
        slope = figure("bytes_per_name")
        yield row(what="server's growth, second half", unit="bytes a name", values=slope)
        if KINDS[kind].store == "redis":
            yield row(what="keys left in Redis", unit="", values=figure("keys_left"), goal=NONE)
            yield row(what="until the last was gone", unit="s", values=figure("gone_s"))


def tag_rows(rounds: Rounds) -> Iterator[Row]:
    """T1: what an invalidation takes, and what is left behind."""
    for kind in rounds:
        figure = partial(column, rounds, kind)
        row = partial(Row, "T1", server=KINDS[kind].title)
        what = f"{figure('tagged')[0]:,.0f} values of one tag: invalidated, in "
        yield row(what=what + "the median", unit="ms", values=figure("p50_ms"), goal=INVALIDATED)
        yield row(what=what + "the worst case", unit="ms", values=figure("most_ms"))
        revived = figure("revived")
        yield row(what="values found after that", unit="", values=revived, goal=NONE)
        what = f"{figure('cycles')[0]:,.0f} values with tags, set to expire"
        yield row(what=what, unit="1/s", values=figure("rate"))
        for whose in ("server", "redis") if KINDS[kind].store == "redis" else ("server",):
            for when in ("before", "after"):
                sizes = [each / MIB for each in figure(f"{whose}_bytes_{when}")]
                yield row(what=f"memory of {whose} {when}", unit="MiB", values=sizes)
            growth = figure(f"{whose}_growth")
            what = f"growth of {whose}, second half"
            yield row(what=what, unit="bytes a value", values=growth, goal=FLAT)
        if KINDS[kind].store == "redis":
            yield row(what="keys left in Redis", unit="", values=figure("keys_left"), goal=NONE)
            yield row(what="until the last was gone", unit="s", values=figure("gone_s"))
