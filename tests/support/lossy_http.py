"""A way to an HTTP server that loses or refuses requests, or loses answers, as a test says which."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Loss = Literal["request", "answer", "refused", None]


class LossyHttp:
    """Forwards requests to ``url``; ``lose`` is asked of each, by method and path, what of it gets lost.

    What is refused is answered with the status and the JSON of ``refusal``.
    """

    def __init__(self, url: str, lose: Callable[[str, str], Loss], refusal: tuple[int, object] = (403, {})) -> None:
        self.asked: list[str] = []
        target = urlsplit(url)
        log = self.asked

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                log.append(f"{self.command} {self.path}")
                loss = lose(self.command, self.path)
                if loss == "request":
                    self._hang_up()
                    return
                if loss == "refused":
                    self._refuse()
                    return
                there = http.client.HTTPConnection(target.hostname or "", target.port, timeout=120)
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "connection")}
                there.request(self.command, self.path, body, {**headers, "Host": target.netloc})
                answer = there.getresponse()
                content = answer.read()
                if loss == "answer":
                    self._hang_up()
                else:
                    self.send_response(answer.status)
                    for name, value in answer.getheaders():
                        if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                            self.send_header(name, value.replace(target.netloc, self.headers["host"]))
                    self.send_header("content-length", str(len(content)))
                    self.end_headers()
                    self.wfile.write(content)
                there.close()

            def _refuse(self) -> None:
                status, content = refusal
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(said := json.dumps(content).encode())))
                self.end_headers()
                self.wfile.write(said)

            def _hang_up(self) -> None:
                self.close_connection = True

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
