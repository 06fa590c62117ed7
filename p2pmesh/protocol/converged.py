"""Members of one mesh from the beginning: for simulators.

To join, n nodes take each other's word n² times.  Here every core is given its life and a
copy of one view and one set of rings: what joining one after the other, and waiting, comes
to.  Links they have none: they make them as soon as they look at their rings.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from p2pmesh.protocol.core import Core
from p2pmesh.protocol.members import View
from p2pmesh.protocol.rings import Rings
from p2pmesh.protocol.stamps import joining_stamp
from p2pmesh.protocol.types import Joined, Life


def converge(cores: Sequence[Core]) -> None:
    """Cores that were just started have joined in this order and heard of each other."""
    view = View()
    for core in cores:
        wall, random = core.at.wall, int.from_bytes(core.entropy(4))
        highest = max(view.highest, Life(wall, 0, 0))
        life = joining_stamp(wall, highest, wall, core.restored.life, random)
        record = core.publish(msgspec.structs.replace(core.record.record, life=life))
        core.act(Joined(life=str(life), contact=None))
        view.offer_record(record, core.at.now)
    rings = Rings(cores[0].me)
    for core in cores:
        rings.add(core.me)
    for core in cores:
        core.view = view.copy()
        core.rings = rings.seen_from(core.me)
