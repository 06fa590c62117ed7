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
    b.commands.message_completed(world.at, message_id, True)
    world.run()
    assert a.moves(message_id) == [("b-1", "stored"), ("b-1", "done")]
    assert a.commands.message_state(message_id)[0].state == "done"


def test_the_load_says_what_is_held_where_and_what_became_of_the_rest() -> None:
    world = World()
    a, b, c = world.add("a"), world.add("b"), world.add("c")
    world.link_all(a, b, c)
    a.call("register", "g")
    idle = a.post.load()
    assert (set(idle.depths.values()), idle.bytes, idle.moved) == ({0}, 0, {})
    b.auto_completes = False
    for _ in range(3):
        a.send("b-1", b"x" * 1000)
    b.send("g")
    world.block(a, c)
    c.send("a-1")
    a.send("nobody", named=True)
    a.call("read", "g2", None, 30.0)
    a.request("b-1")
    there, here = b.post.load(), a.post.load()
    assert there.depths["mailbox_agent"] == 3
    assert there.depths["requests_to_answer"] == 1
    assert here.depths["mailbox_guests"] == 1
    assert here.depths["outbox_receipted"] == 3
    assert here.depths["targets_awaited"] == 1
    assert here.depths["reads_waiting"] == 1
    assert here.depths["requests_asked"] == 1
    assert c.post.load().depths["outbox_unsent"] == 1
    assert here.bytes > 3000
    assert here.moved == {"accepted": 4, "stored": 3}
    a.broadcast()
    cast = a.post.load()
    assert cast.depths["broadcasts"] == 1, "one home cannot be reached"
    assert cast.moved == {"accepted": 4 + 3, "stored": 3 + 2}
    world.pass_time(2.0)
    assert a.post.load().moved["refused"] == 1
