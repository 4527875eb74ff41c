"""Lua that runs inside Redis, and calls of it."""

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

from attrs import field, frozen

Argument: TypeAlias = str | int | float | bytes


@frozen
class Script:
    """A Lua script. Redis knows it by `sha` once it has seen its source."""

    name: str
    source: str = field(repr=False)
    sha: str = field(init=False)

    @sha.default
    def _sha_of_source(self) -> str:
        # SHA-1 is Redis' name for a script, and protects nothing.
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


@frozen
class Call:
    """One call of a script. All its keys are in one slot."""

    script: Script
    keys: Sequence[str]
    args: Sequence[Argument] = field(repr=False)
