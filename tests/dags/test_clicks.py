"""The DAG that the design aims for, as it stands there, on a real broker and a real database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TopicFactory
from tests.support.airflow_env import AIRFLOW_HOME, HOUR, DagRunner

pytestmark = [pytest.mark.airflow, pytest.mark.slow]

HERE = Path(__file__).parent
START = HOUR - timedelta(hours=1)
Produce = Callable[[str, list[dict[str, Any]]], None]


@pytest.fixture
def produce(bootstrap: str) -> Produce:
    """Writes events with times within the hour that ``dag.test`` runs."""
    from confluent_kafka import Producer

    def write(topic: str, events: list[dict[str, Any]]) -> None:
        producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
        for i, value in enumerate(events):
            at = START + timedelta(seconds=1 + i % 3590)
            producer.produce(topic, json.dumps(value), key=str(i), timestamp=int(at.timestamp() * 1000))
        assert producer.flush(120) == 0  # the first record of each of a thousand partitions takes a busy broker more than half a minute

    return write


@pytest.fixture(autouse=True)
def connections(monkeypatch: pytest.MonkeyPatch, bootstrap: str, database_url: str, airflow_home: Path) -> None:
    """The official connections, as environment variables, and the repository's ``include`` beside the DAG folder."""
    extra = {"bootstrap.servers": bootstrap, "group.id": "airflow", "enable.auto.commit": False}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": extra}))
    monkeypatch.setenv("AIRFLOW_CONN_POSTGRES_DEFAULT", database_url)
    contract = AIRFLOW_HOME / "include" / "contracts" / "clicks.yaml"
    contract.parent.mkdir(parents=True, exist_ok=True)
    contract.write_text((HERE / "clicks.yaml").read_text())


@pytest.fixture
def source(prefix: str, topic: TopicFactory) -> str:
    """The DAG's text with an id and topics of the test's own."""
    text = (
        (HERE / "clicks.py").read_text().replace("@dag(", '@dag(dag_id="DAG_ID", ').replace("datetime(2026, 11, 1)", "datetime(2026, 1, 1)")
    )
    for name in ("raw_events", "enriched_events", "valid_events"):
        text = text.replace(f'"{name}"', f'"{topic(name)}"')
    return text


def event(i: int, **more: Any) -> dict[str, Any]:
    return {"event_id": f"e{i}", "url": f"https://host{i % 3}.example/{i}", "at": (START + timedelta(seconds=i)).isoformat(), **more}


@pytest.fixture
def table(database_url: str) -> Iterator[Callable[[], list[tuple[Any, ...]]]]:
    """The table that publish needs, and a look at what is in it."""
    import psycopg

    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE events (event_id text PRIMARY KEY, url text, host text, at timestamptz)")
        yield lambda: connection.execute("SELECT event_id, host FROM events ORDER BY event_id").fetchall()
        connection.execute("DROP TABLE events")


Table = Callable[[], list[tuple[Any, ...]]]


def test_it_runs_as_it_is_and_again(dag_runner: DagRunner, source: str, prefix: str, produce: Produce, table: Table) -> None:
    produce(f"{prefix}.raw_events", [event(i) for i in range(100)])
    ran = dag_runner.run(source)
    assert ran.state == "success", ran.states
    assert ran.states["enrich"] == ["success"] * 4
    assert sum(r["counts"]["forwarded"] for r in ran.results["enrich"]) == 100
    assert ran.results["validate"]["counts"] == {"consumed": 100, "forwarded": 100, "produced": 100}
    assert ran.results["validate.report"]["outcome"] == "pass"
    assert ran.results["publish"]["counts"]["written"] == 100
    landed = table()
    assert len(landed) == 100
    assert landed[0] == ("e0", "host0.example")
    assert all("partition" in label for label in ran.labels["enrich"])

    # Another run over the same interval: what is in the ledger is returned.
    again = dag_runner.run(source, logical_date=HOUR + timedelta(minutes=10))
    assert again.state == "success", again.states
    assert again.results["window"] == ran.results["window"]
    assert all(r["reused"] for r in again.results["enrich"])
    assert [r["manifest"] for r in again.results["enrich"]] == [r["manifest"] for r in ran.results["enrich"]]
    assert table() == landed

    # Told to, the work is done again, and what is published is the same.
    redone = dag_runner.run(source, conf={"reprocess": True, "shards": 2})
    assert redone.state == "success", redone.states
    assert redone.states["enrich"] == ["success"] * 2
    assert not any(r.get("reused") for r in redone.results["enrich"])
    assert redone.results["publish"]["counts"]["forwarded"] == 100
    assert table() == landed


def test_an_empty_hour_succeeds_and_a_stage_marked_by_hand_does_not_pass_for_one(
    dag_runner: DagRunner, source: str, table: Table, capfd: pytest.CaptureFixture[str]
) -> None:
    empty = dag_runner.run(source)
    assert empty.state == "success", empty.states
    assert len(empty.results["window"]) >= 1
    assert table() == []

    marked = dag_runner.run(source, mark_success_pattern="validate")
    assert marked.states["validate"] == ["success"]
    assert marked.states["publish"] == ["failed"]
    assert (
        "task 'publish': expected the results of the stage before, got none; was it skipped, or marked as a success by hand?"
        in capfd.readouterr().out
    )
    marked = dag_runner.run(source, mark_success_pattern="enrich")
    assert marked.states["validate"] == ["failed"]
    assert marked.states["publish"] == ["upstream_failed"]


def test_bad_data_fails_without_a_retry_and_nothing_is_published(
    dag_runner: DagRunner, source: str, prefix: str, produce: Produce, table: Table, capfd: pytest.CaptureFixture[str]
) -> None:
    produce(f"{prefix}.raw_events", [event(i) for i in range(50)] + [event(99, at=5)])
    ran = dag_runner.run(source)
    assert ran.states["validate"] == ["failed"]
    assert ran.tries["validate"] == [1]
    assert ran.states["publish"] == ["upstream_failed"]
    assert "ValidationFailedError: FAIL: clicks version 1: 51 rows, 50 valid, 1 rejected" in capfd.readouterr().out
    assert ran.results["validate.report"]["outcome"] == "fail"
    assert table() == []


def test_a_run_without_an_interval_fails_at_once_and_says_what_to_do(
    dag_runner: DagRunner, source: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text = source.replace("closed >> window", "")
    ran = dag_runner.run(text, logical_date=None)
    assert ran.states["window"] == ["failed"]
    assert ran.tries["window"] == [1]
    assert "has no data interval: a run by hand gets one with airflow dags trigger" in capfd.readouterr().out


def test_an_unreachable_broker_is_retried(
    dag_runner: DagRunner, source: str, impatient: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    extra = {"bootstrap.servers": "127.0.0.1:1", "socket.connection.setup.timeout.ms": 1000}
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_DEFAULT", json.dumps({"conn_type": "kafka", "extra": extra}))
    text = source.replace('"retries": 2', '"retries": 1, "retry_delay": timedelta(0)')
    ran = dag_runner.run(text)
    assert ran.states["window"] == ["failed"]
    assert ran.tries["window"] == [2]
    assert "127.0.0.1:1" in capfd.readouterr().out
