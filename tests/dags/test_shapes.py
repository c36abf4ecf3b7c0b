"""How stages may be put together: mapped and judged as a whole, sharded again, without an interval, skipped, stopped."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.windows import read_windows
from tests.conftest import TopicFactory
from tests.dags.test_clicks import START, connections, event, produce
from tests.support.airflow_env import DagRunner

__all__ = ["connections", "produce"]

pytestmark = [pytest.mark.airflow, pytest.mark.slow]

HEAD = """
from datetime import datetime, timedelta
from airflow.sdk import CronDataIntervalTimetable, Param, TriggerRule, dag, task
from airflow_provider_factory.operators.kafka_agent import KafkaAgentOperator
from airflow_provider_factory.operators.validation import ValidationOperator
from airflow_provider_factory.operators.window import WindowOperator

@dag(dag_id="DAG_ID", schedule=CronDataIntervalTimetable("@hourly", timezone="UTC"), catchup=False, start_date=datetime(2026, 1, 1))
def pipeline():
"""


def text(body: str, **names: str) -> str:
    """A DAG file of this body, with ``<name>`` filled in."""
    for name, value in names.items():
        body = body.replace(f"<{name}>", value)
    return HEAD + "\n".join("    " + line for line in body.strip("\n").splitlines()) + "\n\npipeline()\n"


def test_a_mapped_validation_is_judged_as_one_and_later_stages_shard_again(
    dag_runner: DagRunner, topic: TopicFactory, produce: Any, capfd: pytest.CaptureFixture[str], bootstrap: str
) -> None:
    raw = topic("raw", partitions=4)
    body = """
window = WindowOperator(task_id="window", topic="<raw>", shards=4)

@task.kafka_agent(output_topic="<out>")
def enrich(event, suffix: str = ""):
    return event | {"host": "h" + suffix}

enriched = enrich.partial(agent_params={"suffix": "{{ ds_nodash }}"}).expand(window=window.output)
checked = ValidationOperator.partial(task_id="check", contract="contracts/clicks.yaml", output_topic="<valid>", window=enriched).expand(
    shard=[(0, 3), (1, 3), (2, 3)])
judged = ValidationOperator(task_id="judge", results=checked.output, fail_if="<fail>")

@task.kafka_agent(output_topic="<last>")
def last(event):
    return event

last(judged.output)
"""
    names = {"raw": raw, "out": topic("out", partitions=4), "valid": topic("valid", partitions=4), "last": topic("last", partitions=1)}
    produce(raw, [event(i) for i in range(59)] + [{"url": "https://a/b"}])
    ran = dag_runner.run(text(body, fail="rejected > 5 %", **names))
    assert ran.state == "success", ran.states
    assert ran.states["check"] == ["success"] * 3
    assert ran.results["judge.report"]["rows"] == 60
    assert ran.results["judge.report"]["rejected"] == 1
    assert ran.results["last"]["counts"]["consumed"] == 59
    assert "of 3" in ran.labels["check"][0]

    ran = dag_runner.run(text(body, fail="rejected >= 1", **names))
    assert (ran.states["judge"], ran.states["last"]) == (["failed"], ["upstream_failed"])
    assert "ValidationFailedError: FAIL: clicks version 1: 60 rows" in capfd.readouterr().out
    (window,) = read_windows(KafkaConfig(bootstrap), pipeline=dag_runner.dag_id)
    assert window.state == "failed"
    (reason,) = [stage.error for stage in window.stages if stage.state == "failed"]
    assert reason.startswith("ValidationFailedError: FAIL: clicks version 1: 60 rows")

    dag_runner.run(text(body, fail="rejected > 5 %", **names))
    (window,) = read_windows(KafkaConfig(bootstrap), pipeline=dag_runner.dag_id)
    assert window.state == "finished", window.stages


def test_a_failed_validation_skips_or_warns_as_told(dag_runner: DagRunner, topic: TopicFactory, produce: Any, bootstrap: str) -> None:
    body = """
window = WindowOperator(task_id="window", topic="<raw>")
checked = ValidationOperator(task_id="check", contract="contracts/clicks.yaml", output_topic="<valid>", window=window.output,
    fail_if="rejected >= 1", on_failure="<do>")
KafkaAgentOperator(task_id="last", agent="enrich", window=checked.output, output_topic="<last>")
"""
    names = {"raw": topic("raw"), "valid": topic("valid"), "last": topic("last")}
    produce(names["raw"], [event(1), {"url": "https://a/b"}])
    for do, check, last, state in (
        ("skip", "skipped", "skipped", "failed"),
        ("warn", "success", "success", "finished"),
    ):
        ran = dag_runner.run(text(body, do=do, **names))
        assert (ran.states["check"], ran.states["last"]) == ([check], [last]), do
        (window,) = read_windows(KafkaConfig(bootstrap), pipeline=dag_runner.dag_id)
        assert window.state == state, do


def test_a_skipped_stage_never_means_nothing_to_read(dag_runner: DagRunner, topic: TopicFactory, capfd: pytest.CaptureFixture[str]) -> None:
    body = """
from airflow.sdk.exceptions import AirflowSkipException

@task
def before():
    raise AirflowSkipException("not today")

KafkaAgentOperator(task_id="after", agent="enrich", window=before(), output_topic="<out>", trigger_rule=TriggerRule.NONE_FAILED)
"""
    ran = dag_runner.run(text(body, out=topic("out")))
    assert (ran.states["before"], ran.states["after"]) == (["skipped"], ["failed"])
    assert "was it skipped, or marked as a success by hand?" in capfd.readouterr().out


def test_a_pipeline_without_intervals_reads_on_from_its_last_window(dag_runner: DagRunner, topic: TopicFactory, produce: Any) -> None:
    raw = topic("raw", partitions=2)
    body = """
window = WindowOperator(task_id="window", topic="<raw>", no_interval="since_last")
KafkaAgentOperator(task_id="enrich", agent="enrich", window=window.output, output_topic="<out>")
"""
    source = text(body, raw=raw, out=topic("out"))
    produce(raw, [event(i) for i in range(7)])
    first = dag_runner.run(source, logical_date=None)
    assert first.state == "success", first.states
    assert first.results["enrich"]["counts"]["consumed"] == 7
    produce(raw, [event(i) for i in range(5)])
    second = dag_runner.run(source, logical_date=None)
    assert second.results["enrich"]["counts"]["consumed"] == 5
    assert dag_runner.run(source, logical_date=None).results["enrich"]["counts"].get("consumed", 0) == 0


def test_a_task_past_its_time_ends_its_agent_and_keeps_what_was_committed(
    dag_runner: DagRunner, topic: TopicFactory, produce: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    raw = topic("raw", partitions=1)
    body = """
window = WindowOperator(task_id="window", topic="<raw>")

@task.kafka_agent(output_topic="<out>", execution_timeout=timedelta(seconds=5), retries=0)
def slow(event):
    import os, threading
    with open("<pids>", "a") as file:
        file.write(f"{os.getpid()}\\n")
    threading.Event().wait()

slow(window.output)
"""
    produce(raw, [event(i) for i in range(300)])
    pids = tmp_path / "pids"
    ran = dag_runner.run(text(body, raw=raw, out=topic("out"), pids=str(pids)))
    assert ran.states["slow"] == ["failed"]
    assert "AirflowTaskTimeout" in capfd.readouterr().out
    for pid in set(pids.read_text().split()):
        assert not Path(f"/proc/{pid}").exists()


def test_a_thousand_partitions_in_shards(dag_runner: DagRunner, topic: TopicFactory, produce: Any) -> None:
    raw = topic("wide", partitions=1000)
    body = """
window = WindowOperator(task_id="window", topic="<raw>", shards=2)
enriched = KafkaAgentOperator.partial(task_id="enrich", agent="enrich", output_topic="<out>").expand(window=window.output)
KafkaAgentOperator(task_id="again", agent="enrich", window=enriched.output, output_topic="<last>")
"""
    produce(raw, [event(i) for i in range(2000)])
    ran = dag_runner.run(text(body, raw=raw, out=topic("out"), last=topic("last")))
    assert ran.state == "success", ran.states
    assert sum(r["counts"]["consumed"] for r in ran.results["enrich"]) == 2000
    assert ran.results["again"]["counts"]["consumed"] == 2000


def test_assets_get_events_with_window_counts_and_ranges(dag_runner: DagRunner, topic: TopicFactory, produce: Any) -> None:
    raw, out = topic("raw", partitions=1), topic("out", partitions=1)
    body = """
window = WindowOperator(task_id="window", topic="<raw>")
KafkaAgentOperator(task_id="enrich", agent="enrich", window=window.output, output_topic="<out>")
"""
    produce(raw, [event(1)])
    ran = dag_runner.run(text(body, raw=raw, out=out))
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session

    with create_session() as session:
        asset = session.query(AssetModel).filter_by(uri=f"kafka://main/{out}").one()
        found = session.query(AssetEvent).filter_by(asset_id=asset.id).one()
        extra = dict(found.extra)
    assert extra["counts"]["produced"] == 1
    assert extra["window"].startswith(START.strftime("%Y-%m-%dT%H:00"))
    assert extra["manifest"] == json.loads(json.dumps(ran.results["enrich"]["manifest"]))


def test_a_run_knows_the_run_before_it_whatever_it_was(dag_runner: DagRunner) -> None:
    """How a scheduled run tells a pause from a run that is only planned later."""
    body = """
from airflow_provider_factory.version_compat import previous_run

@task
def before(**context):
    found, known = context["dag_run"], []
    while (found := previous_run(found)) is not None:
        known.append([found.run_type.value, found.data_interval_end.isoformat()])
    return known

before()
"""
    for ago in (3, 1, 0):
        ran = dag_runner.run(text(body), logical_date=START - timedelta(hours=ago))
        assert ran.state == "success", ran.states
    ends = [START - timedelta(hours=ago) for ago in (1, 3)]
    assert ran.results.get("before") == [["manual", end.isoformat()] for end in ends]
