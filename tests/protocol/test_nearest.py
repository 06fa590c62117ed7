"""Names that look like one that nobody has."""

from __future__ import annotations

from p2pmesh.protocol.nearest import nearest


def test_near_names_are_found_by_their_letters_best_first() -> None:
    names = ["worker", "walker", "planner", "worker-7", "zebra"]
    assert nearest(names, "Wroker")[0] == "worker"
    assert nearest(names, "work")[:1] == ("worker",)
    assert nearest(names, "qqq") == ()
    assert nearest([], "x") == ()
