"""Redis on Trio: pipelined connections, and the nodes behind one URL.

Nothing here knows about leases. The store sees `Client`, whichever of the topologies it is.
"""
