"""A client in a process of its own: `python worker.py KIND URL WHAT FILE`.

KIND is trio, asyncio, sync, raw (the `websockets` library) or foreign (websocket-client). WHAT is

- `increment`: adds one to the number in FILE, reading, sleeping and writing under the lease;
- `hold`: takes the lease with a short TTL, says `held FENCE`, works for a minute in small steps
  and then writes `done` to FILE. When the lease is lost it says `lost`.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import leasekeeper_client
import leasekeeper_client.sync
import websocket

TTL_S = 1.0
Call = Callable[..., dict[str, object]]


def increment(path: Path) -> None:
    number = int(path.read_text())
    time.sleep(0.02)
    path.write_text(str(number + 1))


# Twenty of these start at once: each imports no more than its kind needs.


async def with_anyio(url: str, what: str, path: Path) -> None:

    import leasekeeper_client

    async with leasekeeper_client.connect(url) as keeper:
        if what == "increment":
            async with keeper.lease("counter"):
                increment(path)
            return
        try:
            async with keeper.lease("held", ttl=TTL_S) as lease:
                print("held", lease.fence, flush=True)
                await anyio.sleep(60)
                await anyio.Path(path).write_text("done")
        except leasekeeper_client.LeaseLost as lost:
            print("lost", type(lost).__name__, flush=True)


def with_sync(url: str, what: str, path: Path) -> None:

    with leasekeeper_client.sync.connect(url) as keeper:
        if what == "increment":
            with keeper.lease("counter"):
                increment(path)
            return
        try:
            with keeper.lease("held", ttl=TTL_S) as lease:
                print("held", lease.fence, flush=True)
                for _ in range(600):
                    time.sleep(0.1)
                    lease.ensure()
                path.write_text("done")
        except leasekeeper_client.LeaseLost as lost:
            print("lost", type(lost).__name__, flush=True)


def with_websockets(url: str, path: Path) -> None:
    from websockets.sync.client import connect

    with connect(url) as socket:

        def call(method: str, **params: object) -> dict[str, object]:
            socket.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))
            while "id" not in (answer := json.loads(socket.recv())):
                pass
            result: dict[str, object] = answer["result"]
            return result

        increment_raw(call, path)


def with_websocket_client(url: str, path: Path) -> None:

    socket = websocket.create_connection(url)

    def call(method: str, **params: object) -> dict[str, object]:
        socket.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))
        while "id" not in (answer := json.loads(socket.recv())):
            pass
        result: dict[str, object] = answer["result"]
        return result

    increment_raw(call, path)
    socket.close()


def increment_raw(call: Call, path: Path) -> None:
    grant = call("lease.acquire", name="counter", wait_ms=None)
    increment(path)
    call("lease.release", name="counter", lease=grant["lease"])


def main(kind: str, url: str, what: str, path: Path) -> None:
    match kind:
        case "trio" | "asyncio":
            import anyio

            anyio.run(with_anyio, url, what, path, backend=kind)
        case "sync":
            with_sync(url, what, path)
        case "raw":
            with_websockets(url, path)
        case "foreign":
            with_websocket_client(url, path)
        case _:
            raise SystemExit(f"no such kind: {kind}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
