"""How many connections a process may have."""

import resource
import sys
from typing import Final

SPARE: Final = 200
"""For everything else a process has open."""


def connections_max() -> int:
    """Raises what this process, and those that it starts, may have open as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard - SPARE


def at_most(wanted: int) -> int:
    """As many connections as are wanted, or as there can be; if these are fewer, it says so."""
    most = connections_max()
    if most < wanted:
        print(
            f"{wanted:,} connections are wanted; the hard limit of open files allows {most:,}",
            file=sys.stderr,
        )
    return min(most, wanted)
