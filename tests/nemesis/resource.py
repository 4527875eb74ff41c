"""What the locks protect: `python -m tests.nemesis.resource DIR [unfenced]`, a process of its own.

- *Lists*, one for each name. A client reads a list and writes "what I read, and my value" with the
  fence of its lease; a fence lower than the highest seen is refused, of a read as well, for who
  reads under a lock means to write. With `unfenced` nothing is refused.
- *Rows* with versions, which is what the cache caches.
- A *table* for write-behind, which refuses a write whose fence is lower than that of its key.

It is asked with a line of JSON over TCP and answers with one, in turn. It ends with its standard
input.
"""

import json
import os
import socket
import socketserver
import sys
import threading
from pathlib import Path
from typing import Any, Final

from attrs import define, field, frozen

from tests.nemesis.history import Scribe
from tests.redises import HOST

GREETING: Final = "resource on port "
STALE: Final = {"ok": False, "code": "stale"}
ANSWER_S: Final = 30.0


def ask(port: int, do: str, **request: object) -> dict[str, Any]:
    """One question, and its answer. Blocks.

    Raises:
        OSError: The resource is gone.
    """
    with socket.create_connection((HOST, port), ANSWER_S) as connection:
        connection.sendall(json.dumps({"do": do, **request}).encode() + b"\n")
        with connection.makefile("rb") as answers:
            line = answers.readline()
    if not line:
        raise ConnectionResetError("the resource said nothing")
    answer: dict[str, Any] = json.loads(line)
    return answer


@frozen
class Link:
    """One write: what was before it, and the value. A write that forgot others' branches off."""

    before: "Link | None"
    value: str


@define
class List:
    """The list of one name, as its last link."""

    last: Link | None = None
    fence: int = 0
    applied: int = 0
    reader: str | None = None
    """Who has read and not written yet: the process that a pause would hurt."""

    def values(self) -> list[str]:
        """From the first on."""
        found, link = [], self.last
        while link is not None:
            found.append(link.value)
            link = link.before
        return found[::-1]


@define(eq=False)
class Resource:
    """Everything there is, in memory. Its methods are called one at a time."""

    scribe: Scribe
    fenced: bool
    lists: dict[str, List] = field(factory=dict)
    links: list[Link | None] = field(factory=lambda: [None])
    """What was ever read or written, by number, so that a read need not send a whole list."""
    rows: dict[str, int] = field(factory=dict)
    versions: int = 0
    table: dict[tuple[str, str], tuple[int, str]] = field(factory=dict)
    """For each queue and key: the fence and the value."""

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does what is asked."""
        match request.pop("do"):
            case "read":
                return self.read(**request)
            case "write":
                return self.write(**request)
            case "readers":
                return {"processes": [e.reader for e in self.lists.values() if e.reader]}
            case "reserve":
                self.versions += 1
                return {"version": self.versions}
            case "commit":
                key, version = str(request["key"]), int(request["version"])
                self.rows[key] = max(version, self.rows.get(key, 0))
                return {"ok": True}
            case "row":
                return {"version": self.rows.get(str(request["key"]), 0)}
            case "store":
                return self.store(**request)
            case "final":
                return self.final()
            case other:
                raise ValueError(f"no such request: {other!r}")

    def read(self, resource: str, fence: int, process: str) -> dict[str, Any]:
        """The present list, as a number to base a write on."""
        found = self.lists.setdefault(resource, List())
        if self.is_stale(found, fence):
            return STALE
        found.reader = process
        self.links.append(found.last)
        return {"ok": True, "base": len(self.links) - 1}

    def write(
        self, resource: str, fence: int, process: str, base: int, value: str
    ) -> dict[str, Any]:
        """Puts a new list in the place of the present one: what was read then, and the value."""
        found = self.lists[resource]
        if found.reader == process:
            found.reader = None
        if self.is_stale(found, fence):
            return STALE
        found.last = Link(self.links[base], value)
        self.scribe.event(
            "applied", resource=resource, index=found.applied, fence=fence, value=value
        )
        found.applied += 1
        return {"ok": True}

    def is_stale(self, found: List, fence: int) -> bool:
        """Whether a later holder has been here; remembers this one if not."""
        if self.fenced and fence < found.fence:
            return True
        found.fence = max(found.fence, fence)
        return False

    def store(self, queue: str, key: str, value: str, seq: int, fence: int) -> dict[str, Any]:
        """Carries out a write that was queued."""
        if fence < self.table.get((queue, key), (0, ""))[0]:
            return STALE
        self.table[queue, key] = (fence, value)
        self.scribe.event("stored", queue=queue, key=key, value=value, seq=seq, fence=fence)
        return {"ok": True}

    def final(self) -> dict[str, Any]:
        """Writes down what it holds at the end."""
        for name, each in self.lists.items():
            self.scribe.event("final", resource=name, values=each.values())
        for (queue, key), (_, value) in self.table.items():
            self.scribe.event("stored_final", queue=queue, key=key, value=value)
        return {"ok": True}


def main(directory: Path, *, fenced: bool) -> None:
    """Answers until the end of the standard input."""
    resource, one_at_a_time = Resource(Scribe.of(directory, "resource"), fenced), threading.Lock()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                with one_at_a_time:
                    answer = resource.answer(json.loads(line))
                self.wfile.write(json.dumps(answer).encode() + b"\n")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 100

        def handle_error(self, request: object, client_address: object) -> None:
            if not isinstance(sys.exception(), OSError):  # a client that is gone is none
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    with Server((HOST, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"{GREETING}{server.server_address[1]}", flush=True)
        sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), fenced="unfenced" not in sys.argv[2:])
