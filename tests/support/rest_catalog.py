"""An Iceberg REST catalog over one in SQLite, as far as a publisher asks it; a test says which requests go wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from pyiceberg import exceptions as iceberg
from pyiceberg.catalog.rest import CreateTableRequest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import CommitTableRequest, Table

Trouble = Literal["lost request", "lost answer"] | int | None
"""What becomes of a request: it is lost, or its answer is; or it is answered by this status, and not done."""
_STATUS = {
    iceberg.NoSuchTableError: 404,
    iceberg.NoSuchNamespaceError: 404,
    iceberg.TableAlreadyExistsError: 409,
    iceberg.NamespaceAlreadyExistsError: 409,
    iceberg.CommitFailedException: 409,
}


class RestCatalogServer:
    """Serves tables whose files are in ``folder``; ``token`` is asked of each request, if there is one."""

    def __init__(self, folder: Path, token: str = "") -> None:
        self.trouble: Callable[[str, str], Trouble] = lambda method, path: None
        self.asked: list[str] = []
        self._token = token
        self._tables = SqlCatalog("behind", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse")
        self._one_at_a_time = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0))
                server._handle(self, unquote(urlsplit(self.path).path), body)

            do_GET = do_POST = do_DELETE = do_HEAD = _handle  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._tables.close()

    def _handle(self, request: BaseHTTPRequestHandler, path: str, body: bytes) -> None:
        self.asked.append(f"{request.command} {path}")
        trouble = self.trouble(request.command, path)
        if self._token and request.headers.get("authorization") != f"Bearer {self._token}":
            trouble = 401
        if trouble == "lost request":
            request.close_connection = True
            return
        if isinstance(trouble, int):
            status, answer = trouble, _error("Trouble", f"{trouble}, as the test says", trouble)
        else:
            status, answer = self._answer(request.command, path.split("/")[2:], body)
        if trouble == "lost answer":
            request.close_connection = True
            return
        request.send_response(status)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(answer)))
        request.end_headers()
        request.wfile.write(answer if request.command != "HEAD" else b"")

    def _answer(self, method: str, path: list[str], body: bytes) -> tuple[int, bytes]:
        try:
            with self._one_at_a_time:
                return 200, json.dumps(self._do(method, path, body)).encode()
        except Exception as error:
            status = _STATUS.get(type(error), 500)
            return status, _error(type(error).__name__, str(error), status)

    def _do(self, method: str, path: list[str], body: bytes) -> Any:
        tables = self._tables
        match method, path:
            case "GET", ["config"]:
                return {"defaults": {}, "overrides": {}}
            case "POST", ["namespaces"]:
                told = json.loads(body)
                tables.create_namespace(tuple(told["namespace"]))
                return told
            case "POST", ["namespaces", namespace, "tables"]:
                absent = {"location": None, "partition-spec": None, "write-order": None}  # a client leaves out what is nothing
                wanted = CreateTableRequest.model_validate(absent | json.loads(body))
                made = tables.create_table(
                    (namespace, wanted.name),
                    wanted.table_schema,
                    location=wanted.location,
                    properties=wanted.properties,
                    **({"partition_spec": wanted.partition_spec} if wanted.partition_spec else {}),
                )
                return _told(made)
            case "GET", ["namespaces", namespace, "tables", name]:
                return _told(tables.load_table((namespace, name)))
            case "POST", ["namespaces", namespace, "tables", name]:
                commit = CommitTableRequest.model_validate_json(body)
                found = tables.load_table((namespace, name))
                done = tables.commit_table(found, commit.requirements, commit.updates)
                return json.loads(done.model_dump_json())
            case "DELETE", ["namespaces", namespace, "tables", name]:
                tables.drop_table((namespace, name))
                return {}
        raise NotImplementedError(f"{method} {path}")


def _told(table: Table) -> dict[str, Any]:
    return {"metadata-location": table.metadata_location, "metadata": json.loads(table.metadata.model_dump_json()), "config": {}}


def _error(kind: str, message: str, code: int) -> bytes:
    return json.dumps({"error": {"type": kind, "message": message, "code": code}}).encode()
