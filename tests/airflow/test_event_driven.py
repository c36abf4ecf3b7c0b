"""Runs that start when enough has arrived: every record is in exactly one of them, whatever dies."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from factory_agents.kafka.config import KafkaConfig
from factory_agents.kafka.lag import pipeline_lag
from tests.airflow.pipelines import SOAK
from tests.support.airflow_components import RunningAirflow
from tests.support.topics import create_topic
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(7200 if SOAK else 3 * 900)]

ENOUGH = 20  # as the DAG has it
STARTS = 1000 if SOAK else 50
BURST = 5 * ENOUGH
PATIENCE = 600


def test_every_record_is_in_exactly_one_run_though_triggerer_and_scheduler_die(
    airflow_running: RunningAirflow, admin: AdminClient, bootstrap: str
) -> None:
    airflow = airflow_running
    topic = f"{airflow.topics}.arrivals"
    create_topic(admin, topic, 4)
    create_topic(admin, f"{topic}.dead", 4)
    airflow.unpause("arrivals")
    airflow.parse_again("arrivals")
    config = KafkaConfig(bootstrap)
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    sent = 0

    def all_planned() -> bool:
        return not sum(lag.lag for lag in pipeline_lag(config, "arrivals", [topic], prefix=airflow.topics))

    bursts = STARTS * ENOUGH // BURST
    for burst in range(bursts):
        for _ in range(BURST):
            producer.produce(topic, json.dumps({"event_id": sent}).encode(), partition=sent % 4)
            sent += 1
        assert producer.flush(30) == 0
        if burst % 10 == 3:
            airflow.crash("triggerer")
        if burst % 10 == 6:
            airflow.crash("scheduler")
        if burst % 2:
            wait_for(all_planned, "a run for what has arrived", PATIENCE)
    wait_for(all_planned, "a run for the last records", PATIENCE)
    airflow.wait_runs("arrivals", 1, patience=PATIENCE)
    airflow.pause("arrivals")

    assert sorted(row[0] for row in airflow.rows("SELECT event_id FROM arrivals")) == list(range(sent))
    results = [airflow.xcom("arrivals", run["dag_run_id"], "publish") for run in airflow.runs("arrivals")]
    assert sum(result["counts"].get("consumed", 0) for result in results) == sent
    assert sum(result["counts"].get("written", 0) for result in results) == sent
    for partition in range(4):
        ranges = sorted(r[1:3] for result in results for r in result["input"]["ranges"] if r[0] == partition)
        assert ranges[0][0] == 0
        assert all(one[1] == two[0] for one, two in pairwise(ranges))
    assert len(results) >= bursts // 4


def test_the_table_is_an_asset_with_what_was_done_and_a_run_about_intervals_refuses_to_be_started_by_it(
    airflow_running: RunningAirflow, admin: AdminClient, bootstrap: str
) -> None:
    airflow = airflow_running
    airflow.unpause("after_arrivals")
    events = airflow.call("GET", "/assets/events", source_dag_id="arrivals", limit=100)["asset_events"]
    assert events
    assert {"window", "counts", "table"} <= events[0]["extra"].keys()
