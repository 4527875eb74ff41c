"""Other people's locks and caches under the load shapes, in the same rounds as ours.

`catalogue` says which there are, what each needs and on which shapes it is measured; `servers`
starts what they talk to. `load` is the process that makes the load: `adapters` are the locks, each
with an acquire and a release, and `tasks` and `threads` drive them, for a library has one colour or
the other; `line` times the hand-offs of P3. `live_mutex.mjs` is the same for a peer that is written
in JavaScript, `go` and `java` for those in Go and Java. `herd` is P4, for caches. None of these
packages is needed to install leasekeeper.
"""
