"""M1: a great many names, each used once. What is left of them, in the server and in Redis?"""

import statistics
import time
from collections.abc import Iterator
from itertools import count
from typing import Final

from bench.observed import Figures, Observed
from bench.shapes import NAMES, Target, Worker, ask_together, open_session

SAMPLES: Final = 100
"""How often memory is looked at."""
GONE_S: Final = 10.0
"""How long after the end keys may linger; the servers are told to remember for a second."""


class Passer(Worker):
    """Takes a lock that nobody has used before, gives it back, and goes on to the next."""

    def __init__(self, number: int, names: Iterator[int], names_max: int) -> None:
        super().__init__(number, "")
        self._names = names
        self._names_max = names_max

    def requests(self) -> list[bytes]:
        """The next request, or none when it has nothing to give back and the names are used up."""
        if not self._holds:
            name = next(self._names)
            if name >= self._names_max:
                return []
            self.rename(f"{NAMES}/{name}")
        return [self.next_request()]


def many_names(target: Target, observed: Observed, workers_count: int, names: int) -> Figures:
    """M1: 50 workers over one connection, and memory before, meanwhile and at the end."""
    connection, wire = target.connect()
    with connection:
        open_session(connection, wire, batch=True)
        before = memory_of(observed)
        observed.begin()
        began = time.monotonic()
        unused = count()
        workers = [Passer(number, unused, names) for number in range(workers_count)]
        ready, answered = list(range(workers_count)), 0
        samples: list[tuple[float, float]] = []
        while answered < 2 * names:
            requests = [request for number in ready for request in workers[number].requests()]
            ready, _ = ask_together(connection, wire, requests)
            answered += len(ready)
            if answered >= 2 * names * (len(samples) + 1) / SAMPLES:
                samples.append((answered / 2, observed.servers_bytes))
        figures = {"names": float(names), "rate": names / (time.monotonic() - began)}
        shares = observed.shares()
        figures |= emptied(observed)
        after = memory_of(observed)
    figures |= {f"{whose}_before": value for whose, value in before.items()}
    figures |= {f"{whose}_after": value for whose, value in after.items()}
    return figures | shares | {"bytes_per_name": slope(samples[len(samples) // 2 :])}


def memory_of(observed: Observed) -> Figures:
    """What the server and its store have, in bytes."""
    memory = {"server_bytes": observed.servers_bytes}
    if observed.store is not None:
        memory["redis_bytes"] = observed.store.used_bytes
    return memory


def emptied(observed: Observed) -> Figures:
    """How many keys are left in Redis, and when there was none, if there came to be none."""
    if observed.store is None:
        return {}
    began = time.monotonic()
    while (keys := observed.store.keys) and time.monotonic() - began < GONE_S:
        time.sleep(0.05)
    return {"keys_left": keys, "gone_s": time.monotonic() - began}


def slope(samples: list[tuple[float, float]]) -> float:
    """By how many bytes a name makes memory grow, once caches and pools have filled."""
    names, sizes = zip(*samples, strict=True)
    return statistics.linear_regression(names, sizes).slope
