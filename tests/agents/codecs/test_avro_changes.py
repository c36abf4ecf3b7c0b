"""Which changes of a schema break readers, and by which field; what is called readable fastavro reads."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import pytest
from fastavro import parse_schema, schemaless_reader, schemaless_writer

from factory_agents.codecs.avro_changes import breaking_changes, unreadable
from tests.support.registries import record

V1 = record(event_id="int", text="string")
ADDED = record(event_id="int", text="string", more={"type": "int", "default": 0})
REQUIRED = record(event_id="int", text="string", more="int")
DROPPED = record(event_id="int")
RENAMED = record(event_id="int", words={"type": "string", "aliases": ["text"]})
WIDENED = record(event_id="long", text="string")
NARROWED_TO = record(event_id="string", text="string")


@pytest.mark.parametrize(
    ("new", "backward", "forward"),
    [
        (V1, "", ""),
        (ADDED, "", ""),
        (REQUIRED, "field 'more' has no default, and isn't in the records", ""),
        (DROPPED, "", "field 'text' has no default, and isn't in the records"),
        (RENAMED, "", "field 'text' has no default, and isn't in the records"),
        (WIDENED, "", "field 'event_id': long can't be read as int"),
        (NARROWED_TO, "field 'event_id': int can't be read as string", "field 'event_id': string can't be read as int"),
    ],
    ids=["same", "add", "add required", "drop", "rename by alias", "widen", "another type"],
)
def test_a_change_breaks_new_readers_old_ones_or_none(new: dict[str, Any], backward: str, forward: str) -> None:
    parsed, old = parse_schema(new), parse_schema(V1)
    new_reads = [f"the new version can't read old records: {backward}"] if backward else []
    old_reads = [f"the old version can't read new records: {forward}"] if forward else []
    assert breaking_changes(parsed, old, "backward") == new_reads
    assert breaking_changes(parsed, old, "forward") == old_reads
    assert breaking_changes(parsed, old, "full") == new_reads + old_reads
    assert breaking_changes(parsed, old, "") == []


KIND = {"type": "enum", "name": "Kind", "symbols": ["A"]}
WIDER_KIND = {"type": "enum", "name": "Kind", "symbols": ["A", "B"]}
MONEY = {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}
LIST = record("List", value="int", next=["null", "List"])


@pytest.mark.parametrize(
    ("reader", "writer", "says"),
    [
        (["null", "int"], "int", ""),
        ("int", ["null", "int"], "field 'x': null can't be read as int"),
        (["null", "string"], "int", "field 'x': int is none of null, string"),
        (["null", record("In", a="int", b="int")], record("In", a="int"), "field 'x.b' has no default, and isn't in the records"),
        ({"type": "array", "items": "int"}, {"type": "array", "items": "string"}, "field 'x[]': string can't be read as int"),
        ({"type": "map", "values": "long"}, {"type": "map", "values": "int"}, ""),
        ({"type": "map", "values": "int"}, {"type": "map", "values": "long"}, "field 'x{}': long can't be read as int"),
        (KIND, WIDER_KIND, "field 'x': the enum has no B and no default"),
        ({"type": {**KIND, "default": "A"}, "aliases": ["y"]}, WIDER_KIND, ""),
        ({"type": "fixed", "name": "F", "size": 4}, {"type": "fixed", "name": "F", "size": 5}, "field 'x': 5 bytes can't be read as 4"),
        ({**MONEY, "scale": 3}, MONEY, "field 'x': a decimal of scale 2 can't be read with scale 3"),
        (record("In", a="int"), record("Other", a="int"), "field 'x': the record is called In, not Other, and has no alias of that name"),
        (record("In", a="int"), "int", "field 'x': int can't be read as record"),
        (LIST, LIST, ""),
        (record("List", value="string", next=["null", "List"]), LIST, "field 'x.value': int can't be read as string"),
    ],
)
def test_a_difference_is_named_by_its_field(reader: Any, writer: Any, says: str) -> None:
    found = unreadable(parse_schema(record(x=reader)), parse_schema(record(x=writer)))
    assert found == ([says] if says else [])


@pytest.mark.parametrize("reader", [V1, ADDED, DROPPED, RENAMED, WIDENED])
def test_what_is_called_readable_is_read(reader: dict[str, Any]) -> None:
    written = BytesIO()
    schemaless_writer(written, parse_schema(V1), {"event_id": 1, "text": "a"})
    written.seek(0)
    assert unreadable(parse_schema(reader), parse_schema(V1)) == []
    assert schemaless_reader(written, parse_schema(V1), parse_schema(reader))["event_id"] == 1
