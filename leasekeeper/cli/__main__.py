"""`python -m leasekeeper.cli`."""

from leasekeeper.cli.main import main

main()
