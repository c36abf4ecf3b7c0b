"""A server that takes what is posted to it, as Slack and other webhooks do, and notes it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Webhooks:
    """``posted`` are the paths and bodies of what was answered with 200. ``answers`` are other statuses, given first and in this order."""

    url: str = ""
    posted: list[tuple[str, Any]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)

    def bodies(self, path: str) -> list[Any]:
        return [body for where, body in self.posted if where == path]

    def texts(self, path: str = "/slack") -> list[str]:
        """Slack's messages as one text each."""
        return [text_of(body) for body in self.bodies(path)]


def text_of(payload: dict[str, Any]) -> str:
    """All text in the blocks of a message to Slack."""
    parts = [block.get("text", {}).get("text", "") or block["elements"][0]["text"] for block in payload["blocks"]]
    return "\n".join(parts)


@contextmanager
def webhooks() -> Iterator[Webhooks]:
    """One that listens."""
    noted = Webhooks()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = noted.answers.pop(0) if noted.answers else 200
            if status == 200:
                noted.posted.append((self.path, json.loads(body)))
            else:
                noted.refused.append(status)
            answer = json.dumps({"ok": True}).encode() if self.path.startswith("/api") else b"ok"
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if self.path.startswith("/api") else "text/plain")
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    noted.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield noted
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
