"""A mesh in one process, on a virtual clock: for our tests and for yours.

``SimNetwork`` runs real protocol cores over a model of the kernel and the network;
the bytes are those that real nodes exchange.  The same seed gives the same run, bit
for bit (``trace_hash``), and every run prints as the program that repeats it
(``scenario``)::

    with SimNetwork(seed=7) as net:
        nodes = [net.add("agent") for _ in range(5)]
        net.run_until(net.agrees, within=5)
        net.kill(net.oldest())  # which of nodes that start at once is the oldest is chance
        net.run_until(net.oldest().leads, within=2)

What it does not run are an agent's own handlers; docs/testing.md says how to test those.
"""

from p2pmesh.testing.network import SimNetwork, Timeout
from p2pmesh.testing.node import SimNode
from p2pmesh.testing.scenario import Scenario, Step

__all__ = ["Scenario", "SimNetwork", "SimNode", "Step", "Timeout"]
