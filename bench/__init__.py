"""The load shapes: how fast the server is, measured beside a yardstick in the same run.

`__main__` starts the servers and prints the figures, `load` is the process that makes the load,
`shapes` what it sends, `wire` the framing, `echo` the yardsticks, `report` medians and tables.
"""
