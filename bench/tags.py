"""T1: values with tags. How long does it take to invalidate very many, and what is left of them?

First a great many values are set, and expire at once; each has a tag that no other has, one that it
shares with a few, which is invalidated, and one that all share. Then very many values of one tag
are invalidated by it, several times over.
"""

import random
import socket
import statistics
import time
from collections.abc import Callable, Iterable
from typing import Final

import orjson

from bench.names import SAMPLES, emptied, memory_of, slope
from bench.observed import Figures, Observed
from bench.shapes import NAMES, Target, Unexpected, exchange, open_session, receive
from bench.wire import Wire

FRAME_REQUESTS: Final = 100
UNANSWERED_MAX: Final = 400
"""So many requests are under way at once."""
VALUE: Final = "0123456789" * 10
EXPIRING_MS: Final = 20
LASTING_MS: Final = 600_000
INVALIDATIONS: Final = 5
SAMPLED: Final = 1_000
"""So many of the values are asked for before an invalidation, and after it."""
COMMON_TAG: Final = f"{NAMES}/all"
WIDE_TAG: Final = f"{NAMES}/wide"
BUSY: Final = -32001
"""There is no such value, and the caller wants neither to wait nor to load it."""

Answer = dict[str, dict[str, object]]
Check = Callable[[Answer], None]


class Pipe:
    """One connection with many requests under way."""

    def __init__(self, connection: socket.socket, wire: Wire) -> None:
        self._connection = connection
        self._wire = wire
        self._unanswered = 0
        self._sent = 0

    def send(self, requests: Iterable[tuple[str, dict[str, object]]], check: Check) -> None:
        """One frame of methods with their parameters, once there is room for it."""
        while self._unanswered > UNANSWERED_MAX - FRAME_REQUESTS:
            self._read(check)
        messages = []
        for method, params in requests:
            self._sent += 1
            messages.append(
                {"jsonrpc": "2.0", "id": self._sent, "method": method, "params": params}
            )
        self._unanswered += len(messages)
        self._connection.sendall(self._wire.encode(orjson.dumps(messages)))

    def drain(self, check: Check) -> None:
        """Returns when all is answered."""
        while self._unanswered:
            self._read(check)

    def _read(self, check: Check) -> None:
        for payload in self._wire.feed(receive(self._connection)):
            message = orjson.loads(payload)
            for answer in message if isinstance(message, list) else [message]:
                check(answer)
                self._unanswered -= 1
        if owed := self._wire.replies():
            self._connection.sendall(owed)


def done(answer: Answer) -> None:
    """What a change is answered.

    Raises:
        Unexpected: it is not.
    """
    if answer.get("result") != {}:
        raise Unexpected(repr(answer))


def tagged_values(target: Target, observed: Observed, tagged: int, cycles: int) -> Figures:
    """T1: values that expire, and memory before, meanwhile and after; then the invalidations."""
    connection, wire = target.connect()
    with connection:
        open_session(connection, wire, batch=True)
        pipe = Pipe(connection, wire)
        figures = expired(pipe, observed, cycles)
        times_ms: list[float] = []
        revived = 0
        for _ in range(INVALIDATIONS):
            set_all(pipe, tagged)
            if (found := found_of(pipe, tagged)) != SAMPLED:
                raise Unexpected(f"{found} of {SAMPLED} values found that were set a moment ago")
            times_ms.append(invalidate(connection, wire))
            revived += found_of(pipe, tagged)
    return figures | {
        "tagged": tagged,
        "p50_ms": statistics.median(times_ms),
        "most_ms": max(times_ms),
        "revived": revived,
    }


# --- Values that expire -------------------------------------------------------------------------


def expired(pipe: Pipe, observed: Observed, cycles: int) -> Figures:
    """Sets them, a frame at a time, and with the next frame invalidates some of the last."""
    before = memory_of(observed)
    observed.begin()
    began = time.monotonic()
    samples: dict[str, list[tuple[float, float]]] = {whose: [] for whose in before}
    taken = 0
    for first in range(0, cycles, FRAME_REQUESTS):
        numbers = range(first, min(first + FRAME_REQUESTS, cycles))
        requests = [("cache.set", expiring(number, group_tag(first))) for number in numbers]
        if first:
            stale: dict[str, object] = {"tags": [group_tag(first - FRAME_REQUESTS)]}
            requests.append(("cache.invalidate", stale))
        pipe.send(requests, done)
        if first >= taken * cycles / SAMPLES:
            taken += 1
            for whose, size in memory_of(observed).items():
                samples[whose].append((first, size))
    pipe.drain(done)
    figures = {"cycles": float(cycles), "rate": cycles / (time.monotonic() - began)}
    figures |= observed.shares() | emptied(observed)
    after = memory_of(observed)
    figures |= {f"{whose}_before": size for whose, size in before.items()}
    figures |= {f"{whose}_after": size for whose, size in after.items()}
    return figures | {
        f"{whose.removesuffix('_bytes')}_growth": slope(sizes[len(sizes) // 2 :])
        for whose, sizes in samples.items()
    }


def expiring(number: int, group: str) -> dict[str, object]:
    """What sets one of them."""
    tags = [f"{NAMES}/own/{number}", group, COMMON_TAG]
    key = f"{NAMES}/expiring/{number}"
    return {"key": key, "value": VALUE, "ttl_ms": EXPIRING_MS, "tags": tags}


def group_tag(first: int) -> str:
    """What those of a frame share."""
    return f"{NAMES}/group/{first}"


# --- Values of one tag --------------------------------------------------------------------------


def lasting(number: int) -> str:
    """The key of one of them."""
    return f"{NAMES}/lasting/{number}"


def set_all(pipe: Pipe, count: int) -> None:
    """They are there, anew."""
    for first in range(0, count, FRAME_REQUESTS):
        requests: list[tuple[str, dict[str, object]]] = []
        for number in range(first, min(first + FRAME_REQUESTS, count)):
            key, tags = lasting(number), [WIDE_TAG]
            params = {"key": key, "value": VALUE, "ttl_ms": LASTING_MS, "tags": tags}
            requests.append(("cache.set", params))
        pipe.send(requests, done)
    pipe.drain(done)


def found_of(pipe: Pipe, count: int) -> int:
    """How many of some of them are there."""
    found = 0

    def check(answer: Answer) -> None:
        nonlocal found
        if "result" in answer:
            found += 1
        elif answer["error"]["code"] != BUSY:
            raise Unexpected(repr(answer))

    for _ in range(SAMPLED // FRAME_REQUESTS):
        numbers = random.sample(range(count), FRAME_REQUESTS)
        keys = (lasting(number) for number in numbers)
        pipe.send(
            (("cache.get", {"key": key, "wait_ms": 0, "can_fill": False}) for key in keys), check
        )
    pipe.drain(check)
    return found


def invalidate(connection: socket.socket, wire: Wire) -> float:
    """Invalidates all of them with one request. Returns how long it took, in milliseconds."""
    params = {"tags": [WIDE_TAG]}
    request = {"jsonrpc": "2.0", "id": 0, "method": "cache.invalidate", "params": params}
    frame = orjson.dumps(request)
    began = time.monotonic()
    done(orjson.loads(exchange(connection, wire, frame)))
    return 1000 * (time.monotonic() - began)
