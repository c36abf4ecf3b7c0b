"""Avro on real topics with a real registry: agents, contracts, tables, dead letters, live; a schema that changes, a registry that stops."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from factory_agents.codecs.registry import registry_of
from factory_agents.errors import UnavailableError
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, CodecRef, Window
from factory_agents.run import EXIT_RETRY, execute
from factory_agents.runtime.agents import agent
from factory_agents.runtime.live import LiveSettings, run_live
from factory_agents.runtime.session import RunContext
from factory_agents.sandbox import Sandbox
from factory_agents.stage_plan import stage_input
from tests.support.agents import mark
from tests.support.registries import Subjects, answering, record
from tests.support.runs import Runs
from tests.support.waiting import wait_for

AVRO = CodecRef("avro")
PRICE = {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 2}
V1 = record(event_id="int", text="string", price=PRICE)
SEEN = record(event_id="int", text="string", price=PRICE, seen={"type": "boolean", "default": False})
CONTRACT = {
    "name": "avro",
    "key": "event_id",
    "schema": {
        "type": "object",
        "required": ["event_id"],
        "properties": {"event_id": {"type": "integer"}, "text": {"type": "string"}, "price": {"type": "number"}},
    },
    "columns": {"event_id": "bigint", "text": "text", "price": "numeric"},
}


@pytest.fixture
def subjects(registry_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subjects]:
    monkeypatch.setenv("SCHEMA_REGISTRY_URL", registry_url)
    own = Subjects(registry_url)
    yield own
    own.client.close()


def events(*ids: int) -> list[dict[str, Any]]:
    from decimal import Decimal

    return [{"event_id": n, "text": f"event {n}", "price": Decimal(f"1234567890123456{n}.01")} for n in ids]


def run(runs: Runs, told: AgentRun) -> AgentResult:
    return execute(RunContext(runs.config), told)


def avro_window(runs: Runs, topic: str, codec: CodecRef = AVRO) -> Window:
    return msgspec.structs.replace(runs.window(topic), codec=codec)


def test_a_pipeline_from_avro_to_a_table(runs: Runs, subjects: Subjects, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    source, seen, valid = (runs.topic(name, partitions=2) for name in ("in", "seen", "valid"))
    bad = [b"\0\0\1\x86\x9fx", b'{"event_id": 9}', b"\0\0"]
    runs.produce(source, [*subjects.written(source, V1, *events(*range(6))), *bad], headers=[("trace", b"t")])
    for topic in (seen, valid):
        subjects.register(f"{topic}-value", SEEN)
    marked = run(runs, runs.run(avro_window(runs, source), seen, "tests.support.agents:mark", output_codec=AVRO))
    assert (marked.counts.forwarded, marked.counts.rejected) == (6, 3)
    assert sorted(r.value or b"" for r in runs.manifest(marked.dead_letters)) == sorted(bad)
    theirs = subjects.read(seen, *(r.value for r in runs.manifest(marked.manifest)))
    assert sorted(theirs, key=lambda e: e["event_id"]) == [{**event, "seen": True} for event in events(*range(6))]
    params = {"contract": CONTRACT}
    checked = run(runs, runs.run(stage_input(marked).window, valid, "validate", params=params, stage="v", output_codec=AVRO))
    assert (checked.report or {})["rows"] == checked.counts.forwarded == 6
    table = f"t_{runs.prefix}"
    landed = run(runs, runs.run(stage_input(checked).window, "", "publish", params={**params, "table": table}, stage="p"))
    assert landed.counts.written == 6
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(f'SELECT event_id, text, price FROM "{table}" ORDER BY event_id').fetchall()
    assert rows == [(e["event_id"], e["text"], e["price"]) for e in events(*range(6))]


def test_work_goes_on_by_the_schema_that_it_was_begun_with(runs: Runs, subjects: Subjects) -> None:
    source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
    runs.produce(source, subjects.written(source, V1, *events(1, 2, 3)))
    subjects.register(f"{out}-value", SEEN)
    told = runs.run(avro_window(runs, source), out, "tests.support.agents:mark", output_codec=AVRO)
    first = run(runs, told)
    assert first.manifest is not None
    assert first.manifest.codec is not None
    assert first.manifest.codec.pinned["version"] == 1
    registry_of.__globals__["_registry"].cache_clear()
    subjects.register(f"{source}-value", record(event_id="int", text="string", price=PRICE, new={"type": "int", "default": 5}))
    subjects.register(f"{out}-value", record(event_id="int", text="string", price=PRICE, seen="boolean", new={"type": "int", "default": 5}))
    assert run(runs, told).reused
    again = run(runs, msgspec.structs.replace(told, agent=AgentRef(told.agent.name, version="2")))
    assert (again.reused, again.manifest and again.manifest.codec) == (False, first.manifest.codec)
    redone = run(runs, msgspec.structs.replace(told, rerun="redo", run_id="r"))
    assert redone.fingerprint not in (first.fingerprint, again.fingerprint)
    assert {e["new"] for e in subjects.read(out, *(r.value for r in runs.manifest(redone.manifest)))} == {5}


def test_avro_is_read_and_written_live(runs: Runs, subjects: Subjects) -> None:
    source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
    runs.produce(source, [*subjects.written(source, V1, *events(1, 2)), b"none"])
    subjects.register(f"{out}-value", SEEN)
    stop = threading.Event()

    def work() -> None:
        transform = agent(version="1")(mark).bind({})
        live = LiveSettings(source, out, f"{runs.prefix}.g", prefix=runs.prefix, input_codec=AVRO, output_codec=AVRO)
        run_live(RunContext(runs.config, stop=stop.is_set), transform, live)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_for(lambda: len(runs.everything(out)) == 2, "both events")
        wait_for(lambda: runs.cluster.find(f"{out}.dead") is not None and runs.everything(f"{out}.dead"), "the dead letter")
    finally:
        stop.set()
        thread.join(30)
    assert sorted(e["event_id"] for e in subjects.read(out, *(r.value for r in runs.everything(out)))) == [1, 2]
    assert [r.value for r in runs.everything(f"{out}.dead")] == [b"none"]


def test_a_guid_in_a_header_is_read_and_never_handed_on(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    guid = "00000000-0000-0000-0000-000000000005"
    schema = json.dumps(record(event_id="int"))
    with answering({f"/schemas/guids/{guid}": {"schema": schema}}) as (url, _):
        monkeypatch.setenv("SCHEMA_REGISTRY_URL", url)
        source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
        header = ("__value_schema_id", b"\1" + bytes(15) + b"\5")
        runs.produce(source, [b"\2", b"\2x"], headers=[header, ("trace", b"t")])
        writer = CodecRef("avro", {"version": "writer"})
        result = run(runs, runs.run(avro_window(runs, source, writer), out, "tests.support.agents:mark"))
    (written,) = runs.manifest(result.manifest)
    assert (written.event, written.headers.keys()) == ({"event_id": 1, "seen": True}, {"trace", "factory-writer"})
    (letter,) = runs.manifest(result.dead_letters)
    assert (letter.value, letter.headers["__value_schema_id"]) == (b"\2x", header[1])


@pytest.mark.slow
@pytest.mark.soak
def test_while_the_registry_is_stopped_work_waits_and_what_a_warm_cache_knows_goes_on(
    own_registry: Sandbox, runs: Runs, tmp_path: Path
) -> None:
    url = own_registry.info().registry_url or ""
    subjects = Subjects(url)
    source = runs.topic("in", partitions=1)
    runs.produce(source, subjects.written(source, V1, *events(1, 2)))
    subjects.client.close()
    told = [runs.run(avro_window(runs, source), runs.topic(f"out{n}", partitions=1), stage=f"s{n}") for n in range(3)]
    settings = {"SCHEMA_REGISTRY_URL": url, "SCHEMA_REGISTRY_CONFIG": '{"max.retries": 0, "timeout": 5}'}
    warm = settings | {"FACTORY_SCHEMA_CACHE": str(tmp_path / "cache")}
    assert runs.attempt(told[0], secrets=warm).wait() == 0
    own_registry.stop_registry()
    cached = runs.attempt(told[1], secrets=warm)
    assert cached.wait() == 0, cached.log
    assert cached.result.counts.forwarded == 2
    cold = runs.attempt(told[2], secrets=settings)
    assert cold.wait() == EXIT_RETRY, cold.log
    assert cold.result.error is not None
    assert cold.result.error.type == UnavailableError.__name__
    assert runs.cluster.find(f"{told[2].output_topic}.dead") is None
    own_registry.start_registry()
    retry = runs.attempt(told[2], secrets=settings)
    assert retry.wait() == 0, retry.log
    assert retry.result.counts.forwarded == 2


def test_an_attempt_that_was_killed_is_resumed_by_its_own_schema(runs: Runs, subjects: Subjects, registry_url: str) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    runs.produce(source, subjects.written(source, V1, *events(*range(9))))
    subjects.register(f"{out}-value", SEEN)
    codecs = {"output_codec": AVRO, "chunk_records": 3}
    told = runs.run(avro_window(runs, source), out, "tests.support.agents:mark", **codecs)
    secrets = {"SCHEMA_REGISTRY_URL": registry_url}
    killed = runs.attempt(told, "chunk.before-ledger=kill@3", secrets=secrets)
    assert killed.wait() < 0, killed.log
    subjects.register(f"{source}-value", record(event_id="int", text="string", price=PRICE, new={"type": "int", "default": 5}))
    subjects.register(f"{out}-value", record(event_id="int", text="string", price=PRICE, seen="boolean", new={"type": "int", "default": 5}))
    resumed = runs.attempt(told, secrets=secrets)
    assert resumed.wait() == 0, resumed.log
    result = resumed.result
    assert (result.resumed, result.counts.forwarded) == (True, 9)
    written = runs.manifest(result.manifest)
    assert len({(r.value or b"")[:5] for r in written}) == 1
    theirs = subjects.read(out, *(r.value for r in written))
    assert theirs == [{**event, "seen": True} for event in events(*range(9))]
