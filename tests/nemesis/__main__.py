"""The nemesis: faults at random while clients work, and a verdict over what they wrote down."""

import argparse
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from tests.nemesis.fleet import Shape
from tests.nemesis.nemesis import Plan, run
from tests.nemesis.report import conclude
from tests.nemesis.stores import TOPOLOGIES


def arguments() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.nemesis", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=None, help="a random one if none is given")
    parser.add_argument("--topology", choices=TOPOLOGIES, default="single")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--servers", type=int, default=3)
    parser.add_argument("--unfenced", action="store_true", help="a control, which has to fail")
    parser.add_argument("--out", type=Path, default=None, help="keeps what was written there")
    parser.add_argument("--faults", default="", help="only these kinds, with commas between them")
    return parser.parse_args()


def main() -> int:
    """Runs, prints, and returns the exit status."""
    told = arguments()
    seed = told.seed if told.seed is not None else random.SystemRandom().randrange(1_000_000)
    shape = Shape(
        topology=told.topology,
        seed=seed,
        servers=told.servers,
        clients=told.clients,
        unfenced=told.unfenced,
    )
    wanted = tuple(each for each in told.faults.split(",") if each)
    plan = Plan(shape=shape, seconds=60 * told.minutes, faults=wanted)
    directory = told.out or Path(tempfile.mkdtemp(prefix="leasekeeper-nemesis-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(f"{told.topology}, seed {seed}, in {directory}", flush=True)
    good = conclude(plan, run(plan, directory), directory)
    if good and told.out is None:
        shutil.rmtree(directory)
    elif not good:
        print(f"seed {seed}: what was written is in {directory}")
    return 0 if good else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
