"""Twenty seconds stand in for an hour: empty and overlapping runs, a pause and what the two policies make of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from tests.support.airflow_components import RunningAirflow
from tests.support.topics import create_topic
from tests.support.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

INTERVAL = 20
DAGS = ("short_carry", "short_leave")


class Ticker:
    """Writes five events a second, some with times a little behind, until it is stopped."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self.sent = 0
        self.takes = 0
        self._stop = threading.Event()
        self._producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
        self._topic = topic
        self._thread = threading.Thread(target=self._tick)
        self._thread.start()

    def _tick(self) -> None:
        while not self._stop.wait(0.2):
            takes, self.takes = self.takes, 0
            value = json.dumps({"event_id": self.sent, "takes": takes}).encode()
            behind = 3000 if self.sent % 7 == 0 else 0
            self._producer.produce(self._topic, value, partition=self.sent % 2, timestamp=round(time.time() * 1000) - behind)
            self.sent += 1
            self._producer.poll(0)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        assert self._producer.flush(60) == 0


@pytest.fixture
def ticker(airflow_running: RunningAirflow, admin: AdminClient, bootstrap: str) -> Iterator[Ticker]:
    for name in ("short", "short_carry", "short_leave", "short_carry.dead", "short_leave.dead"):
        create_topic(admin, f"{airflow_running.topics}.{name}", 2, retention_ms=-1)
    for dag_id in DAGS:
        airflow_running.unpause(dag_id)
    for dag_id in DAGS:
        airflow_running.wait_done(dag_id, 1)  # an empty window
    ticker = Ticker(bootstrap, f"{airflow_running.topics}.short")
    yield ticker
    ticker.stop()
    for dag_id in DAGS:
        airflow_running.pause(dag_id)


def ids(airflow: RunningAirflow, dag_id: str) -> list[int]:
    return [row[0] for row in airflow.rows(f"SELECT event_id FROM {dag_id} ORDER BY event_id")]


def facts(airflow: RunningAirflow, dag_id: str) -> list[dict[str, Any]]:
    done = [run for run in airflow.runs(dag_id) if run["state"] == "success"]
    return [airflow.xcom(dag_id, run["dag_run_id"], "window", "run_info") for run in done]


def last_end(airflow: RunningAirflow, dag_id: str) -> datetime:
    """Up to where intervals have runs, whatever these have come to."""
    return max(datetime.fromisoformat(run["data_interval_end"]) for run in airflow.runs(dag_id))


def wait_read(airflow: RunningAirflow, dag_id: str, until: float) -> None:
    """Until every run of an interval that begins before a time has succeeded, and one that begins after it is there."""

    def read() -> bool:
        begins = {run["dag_run_id"]: datetime.fromisoformat(run["data_interval_start"]).timestamp() for run in airflow.runs(dag_id)}
        done = {run["dag_run_id"] for run in airflow.runs(dag_id) if run["state"] == "success"}
        return max(begins.values()) > until and all(run in done for run, begin in begins.items() if begin <= until)

    wait_for(read, f"the windows of {dag_id} to pass the last event", 600)


@pytest.mark.soak
def test_overlap_pause_and_resume_lose_nothing_or_say_what_they_left(airflow_running: RunningAirflow, ticker: Ticker) -> None:
    airflow = airflow_running
    ticker.takes = 2 * INTERVAL  # in each pipeline, one run outlasts the next interval's beginning
    for dag_id in DAGS:
        airflow.wait_done(dag_id, 4)

    # The pause: whole intervals go by with nobody to read them. (The one that was next when it began has its run after all, at its end.)
    for dag_id in DAGS:
        airflow.pause(dag_id)
    last = {dag_id: last_end(airflow, dag_id) for dag_id in DAGS}
    over = time.time() + 4.5 * INTERVAL
    wait_for(lambda: time.time() > over, "some intervals to go by", 6 * INTERVAL)
    paused = {dag_id: len(airflow.runs(dag_id)) for dag_id in DAGS}
    for dag_id in DAGS:
        airflow.unpause(dag_id)
    for dag_id in DAGS:
        airflow.wait_done(dag_id, paused[dag_id] + 1)
    ticker.stop()
    stopped = time.time()
    for dag_id in DAGS:
        wait_read(airflow, dag_id, stopped)
        spans = sorted((run["start_date"], run["end_date"]) for run in airflow.runs(dag_id) if run["state"] == "success")
        assert any(later[0] < earlier[1] for earlier, later in pairwise(spans)), spans

    everything = list(range(ticker.sent))
    assert ids(airflow, "short_carry") == everything
    assert sum(f["carried"] for f in facts(airflow, "short_carry")) > 0

    missing = sorted(set(everything) - set(ids(airflow, "short_leave")))
    assert len(missing) >= 5 * INTERVAL  # one whole interval of five events a second, at least
    assert sum(f["gap"] for f in facts(airflow, "short_leave")) > 0  # and the run after it said so

    # What was left is for a backfill; intervals that have a run are left alone.
    span = {"from_date": last["short_leave"].isoformat(), "to_date": max(run["data_interval_start"] for run in airflow.runs("short_leave"))}
    airflow.call("POST", "/backfills", {"dag_id": "short_leave", "max_active_runs": 4, **span})
    wait_for(lambda: ids(airflow, "short_leave") == everything, "the backfill to fill the gap", 600)
