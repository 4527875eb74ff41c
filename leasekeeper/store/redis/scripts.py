"""The Lua scripts: real files, each behind the rules that all of them share."""

from importlib.resources import files
from typing import Final

from leasekeeper.resp.scripts import Script

_FOLDER: Final = files("leasekeeper.store.redis") / "lua"


def _load(name: str) -> Script:
    rules = (_FOLDER / "rules.lua").read_text()
    return Script(name, f"{rules}\n{(_FOLDER / f'{name}.lua').read_text()}")


ACQUIRE: Final = _load("acquire")
RESUME: Final = _load("resume")
RENEW: Final = _load("renew")
RELEASE: Final = _load("release")
TOUCH: Final = _load("touch")
BREAK: Final = _load("break")
INSPECT: Final = _load("inspect")
RESTORE: Final = _load("restore")
