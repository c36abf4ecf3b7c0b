"""Agents as pods write their spans where the worker's do: an event is one trace in a real Jaeger."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kubernetes.conftest import Pods
from tests.kubernetes.test_pipeline import NINE
from tests.support.airflow_env import DagRunner
from tests.support.jaeger import NO_PROGRAM, PROGRAM, Landing, jaeger
from tests.support.runs import Runs

_DAG = """
from datetime import UTC, datetime, timedelta

from airflow.sdk import CronDataIntervalTimetable, dag, task

from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator

SOURCE = {"source": "data/changes.jsonl", "time_field": "occurred_at"}
CONTRACT = {"name": "changes", "id": "event_id", "columns": {"event_id": "text", "path": "text"}}
TRY = {"TRY": "{{ ti.try_number }}"}


@dag(
    dag_id="DAG_ID",
    schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"),
    start_date=datetime(2018, 5, 1, tzinfo=UTC),
    catchup=False,
    default_args={"retries": 1, "retry_delay": timedelta(0)},
)
def four_stages():
    raw = KafkaAgentOperator(task_id="ingest", agent="ingest", agent_params=SOURCE, output_topic="RAW")

    @task.kafka_agent(output_topic="ENRICHED", env_vars=TRY)
    def enrich(event):
        import os

        if os.environ["TRY"] == "1" and os.environ.setdefault("FIRST", event["event_id"]) != event["event_id"]:
            os._exit(9)  # when it has followed the first one
        return event

    valid = KafkaAgentOperator(
        task_id="validate",
        agent="validate",
        window=enrich(window=raw.output),
        agent_params={"contract": {"name": "changes", "id": "event_id"}},
        output_topic="VALID",
    )
    KafkaAgentOperator(
        task_id="publish", agent="publish", window=valid.output, agent_params={"contract": CONTRACT, "table": "changes"}
    )


four_stages()
"""


@pytest.mark.timeout(600)
@pytest.mark.skipif(PROGRAM is None, reason=NO_PROGRAM)
def test_a_trace_of_pods_is_as_long_as_from_the_producer_to_the_table_and_one_that_died_left_nothing(
    pods: Pods, runs: Runs, dag_runner: DagRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    landing = Landing(pods.database_url, "changes", "event_id text PRIMARY KEY, path text")
    topics = {name: runs.topic(name.lower(), partitions=1) for name in ("RAW", "ENRICHED", "VALID")}
    text = _DAG
    for name, topic in topics.items():
        text = text.replace(f'"{name}"', f'"{topic}"')
    with jaeger(tmp_path, pods.cluster.host) as seen:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", seen.otlp_url)
        monkeypatch.setenv("FACTORY_TRACE_RATE", "0.001")  # of each run its first event
        outcome = dag_runner.run(text, NINE)
        assert outcome.state == "success", outcome
        assert max(outcome.tries["enrich"]) == 2
        (first,) = [record for record in runs.everything(topics["RAW"]) if "traceparent" in record.headers]
        seen.check_the_way(first.timestamp / 1000, landing.at())
