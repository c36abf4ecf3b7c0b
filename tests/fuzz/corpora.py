"""What hostile and broken inputs look like: texts, files and records to begin with, and ways to change them."""

from __future__ import annotations

import io
from functools import cache

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from factory_agents.protocol import AgentRef, AgentRun, ErrorInfo, encode
from tests.agents.kafka.test_ledger import TestWhatCommit3110607Wrote as OldLedger
from tests.support.runs import ROOT

JSON = [
    b'{"event_id": 1, "time": "2026-11-01T00:00:00Z", "text": "a", "n": 1.5, "deep": {"a": [1, {"b": null}]}}',
    b"[" * 100_000,
    b'{"a":' * 50_000,
    b'{"event_id": ' + b"[" * 600 + b"]" * 600 + b"}",
    b'{"event_id": ' + b"9" * 50_000 + b"}",
    b'{"event_id": -1e999999}',
    b'{"event_id": 1e-400, "time": 1e308, "n": 123456789012345678901234567890}',
    b'{"event_id": 1, "event_id": 2, "time": 1, "time": 2}',
    b'{"event_id": "\\ud800", "text": "\\udfff\\ud800"}',
    b'{"event_id": "\xed\xa0\x80"}',
    b'{"event_id": "\\u0000", "\\u0000": 1, "": 2}',
    b'{"event_id": "a\x00b"}',
    b'\xef\xbb\xbf{"event_id": 1}',
    b'\xff\xfe{\x00"\x00a\x00"\x00:\x001\x00}\x00',
    b'{"event_id": "\xff"}',
    b'{"event_id": NaN, "n": Infinity}',
    b'{"event_id": true, "time": [], "text": {}}',
    b'{"event_id": 1, "time": "99999-01-01T00:00:00Z"}',
    b'{"event_id": 1, "time": "0001-01-01T00:00:00+14:00"}',
    b'{"event_id": 1, "time": "2026-11-01T00:00:00.' + b"1" * 10_000 + b'Z"}',
    b'{"event_id": 1, "text": "' + "\u202e\x1b[2J\u009b\u2028".encode() + b'"}',
    b"null",
    b'""',
    b"",
    b"{",
]

YAML = [
    (ROOT / "include" / "contracts" / "events.yaml").read_bytes(),
    (ROOT / "include" / "topics.yaml").read_bytes(),
    b"name: e\nid: null\nrules: {a: 'n > 1', b: 'text.matches(\"(a+)+$\") or len(text) > 3 and -n ** 2'}\nschema: {properties: {n: {}}}\n",
    b"a: &a [x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b, *b]\nd: [*c, *c, *c, *c, *c, *c, *c]\n",
    b"a: &a {b: *a}\n",
    b"a: &a\n  <<: *a\nname: e\n",
    b"<<: [{name: e}, {id: null}]\n",
    b"!!python/object/apply:os.system ['true']\n",
    b"name: !!binary aGVsbG8=\nid: !!float .nan\n",
    b"name: " + b"x" * 200_000,
    b"name: 2026-11-01\nid: 012\nschema: {properties: {a: {enum: [1e400, .inf, 0x1F, 1:30]}}}\n",
    b"? [complex, key]\n: value\n",
    b"[" * 5_000,
    b"- " * 5_000,
    b"name: e\x00\n",
    b"name: \xff\xfe\n",
    b"\xef\xbb\xbfname: e\n",
    b"%YAML 9.9\n---\nname: e\n...\n---\nname: f\n",
    b"name: e\nschema: {$ref: '#/schema'}\n",
    b"name: e\nid: null\nschema: {properties: {a: {pattern: '(a|b){5000}'}}, patternProperties: {'((': {}}}\n",
    b"name: e\nrules: {a: '" + b"(" * 5_000 + b"', b: '" + b"not " * 5_000 + b"a'}\n",
    b"topics: {t: {partitions: 99999999999999999999, config: {a: [1]}}, 'a b': null}\ndefaults: 7\n",
]

DELIMITED = [
    b"event_id,time,text\n1,2026-11-01T00:00:00Z,a\n2,,b\n",
    b"event_id,time,text\n" + b'"' * 5_001,
    b'event_id,time,text\n1,"' + b"\n" * 20_000,
    b"event_id\n" + b"," * 100_000 + b"\n",
    b"," * 20_000 + b"\n",
    b"event_id,event_id,\n1,2,3\n",
    b"event_id,time\r1,2\r3,4\r",
    b"\xef\xbb\xbfevent_id,time\n1,1\n",
    b"event_id,time\n\x00,\x00\n",
    b"event_id,time\n\xff\xfe,1\n",
    b"event_id,time\n1,1e308\n2,-99999999999999999999\n3,9" + b"9" * 5_000 + b"\n",
    b"event_id,time\n1,2026-11-01T00:00:00+99:99\n",
    b"",
    b"\n\n\n",
]


@cache
def parquet_files() -> list[bytes]:
    """Small real files of every kind of column, compressed in different ways, and one whose few bytes mean much."""
    table = pa.table(
        {
            "event_id": pa.array([1, 2, 3, None]),
            "time": pa.array([1, 2, 3, 4], pa.timestamp("us", "UTC")),
            "text": pa.array(["a", "b" * 1000, None, "a"]),
            "shared": pa.array(["x" * 5000] * 4).dictionary_encode(),
            "list": pa.array([[1], [], None, [2, 3]]),
            "map": pa.array([[("a", 1)], [], None, [("b", 2)]], pa.map_(pa.string(), pa.int64())),
            "struct": pa.array([{"a": 1, "b": "x"}, None, {"a": 2, "b": "y"}, {"a": None, "b": None}]),
            "decimal": pa.array([1, 2, None, 4], pa.decimal128(38, 10)),
            "day": pa.array([1, -700_000, None, 2_900_000], pa.date32()),
            "bytes": pa.array([b"\xff", b"", None, b"\x00"]),
        }
    )
    files = []
    for settings in (
        {"compression": "none"},
        {"compression": "zstd"},
        {"compression": "snappy", "use_dictionary": False, "version": "1.0"},
    ):
        out = io.BytesIO()
        pq.write_table(table, out, **settings)
        files.append(out.getvalue())
    bomb = io.BytesIO()
    pq.write_table(pa.table({"event_id": pa.array(["y" * 20_000] * 20_000)}), bomb, compression="zstd")
    return [*files, bomb.getvalue()]


def run_message() -> bytes:
    """A run as an orchestrator sends it."""
    return encode(AgentRun("p", "s", AgentRef("enrich"), name="w", params={"a": {"b": [1]}}, output_topic="out"))


def result_messages() -> list[bytes]:
    """Results as agents leave them, good and failed."""
    from tests.support.samples import result

    failed = result(status="failed", error=ErrorInfo("UnreadableBatchError", "offsets 1 to 2", retriable=True))
    return [encode(result()), encode(failed), encode(result(report={"rows": 1}, notes=("note",), truncated=True))]


LEDGER = [(record["key"], record["value"]) for record in OldLedger.RECORDS]

_TOKENS = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\n",
    b"\r\n",
    b'"',
    b"\\ud800",
    b"\\u0000",
    b"[" * 2000,
    b"{",
    b"}",
    b"]",
    b",",
    b":",
    b"|",
    b"-1",
    b"9" * 30,
    b"1e999",
    b"NaN",
    b"null",
    b"true",
    b"&a ",
    b"*a",
    b"<<: ",
    b"!!python/name:os",
    b"\x1b[2J",
    b"'",
    b"- ",
    b"    ",
    b"$ref",
    b"99999-12-31T23:59:60Z",
    b"0001-01-01T00:00:00+23:59",
    b"\xe2\x80\xae",
    b"factory-writer",
]


@st.composite
def mutated(draw: st.DrawFn, bases: list[bytes]) -> bytes:
    """One of these, changed in a few places: bytes, tokens that mean something, parts left out, repeated or taken from another one."""
    data = bytearray(draw(st.sampled_from(bases)))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 40)))
        change = draw(st.sampled_from(["byte", "token", "cut", "repeat", "splice", "number"]))
        if change == "byte":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif change == "token":
            data[at:at] = draw(st.sampled_from(_TOKENS))
        elif change == "cut":
            del data[at:end]
        elif change == "repeat":
            data[at:at] = bytes(data[at:end]) * draw(st.integers(1, 50))
        elif change == "splice":
            other = draw(st.sampled_from(bases))
            data[at:end] = other[len(other) // 3 :][:200]
        else:
            data[at:end] = str(draw(st.integers(-(2**70), 2**70))).encode()
    return bytes(data)
