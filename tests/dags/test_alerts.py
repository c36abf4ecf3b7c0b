"""A pipeline whose DAG has the notifier as its callbacks, run by Airflow: one message when it breaks, one when it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import TopicFactory
from tests.dags.test_clicks import connections, event, produce
from tests.dags.test_shapes import text
from tests.support.airflow_env import DagRunner
from tests.support.webhooks import Webhooks, webhooks

__all__ = ["connections", "produce"]

pytestmark = [pytest.mark.airflow, pytest.mark.slow]

CALLBACKS = """
from airflow_provider_factory.notifications import FactoryNotifier
tell = FactoryNotifier("our_slack")

@dag(on_failure_callback=tell, on_success_callback=tell, default_args={"on_failure_callback": tell}, """


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch, prefix: str) -> Iterator[Webhooks]:
    with webhooks() as server:
        monkeypatch.setenv("AIRFLOW_CONN_OUR_SLACK", json.dumps({"conn_type": "slackwebhook", "host": server.url, "password": "/slack"}))
        monkeypatch.setenv("AIRFLOW__FACTORY__PREFIX", prefix)
        yield server


def test_shards_that_fail_are_one_message_and_a_whole_window_another(
    dag_runner: DagRunner, topic: TopicFactory, produce: Any, slack: Webhooks
) -> None:
    raw = topic("raw", partitions=2)
    produce(raw, [event(i) for i in range(20)])
    body = """
window = WindowOperator(task_id="window", topic="<raw>", shards=2)

@task.kafka_agent(output_topic="<out>")
def enrich(event, broken: bool = False):
    if broken:
        raise RuntimeError("no such service")
    return event

enriched = enrich.partial(agent_params={"broken": <broken>}).expand(window=window.output)
merged = KafkaAgentOperator(task_id="all", agent="enrich", window=enriched, output_topic="<all>")
ValidationOperator(task_id="check", window=merged.output, contract={"name": "c", "id": None, "schema": {}}, output_topic="<valid>")
"""
    names = {"raw": raw, "all": topic("all", partitions=1), "out": topic("out", partitions=4), "valid": topic("valid", partitions=4)}
    for broken, state in (("True", "failed"), ("False", "success")):
        source = text(body, broken=broken, **names).replace("@dag(", CALLBACKS.lstrip(), 1)
        assert dag_runner.run(source).state == state
    failed, whole = slack.texts()
    assert failed.startswith(f"*🔴 {dag_runner.dag_id} failed: ")
    assert "enrich[" in failed
    assert "no such service" in failed
    assert whole.startswith(f"*🟢 {dag_runner.dag_id} is whole again: ")
