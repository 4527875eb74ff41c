"""Prints which mistake is found by what: `python -m tests.mutants`."""

import sys

from tests.mutants.table import MUTANTS


def main() -> int:
    print("| mistake | found by | after | because |")
    print("|---|---|---|---|")
    missed = 0
    for name, mutant in MUTANTS.items():
        with mutant.switch():
            found = mutant.check.search()
        missed += found is None
        after = "not found" if found is None else f"{found.tries}"
        message = found.message.replace("|", "\\|") if found else ""
        print(f"| {name} | {mutant.check.name} | {after} | `{message}` |", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
