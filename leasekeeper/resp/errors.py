"""What this layer raises.

    LeasekeeperError
    ├── Unanswered            a command has no answer; its outcome says what is known
    │   └── NotWritten        nor has Redis seen any of it (stays within this layer)
    └── CannotConnect         no usable connection came about (stays within this layer)

What Redis itself says against a command is raised as `redis.exceptions.ResponseError`.
"""

from typing import Final

from leasekeeper.errors import LeasekeeperError, Outcome


class Unanswered(LeasekeeperError):
    """Redis gave no answer, or could not do it now.

    With outcome "none" the command was certainly not executed; with "unknown" it was written, and
    may have been. `reason` is short, and has no secrets.
    """

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(f"{reason} (outcome: {outcome})")
        self.outcome: Final = outcome
        self.reason: Final = reason


class NotWritten(Unanswered):
    """The connection ended before any byte of the command was written: another one may take it."""

    def __init__(self, reason: str) -> None:
        super().__init__(Outcome.NONE, reason)


class CannotConnect(LeasekeeperError):
    """No usable connection: one line that says why, and what to do about it."""
