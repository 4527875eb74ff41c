"""The command line: `leasekeeper serve`, `lock`, `ls`, `show`, `break`, `watch`."""

from leasekeeper.cli.main import main

__all__ = ["main"]
