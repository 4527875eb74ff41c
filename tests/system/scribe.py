"""A writer in a process of its own: `python -m tests.system.scribe QUEUE PATH STALL URL...`.

It claims writes of QUEUE from one of the servers, carries them out in the database at PATH, and
acknowledges them, for ever. When a server is gone it goes on with the next. After every STALL-th
claim (0: never) it sleeps until others have carried out what it claimed, and then does so, too.
"""

import sys
import time
from contextlib import suppress
from itertools import count, cycle
from pathlib import Path
from typing import Any, Final

import orjson
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from tests.system.ledger import Ledger, Row

CLAIM_MS: Final = 1_000
AT_ONCE: Final = 200
_RETRY_S: Final = 0.1
_STALL_S: Final = 4.0
"""When its claim is over, what it claimed is ready again, behind what has waited for longer."""
GONE: Final = (OSError, WebSocketException, TimeoutError)


class Told(Exception):
    """A request was answered with an error."""


def call(connection: ClientConnection, method: str, **params: object) -> dict[str, Any]:
    """A request, the only one on its way, and its result.

    Raises:
        Told: an error was the answer.
    """
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    connection.send(orjson.dumps(request).decode())
    while True:
        answer = orjson.loads(connection.recv(timeout=30))
        if "error" in answer:
            raise Told(answer["error"])
        if "result" in answer:
            result: dict[str, Any] = answer["result"]
            return result


def write_for_ever(connection: ClientConnection, queue: str, ledger: Ledger, stall: int) -> None:
    for number in count(1):
        wanted = {"queue": queue, "max": AT_ONCE, "claim_ms": CLAIM_MS, "wait_ms": 1_000}
        writes = call(connection, "writes.claim", **wanted)["writes"]
        if not writes:
            continue
        if stall and number % stall == 0:
            time.sleep(_STALL_S)
        ledger.write(Row(each["key"], each["value"], each["seq"], each["fence"]) for each in writes)
        call(connection, "writes.ack", queue=queue, ids=[each["id"] for each in writes])


def main(queue: str, path: str, stall: str, *urls: str) -> None:
    print("writing", flush=True)
    for url in cycle(urls):
        with (
            suppress(Told, *GONE),
            connect(url, compression=None, max_size=None, ping_interval=None) as connection,
        ):
            write_for_ever(connection, queue, Ledger(Path(path)), int(stall))
        time.sleep(_RETRY_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
