"""A node's HTTP API as far as one-shot commands use it, from the standard library.

``test_commands`` speaks to it; ``tests/mesh/test_processes.py`` holds the same
commands against real nodes, which keeps this honest.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, object]  # status, JSON value (bytes: the body as it stands)
MEMBER = {
    "instance_id": "ada-1", "node_id": "aa" * 32, "name": "ada", "kind": "node",
    "home": "aa" * 32, "state": "alive", "stalled": False, "life": "1.0.2", "incarnation": 0,
    "capabilities": [], "agent_profiles": [], "status": None, "metrics": None,
    "addresses": ["127.0.0.1:8078"], "last_heartbeat_age": 0.25, "is_leader": True,
    "candidate": True,
}  # fmt: skip


class FakeNode:
    """``answers`` maps "METHOD /path" to an answer or to a list of them, used up
    but for the last; ``seen`` holds what was asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: list[tuple[str, Any]] = []
        self.answers: dict[str, Any] = {
            "GET /v1/self": (200, MEMBER | {"mesh": "lab"}),
            "GET /v1/members": (200, {"node_id": "aa", "leader_id": "ada-1", "epoch": 7,
                                      "members": [MEMBER]}),
            "GET /v1/leader": (200, {"node_id": "aa", "leader_id": "ada-1", "epoch": 7,
                                     "token": None, "authoritative": True,
                                     "policy": "available", "since": 3.2}),
            "GET /v1/members/ada": (200, MEMBER),
        }  # fmt: skip

    def answer(self, method: str, path: str, body: Any) -> Answer:
        self.seen.append((f"{method} {path}", body))
        found = self.answers.get(f"{method} {path}", (404, {"detail": f"no {path} here"}))
        if isinstance(found, list):
            return found.pop(0) if len(found) > 1 else found[0]
        return found

    def body_of(self, call: str) -> Any:
        return next(body for seen, body in self.seen if seen == call)


@contextmanager
def fake_node() -> Iterator[FakeNode]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, value = node.answer(self.command, self.path, body)
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            if self.path == "/v1/events":
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_DELETE = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    node = FakeNode(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield node
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


Run = Callable[..., tuple[int, str, str]]
