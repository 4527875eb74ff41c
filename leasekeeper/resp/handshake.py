"""What a new connection says first, and what it learns of the Redis at its other end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import trio
from attrs import evolve, frozen
from redis.exceptions import ResponseError

from leasekeeper.resp.connection import Connection, pack
from leasekeeper.resp.dialling import dial
from leasekeeper.resp.errors import CannotConnect, Unanswered
from leasekeeper.resp.replies import Answer, Reply, Verdict, code_of, verdict_on
from leasekeeper.resp.settings import Address, Settings

_NAME: Final = "leasekeeper"


@frozen
class Identity:
    """Which Redis this is, as its INFO says. A sentinel says less."""

    address: Address
    mode: str
    """"standalone", "cluster" or "sentinel"."""
    version: str = ""
    run_id: str = ""
    replid: str = ""
    replid2: str = ""
    is_master: bool = False
    master: Address | None = None
    """Whom it follows, if it is a replica."""
    maxmemory: int = 0
    maxmemory_policy: str = ""
    client_id: int = 0
    """By which this Redis knows this connection, as long as it runs."""


async def open_connection(
    nursery: trio.Nursery,
    address: Address,
    settings: Settings,
    *,
    on_push: Callable[[Sequence[Reply]], None],
    on_end: Callable[[Connection], None],
) -> tuple[Connection, Identity]:
    """Dials, and introduces itself, within `dial_ms`. `nursery` keeps the connection running.

    Raises:
        CannotConnect: there is no usable Redis at that address.

    Cancellation:
        Leaves no connection behind.
    """
    with trio.move_on_after(settings.dial_ms / 1000):
        stream = await dial(address, settings)
        connection = Connection(address, stream, settings, on_push, on_end)
        nursery.start_soon(connection.serve)
        try:
            identity = await _introduce(connection, settings)
        except BaseException:
            connection.end(f"{address} was no use")
            raise
        return connection, identity
    raise CannotConnect(
        f"{address} did not answer within {settings.dial_ms} ms: check the address and the "
        f"network, and that it is a Redis {'with' if settings.tls else 'without'} TLS"
    )


async def _introduce(connection: Connection, settings: Settings) -> Identity:
    address = connection.address
    hello: list[str] = ["HELLO", "3"]
    if settings.password is not None:
        hello += ["AUTH", settings.username or "default", settings.password]
    hello += ["SETNAME", _NAME]
    try:
        [greeting] = await connection.ask(pack(tuple(hello)))
        if isinstance(greeting, ResponseError):
            raise CannotConnect(_why_unwelcome(address, greeting))
        mode = _word(greeting, b"mode")
        if mode == "sentinel":
            return Identity(address, mode)
        # Tracking comes before INFO: a FLUSHALL after INFO is told of.
        commands: list[tuple[str, ...]] = [("SELECT", str(settings.db))] if settings.db else []
        commands += [("CLIENT", "TRACKING", "ON", "OPTIN")]
        commands += [("INFO", section) for section in ("server", "replication", "memory")]
        answers = await connection.ask(b"".join(map(pack, commands)), len(commands))
    except Unanswered:
        raise CannotConnect(
            f"{address} closed the connection, or said nothing: check that it is a Redis, and "
            "that the Redis URL says rediss if, and only if, it speaks TLS"
        ) from None
    for command, answer in zip(commands, answers, strict=True):
        if isinstance(answer, ResponseError):
            if command[0] == "SELECT" and code_of(answer) == "ERR":
                raise CannotConnect(_why_no_database(address, mode, settings.db))
            raise CannotConnect(_why_refused(address, " ".join(command[:2]), answer))
    client_id = greeting.get(b"id") if isinstance(greeting, dict) else None
    identity = _identity(address, mode, answers[-3:])
    return evolve(identity, client_id=client_id) if isinstance(client_id, int) else identity


def _why_unwelcome(address: Address, error: ResponseError) -> str:
    """Never quotes Redis, which before version 6 repeats what it did not understand."""
    code = code_of(error)
    if code == "WRONGPASS":
        return f"{address} refused the user name or the password: correct them in the Redis URL"
    if code == "NOAUTH":
        return (
            f"{address} wants a password: put it into the Redis URL, as in redis://:PASSWORD@HOST"
        )
    if code == "NOPROTO" or "unknown command" in str(error):
        return f"{address} does not speak RESP3: use Redis 6 or newer"
    if "max number of clients" in str(error):
        return f"{address} has as many clients as it may have: raise its maxclients"
    return _why_refused(address, "HELLO", error)


def _why_refused(address: Address, command: str, error: ResponseError) -> str:
    code = code_of(error)
    if verdict_on(error) in (Verdict.LATER, Verdict.REFUSED):
        return f"{address} has no time for us now ({code}): wait until it is done"
    return f"{address} refused {command} ({code}): grant its user +@connection and +info"


def _why_no_database(address: Address, mode: str, db: int) -> str:
    if mode == "cluster":
        return (
            f"{address} is a node of a cluster, which has only database 0: "
            "leave it out of the Redis URL"
        )
    return f"{address} has no database {db}: choose another in the Redis URL"


def _word(greeting: Answer, key: bytes) -> str:
    value = greeting.get(key) if isinstance(greeting, dict) else None
    return value.decode(errors="replace") if isinstance(value, bytes) else ""


def _identity(address: Address, mode: str, sections: Sequence[Answer]) -> Identity:
    said: dict[str, str] = {}
    for section in sections:
        text = section.decode(errors="replace") if isinstance(section, bytes) else ""
        pairs = (line.partition(":") for line in text.splitlines())
        said |= {name: value for name, _, value in pairs}
    return Identity(
        address=address,
        mode=mode,
        version=said.get("redis_version", ""),
        run_id=said.get("run_id", ""),
        replid=said.get("master_replid", ""),
        replid2=said.get("master_replid2", ""),
        is_master=said.get("role") == "master",
        master=_followed(said),
        maxmemory=_number(said.get("maxmemory")),
        maxmemory_policy=said.get("maxmemory_policy", ""),
    )


def _followed(said: Mapping[str, str]) -> Address | None:
    if "master_host" not in said:
        return None
    return Address(said["master_host"], _number(said.get("master_port")))


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 0
