"""Values out of text: what is accepted, in which form, and that nothing else escapes.
How a refusal is told, with the option and the fix, is in ``test_config``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pmesh import values
from p2pmesh.values import (
    read_address,
    read_choice,
    read_count,
    read_hostname,
    read_http,
    read_name,
    read_path,
    read_peer,
    read_port,
    read_seconds,
    read_url,
)


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (read_name, "é" * 32, "é" * 32),  # 64 bytes
        (read_hostname, "", ""),
        (read_port, "0", 0),
        (read_port, "65535", 65535),
        (read_address, "[::1]", "::1"),
        (read_address, "FD00::2", "fd00::2"),
        (read_peer, "gateway.lan", "gateway.lan:8078"),
        (read_peer, "10.0.0.7:1", "10.0.0.7:1"),
        (read_peer, "[fd00::2]", "[fd00::2]:8078"),
        (read_peer, "[fe80::1%eth0]:9", "[fe80::1%eth0]:9"),
        (read_http, "auto", "auto"),
        (read_http, "off", "off"),
        (read_http, "[::1]:0", "[::1]:0"),
        (read_http, "127.0.0.1:8077", "127.0.0.1:8077"),
        (read_url, "http://127.0.0.1:8077/", "http://127.0.0.1:8077"),
        (read_url, "http://ada.local", "http://ada.local"),
        (read_seconds, "0.5", 0.5),
        (read_seconds, "300", 300.0),
        (read_path, "/a b", "/a b"),
        (read_count(3, 12), "12", 12),
        (read_choice(("a", "b")), "b", "b"),
    ],
)
def test_a_value_is_read_into_one_form(
    read: Callable[[str], Any], text: str, value: object
) -> None:
    assert read(text) == value


def test_a_path_may_begin_with_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert read_path("~/key") == "/home/ada/key"


READERS = [
    getattr(values, name)
    for name in dir(values)
    if name.startswith("read_") and name not in ("read_choice", "read_count")
]


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@given(text=st.text() | st.text("[]:0123456789abf.%/@htp", max_size=12))
def test_whatever_the_text_it_is_a_value_or_a_reason(read: Callable[[str], Any], text: str) -> None:
    reason = ""
    try:
        value = read(text)
    except ValueError as error:
        reason = str(error) or "\n"
    assert "\n" not in reason
    if not reason and read is not read_path:  # which may begin with a new "~"
        assert read(str(value)) == value
