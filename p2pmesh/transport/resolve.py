"""Host names to addresses, without holding anything up.

The system's resolver blocks, for half a minute where no name server answers.  It
runs in a daemon thread of its own: neither the loop's thread pool nor the end of
the process waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading


async def resolve(host: str, port: int) -> tuple[str, ...]:
    """All addresses of ``host`` as "ip:port" or "[v6]:port", in the system's order.
    Raises OSError."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def ask() -> None:
        error: OSError | None = None
        hosts: list[str] = []
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            hosts = [str(address[0]) for _, _, _, _, address in found]
        except (OSError, UnicodeError) as raised:
            error = OSError(f"{host}: {raised}")
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, hosts, error)

    def tell(hosts: list[str], error: OSError | None) -> None:
        if answer.done():
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(hosts)

    threading.Thread(target=ask, name=f"p2pmesh-resolve-{host}", daemon=True).start()
    hosts = dict.fromkeys(await answer)
    return tuple(f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip in hosts)
