"""The rules inside Redis with one mistake each, made in the text of the scripts."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Final
from unittest.mock import patch

from attrs import frozen
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from leasekeeper.core.lock import Claim
from leasekeeper.resp.scripts import Script
from leasekeeper.store.redis import scripts
from tests.core.locks import ANN, BEN
from tests.mutants.checks import Found, first_line
from tests.properties.stores_scripts import SCRIPTS, Scripts
from tests.properties.test_stores_agree import LONG_MS, CoreAndScripts
from tests.redises import RunningRedis

EXAMPLES: Final = 60
LOOK_UP: Final = "local e = find(lease)\nif not e or (only_of"


@frozen
class Change:
    """Of a text that all scripts share, or that one of them has."""

    old: str
    new: str

    @contextmanager
    def made(self) -> Iterator[None]:
        """Within it, the scripts have the mistake."""
        changed = {each: self._of(each) for each in SCRIPTS}
        assert any(old.source != new.source for old, new in changed.items()), "no such text"
        with ExitStack() as stack:
            for old, new in changed.items():
                stack.enter_context(patch.object(scripts, old.name.upper(), new))
            stack.enter_context(
                patch("tests.properties.stores_scripts.SCRIPTS", tuple(changed.values()))
            )
            yield

    def _of(self, script: Script) -> Script:
        return Script(script.name, script.source.replace(self.old, self.new))


LUA: Final = {
    "a fence is a plain INCR": Change(
        "math.max(tonumber(call('GET', FENCE) or 0) + 1, now_us)",
        "tonumber(call('GET', FENCE) or 0) + 1",
    ),
    "a release is a DEL without a comparison": Change(
        LOOK_UP,
        LOOK_UP.replace("\n", "\nif not e and lock then lease = lock; e = find(lease) end\n"),
    ),
    "an acquire ignores the queue": Change("waiting == 0 and fits(asked)", "fits(asked)"),
    "a limit lets one more in": Change("holders + 1 <= limit", "holders <= limit"),
    "a dead waiter is granted the name": Change("not e or tonumber(e.until_ms) <= now_ms", "not e"),
    "a release does not move the queue": Change(
        "leave(lease, e)\nmove_up()\nreturn answer({had})", "leave(lease, e)\nreturn answer({had})"
    ),
    "a lease outlives its last millisecond": Change(
        "return call('PTTL', LOCK) == 0", "return false"
    ),
}


def strangers_release(clients: CoreAndScripts) -> None:
    """Who has nothing gives nothing back. Chance alone comes upon it late."""
    clients.acquire(0, Claim(ANN, 300), wait=False)
    clients.release(BEN)
    clients.teardown()


def search(redis: RunningRedis, examples: int = EXAMPLES) -> Found | None:
    """Runs the machine that holds the scripts and the core together."""
    connected, runs = Scripts(redis), 0

    def machine() -> CoreAndScripts:
        nonlocal runs
        runs += 1
        return CoreAndScripts(connected, LONG_MS)

    how = settings(
        max_examples=examples,
        phases=[Phase.generate],
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    try:
        strangers_release(machine())
        run_state_machine_as_test(partial(machine), settings=how)  # type: ignore[arg-type]
    except AssertionError as problem:
        return Found(runs, first_line(problem))
    finally:
        connected.close()
    return None
