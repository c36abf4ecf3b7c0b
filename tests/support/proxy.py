"""A TCP proxy that a test cuts: whoever goes through it sees a server that doesn't answer."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from urllib.parse import urlsplit

import yaml


class Proxy:
    """Forwards connections to one address until it is cut, and again once it is mended; it listens ``at`` an address of this machine."""

    def __init__(self, host: str, port: int, *, at: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._open: list[socket.socket] = []
        self._cut = False
        self._server = socket.create_server((at, 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Drop what is open and refuse what comes."""
        self._cut = True
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def mend(self) -> None:
        """Forward again."""
        self._cut = False

    def close(self) -> None:
        """End it."""
        self.cut()
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                came, _ = self._server.accept()
                if self._cut:
                    came.close()
                    continue
                there = socket.create_connection(self._target)
                self._open += [came, there]
                for a, b in ((came, there), (there, came)):
                    threading.Thread(target=_pump, args=(a, b), daemon=True).start()


def _pump(a: socket.socket, b: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := a.recv(65536):
            b.sendall(data)
    with contextlib.suppress(OSError):
        b.shutdown(socket.SHUT_WR)


def through_proxy(kubeconfig: Path, folder: Path) -> tuple[Proxy, Path]:
    """A proxy before the API server of a kubeconfig's current context, and a kubeconfig that goes through it."""
    data = yaml.safe_load(kubeconfig.read_text())
    context = next(c["context"] for c in data["contexts"] if c["name"] == data["current-context"])
    cluster = next(c["cluster"] for c in data["clusters"] if c["name"] == context["cluster"])
    server = urlsplit(cluster["server"])
    proxy = Proxy(server.hostname or "", server.port or 443)
    cluster["server"] = f"https://127.0.0.1:{proxy.port}"
    cluster["tls-server-name"] = server.hostname
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(data))
    return proxy, path
