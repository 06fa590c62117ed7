"""An answer that is kept for a moment."""

from __future__ import annotations

from p2pmesh.http.calls import Answer
from p2pmesh.http.kept import KEPT_FOR, KeptAnswer


class Counted:
    """Answers numbered as they are made, by a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0
        self.made = 0
        self.kept = KeptAnswer(self._make, lambda: self.now)

    def _make(self) -> Answer:
        self.made += 1
        return Answer(200, b"%d" % self.made)

    def ask(self, version: int = 1) -> bytes:
        return self.kept.answer(version).body


def test_it_is_made_once_while_nothing_changes() -> None:
    counted = Counted()
    assert [counted.ask() for _ in range(3)] == [b"1"] * 3


def test_another_version_is_another_answer_at_once() -> None:
    counted = Counted()
    assert [counted.ask(version) for version in (1, 2, 2, 1)] == [b"1", b"2", b"2", b"3"]


def test_it_is_never_older_than_a_moment() -> None:
    counted = Counted()
    counted.ask()
    counted.now += 0.99 * KEPT_FOR
    assert counted.ask() == b"1"
    counted.now += 0.02 * KEPT_FOR
    assert counted.ask() == b"2"
