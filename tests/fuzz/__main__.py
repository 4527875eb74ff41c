"""`just fuzz TARGET [--seconds 1800]`: guided by coverage, from the corpus.

What it tries, and what a reader went wrong on, is kept in `.fuzz/`.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

CORPUS: Final = Path(__file__).parent / "corpus"
UNAVAILABLE: Final = 69


def main() -> None:
    """Runs libFuzzer, which ends the process: with 0 if nothing was found."""
    try:
        import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        print("just fuzz wants atheris: uv pip install atheris", file=sys.stderr)
        raise SystemExit(UNAVAILABLE) from None
    with atheris.instrument_imports(include=["leasekeeper", "websockets"]):
        from tests.fuzz.targets import TARGETS  # it is instrumented here

    parser = argparse.ArgumentParser(prog="just fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=1800)
    asked = parser.parse_args()
    tried = Path(".fuzz") / asked.target
    tried.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={asked.seconds}",
        "-max_len=8192",
        "-timeout=10",
        f"-artifact_prefix={tried}/",
        str(tried),
        str(CORPUS / asked.target),
    ]
    atheris.Setup([sys.argv[0], *options], TARGETS[asked.target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
