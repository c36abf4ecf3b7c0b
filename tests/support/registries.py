"""A schema registry as tests use it: subjects registered by Confluent's own client, and answers of one that misbehaves."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            asked.append((path, self.headers.get("Authorization")))
            found = answers.get(self.path, answers.get(path))
            code, data = (status, found) if found is not None else (404, {"error_code": 40403, "message": "Schema not found"})
            if isinstance(found, tuple):
                code, data = found
            body = data if isinstance(data, bytes) else json.dumps(data).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
