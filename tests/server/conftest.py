"""What every test of the server checks beside its own point: nothing failed that was not foreseen.

A peer that misbehaves is no news to the operator. A traceback in the log is either a bug, or a
way for strangers to fill a disk.
"""

import traceback
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import pytest
import structlog


@pytest.fixture
def failures() -> list[str]:
    """Tracebacks that the server logged. A test that means to cause one takes it out."""
    return []


@pytest.fixture(autouse=True)
def no_unforeseen_failures(failures: list[str]) -> Iterator[None]:
    """The server logged no traceback."""

    def note(_: object, __: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
        if event.get("exc_info"):
            failures.append(f"{event['event']}\n{traceback.format_exc()}")
        raise structlog.DropEvent

    structlog.configure(processors=[note])
    yield
    assert not failures, "\n".join(failures)
