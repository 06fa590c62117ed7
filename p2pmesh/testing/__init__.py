"""A mesh in one process, on a virtual clock: for our tests and for yours.

``SimNetwork`` runs real protocol cores over a model of the kernel and the network;
the bytes are those that real nodes exchange.  The same seed gives the same run, bit
for bit (``trace_hash``)::

    net = SimNetwork(seed=7)
    nodes = [net.add(f"agent-{n}") for n in range(5)]
    net.run_until(lambda: net.agrees(), within=5)
    net.kill(nodes[0])
    net.run_until(lambda: nodes[1].leads(), within=2)
"""

from p2pmesh.testing.network import SimNetwork, SimNode, Timeout

__all__ = ["SimNetwork", "SimNode", "Timeout"]
