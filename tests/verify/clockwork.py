"""Tasks on a virtual clock: generators that yield microseconds, or a signal to wait for."""

from collections.abc import Callable, Generator
from functools import partial
from heapq import heappop, heappush

from attrs import define, field

Task = Generator["int | Signal", object, None]


@define(eq=False)
class Signal:
    """Something to wait for, that happens once."""

    clock: "Clock"
    happened: bool = False
    value: object = None
    _waiting: list[Task] = field(factory=list)

    def set(self, value: object = None) -> None:
        """It happens; whatever else happens is too late."""
        if not self.happened:
            self.happened, self.value = True, value
            for task in self._waiting:
                self.clock.later(0, partial(self.clock.step, task, value))

    def wait(self, task: Task) -> None:
        """The task goes on when it happens."""
        if self.happened:
            self.clock.later(0, partial(self.clock.step, task, self.value))
        else:
            self._waiting.append(task)


@define(eq=False)
class Clock:
    """Carries out what is due, in order; of what is due together, what was said first."""

    now: int = 1_000_000
    _due: list[tuple[int, int, Callable[[], None]]] = field(factory=list)
    _count: int = 0

    def later(self, us: int, action: Callable[[], None]) -> None:
        """Carries it out after so long."""
        self._count += 1
        heappush(self._due, (self.now + us, self._count, action))

    def start(self, task: Task) -> None:
        """The task begins now."""
        self.later(0, partial(self.step, task, None))

    def step(self, task: Task, value: object) -> None:
        """The task goes on until it yields again."""
        try:
            wanted = task.send(value)
        except StopIteration:
            return
        if isinstance(wanted, Signal):
            wanted.wait(task)
        else:
            self.later(wanted, partial(self.step, task, None))

    def run(self, until: int) -> None:
        """All that is due by then."""
        while self._due and self._due[0][0] <= until:
            self.now, _, action = heappop(self._due)
            action()
        self.now = until
