"""Change events of Debezium's on real topics: rows, deletes and versions land in a table, over JSON and over Avro."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import msgspec
import psycopg
import pytest
from confluent_kafka import Producer
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from factory_agents.protocol import AgentResult, CodecRef
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from tests.support.debezium import change, envelope
from tests.support.registries import Subjects, record
from tests.support.runs import Runs

CONTRACT = {
    "name": "orders",
    "id": "order_id",
    "key": "order_id",
    "version_field": "__lsn",
    "deletes": True,
    "schema": {
        "type": "object",
        "required": ["order_id"],
        "properties": {"order_id": {"type": "integer"}, "price": {"type": "number"}, "__lsn": {"type": "integer"}},
    },
    "columns": {"order_id": "bigint", "price": "numeric", "__lsn": "bigint"},
}
CHANGES = [
    change("r", after={"order_id": 1, "price": Decimal("1.10")}, lsn=10),
    change("c", after={"order_id": 2, "price": Decimal("2.20")}, lsn=11),
    change("c", after={"order_id": 3, "price": Decimal("3.30")}, lsn=12),
    change("u", before={"order_id": 1, "price": Decimal("1.10")}, after={"order_id": 1, "price": Decimal("9.90")}, lsn=13),
    change("d", before={"order_id": 2, "price": Decimal("2.20")}, lsn=14),
    change("u", after={"order_id": 1, "price": Decimal("0.10")}, lsn=9),  # written late: an older version
    change("t", lsn=15),
]


def land(runs: Runs, records: list[tuple[Any, Any]], codec: CodecRef) -> AgentResult:
    source = runs.topic("orders", partitions=1)
    producer = Producer({"bootstrap.servers": runs.bootstrap})
    for key, value in records:
        producer.produce(source, value, key=key, partition=0)
    assert producer.flush(60) == 0
    window = msgspec.structs.replace(runs.window(source), codec=codec)
    told = runs.run(window, "", "publish", params={"contract": CONTRACT, "table": f"t_{runs.prefix}"}, max_rejected="10")
    return execute(RunContext(runs.config), told)


def rows(runs: Runs, database_url: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(database_url) as connection:
        return connection.execute(f'SELECT order_id, price FROM "t_{runs.prefix}" ORDER BY order_id').fetchall()


def test_changes_as_json_land_as_rows_and_deletes(runs: Runs, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    records: list[tuple[Any, Any]] = [
        (b'{"schema": {}, "payload": {"order_id": 0}}', json.dumps({"schema": {}, "payload": change_}, default=float))
        for change_ in CHANGES
    ]
    gone = json.dumps({"schema": {}, "payload": {"order_id": 3}}).encode()
    result = land(runs, [*records, (gone, None)], CodecRef("debezium", {"add": "lsn"}))
    assert rows(runs, database_url) == [(1, Decimal("9.9"))]
    assert (result.counts.deleted, result.counts.rejected) == (2, 1)
    (letter,) = runs.manifest(result.dead_letters)
    assert (letter.dead_letter["rule"], json.loads(letter.value or b"")["payload"]["op"]) == ("operation", "t")


def test_changes_as_avro_land_as_rows_and_deletes_by_keys_that_are_avro_too(
    runs: Runs, database_url: str, registry_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", registry_url)
    subjects = Subjects(registry_url)
    topic = f"{runs.prefix}.orders"
    price = {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2}
    row = record("Value", order_id="long", price=["null", price])
    keys = AvroSerializer(subjects.client, json.dumps(record("Key", order_id="long")), conf={"auto.register.schemas": True})
    key = [keys({"order_id": n}, SerializationContext(topic, MessageField.KEY)) for n in range(4)]
    values = subjects.written(topic, envelope(row), *CHANGES[:-1], change("d"))
    subjects.client.close()
    order = [1, 2, 3, 1, 2, 1, 3]
    records: list[tuple[Any, Any]] = [*zip([key[n] for n in order], values, strict=True), (key[2], None), (b"no avro", None)]
    result = land(runs, records, CodecRef("debezium", {"over": "avro?version=writer", "add": "lsn"}))
    assert rows(runs, database_url) == [(1, Decimal("9.90"))]
    assert (result.counts.deleted, result.counts.rejected) == (2, 1)
    (letter,) = runs.manifest(result.dead_letters)
    assert (letter.key, letter.value, letter.dead_letter["rule"]) == (b"no avro", None, "decode")
