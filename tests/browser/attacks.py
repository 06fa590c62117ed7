"""What a page can try, as JavaScript, and a server without protection on which it works."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

#: Each gets the base URL of its victim and an id; a read returns what the page saw, a
#: write tries to register the id, and what becomes of it is seen at the victim.
READS: Final = {
    "fetch": "return await (await fetch(base + '/registry/agents')).text();",
    "fetch without CORS": """
        const answer = await fetch(base + '/registry/agents', {mode: 'no-cors'});
        return await answer.text();""",
    "fetch with credentials": """
        const answer = await fetch(base + '/registry/agents', {credentials: 'include'});
        return await answer.text();""",
    "XMLHttpRequest": """
        return await new Promise((seen, failed) => {
            const request = new XMLHttpRequest();
            request.onload = () => seen(request.responseText);
            request.onerror = () => failed('network');
            request.open('GET', base + '/v1/self');
            request.send();
        });""",
    "an image": """
        return await new Promise((seen, failed) => {
            const image = new Image();
            image.onload = () => seen('an image of ' + image.width);
            image.onerror = () => failed('no image');
            image.src = base + '/health';
        });""",
    "an event source": """
        return await new Promise((seen, failed) => {
            const events = new EventSource(base + '/v1/events');
            events.onopen = () => { events.close(); seen('open'); };
            events.onerror = () => { events.close(); failed('closed'); };
        });""",
}
_BODY: Final = """
    const body = JSON.stringify({instance_id: id, hostname: 'h', port: 1,
                                 capabilities: [], agent_profiles: []});
    const url = base + '/registry/register';
"""
WRITES: Final = {
    "JSON": _BODY + """
        await fetch(url, {method: 'POST', body, headers: {'content-type': 'application/json'}});""",
    "JSON as text": _BODY + """
        await fetch(url, {method: 'POST', body, headers: {'content-type': 'text/plain'}});""",
    "JSON as text without CORS": _BODY + """
        await fetch(url, {method: 'POST', body, mode: 'no-cors'});""",
    "a beacon": _BODY + "navigator.sendBeacon(url, new Blob([body], {type: 'text/plain'}));",
    "a form": """
        const form = document.createElement('form');
        form.method = 'POST';
        form.enctype = 'text/plain';  // name=value: the equals sign is in a string
        form.action = base + '/registry/register';
        const field = document.createElement('input');
        field.name = `{"instance_id":"${id}","hostname":"h","port":1,"capabilities":[],` +
                     `"agent_profiles":[],"x":"`;
        field.value = '"}';
        form.append(field);
        const frame = document.createElement('iframe');
        frame.name = form.target = 'f' + Math.random();
        document.body.append(form, frame);
        await new Promise(loaded => { frame.onload = loaded; form.submit(); });""",
    "a deregistration": "await fetch(base + '/registry/deregister/' + id, {method: 'DELETE'});",
}  # fmt: skip
#: It needs no body, and no id.
GOODBYE: Final = "await fetch(base + '/v1/leave', {method: 'POST', mode: 'no-cors'});"
#: No page reads what it fetched from another origin without CORS.
NEVER_SEEN: Final = "fetch without CORS"


def script(body: str) -> str:
    """A function for ``page.evaluate``: null when what was tried did not work."""
    return f"""async ([base, id]) => {{
        try {{ {body} }} catch (error) {{ return null; }}
        return null;
    }}"""


class Careless:
    """A server that asks nobody who they are, and remembers what it was told."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.told: list[str] = []


@contextmanager
def careless() -> Iterator[Careless]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/v1/events":
                self.answer("text/event-stream", b"data: x\n\n")
            elif self.headers.get("Accept", "").startswith("image/"):
                self.answer("image/gif", PIXEL)
            elif self.path == "/page":
                self.answer("text/html", b"<!doctype html><body>")
            else:
                self.answer("application/json", b'{"instances":["careless"]}')

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.told.append(self.path + body.decode())
            self.answer("application/json", b"{}")

        def do_DELETE(self) -> None:
            server.told.append(self.path)
            self.answer("application/json", b"{}")

        def do_OPTIONS(self) -> None:
            self.answer("text/plain", b"")

        def answer(self, content_type: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            origin = self.headers.get("Origin")
            self.send_header("Access-Control-Allow-Origin", origin or "*")
            self.send_header("Access-Control-Allow-Credentials", "true")
            self.send_header("Access-Control-Allow-Headers", "content-type")
            self.send_header("Access-Control-Allow-Methods", "GET, POST, DELETE")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        server = Careless(listening.server_port)
        thread = threading.Thread(target=listening.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            listening.shutdown()
            thread.join()


PIXEL: Final = bytes.fromhex(
    "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"
)
