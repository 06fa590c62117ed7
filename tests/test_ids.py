"""New ids are of the form that is promised, and fit to be used."""

from __future__ import annotations

import socket
import time
import uuid

import pytest

from p2pmesh.ids import hostname, is_uuid7, new_instance_id, uuid7
from p2pmesh.values import read_instance_id, read_name


def test_a_uuid7_is_one_to_others_and_sorts_by_time() -> None:
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(text := uuid7())
    assert (str(made), made.version, made.variant) == (text, 7, uuid.RFC_4122)
    assert before <= made.int >> 80 <= time.time_ns() // 1_000_000
    assert uuid7() != text


def test_a_uuid7_is_known_by_how_it_is_written() -> None:
    text = uuid7()
    assert is_uuid7(text)
    for other in (text.upper(), f"{{{text}}}", f"{text} ", text[:-1], str(uuid.uuid4()), "", "k"):
        assert not is_uuid7(other)


@pytest.mark.parametrize("name", ["lab-7.example", "", "a\nb\x7f", "ä" * 60])
def test_any_host_has_a_name_that_an_instance_can_be_named_by(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    assert read_name(hostname()) == hostname()
    made = new_instance_id(hostname())
    assert read_instance_id(made) == made
    assert made.startswith(f"{hostname()}-")
