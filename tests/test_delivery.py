"""The handles on what was sent, as their holders see them."""

from __future__ import annotations

from p2pmesh.delivery import Broadcast
from p2pmesh.protocol.types import MessageMoved


async def test_a_broadcast_shows_how_far_its_copies_are() -> None:
    assert repr(Broadcast("m-0", ())) == "<Broadcast m-0 to 0: nobody>"
    cast = Broadcast("m-1", ("a", "b", "c"))
    assert repr(cast) == "<Broadcast m-1 to 3: 3 queued>"
    cast._moved(MessageMoved("m-1", "b", "stored"))
    assert repr(cast) == "<Broadcast m-1 to 3: 2 queued, 1 stored>"
