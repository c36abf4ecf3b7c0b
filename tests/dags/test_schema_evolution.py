"""Schemas that change, in DAG runs on a real registry: old and new consumers of both framings, what is refused, an outage."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import timedelta
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fastavro
import pytest
from confluent_kafka import Producer

from factory_agents.kafka.windows import read_windows
from tests.conftest import TopicFactory
from tests.dags.test_clicks import START, connections
from tests.dags.test_shapes import text
from tests.provider.conftest import runs
from tests.support.airflow_env import HOUR, DagOutcome, DagRunner
from tests.support.proxy import Proxy
from tests.support.registries import Subjects, record, with_guids
from tests.support.runs import Runs

__all__ = ["connections", "runs"]

pytestmark = [pytest.mark.airflow, pytest.mark.slow]

Headers = list[tuple[str, str | bytes | None]]

OLD = record(event_id="int", text="string")
OLD_EVENT = {"event_id": 1, "text": "a"}
CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any] | str]] = {
    # the new schema, an event of it, what a new consumer reads of an old event, and what an old one reads of a new one, or what it names
    "add": (
        record(event_id="int", text="string", more={"type": "int", "default": 0}),
        {"event_id": 2, "text": "b", "more": 7},
        {"event_id": 1, "text": "a", "more": 0},
        {"event_id": 2, "text": "b"},
    ),
    "drop": (record(event_id="int"), {"event_id": 2}, {"event_id": 1}, "text"),
    "rename": (
        record(event_id="int", words={"type": "string", "aliases": ["text"]}),
        {"event_id": 2, "words": "b"},
        {"event_id": 1, "words": "a"},
        "text",
    ),
    "widen": (record(event_id="long", text="string"), {"event_id": 2**40, "text": "b"}, OLD_EVENT, "long"),
}
RULES = ("backward", "forward", "full")
BROKEN_FIELD = {"drop": "text", "rename": "text", "widen": "event_id"}
"""The field by which an old reader can't read new records: what forward and full refuse."""

READ = """
window = WindowOperator(task_id="window", topic="<raw>", codec="avro?version=writer")

@task.kafka_agent(output_topic="<old>", input_codec="avro?version=1")
def old(event):
    return event

@task.kafka_agent(output_topic="<new>", input_codec="avro")
def new(event):
    return event

old(window.output)
new(window.output)
"""
WRITE = """
window = WindowOperator(task_id="window", topic="<raw>")

for rule in ("backward", "forward", "full"):
    @task.kafka_agent(task_id=rule, output_topic="<out>", output_codec={"name": "avro", "compatibility": rule})
    def write(event):
        return event

    write(window.output)
"""


@pytest.fixture
def registry(registry_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Subjects]:
    """The real registry behind one that knows GUIDs, as the connection that operators find."""
    with with_guids(registry_url) as url:
        monkeypatch.setenv("AIRFLOW_CONN_SCHEMA_REGISTRY_DEFAULT", json.dumps({"conn_type": "schema_registry", "host": url}))
        own = Subjects(url)
        yield own
        own.client.close()


def produce(bootstrap: str, topic: str, *records: tuple[bytes, Headers]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    at = int((START + timedelta(minutes=5)).timestamp() * 1000)
    for value, headers in records:
        producer.produce(topic, value, headers=headers, timestamp=at, partition=0)
    assert producer.flush(60) == 0


def framed(registry: Subjects, topic: str, schema: dict[str, Any], event: dict[str, Any]) -> list[tuple[bytes, Headers]]:
    """An event in both framings: by Confluent's serialiser, and as their newer ones write it."""
    (by_id,) = registry.written(topic, schema, event)
    body = BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(schema), event)
    registry.client.clear_latest_caches()
    guid = uuid.UUID(registry.client.get_latest_version(f"{topic}-value").guid)
    return [(by_id, []), (body.getvalue(), [("__value_schema_id", b"\1" + guid.bytes)])]


def events(runs: Runs, topic: str) -> list[dict[str, Any]]:
    return [r.event for r in runs.everything(topic)]


@pytest.mark.parametrize("change", CHANGES)
def test_old_and_new_consumers_read_what_their_schema_can_and_nothing_wrong(
    dag_runner: DagRunner, runs: Runs, registry: Subjects, topic: TopicFactory, bootstrap: str, change: str
) -> None:
    new, event, by_new, by_old = CHANGES[change]
    names = {"raw": topic("raw", partitions=1), "old": topic("old", partitions=1), "new": topic("new", partitions=1)}
    written = framed(registry, names["raw"], OLD, OLD_EVENT)
    written += framed(registry, names["raw"], new, event)
    produce(bootstrap, names["raw"], *written)
    ran = dag_runner.run(text(READ, **names))
    assert ran.state == "success", ran.states
    assert events(runs, names["new"]) == [by_new, by_new, event, event]
    if isinstance(by_old, dict):
        assert events(runs, names["old"]) == [OLD_EVENT, OLD_EVENT, by_old, by_old]
        return
    assert events(runs, names["old"]) == [OLD_EVENT, OLD_EVENT]
    letters = runs.everything(f"{names['old']}.dead")
    assert [letter.value for letter in letters] == [value for value, _ in written[2:]]
    assert all(by_old in letter.dead_letter["error"] for letter in letters), letters


def failures(ran: DagOutcome, runs: Runs) -> dict[str, str]:
    """Why each failed stage of the run's only window failed."""
    (window,) = read_windows(runs.config, pipeline=ran.run.dag_id)
    return {stage.stage: stage.error for stage in window.stages if stage.state == "failed"}


@pytest.mark.parametrize("change", CHANGES)
def test_a_stage_whose_new_schema_breaks_the_rule_is_refused_by_field_and_writes_nothing(
    dag_runner: DagRunner, runs: Runs, registry: Subjects, topic: TopicFactory, bootstrap: str, change: str
) -> None:
    new, event, _, _ = CHANGES[change]
    names = {"raw": topic("raw", partitions=1), "out": topic("out", partitions=1)}
    registry.client.set_compatibility(f"{names['out']}-value", "NONE")
    for schema in (OLD, new):
        registry.register(f"{names['out']}-value", schema)
    produce(bootstrap, names["raw"], (json.dumps(event).encode(), []))
    ran = dag_runner.run(text(WRITE, **names))
    field = BROKEN_FIELD.get(change)
    refused = [rule for rule in RULES if field and rule != "backward"]
    assert {rule: ran.states[rule] for rule in RULES} == {rule: ["failed" if rule in refused else "success"] for rule in RULES}
    said = failures(ran, runs)
    assert said.keys() == set(refused)
    assert all(f"isn't {rule} compatible with version 1: " in said[rule] and f"'{field}'" in said[rule] for rule in refused), said
    written = registry.read(names["out"], *(r.value for r in runs.everything(names["out"])))
    assert written == [event] * (len(RULES) - len(refused))


OUTAGE = """
window = WindowOperator(task_id="window", topic="<raw>", codec="avro")

@task.kafka_agent(output_topic="<warm>", env_vars={"FACTORY_SCHEMA_CACHE": "<cache>"})
def warm(event):
    return event

@task.kafka_agent(output_topic="<cold>")
def cold(event):
    return event

warm(window.output)
cold(window.output)
"""


def test_while_the_registry_is_stopped_a_warm_cache_serves_and_a_cold_one_fails_the_task_until_it_is_back(
    dag_runner: DagRunner,
    runs: Runs,
    registry_url: str,
    topic: TopicFactory,
    bootstrap: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry = urlsplit(registry_url)
    proxy = Proxy(registry.hostname or "", registry.port or 80)
    url = f"http://127.0.0.1:{proxy.port}{registry.path}"
    extra = json.dumps({"max.retries": 0, "timeout": 5})
    connection = {"conn_type": "schema_registry", "host": url, "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_SCHEMA_REGISTRY_DEFAULT", json.dumps(connection))
    names = {"raw": topic("raw", partitions=1), "warm": topic("warm", partitions=1), "cold": topic("cold", partitions=1)}
    subjects = Subjects(url)
    produce(bootstrap, names["raw"], *((value, []) for value in subjects.written(names["raw"], OLD, OLD_EVENT)))
    subjects.client.close()
    source = text(OUTAGE, **names, cache=str(tmp_path / "cache"))
    assert dag_runner.run(source.replace("cold(window.output)", "")).state == "success"
    proxy.cut()
    again = dag_runner.run(source, logical_date=HOUR + timedelta(minutes=10), conf={"reprocess": True})
    assert (again.states["warm"], again.states["cold"]) == (["success"], ["failed"])
    said = failures(again, runs)["cold"]
    assert said.startswith("UnavailableError: the registry http://127.0.0.1:"), said
    assert (len(runs.everything(names["warm"])), runs.everything(names["cold"])) == (2, [])
    assert {t for t in runs.admin.list_topics(timeout=10).topics if t.startswith(names["cold"])} == {names["cold"]}
    proxy.mend()
    back = dag_runner.run(source, logical_date=HOUR + timedelta(minutes=20))
    assert back.state == "success", back.states
    assert events(runs, names["cold"]) == [OLD_EVENT]
    proxy.close()
