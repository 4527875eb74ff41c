"""The Lua scripts: real files, each behind the rules that all of them share."""

from importlib.resources import files
from typing import Final

from leasekeeper.resp.scripts import Script

_FOLDER: Final = files("leasekeeper.store.redis") / "lua"


def _load(name: str) -> Script:
    rules = (_FOLDER / "rules.lua").read_text()
    return Script(name, f"{rules}\n{(_FOLDER / f'{name}.lua').read_text()}")


def _load_cache(name: str) -> Script:
    return Script(f"cache_{name}", _joined("clock_rules", "cache_rules", name))


def _load_writes(name: str) -> Script:
    return Script(name, _joined("clock_rules", "cache_rules", "writes_rules", name))


def _joined(*parts: str) -> str:
    return "\n".join((_FOLDER / "cache" / f"{part}.lua").read_text() for part in parts)


ACQUIRE: Final = _load("acquire")
RESUME: Final = _load("resume")
RENEW: Final = _load("renew")
RELEASE: Final = _load("release")
TOUCH: Final = _load("touch")
BREAK: Final = _load("break")
INSPECT: Final = _load("inspect")
RESTORE: Final = _load("restore")

CACHE_LOOK: Final = _load_cache("look")
CACHE_FILL: Final = _load_cache("fill")
CACHE_END_FILL: Final = _load_cache("end_fill")
CACHE_WAIT_FOR: Final = _load_cache("wait_for")
CACHE_WAITS_FOR: Final = _load_cache("waits_for")
CACHE_SET: Final = _load_cache("set")
CACHE_INVALIDATE: Final = _load_cache("invalidate")
CACHE_MARK_TAGS: Final = _load_cache("mark_tags")
CACHE_BEGIN_WRITE: Final = _load_cache("begin_write")
CACHE_TAGS_OF: Final = _load_cache("tags_of")
CACHE_CLOSE_WRITE: Final = _load_cache("close_write")
CACHE_DISTRUST: Final = _load_cache("distrust")

WRITES_PUT: Final = _load_writes("writes_put")
WRITES_CLAIM: Final = _load_writes("writes_claim")
WRITES_SETTLE: Final = _load_writes("writes_settle")
WRITES_DEAD: Final = _load_writes("writes_dead")
WRITES_REVIVE: Final = _load_writes("writes_revive")
