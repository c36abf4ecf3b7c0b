"""``factory doctor``: one line for each part, what to do where something is missing, and nothing changed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from factory_agents.sandbox import SandboxInfo
from tests.support.commands import IMPATIENT, Command

TOPICS = """
topics:
  {name}: {{partitions: 2}}
"""


@pytest.fixture
def factory(factory: Command) -> Command:
    """The command where no Airflow is configured."""
    factory.environment = {name: value for name, value in factory.environment.items() if not name.startswith("AIRFLOW")}
    return factory


def parts(done: Any) -> dict[str, dict[str, str]]:
    return {finding["part"]: finding for finding in json.loads(done.out)}


def test_what_is_there_is_said_and_what_is_missing_with_what_to_do(
    factory: Command, prefix: str, database_url: str, tmp_path: Path, sandbox_info: SandboxInfo
) -> None:
    (tmp_path / "topics.yaml").write_text(TOPICS.format(name=f"{prefix}.raw"))
    before = factory("doctor", "--topics", "topics.yaml", DATABASE_URL=database_url)
    assert before.code == 1
    found = parts(before)
    assert found["Kafka"]["text"] == f"{sandbox_info.bootstrap}, 1 broker"
    assert found["topics"]["state"] == "fail"
    assert f"missing: {prefix}.raw, {prefix}.ledger" in found["topics"]["text"]
    assert found["topics"]["todo"] == "factory topics apply topics.yaml"
    assert found["database"]["text"].startswith("PostgreSQL ")
    assert found["clocks: database"]["state"] == "ok"

    factory.ok("topics", "apply", "topics.yaml")
    after = parts(factory.ok("doctor", "--topics", "topics.yaml", DATABASE_URL=database_url))
    assert {name for name, finding in after.items() if finding["state"] == "fail"} == set()
    assert after["Airflow"]["state"] == "skip"


def test_a_record_of_a_time_to_come_is_a_clock_that_is_wrong(factory: Command, prefix: str, tmp_path: Path, bootstrap: str) -> None:
    (tmp_path / "topics.yaml").write_text(TOPICS.format(name=f"{prefix}.raw"))
    factory.ok("topics", "apply", "topics.yaml")
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    producer.produce(f"{prefix}.raw", b"{}", timestamp=int((time.time() + 600) * 1000))
    assert producer.flush(60) == 0
    found = parts(factory("doctor", "--topics", "topics.yaml"))
    assert found["clocks: Kafka"]["state"] == "warn"
    assert f"{prefix}.raw has a record of " in found["clocks: Kafka"]["text"]


@pytest.mark.parametrize(
    ("variables", "part", "says"),
    [
        ({"KAFKA_BOOTSTRAP": ""}, "Kafka", "no broker named"),
        ({"KAFKA_BOOTSTRAP": "127.0.0.1:1"}, "Kafka", "no broker answered at 127.0.0.1:1"),
        ({"DATABASE_URL": "postgresql://x:hush@127.0.0.1:1/y"}, "database", "127.0.0.1:1/y does not answer"),
    ],
)
def test_a_part_that_does_not_answer_is_one_line_and_the_others_are_looked_at(
    factory: Command, variables: dict[str, str], part: str, says: str
) -> None:
    done = factory("doctor", program=IMPATIENT, **variables)
    assert done.code == 1
    found = parts(done)
    assert found[part]["state"] == "fail"
    assert says in found[part]["text"]
    assert found[part]["todo"]
    assert found["versions"]["state"] == "ok"
    assert "hush" not in done.out + done.err
