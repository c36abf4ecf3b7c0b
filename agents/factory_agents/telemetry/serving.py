"""A small HTTP server for what a process tells of itself: metrics, and whether it is alive. It answers GET, out of memory."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6, SHUT_RDWR
from socketserver import TCPServer
from typing import Any, TypeAlias

from factory_agents.errors import ConfigurationError

__all__ = ["Answer", "Asked", "Route", "SmallServer", "parse_listen", "text"]

log = logging.getLogger(__name__)

_AT_ONCE = 32
_SECONDS = 5.0
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Asked:
    """Who asks (an address), and which formats they accept."""

    client: str
    accept: str = ""


@dataclass(frozen=True)
class Answer:
    """What is answered; ``sent`` is called once the client's system has taken all of it."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    sent: Callable[[], None] = lambda: None


Route: TypeAlias = Callable[[Asked], Answer]


def text(words: str, status: int = 200) -> Answer:
    """A line."""
    return Answer(f"{words}\n".encode(), status=status)


def parse_listen(listen: str, where: str) -> tuple[str, int]:
    """Address and port of ``host:port``, ``[v6]:port`` or ``port`` alone, which is on loopback. Raises ConfigurationError."""
    host, _, number = listen.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or _LOOPBACK
    if not (number.isascii() and number.isdecimal()) or int(number) > 65535 or (":" in host and "[" not in listen):
        raise ConfigurationError(f"{where}: expected host:port such as 127.0.0.1:9108, or a port, got {listen!r}")
    return host, int(number)


class SmallServer:
    """Serves routes by their paths until it is closed, each request in a thread of its own.

    Raises ConfigurationError where it cannot listen.
    """

    def __init__(self, listen: str, routes: Mapping[str, Route], *, where: str) -> None:
        host, port = parse_listen(listen, where)
        try:
            self._server = _Server((host, port), _handler(routes))
        except (OSError, UnicodeError) as error:
            raise ConfigurationError(f"{where}: cannot listen on {listen!r}: {getattr(error, 'strerror', None) or error}") from None
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="http", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        """``host:port`` as it listens: with the port that was found where 0 was asked for."""
        host, port = self._server.server_address[:2]
        return f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}"

    def close(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = _AT_ONCE

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = AF_INET6 if ":" in address[0] else AF_INET
        self._free = threading.BoundedSemaphore(_AT_ONCE)
        self._since: dict[Any, float] = {}
        super().__init__(address, handler)

    def server_bind(self) -> None:
        """Without asking for the host's name, which may take long."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = (str(self.server_address[0]), int(self.server_address[1]))

    def process_request(self, request: Any, client_address: Any) -> None:
        """Whoever comes while too many are served is sent away, and with them those who take too long to say what they want."""
        if self._free.acquire(blocking=False):
            self._since[request] = time.monotonic()
            super().process_request(request, client_address)
            return
        for served, since in list(self._since.items()):
            if time.monotonic() > since + 2 * _SECONDS:
                with suppress(OSError):
                    served.shutdown(SHUT_RDWR)  # its thread sees the end and closes it
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """In a thread of its own."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._since.pop(request, None)
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to tell of."""
        log.debug("a request failed")


def _handler(routes: Mapping[str, Route]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = _SECONDS
        server_version, sys_version = "factory", ""

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            route = routes.get(self.path.partition("?")[0])
            try:
                answer = text(f"there is: {', '.join(routes)}", 404) if route is None else route(self._asked())
            except Exception:
                log.exception("unexpected error; please report it")
                answer = text("unexpected error, see the log", 500)
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if body:
                self.wfile.write(answer.body)
                answer.sent()

        def _asked(self) -> Asked:
            return Asked(str(self.client_address[0]), self.headers.get("Accept", ""))

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            log.debug(format, *args)

    return Handler
