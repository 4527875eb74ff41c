"""What an operation costs as the number of something grows: names, connections, waiters, servers.

`__main__` measures the series of `series`, beside what `population` keeps there; `loads` is the
load, sent by `bench.load`. `report` fits a slope to each series and prints the table, `curves`
draws it.
"""
