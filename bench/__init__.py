"""The load shapes: how fast the server is, measured beside a yardstick in the same run.

`__main__` starts `processes` and `redises`, and prints the figures. `load` is the process that
makes the load: it sends `shapes` for P1 and P2, `line` for P3, `herd` for P4, `holding` for P5 and
P6l, `idle` for P6, `hits` for P7, `names` for M1 and `tags` for T1, framed by `wire`; `observed` is
what that costs, and `hand_offs` what P3 makes of it. `scale` measures how costs grow.
`echo` and `getter` are the yardsticks, `peers` other people's locks and caches; `report` and `rows`
are the tables, `plots` the plots, which `drawing` writes.
"""
