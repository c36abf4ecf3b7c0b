"""A pipeline of ``dags/hourly.py`` as a test sees it: its topics, what arrives, and what has to be in its table."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from tests.support.airflow_components import RunningAirflow
from tests.support.disturber import Arrival, Row, disturbed, one_pass, sample_events
from tests.support.topics import create_topic
from tests.support.waiting import wait_for

SOAK = bool(os.environ.get("FACTORY_SOAK"))
HOURS = 200 if SOAK else 5
START = datetime(2025, 1, 6, tzinfo=UTC)
PARTITIONS = 4


class Pipeline:
    """Its topic holds ``hours`` of disturbed events; ``expected`` is what one pass over them leaves."""

    def __init__(self, airflow: RunningAirflow, admin: AdminClient, bootstrap: str, dag_id: str, *, seed: int, hours: int = HOURS) -> None:
        self.airflow = airflow
        self.dag_id = dag_id
        self.hours = hours
        name = f"{airflow.topics}.{dag_id}"
        for suffix in ("", ".enriched", ".enriched.dead", ".valid", ".valid.dead"):
            create_topic(admin, f"{name}{suffix}", PARTITIONS, retention_ms=-1)
        arrivals = disturbed(_events(hours), seed=seed, start=START, hours=hours, partitions=PARTITIONS)
        produce(bootstrap, name, arrivals)
        self.arrivals = len(arrivals)
        self.expected = one_pass(arrival.value for arrival in arrivals)

    def backfill(self, *, first: int = 0, last: int | None = None, **options: object) -> None:
        """Ask for a backfill of the hours from ``first`` to ``last``; ``options`` are the API's."""
        self.wait_backfilled()
        span = {"from_date": _hour(first), "to_date": _hour(self.hours - 1 if last is None else last)}
        self.airflow.call("POST", "/backfills", {"dag_id": self.dag_id, "max_active_runs": 8, **span, **options})

    def wait_backfilled(self) -> None:
        """Until Airflow calls every backfill so far completed, some time after its runs: it refuses another one before."""
        wait_for(lambda: all(b["completed_at"] for b in self._backfills()), "the backfill before to be over", 120)

    def _backfills(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.airflow.call("GET", "/backfills", dag_id=self.dag_id)["backfills"]
        return found

    def backfill_by_cli(self) -> None:
        """The same of all hours, as a person types it."""
        span = ("--from-date", _hour(0), "--to-date", _hour(self.hours - 1))
        self.airflow.cli("backfill", "create", "--dag-id", self.dag_id, *span, "--max-active-runs", "8")

    def table(self) -> list[Row]:
        """What is in the table."""
        return self.airflow.rows(f"SELECT event_id, revision, path, added, occurred_at, language FROM {self.dag_id}")  # type: ignore[return-value]

    def check(self) -> None:
        """The table holds what one pass leaves, no more and no less."""
        rows = self.table()
        assert len(rows) == len(set(rows))
        missing, more = self.expected - set(rows), set(rows) - self.expected
        assert not missing | more, f"{len(missing)} missing, {len(more)} too many of {len(self.expected)}: {[*missing, *more][:5]}"


def produce(bootstrap: str, topic: str, arrivals: Sequence[Arrival]) -> None:
    """Write records with their producers' times, in order of arrival."""
    producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
    for arrival in arrivals:
        producer.produce(topic, arrival.value, partition=arrival.partition, timestamp=arrival.at)
    assert producer.flush(60) == 0


def _events(hours: int) -> list[dict[str, object]]:
    """About forty an hour."""
    sample = sample_events()
    rounds = -(-40 * hours // len(sample))
    return [event | {"event_id": f"{event['event_id']}#{i}"} for i in range(rounds) for event in sample][: 40 * hours]


def _hour(n: int) -> str:
    return (START + timedelta(hours=n)).isoformat()
