"""What is mapped over topics, sources, parameters or a group is each task's own work, and a stage over all of them merges it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.conftest import TopicFactory
from tests.dags.test_clicks import connections, event, produce
from tests.dags.test_shapes import text
from tests.support.airflow_env import DagOutcome, DagRunner
from tests.support.bigquery import Emulator
from tests.support.iceberg import Bench

__all__ = ["connections", "produce"]

pytestmark = [pytest.mark.airflow, pytest.mark.slow]


@pytest.fixture
def ids(database_url: str) -> Iterator[Callable[[], list[int]]]:
    """Numbers of the events in the table that publish makes."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("DROP TABLE IF EXISTS mapped")
        yield lambda: sorted(int(row[0][1:]) for row in connection.execute("SELECT event_id FROM mapped").fetchall())
        connection.execute("DROP TABLE IF EXISTS mapped")


@pytest.fixture
def two(topic: TopicFactory, produce: Any) -> str:
    """Two topics with ten events each, as a list in a DAG file."""
    names = [topic(name, partitions=2) for name in ("one", "other")]
    for i, name in enumerate(names):
        produce(name, [event(10 * i + n) for n in range(10)])
    return repr(names)


CONTRACT = {
    "name": "m",
    "id": "event_id",
    "schema": {"type": "object", "required": ["event_id"], "properties": {"event_id": {"type": "string"}}},
}
PUBLISH = f'agent="publish", contract={CONTRACT!r}, agent_params={{"table": "mapped"}}'


def check(ran: DagOutcome, *publishers: str) -> None:
    assert ran.state == "success", ran.states
    for name in publishers:
        results = ran.results[name]
        for result in results if isinstance(results, list) else [results]:
            assert result["counts"].get("removed", 0) == 0, result


def test_tasks_over_topics(dag_runner: DagRunner, topic: TopicFactory, two: str, ids: Callable[[], list[int]]) -> None:
    body = f"""
windows = WindowOperator.partial(task_id="window").expand(topic={two})
enriched = KafkaAgentOperator.partial(task_id="enrich", agent="enrich", output_topic="<out>", rerun="<again>").expand(window=windows.output)
KafkaAgentOperator.partial(task_id="each", {PUBLISH}, rerun="<again>").expand(window=enriched.output)
KafkaAgentOperator(task_id="all", {PUBLISH}, window=enriched.output, rerun="<again>")
"""
    out = topic("out", partitions=2)
    for again, reused in (("reuse", False), ("reuse", True), ("redo", False)):
        ran = dag_runner.run(text(body, out=out, again=again))
        check(ran, "each", "all")
        assert [r["counts"]["consumed"] for r in ran.results["each"]] == [10, 10]
        assert ran.results["all"]["counts"]["consumed"] == 20
        assert ids() == list(range(20))
        assert [r.get("reused", False) for r in ran.results["enrich"]] == [reused, reused]


def test_a_topic_that_was_skipped_at_first_is_all_that_is_done_later(
    dag_runner: DagRunner, topic: TopicFactory, two: str, ids: Callable[[], list[int]]
) -> None:
    """Airflow counts the results that there are: those after one that is missing move up."""
    body = f"""
from airflow.sdk.exceptions import AirflowSkipException

@task
def choose(topic):
    if "one" in topic and <skip>:
        raise AirflowSkipException
    return topic

chosen = choose.expand(topic={two})
windows = WindowOperator.partial(task_id="window", trigger_rule="none_failed").expand(topic=chosen)
enriched = KafkaAgentOperator.partial(task_id="enrich", agent="enrich", output_topic="<out>").expand(window=windows.output)
KafkaAgentOperator.partial(task_id="publish", {PUBLISH}).expand(window=enriched.output)
"""
    out = topic("out", partitions=2)
    ran = dag_runner.run(text(body, out=out, skip="True"))
    check(ran, "publish")
    assert ids() == list(range(10, 20))
    ran = dag_runner.run(text(body, out=out, skip="False"))
    check(ran, "publish")
    for stage in ("enrich", "publish"):
        assert [r.get("reused", False) for r in ran.results[stage]] == [False, True], stage
    assert ids() == list(range(20))


def test_groups_over_topics_and_parameters_and_sets_of_shards(
    dag_runner: DagRunner, topic: TopicFactory, two: str, ids: Callable[[], list[int]]
) -> None:
    body = f"""
from airflow.sdk import task_group
from airflow.sdk.exceptions import AirflowSkipException

@task_group
def chain(topic):
    window = WindowOperator(task_id="window", topic=topic, shards=2)
    enriched = KafkaAgentOperator(task_id="enrich", agent="enrich", output_topic="<out>", window=window.output)
    KafkaAgentOperator(task_id="publish", {PUBLISH}, window=enriched.output)
    return enriched.output

@task.kafka_agent(output_topic="<parts>")
def pick(event, rest: int = 0):
    return event if int(event["event_id"][1:]) % 2 == rest else None

@task_group
def part(params):
    picked = pick(window.output, agent_params=params)
    return KafkaAgentOperator(task_id="keep", agent="enrich", window=picked, output_topic="<kept>").output

def odd_alone(part):
    if part["shard"][0] == 0:
        raise AirflowSkipException
    return {{"shard": part, "agent_params": {{"rest": 1}}}}

window = WindowOperator(task_id="window", topic={two}[0])
sharded = WindowOperator(task_id="sharded", topic={two}[0], shards=2)
rests = [{{"rest": 0}}, {{"rest": 1}}]
sets = pick.override(task_id="sets").partial(window=sharded.output).expand(agent_params=rests, shard=sharded.output)
KafkaAgentOperator(task_id="all_sets", agent="enrich", window=sets, output_topic="<kept>")
pick.override(task_id="some").partial(window=sharded.output).expand_kwargs(sharded.output.map(odd_alone))
KafkaAgentOperator(task_id="all", {PUBLISH}, window=chain.expand(topic={two}))
KafkaAgentOperator(task_id="parts", {PUBLISH}, window=part.expand(params=[{{"rest": 0}}, {{"rest": 1}}]))
"""
    names = {name: topic(name, partitions=2) for name in ("out", "parts", "kept")}
    for _ in range(2):
        ran = dag_runner.run(text(body, **names))
        check(ran, "chain.publish", "all", "parts")
        assert [r["counts"]["consumed"] for r in ran.results["chain.publish"]] == [10, 10]
        assert ran.results["all"]["counts"]["consumed"] == 20
        assert [r["counts"]["forwarded"] for r in ran.results["part.pick"]] == [5, 5]
        assert [(r.get("instance", 0), r.get("shard", [0, 2])[0]) for r in ran.results["sets"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
        assert ran.results["all_sets"]["counts"]["consumed"] == 10
        assert ran.states["some"] == ["skipped", "success"]
        assert ran.results["parts"]["counts"]["consumed"] == 10
        assert ids() == list(range(20))


def test_ingest_over_sources_and_a_stage_over_two_stages(
    dag_runner: DagRunner, topic: TopicFactory, ids: Callable[[], list[int]], tmp_path: Path
) -> None:
    files = [tmp_path / f"{i}.jsonl" for i in range(3)]
    for i, file in enumerate(files):
        file.write_text("".join(json.dumps(event(10 * i + n)) + "\n" for n in range(10)))
    sources = [{"source": str(file), "time_field": "at"} for file in files]
    body = f"""
read = KafkaAgentOperator.partial(task_id="read", agent="ingest", output_topic="<raw>").expand(agent_params={sources[:2]})
more = KafkaAgentOperator(task_id="more", agent="ingest", output_topic="<raw>", agent_params={sources[2]})
KafkaAgentOperator(task_id="both", {PUBLISH}, window=[read.output, more.output])
enriched = KafkaAgentOperator.partial(task_id="enrich", agent="enrich", output_topic="<out>").expand(window=read.output)
KafkaAgentOperator(task_id="all", {PUBLISH}, window=enriched.output)
"""
    names = {name: topic(name, partitions=2) for name in ("raw", "out")}
    for _ in range(2):
        ran = dag_runner.run(text(body, **names))
        check(ran, "both", "all")
        assert [r["counts"]["consumed"] for r in ran.results["read"]] == [10, 10]
        assert ran.results["both"]["counts"]["consumed"] == 30
        assert ran.results["all"]["counts"]["consumed"] == 20
        assert ids() == list(range(30))


def test_publishers_over_topics_into_one_table_and_over_tables_of_two_sinks(
    dag_runner: DagRunner, topic: TopicFactory, produce: Any, emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of each two dies when it has landed, and is tried again alone."""
    lake = Bench({"type": "sql", "uri": f"sqlite:///{tmp_path}/catalog.db", "warehouse": f"file://{tmp_path}/warehouse"})
    monkeypatch.setenv("AIRFLOW_CONN_ICEBERG_DEFAULT", json.dumps({"conn_type": "iceberg", "extra": lake.properties}))
    names = [topic(name, partitions=2) for name in ("one", "other")]
    for i, name in enumerate(names):
        produce(name, [event(5 * i + n) for n in range(10)])  # half of them in both
    lakes = [{"sink": "iceberg", "mode": "upsert", "table": f"lake.{name}"} for name in "ab"]
    warehouses = [{"sink": "bigquery", "table": f"{emulator.dataset}.{name}"} for name in "ab"]
    body = f"""
dies = "{{{{ 'sink.landed=kill' if ti.map_index == 1 and ti.try_number == 1 else '' }}}}"
common = {{"agent": "publish", "contract": {CONTRACT!r}, "retries": 1, "retry_delay": timedelta(0),
          "env_vars": {{"FACTORY_FAILPOINTS": dies}}}}
windows = WindowOperator.partial(task_id="windows").expand(topic={names})
KafkaAgentOperator.partial(task_id="lake", agent_params={lakes[0]}, **common).expand(window=windows.output)
KafkaAgentOperator.partial(task_id="warehouse", agent_params={warehouses[0]}, **common).expand(window=windows.output)
window = WindowOperator(task_id="window", topic={names}[0])
KafkaAgentOperator.partial(task_id="tables", window=window.output, **common).expand(agent_params={[lakes[1], warehouses[1]]})
"""
    ran = dag_runner.run(text(body))
    check(ran, "lake", "warehouse", "tables")
    assert ran.tries["lake"] == ran.tries["warehouse"] == ran.tries["tables"] == [1, 2]
    for table, upto in (("a", 15), ("b", 10)):
        ids = [row["event_id"] for row in lake.catalog.load_table(f"lake.{table}").scan().to_arrow().to_pylist()]
        for found in (ids, [row[0] for row in emulator.query(f"SELECT event_id FROM {{d}}.{table}")]):
            assert sorted(found) == sorted(f"e{n}" for n in range(upto)), table


def test_what_cannot_be_merged_says_what_to_do(
    dag_runner: DagRunner, topic: TopicFactory, two: str, capfd: pytest.CaptureFixture[str]
) -> None:
    body = f"""
windows = WindowOperator.partial(task_id="window").expand(topic={two})
KafkaAgentOperator(task_id="whole", agent="enrich", output_topic="<out>", window=windows.output, retries=0)
one = WindowOperator(task_id="one", topic={two}[0], shards=2)
KafkaAgentOperator.partial(task_id="product", agent="enrich", output_topic="<out>").expand(window=one.output, agent_params=[{{}}, {{}}])
"""
    ran = dag_runner.run(text(body, out=topic("out", partitions=2)))
    assert ran.states["whole"] == ["failed"]
    assert "failed" in ran.states["product"]
    log = capfd.readouterr().out
    assert "expected one window, got several (a WindowOperator mapped over topics, or a list of them)" in log
    assert "mapped over shards and agent_params at once: the shards have to come last" in log


def test_a_mapped_task_without_a_result_is_never_left_out(
    dag_runner: DagRunner, topic: TopicFactory, two: str, capfd: pytest.CaptureFixture[str]
) -> None:
    body = f"""
windows = WindowOperator.partial(task_id="window").expand(topic={two})
tried = KafkaAgentOperator.partial(task_id="try", agent="enrich", output_topic="<out>", retries=0).expand_kwargs(
    windows.output.map(lambda plan: {{"window": plan, "deadline": "0.000001" if "other" in plan[0]["window"]["topic"] else ""}}))
KafkaAgentOperator(task_id="all", agent="enrich", output_topic="<last>", window=tried.output, retries=0, trigger_rule=TriggerRule.ALL_DONE)
"""
    ran = dag_runner.run(text(body, out=topic("out", partitions=2), last=topic("last", partitions=2)))
    assert (ran.states["try"], ran.states["all"]) == (["success", "failed"], ["failed"])
    assert "stage 'try': 1 of 2 tasks have a result; was one skipped, or marked as a success by hand?" in capfd.readouterr().out
