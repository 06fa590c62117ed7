"""An argument that is not usable is named, with its value and what to give instead."""

from __future__ import annotations

from typing import Any

import pytest

from p2pmesh.arguments import read, read_each, read_labels
from p2pmesh.errors import ConfigError
from p2pmesh.values import read_name


def test_what_is_usable_comes_out_as_it_is_used() -> None:
    assert read("name", read_name, "ada") == "ada"
    assert read_each("names", read_name, ["a", "b"]) == ("a", "b")
    assert read_labels("capabilities", (each for each in "ab")) == ("a", "b")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ((read, "name", read_name, 7), r"^name 7: give text, not int$"),
        ((read, "name", read_name, ""), r"^name '': a name is 1 to 64 bytes"),
        ((read_each, "peers", read_name, "ab"), r"^peers 'ab': give a list of texts"),
        ((read_labels, "profiles", ["x"] * 33), r"^profiles: 33 are given, at most 32"),
        ((read_labels, "profiles", ["x" * 65]), r"^profiles 'x+': a capability or profile is 1 to"),
    ],
    ids=["a number", "nothing", "one text for a list", "too many", "too long"],
)
def test_what_is_not_is_a_mistake_with_a_name(call: tuple[Any, ...], said: str) -> None:
    function, *arguments = call
    with pytest.raises(ConfigError, match=said):
        function(*arguments)
