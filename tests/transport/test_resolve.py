"""Names to addresses, with a resolver that answers, fails or hangs."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from p2pmesh.transport.resolve import resolve


async def test_an_address_resolves_to_itself() -> None:
    assert await resolve("127.0.0.1", 8078) == ("127.0.0.1:8078",)
    assert await resolve("::1", 8078) == ("[::1]:8078",)


async def test_every_address_of_a_name_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(*args: Any, **kwargs: Any) -> list[Any]:
        return [(0, 0, 0, "", (ip, 7)) for ip in ("10.0.0.1", "fd00::1", "10.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    assert await resolve("printer.lan", 7) == ("10.0.0.1:7", "[fd00::1]:7")


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name not known"), UnicodeError("label")])
async def test_a_name_that_nobody_knows_is_an_oserror_that_names_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> list[Any]:
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(OSError, match=r"printer\.lan"):
        await resolve("printer.lan", 7)


async def test_a_resolver_that_hangs_can_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    release, asked = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(*args: Any, **kwargs: Any) -> list[Any]:
        loop.call_soon_threadsafe(asked.set)
        release.wait(20)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    waiting = asyncio.ensure_future(resolve("printer.lan", 7))
    await asked.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    threads = [t for t in threading.enumerate() if t.name == "p2pmesh-resolve-printer.lan"]
    assert [t.daemon for t in threads] == [True]
    release.set()
    for thread in threads:
        await asyncio.to_thread(thread.join, 20)
