"""P7 and P7c: values that are there. What does a hit cost, and what is that beside a bare GET?

Fifty values are set, each under a key of its own, and asked for over and over. Every answer is
compared with the value: a load that took misses for hits would measure how fast nothing is found.
"""

import selectors
import statistics
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Final

import orjson

from bench.observed import Figures, Observed
from bench.shapes import (
    NAMES,
    STALL_S,
    Target,
    Unexpected,
    Window,
    exchange,
    open_session,
    receive,
)
from bench.wire import redis_command

WATCHED: Final = 5
"""So many times all values are asked for while Redis tells what it is asked. Its server may ask
something else meanwhile, which the median leaves out."""


def key_of(number: int) -> bytes:
    """What a value is under."""
    return f"{NAMES}/value/{number}".encode()


def value_of(number: int) -> str:
    """1 KiB, different for each key."""
    return f"{number:04}" * 256


class Asker(ABC):
    """One connection that asks for values."""

    def __init__(self, target: Target) -> None:
        self.connection, self._wire = target.connect()

    def put(self, number: int) -> None:
        """Sets a value."""
        exchange(self.connection, self._wire, self._set(number))

    def ask(self, numbers: Sequence[int]) -> None:
        """Asks for values, with one write."""
        self.connection.sendall(self._wire.encode(self._gets(numbers)))

    def answered(self) -> list[int]:
        """Whose values have come, in what could be read at once.

        Raises:
            Unexpected: something else came.
        """
        payloads = self._wire.feed(receive(self.connection))
        if owed := self._wire.replies():
            self.connection.sendall(owed)
        return [number for payload in payloads for number in self._take(payload)]

    def ask_all(self, numbers: Sequence[int]) -> None:
        """Asks for values, and returns when all have come."""
        self.ask(numbers)
        left = len(numbers)
        while left:
            left -= len(self.answered())

    @abstractmethod
    def _set(self, number: int) -> bytes: ...

    @abstractmethod
    def _gets(self, numbers: Sequence[int]) -> bytes: ...

    @abstractmethod
    def _take(self, payload: bytes) -> list[int]: ...


class Client(Asker):
    """One that speaks our protocol. Its requests are prebuilt text."""

    def __init__(self, target: Target, values_count: int, *, batch: bool) -> None:
        super().__init__(target)
        open_session(self.connection, self._wire, batch=batch)
        self._values = [value_of(number) for number in range(values_count)]
        self._requests = [
            b'{"jsonrpc":"2.0","id":%d,"method":"cache.get","params":{"key":"%s"}}'
            % (number, key_of(number))
            for number in range(values_count)
        ]

    def _set(self, number: int) -> bytes:
        params = {
            "key": key_of(number).decode(),
            "value": self._values[number],
            "ttl_ms": 3_600_000,
        }
        request = {"jsonrpc": "2.0", "id": "set", "method": "cache.set", "params": params}
        return orjson.dumps(request)

    def _gets(self, numbers: Sequence[int]) -> bytes:
        if len(numbers) == 1:
            return self._requests[numbers[0]]
        return b"[" + b",".join([self._requests[number] for number in numbers]) + b"]"

    def _take(self, payload: bytes) -> list[int]:
        message = orjson.loads(payload)
        answers = message if isinstance(message, list) else [message]
        for answer in answers:
            result = answer.get("result", {})
            if result.get("state") != "hit" or result["value"] != self._values[answer["id"]]:
                raise Unexpected(repr(answer))
        return [answer["id"] for answer in answers]


class Bare(Asker):
    """One that speaks to Redis itself."""

    def __init__(self, target: Target, values_count: int) -> None:
        super().__init__(target)
        self._values = [value_of(number).encode() for number in range(values_count)]
        self._commands = [redis_command(b"GET", key_of(number)) for number in range(values_count)]
        self._asked: deque[int] = deque()

    def _set(self, number: int) -> bytes:
        return redis_command(b"SET", key_of(number), self._values[number])

    def _gets(self, numbers: Sequence[int]) -> bytes:
        self._asked += numbers
        return b"".join([self._commands[number] for number in numbers])

    def _take(self, payload: bytes) -> list[int]:
        number = self._asked.popleft()
        if payload != self._values[number]:
            raise Unexpected(repr(payload))
        return [number]


def dial(target: Target, values_count: int, *, batch: bool) -> Asker:
    """A connection to whatever answers there."""
    if target.protocol == "redis":
        return Bare(target, values_count)
    return Client(target, values_count, batch=batch)


def hits_together(target: Target, window: Window, observed: Observed, values_count: int) -> Figures:
    """P7: a worker for each value, all on one connection; whose value came asks again at once."""
    asker = dial(target, values_count, batch=True)
    everything = range(values_count)
    with asker.connection:
        for number in everything:
            asker.put(number)
        figures = commands_of_hits(asker, observed, everything)
        asker.ask(everything)
        answered = 0
        while window.open(answered):
            ready = asker.answered()
            answered += len(ready)
            if ready:
                asker.ask(ready)
    return figures | {"rate": window.rate}


def commands_of_hits(asker: Asker, observed: Observed, numbers: Sequence[int]) -> Figures:
    """How many commands Redis gets for each hit, if there is one behind the server."""
    store = observed.store
    if store is None:
        return {}
    asker.ask_all(numbers)
    counts = [store.commands_during(lambda: asker.ask_all(numbers)) for _ in range(WATCHED)]
    return {"commands": statistics.median(counts) / len(numbers)}


def hits_each(target: Target, window: Window, connections: int) -> Figures:
    """P7c: a connection for each value, with one request outstanding on each."""
    with selectors.DefaultSelector() as selector:
        askers = [dial(target, connections, batch=False) for _ in range(connections)]
        for number, asker in enumerate(askers):
            asker.put(number)
            selector.register(asker.connection, selectors.EVENT_READ, asker)
            asker.ask([number])
        answered = 0
        while window.open(answered):
            events = selector.select(STALL_S)
            if not events:
                raise Unexpected(f"no answer in {STALL_S} s")
            for key, _ in events:
                ready = key.data.answered()
                answered += len(ready)
                if ready:
                    key.data.ask(ready)
    for asker in askers:
        asker.connection.close()
    return {"rate": window.rate}
