"""The DAG that the design aims for, as it stands there, on a real broker and a real database."""

from __future__ import annotations

import json
from collections.abc import Callable
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
        assert producer.flush(30) == 0

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


def test_it_runs_as_it_stands(dag_runner: DagRunner, source: str, prefix: str, produce: Produce) -> None:
    produce(f"{prefix}.raw_events", [event(i) for i in range(100)])
    ran = dag_runner.run(source)
    assert ran.state == "success", ran.states
    assert ran.states["enrich"] == ["success"] * 4
    assert sum(r["counts"]["forwarded"] for r in ran.results["enrich"]) == 100
    assert ran.results["validate"]["counts"] == {"consumed": 100, "forwarded": 100, "produced": 100}
    print(json.dumps(ran.results, indent=1, default=str))
