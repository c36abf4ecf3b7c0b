"""Runs that start when enough has arrived: every record is in exactly one of them, whatever dies."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
STARTS = 1000 if SOAK else 35
BURST = 5 * ENOUGH
PATIENCE = 600


class Arrivals:
    """The topic that the pipeline watches, and its producer."""

    def __init__(self, airflow: RunningAirflow, admin: AdminClient, bootstrap: str) -> None:
        self.topic = f"{airflow.topics}.arrivals"
        self.sent = 0
        self._prefix = airflow.topics
        self._config = KafkaConfig(bootstrap)
        self._producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
        create_topic(admin, self.topic, 4)
        create_topic(admin, f"{self.topic}.dead", 4)

    def send(self, count: int) -> None:
        for _ in range(count):
            self._producer.produce(self.topic, json.dumps({"event_id": self.sent}).encode(), partition=self.sent % 4)
            self.sent += 1
        assert self._producer.flush(60) == 0

    def wait_planned(self) -> None:
        """Until every record is in the window of some run."""

        def planned() -> bool:
            return not sum(lag.lag for lag in pipeline_lag(self._config, "arrivals", [self.topic], prefix=self._prefix))

        wait_for(planned, "a run for what has arrived", PATIENCE)


@pytest.fixture(scope="module")
def arrivals(airflow_running: RunningAirflow, admin: AdminClient, bootstrap: str) -> Iterator[Arrivals]:
    arrivals = Arrivals(airflow_running, admin, bootstrap)
    airflow_running.unpause("arrivals")
    airflow_running.parse_again("arrivals")
    yield arrivals
    airflow_running.pause("arrivals")


def test_every_record_is_in_exactly_one_run_though_triggerer_and_scheduler_die(airflow_running: RunningAirflow, arrivals: Arrivals) -> None:
    airflow = airflow_running
    bursts = STARTS * ENOUGH // BURST
    for burst in range(bursts):
        arrivals.send(BURST)
        if burst % 10 == 3:
            airflow.crash("triggerer")
        if burst % 10 == 6:
            airflow.crash("scheduler")
        if burst % 2:
            arrivals.wait_planned()
    arrivals.wait_planned()
    airflow.wait_runs("arrivals", 1, patience=PATIENCE)

    assert sorted(row[0] for row in airflow.rows("SELECT event_id FROM arrivals")) == list(range(arrivals.sent))
    results = [airflow.xcom("arrivals", run["dag_run_id"], "publish") for run in airflow.runs("arrivals")]
    assert sum(result["counts"].get("consumed", 0) for result in results) == arrivals.sent
    assert sum(result["counts"].get("written", 0) for result in results) == arrivals.sent
    for partition in range(4):
        ranges = sorted(r[1:3] for result in results for r in result["input"]["ranges"] if r[0] == partition)
        assert ranges[0][0] == 0
        assert all(one[1] == two[0] for one, two in pairwise(ranges))
    assert len(results) >= bursts // 4


def test_the_table_is_an_asset_with_what_was_done_and_a_run_about_intervals_refuses_to_be_started_by_it(
    airflow_running: RunningAirflow, arrivals: Arrivals
) -> None:
    airflow = airflow_running
    airflow.unpause("after_arrivals")
    arrivals.send(ENOUGH)
    wait_for(lambda: airflow.runs("after_arrivals"), "a run of the DAG that waits for the table", PATIENCE)
    run = airflow.runs("after_arrivals")[0]["dag_run_id"]
    airflow.wait_run("after_arrivals", run, "failed")
    airflow.pause("after_arrivals")
    wait_for(
        lambda: all(r["start_date"] for r in airflow.runs("after_arrivals")), "its runs to begin: Airflow answers 500 before", PATIENCE
    )
    events = airflow.call("GET", "/assets/events", source_dag_id="arrivals", limit=100)["asset_events"]
    assert {"window", "counts", "dataset"} <= events[0]["extra"].keys()
    for task in ("ingest", "window"):
        assert "has no data interval" in airflow.log("after_arrivals", run, task)
