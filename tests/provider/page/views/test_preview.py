"""A preview shows what would become of the records, or how far it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from airflow_provider_factory.page.runs import PreviewRun
from airflow_provider_factory.page.views.preview import previews
from factory_agents.protocol import AgentResult, Counts, Reason, plain
from tests.support.airflow_env import DagRunner
from tests.support.commands import ROOT
from tests.support.runs import Runs, events

CONF = {"topic": "raw", "contract": "contracts/events.yaml", "pipeline": "p"}
RESULT = plain(
    AgentResult(
        "p", "preview", "k", counts=Counts(consumed=4, forwarded=3, rejected=1), reasons=(Reason("price", "price < 0", 1, "raw-0@3"),)
    )
)


@pytest.mark.parametrize("value", [RESULT, json.dumps(RESULT)], ids=["an object", "its text"])
def test_what_would_become_of_the_records_adds_up(value: Any) -> None:
    (row,) = previews([PreviewRun("r", "success", CONF, value)], ["raw"])
    assert (row.chip, row.topic, row.tried, row.known, row.consumed) == ("whole", "raw", "contracts/events.yaml", True, 4)
    assert sum(p.count for p in row.parts) == 4
    assert "price" in " ".join(row.reasons)
    assert previews([PreviewRun("r", "success", CONF | {"stage": "enrich"}, value)], ["raw"])[0].tried == "enrich"


def test_records_of_another_topic_are_not_shown_whoever_tried_them() -> None:
    assert previews([PreviewRun("r", "success", CONF | {"topic": "payments"}, RESULT)], ["raw"]) == ()


@pytest.mark.parametrize(("state", "chip"), [("running", "running"), ("queued", "running"), ("failed", "failed")])
@pytest.mark.parametrize("value", [None, "{", {"counts": 7}, "null"])
def test_one_that_is_not_over_or_gave_no_result_says_only_how_far_it_is(state: str, chip: str, value: Any) -> None:
    (row,) = previews([PreviewRun("r", state, CONF, value)], ["raw"])
    assert (row.chip, row.known, row.parts) == (chip, False, ())


@pytest.mark.airflow
def test_the_shipped_dag_counts_and_explains_and_writes_nothing(
    runs: Runs, dag_runner: DagRunner, admin: AdminClient, monkeypatch: pytest.MonkeyPatch, bootstrap: str
) -> None:
    connection = {"conn_type": "kafka", "extra": {"bootstrap.servers": bootstrap}}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps(connection))
    topic = runs.topic("in", partitions=2)
    runs.produce(topic, events(20))
    source = (ROOT / "dags" / "factory_preview.py").read_text(encoding="utf-8").replace('"factory_preview"', '"DAG_ID"')
    contract = dag_runner.path.parent / f"{dag_runner.dag_id}.yaml"
    contract.write_text(
        "name: numbers\nid: event_id\nschema: {type: object, required: [event_id], properties: {event_id: {type: integer, maximum: 14}}}\n"
    )
    done = dag_runner.run(source, conf={"topic": topic, "contract": contract.name, "count": 20, "pipeline": "any"})
    assert done.state == "success"
    counts = done.results["preview"]["counts"]
    assert (counts["consumed"], counts["rejected"]) == (20, 5)
    assert done.results["preview"]["reasons"]
    assert f"{topic}.preview" not in admin.list_topics(timeout=10).topics
