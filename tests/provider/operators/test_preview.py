"""A preview runs a stage of another DAG as its file has it, over a topic's newest records, and writes nothing."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from airflow_provider_factory.operators.preview import PreviewOperator, _stage
from factory_agents.errors import ConfigurationError
from tests.support.airflow_env import DAGS, HOUR, DagRunner
from tests.support.commands import ROOT
from tests.support.pages import into_airflow
from tests.support.runs import Runs, events

pytestmark = pytest.mark.airflow

PIPELINE = """
from airflow.sdk import Param, dag, task
from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.window import WindowOperator

@task.kafka_agent(output_topic="TOPIC.out", agent_params={"least": "{{ params.least }}"}, max_rejected=0)
def score(event, least):
    if event["event_id"] < int(least):
        raise Reject("too small", rule="least")
    return event

@dag("DAG_ID", schedule=None, params={"least": Param(5, type="integer")})
def pipeline():
    window = WindowOperator(task_id="window", topic="TOPIC")
    score(window.output)
    score.override(task_id="in_shards").partial(window=window.output).expand(shard=[[0, 2], [1, 2]])
    several = KafkaAgentOperator.partial(task_id="several", agent="enrich", window=window.output, output_topic="TOPIC.out")
    several.expand(agent_params=[{"least": 1}, {"least": 2}])
    score.override(task_id="of_another", agent_params={"least": window.output["records"]})(window.output)
    KafkaAgentOperator(task_id="chosen", agent="{{ params.least }}:x", window=window.output, output_topic="TOPIC.out")
    KafkaAgentOperator(task_id="fetch", agent="ingest", output_topic="TOPIC")

pipeline()
"""


REFUSED = {
    "several": "mapped over agent_params",
    "of_another": "takes agent_params from another task",
    "fetch": "reads no topic",
    "window": "has no stage 'window'",
    "gone": "has no stage 'gone'",
}


class Instance:
    """A task instance that asks Airflow's database where a DAG's file is."""

    def __init__(self) -> None:
        self.bundle_instance: Any = None

    def get_dag(self, dag_id: str) -> Any:
        from airflow.models.dag import DagModel
        from airflow.utils.session import create_session

        with create_session() as session:
            return session.get(DagModel, dag_id)


def pipeline_of(dag_id: str, topic: str) -> Path:
    """The pipeline's file, which Airflow knows."""
    path = DAGS / f"{dag_id}.py"
    into_airflow(path, PIPELINE.replace("DAG_ID", dag_id).replace("TOPIC", topic))
    return path


def test_a_stage_as_its_dag_has_it_and_a_contract_are_tried_and_nothing_is_written(
    runs: Runs, dag_runner: DagRunner, admin: AdminClient, monkeypatch: pytest.MonkeyPatch, bootstrap: str
) -> None:
    connection = {"conn_type": "kafka", "extra": {"bootstrap.servers": bootstrap}}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps(connection))
    topic = runs.topic("in", partitions=2)
    runs.topic("in.out", partitions=1)
    runs.produce(topic, events(20))
    pipeline = f"{dag_runner.dag_id}-of"
    pipeline_of(pipeline, topic)
    topics = admin.list_topics(timeout=10).topics.keys() | {"__consumer_offsets"}
    source = (ROOT / "dags" / "factory_preview.py").read_text(encoding="utf-8").replace('"factory_preview"', '"DAG_ID"')

    done = dag_runner.run(source, conf={"topic": topic, "pipeline": pipeline, "stage": "in_shards", "count": 20})

    assert done.state == "success"
    counts = done.results["preview"]["counts"]
    assert (counts["consumed"], counts["forwarded"], counts["rejected"]) == (20, 15, 5)  # 5 is a parameter of the pipeline's own
    assert done.results["preview"]["reasons"]
    assert done.results["preview"]["pipeline"] == dag_runner.dag_id  # the pipeline's own work is not touched

    contract = dag_runner.path.parent / f"{dag_runner.dag_id}.yaml"
    contract.write_text(
        "name: numbers\nid: event_id\nschema: {type: object, required: [event_id], properties: {event_id: {type: integer, maximum: 14}}}\n"
    )
    done = dag_runner.run(
        source, HOUR - timedelta(hours=1), conf={"topic": topic, "contract": contract.name, "count": 20, "pipeline": "any"}
    )
    assert done.state == "success"
    counts = done.results["preview"]["counts"]
    assert (counts["consumed"], counts["rejected"]) == (20, 5)
    assert done.results["preview"]["reasons"]

    made = admin.list_topics(timeout=10).topics.keys() - topics  # other tests make theirs meanwhile
    assert not [name for name in made if name.startswith(topic.partition(".")[0])]


def test_a_stage_that_cannot_be_tried_says_why(dag_runner: DagRunner) -> None:
    path = pipeline_of(dag_runner.dag_id, "clicks")
    context: Any = {"ti": Instance(), "params": {"least": "os"}, "run_id": "r"}
    for stage, why in REFUSED.items():
        with pytest.raises(ConfigurationError, match=why):
            _stage(context, dag_runner.dag_id, stage)
    chosen = _stage(context, dag_runner.dag_id, "chosen")
    assert chosen.agent == "5:x"  # by the pipeline's own parameter, not by one of whoever starts the preview
    with pytest.raises(ConfigurationError, match="comes from a parameter of the run"):
        chosen.agent_run(context)
    path.write_text("import nothing_of_this_name", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"cannot be read from .*No module named 'nothing_of_this_name'"):
        _stage(context, dag_runner.dag_id, "score")


@pytest.mark.parametrize("count", [0, "1000000", "many"])
def test_a_preview_is_bounded(count: Any) -> None:
    with pytest.raises(ConfigurationError, match="expected 1 to 100,000"):
        PreviewOperator(task_id="preview", topic="clicks", count=count)._newest()
