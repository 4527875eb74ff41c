"""Prints which mistake is found by what: `python -m tests.mutants`. The scripts need a Redis."""

import sys

from tests.mutants.checks import Found
from tests.mutants.scripts import LUA, search
from tests.mutants.table import MUTANTS
from tests.properties.test_stores_agree import START_US
from tests.redises import running_redis


def show(name: str, where: str, found: Found | None) -> bool:
    """A line of the table; whether it was found."""
    after = "not found" if found is None else f"{found.tries}"
    message = found.message.replace("|", "\\|") if found else ""
    print(f"| {name} | {where} | {after} | `{message}` |", flush=True)
    return found is not None


def main() -> int:
    print("| mistake | found by | after | because |")
    print("|---|---|---|---|")
    all_found = True
    for name, mutant in MUTANTS.items():
        with mutant.switch():
            all_found &= show(name, mutant.check.name, mutant.check.search())
    with running_redis(skewed=True) as redis:
        redis.freeze_clock(START_US)
        for name, change in LUA.items():
            with change.made():
                all_found &= show(f"in Redis: {name}", "core and scripts", search(redis))
    return int(not all_found)


if __name__ == "__main__":
    sys.exit(main())
