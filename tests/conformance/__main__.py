"""``python -m tests.conformance ws://HOST:PORT``: play the vectors against any server."""

import argparse
import sys

import trio

from tests.conformance.player import StepFailed, Target, play
from tests.conformance.vectors import Json, Scenario, load_all


def main() -> int:
    """Play, report, and answer the exit status: 0 if nothing failed."""
    arguments = _parse()
    options: dict[str, Json] = {"token": arguments.token} if arguments.token else {}
    if arguments.volatile_writes:
        options["volatile_writes"] = True
    scenarios = [s for s in load_all() if arguments.only in s.id]
    fitting = [s for s in scenarios if dict(s.given) == options]
    failed = sum(not _passes(scenario, Target(arguments.url)) for scenario in fitting)
    skipped = len(scenarios) - len(fitting)
    print(f"{len(fitting) - failed} passed, {failed} failed, {skipped} skipped (another `given`)")
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.conformance", description="Play the vectors against a live server."
    )
    parser.add_argument("url", help="ws://HOST:PORT or ws+unix:///PATH")
    parser.add_argument("--only", default="", metavar="TEXT", help="ids with this text in them")
    parser.add_argument(
        "--token", help="the token this server requires: plays the scenarios that are given it"
    )
    parser.add_argument(
        "--volatile-writes",
        action="store_true",
        help="this server takes writes.put: plays the scenarios that need it",
    )
    return parser.parse_args()


def _passes(scenario: Scenario, target: Target) -> bool:
    try:
        trio.run(play, scenario, target)
    except StepFailed as failure:
        print(f"FAILED {failure}\n", flush=True)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
