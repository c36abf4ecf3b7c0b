"""Prometheus over a real run: what is recorded has data, and the alert on lag fires on real records and resolves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import yaml
from confluent_kafka import TopicPartition

from factory_agents.errors import FactoryError
from factory_agents.kafka.ledger import Ledger
from factory_agents.metrics.lags import LagChoice
from factory_agents.metrics.server import MetricsServer
from factory_agents.protocol import Interval
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from tests.support.prometheus import PROGRAM, Prometheus, prometheus
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Prometheus is not installed (apt-get install prometheus)")

RULES = (Path(__file__).resolve().parents[2] / "deploy/prometheus/rules.yaml").read_text()
SOON = re.sub(r"for: \w+", "for: 1s", RULES)


@pytest.fixture
def metrics(runs: Runs) -> Iterator[MetricsServer]:
    own = LagChoice(groups=re.escape(runs.prefix) + ".*", topics=re.escape(runs.prefix) + ".*")
    server = MetricsServer(runs.config, listen="127.0.0.1:0", prefix=runs.prefix, every=0.5, lag=own)
    server.start()
    yield server
    server.close()


def commit(runs: Runs, group: str, topic: str, offset: int) -> None:
    onlooker = runs.config.onlooker(group)
    onlooker.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)
    onlooker.close()


def fires_and_resolves(runs: Runs, watching: Prometheus, topic: str, records: int) -> None:
    labels = {"alertname": "KafkaConsumerLagHigh", "severity": "page", "topic": topic, "group": f"{runs.prefix}.g"}
    assert labels not in watching.firing()
    commit(runs, labels["group"], topic, 0)
    wait_for(lambda: labels in watching.firing(), "the alert to fire", 60)
    commit(runs, labels["group"], topic, records)
    wait_for(lambda: labels not in watching.firing(), "the alert to resolve", 60)


def test_what_is_recorded_has_data_and_an_alert_fires_and_resolves(runs: Runs, metrics: MetricsServer, tmp_path: Path) -> None:
    source, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    runs.produce(source, [*events(9), b"no json"])
    end = datetime.now(UTC).replace(microsecond=0)
    window = msgspec.structs.replace(runs.window(source), name="", interval=Interval(end - timedelta(minutes=1), end))
    run = runs.run(window, out, max_rejected="100 %")
    with prometheus(tmp_path, {"factory": metrics.address}, SOON.replace("> 1000000", "> 5")) as watching:
        wait_for(lambda: watching.query("factory_metrics_up"), "the first scrape")
        Ledger(runs.config, runs.cluster, prefix=runs.prefix, pipeline=runs.prefix).ensure()
        with pytest.raises(FactoryError):
            execute(RunContext(runs.config), msgspec.structs.replace(run, params={"no": "such"}))
        execute(RunContext(runs.config), run)
        commit(runs, f"{runs.prefix}.g", source, 8)
        recorded = [rule["record"] for group in yaml.safe_load(RULES)["groups"] for rule in group["rules"] if "record" in rule]
        for name in recorded:
            wait_for(lambda name=name: watching.query(name), f"data of {name}")  # type: ignore[misc]
        wait_for(lambda: [v for _, v in watching.query("pipeline_stage:factory_events_rejected:ratio1h")] == [0.1], "the rejected share")
        assert {alert["alertname"] for alert in watching.firing()} <= {"FactoryRejectedShareHigh"}
        fires_and_resolves(runs, watching, source, 10)


@pytest.mark.soak
def test_the_alert_fires_on_a_million_records(runs: Runs, metrics: MetricsServer, tmp_path: Path) -> None:
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, (b"{}" for _ in range(1_000_001)))
    with prometheus(tmp_path, {"factory": metrics.address}, SOON) as watching:
        wait_for(lambda: watching.query("factory_metrics_up"), "the first scrape")
        fires_and_resolves(runs, watching, topic, 1_000_001)
