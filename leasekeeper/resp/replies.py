"""What Redis answers, and what its errors ask us to do."""

import re
from enum import Enum, auto
from typing import Final, TypeAlias

from redis.exceptions import NoPermissionError, NoScriptError, ReadOnlyError, ResponseError

Reply: TypeAlias = int | float | bool | bytes | str | list["Reply"] | dict[bytes, "Reply"] | None
"""As hiredis gives it in RESP3. Strings are bytes, for nobody decodes them; sets are lists."""

Answer: TypeAlias = Reply | ResponseError


class Verdict(Enum):
    """What an error reply asks for."""

    FAILED = auto()
    """The command is wrong, or its script failed on its way."""
    SEND_SOURCE = auto()
    MOVED = auto()
    ASK = auto()
    LATER = auto()
    """This node, or this slot, will soon be able to do it again."""
    REDISCOVER = auto()
    """No master any more."""
    REFUSED = auto()
    """Not as long as this Redis is as it is. Nothing was executed."""
    FORBIDDEN = auto()
    """Not to this user."""


_VERDICTS: Final = {
    "NOSCRIPT": Verdict.SEND_SOURCE,
    "MOVED": Verdict.MOVED,
    "ASK": Verdict.ASK,
    "TRYAGAIN": Verdict.LATER,
    "CLUSTERDOWN": Verdict.LATER,
    "LOADING": Verdict.LATER,
    "MASTERDOWN": Verdict.LATER,
    "READONLY": Verdict.REDISCOVER,
    "OOM": Verdict.REFUSED,
    "BUSY": Verdict.REFUSED,
    "MISCONF": Verdict.REFUSED,
    "NOREPLICAS": Verdict.REFUSED,
    "NOAUTH": Verdict.FORBIDDEN,
    "WRONGPASS": Verdict.FORBIDDEN,
    "NOPERM": Verdict.FORBIDDEN,
}

_KINDS: Final[dict[str, type[ResponseError]]] = {
    "NOSCRIPT": NoScriptError,
    "READONLY": ReadOnlyError,
    "NOPERM": NoPermissionError,
}

# Before Redis 7, what stopped a script at its first write is inside another error's text.
_WITHIN_SCRIPT: Final = re.compile(
    r"ERR Error running script .*: -(READONLY|OOM|MISCONF|NOREPLICAS|CLUSTERDOWN|MASTERDOWN) "
)


def error_reply(text: str) -> ResponseError:
    """The exception for an error reply; its text begins with the code, as Redis sent it."""
    return _KINDS.get(text.partition(" ")[0], ResponseError)(text)


def code_of(error: ResponseError) -> str:
    """The first word of an error reply, or of the one that ended its script early."""
    text = str(error)
    within = _WITHIN_SCRIPT.match(text)
    return within[1] if within else text.partition(" ")[0]


def verdict_on(error: ResponseError) -> Verdict:
    """What to do about an error reply."""
    return _VERDICTS.get(code_of(error), Verdict.FAILED)
