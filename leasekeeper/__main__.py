"""`python -m leasekeeper`."""

from leasekeeper.cli.main import main

main()
