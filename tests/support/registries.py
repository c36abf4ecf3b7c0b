"""A schema registry as tests use it: subjects registered by Confluent's own client, and answers of one that misbehaves."""

from __future__ import annotations

import json
import ssl
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext


def record(name: str = "Event", **fields: Any) -> dict[str, Any]:
    """A record's schema: each field's type, or a mapping with ``type`` and ``default``."""
    return {
        "type": "record",
        "name": name,
        "fields": [
            {"name": key, **(value if isinstance(value, dict) and ("default" in value or "aliases" in value) else {"type": value})}
            for key, value in fields.items()
        ],
    }


class Subjects:
    """What producers elsewhere do with a registry."""

    def __init__(self, url: str) -> None:
        self.client = SchemaRegistryClient({"url": url, "timeout": 10, "max.retries": 3})  # an answer of Apicurio may never come

    def register(self, subject: str, schema: dict[str, Any] | str, *references: SchemaReference) -> int:
        text = schema if isinstance(schema, str) else json.dumps(schema)
        return self.client.register_schema(subject, Schema(text, "AVRO", references=list(references)))

    def written(self, topic: str, schema: dict[str, Any], *events: dict[str, Any]) -> list[bytes]:
        """Values as Confluent's serialiser writes them."""
        serialize = AvroSerializer(self.client, json.dumps(schema), conf={"auto.register.schemas": True})
        return [serialize(event, SerializationContext(topic, MessageField.VALUE)) or b"" for event in events]

    def read(self, topic: str, *values: bytes | None) -> list[Any]:
        """Events as Confluent's deserialiser reads them."""
        deserialize = AvroDeserializer(self.client)
        return [deserialize(value, SerializationContext(topic, MessageField.VALUE)) for value in values]


@contextmanager
def answering(answers: dict[str, Any], status: int = 200) -> Iterator[tuple[str, list[Any]]]:
    """A registry that gives these answers by path, and what it was asked: Apicurio knows neither GUIDs nor rules."""
    asked: list[Any] = []

    def respond(to: Served) -> None:
        path = to.path.partition("?")[0]
        asked.append((path, to.headers.get("Authorization")))
        found = answers.get(to.path, answers.get(path))
        code, data = (status, found) if found is not None else (404, {"error_code": 40403, "message": "Schema not found"})
        if isinstance(found, tuple):
            code, data = found
        to.answer(code, data if isinstance(data, bytes) else json.dumps(data).encode())

    with serving(respond) as url:
        yield url, asked


@contextmanager
def with_guids(behind: str) -> Iterator[str]:
    """A real registry behind one that adds GUIDs to what it says, and knows schemas by them: Apicurio doesn't."""
    guids: dict[str, int] = {}

    def named(data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("id"), int):
            guid = str(uuid.uuid5(uuid.NAMESPACE_URL, str(data["id"])))
            guids[guid] = data["id"]
            return {**data, "guid": guid}
        return data

    def pass_on(to: Served) -> None:
        path = to.path
        if path.startswith("/schemas/guids/"):
            path = f"/schemas/ids/{guids.get(path.partition('?')[0].rpartition('/')[2], 0)}"
        body = to.rfile.read(int(to.headers.get("Content-Length") or 0)) or None
        headers = {"Content-Type": to.headers.get("Content-Type") or "application/json"}
        request = urllib.request.Request(behind + path, body, headers, method=to.command)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                status, answer = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, answer = error.code, error.read()
        to.answer(status, json.dumps(named(json.loads(answer))).encode() if answer else answer)

    with serving(pass_on) as url:
        yield url


class Served(BaseHTTPRequestHandler):
    """One question to a registry of a test's own."""

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(respond: Callable[[Any], None], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server whose every answer is this function's, and its address."""

    class Handler(Served):
        def do_GET(self) -> None:
            with suppress(OSError):  # whoever asked has gone
                respond(self)

        do_POST = do_PUT = do_GET  # noqa: N815  # the names that the server looks for

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
