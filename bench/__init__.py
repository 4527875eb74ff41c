"""The load shapes: how fast the server is, measured beside a yardstick in the same run.

`__main__` starts `processes` and `redises`, and prints the figures. `load` is the process that
makes the load: it sends `shapes` for P1 and P2, `line` for P3, `holding` for P5 and `names` for M1,
framed by `wire`; `observed` is what that costs. `echo` are the yardsticks, `report` and `rows` the
tables.
"""
