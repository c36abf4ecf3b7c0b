"""As much of a Kubernetes API server as one pod's life needs, on loopback: what it is asked is kept, what it answers a test may change.

It allows what deploy/kubernetes/rbac.yaml does, and nothing else.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

POD: dict[str, Any] = {
    "kind": "Pod",
    "apiVersion": "v1",
    "metadata": {"name": "pod", "namespace": "ns", "uid": "u", "labels": {}},
    "spec": {"containers": [{"name": "base", "image": "i"}], "restartPolicy": "Never"},
    "status": {
        "phase": "Running",
        "containerStatuses": [{"name": "base", "image": "i", "imageID": "i", "ready": True, "restartCount": 0, "state": {"running": {}}}],
    },
}


_RBAC = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes" / "rbac.yaml"
_ROLES = [document for document in yaml.safe_load_all(_RBAC.read_text()) if document["kind"] == "Role"]
_ALLOWED = {(resource, verb) for role in _ROLES for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
_VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}


def right_for(method: str, target: str) -> tuple[str, str]:
    """Resource and verb of a request, as Kubernetes' authorization has them."""
    path, _, query = target.partition("?")
    resource, *rest = path.removeprefix("/api/v1/namespaces/").split("/")[1:]
    name, *part = rest or [""]
    read = "get" if name else "watch" if "watch=" in query else "list"
    return "/".join([resource, *part]), _VERBS.get(method, read)


class KubeApi:
    """``asked``: method and path of each request, in order, and ``told`` what came with each; ``answer`` gives a status for one in place
    of 200, or None.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked: list[tuple[str, str]] = []
        self.told: list[bytes] = []
        self.answer: Callable[[str, str], int | None] = lambda method, path: None

    @property
    def config(self) -> dict[str, Any]:
        """A kubeconfig that names it."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": self.address}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "ns"}}],
        }

    def deleted(self) -> list[str]:
        """Paths of what it was told to delete."""
        return [path for method, path in self.asked if method == "DELETE"]

    def logs(self) -> int:
        """How often it was asked for a pod's log."""
        return sum(path.endswith("/log") for _, path in self.asked)


@contextmanager
def kube_api() -> Iterator[KubeApi]:
    """A running one, in which a pod runs whenever somebody looks."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            told = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self.path.partition("?")[0]
            api.asked.append((self.command, path))
            api.told.append(told)
            allowed = right_for(self.command, self.path) in _ALLOWED
            status = (api.answer(self.command, path) or 200) if allowed else 403
            listing = self.command == "GET" and path.endswith(("/pods", "/events"))
            body = json.dumps({"kind": "List", "apiVersion": "v1", "metadata": {}, "items": []} if listing else POD).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815  # the library's names

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    api = KubeApi(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
