"""Two and three post offices: direct messages from acceptance to their end."""

from __future__ import annotations

from tests.protocol.offices import World


def test_a_message_is_queued_stored_and_done() -> None:
    world = World()
    a, b = world.add("a"), world.add("b")
    world.link(a, b)
    b.auto_completes = False
    message_id = a.send("b-1", b"hello")
    assert b.arrived() == [b"hello"]
    assert a.moves(message_id) == [("b-1", "stored")]
    b.post.message_completed(world.at, message_id, True)
    world.run()
    assert a.moves(message_id) == [("b-1", "stored"), ("b-1", "done")]
    assert a.post.message_state(message_id)[0].state == "done"
