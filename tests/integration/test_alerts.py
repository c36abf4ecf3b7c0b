"""Prometheus over a real run: what is recorded has data, and the alert on lag fires on real records and resolves."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from confluent_kafka import TopicPartition

from factory_agents.errors import FactoryError
from factory_agents.kafka.cuts import plan_window
from factory_agents.metrics.lags import LagChoice
from factory_agents.metrics.server import MetricsServer
from factory_agents.protocol import Interval
from factory_agents.run import execute
from factory_agents.runtime.agents import agent
from factory_agents.runtime.live import run_live
from factory_agents.runtime.session import RunContext
from factory_agents.telemetry.live import LiveTelemetry
from tests.support.prometheus import ALERTMANAGER, PROGRAM, Prometheus, alertmanager, prometheus
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Prometheus is not installed (apt-get install prometheus)")

ROOT = Path(__file__).resolve().parents[2]
RULES = (ROOT / "deploy/prometheus/rules.yaml").read_text()
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


@contextmanager
def live_agent(runs: Runs, topic: str, telemetry: LiveTelemetry) -> Iterator[None]:
    """A live agent that reads the topic, and tells of it."""
    stop, out = threading.Event(), runs.topic("live", partitions=1)
    context = RunContext(runs.config, stop=stop.is_set, observer=telemetry)
    copy = agent(version="1", name="copy")(lambda event: event).bind({})
    group = f"{runs.prefix}.live"
    work = threading.Thread(target=lambda: run_live(context, copy, in_topic=topic, out_topic=out, group=group, prefix=runs.prefix))
    work.start()
    try:
        yield
    finally:
        stop.set()
        work.join(30)
        telemetry.close()


def some_work(runs: Runs, source: str) -> None:
    """A window with a rejected event, planned and run, that failed at first; another one that is planned and not finished."""
    end = datetime.now(UTC).replace(microsecond=0)
    hours = [Interval(end - timedelta(minutes=2), end - timedelta(minutes=1)), Interval(end - timedelta(minutes=1), end)]
    for interval in hours:
        runs.produce(source, [*events(9), b"no json"], timestamp=interval.start_ms + 1000)
    first, _ = [plan_window(runs.config, pipeline=runs.prefix, topic=source, interval=hour, prefix=runs.prefix) for hour in hours]
    run = runs.run(first, runs.topic("out", partitions=1), max_rejected="100 %")
    with pytest.raises(FactoryError):
        execute(RunContext(runs.config), msgspec.structs.replace(run, params={"no": "such"}))
    execute(RunContext(runs.config), run)


def expressions() -> dict[str, str]:
    """What each panel of the dashboards asks, by its title, as Grafana would send it with all pipelines and groups chosen."""
    found = {}
    for page in (ROOT / "deploy/grafana").glob("*.json"):
        for panel in json.loads(page.read_text())["panels"]:
            asked = panel["targets"][0]["expr"].replace("$__rate_interval", "1m")
            found[panel["title"]] = re.sub(r"\$\w+", ".*", asked)
    return found


def test_rules_and_panels_have_data_and_an_alert_fires_and_resolves(runs: Runs, metrics: MetricsServer, tmp_path: Path) -> None:
    source, telemetry = runs.topic("in", partitions=1), LiveTelemetry("0")
    targets = {"factory": metrics.address, "live": telemetry.address}
    with live_agent(runs, source, telemetry), prometheus(tmp_path, targets, SOON.replace("> 1000000", "> 5")) as watching:
        wait_for(lambda: watching.query("factory_metrics_up"), "the first scrape")
        some_work(runs, source)
        commit(runs, f"{runs.prefix}.g", source, 16)
        recorded = [rule["record"] for group in yaml.safe_load(RULES)["groups"] for rule in group["rules"] if "record" in rule]
        asked = {name: name for name in recorded} | expressions()
        asked = {title: asked[title] for title in asked if title != "Open window that rests longest"}  # no window was begun and left
        for title, expression in asked.items():
            wait_for(lambda expression=expression: watching.query(expression), f"data of {title!r}: {expression}")  # type: ignore[misc]
        rejected = "pipeline_stage:factory_events_rejected:ratio1h"
        wait_for(lambda: 0.1 in [v for of, v in watching.query(rejected) if of["stage"] == "stage"], "the rejected share")
        fires_and_resolves(runs, watching, source, 20)


@pytest.fixture
def heard() -> Iterator[tuple[str, list[tuple[str, dict[str, Any]]]]]:
    """A server that notes what is posted to it, by path: its address, and the notes."""
    notes: list[tuple[str, dict[str, Any]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            notes.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", notes
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.soak
@pytest.mark.skipif(ALERTMANAGER is None, reason="Alertmanager is not installed (apt-get install prometheus-alertmanager)")
def test_an_alert_reaches_a_webhook_and_slack_and_so_does_its_end(
    runs: Runs, metrics: MetricsServer, tmp_path: Path, heard: tuple[str, list[tuple[str, dict[str, Any]]]]
) -> None:
    url, notes = heard
    told = yaml.safe_load((ROOT / "deploy/prometheus/alertmanager.yaml").read_text())
    told["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    (on_call,), (channel,) = told["receivers"][0]["webhook_configs"], told["receivers"][1]["slack_configs"]
    on_call["url"] = f"{url}/alerts"
    del channel["api_url_file"]
    channel["api_url"] = f"{url}/slack"
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, events(20))
    with (
        alertmanager(tmp_path / "alertmanager", told) as alerts,
        prometheus(tmp_path / "prometheus", {"factory": metrics.address}, SOON.replace("> 1000000", "> 5"), alerts) as watching,
    ):
        wait_for(lambda: watching.query("factory_metrics_up"), "the first scrape")

        def posted(path: str) -> set[str]:
            about = [body for where, body in notes if where == path and topic in json.dumps(body)]
            return {body["status"] if path == "/alerts" else body["attachments"][0]["title"].split()[0].lower() for body in about}

        for state, offset in (("firing", 0), ("resolved", 20)):
            commit(runs, f"{runs.prefix}.g", topic, offset)
            for path in ("/alerts", "/slack"):
                wait_for(lambda path=path, state=state: state in posted(path), f"{state} at {path}: {notes}", 60)  # type: ignore[misc]
        assert not [body for _, body in notes if "FactoryMetrics" in json.dumps(body)], "nothing else is wrong"
    (text,) = {b["attachments"][0]["text"] for path, b in notes if path == "/slack" and f"behind on {topic}" in json.dumps(b)}
    assert f"{runs.prefix}.g is 20 records behind on {topic} (docs/runbooks.md#kafkaconsumerlaghigh)" in text


@pytest.mark.soak
def test_the_alert_fires_on_a_million_records(runs: Runs, metrics: MetricsServer, tmp_path: Path) -> None:
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, (b"{}" for _ in range(1_000_001)))
    with prometheus(tmp_path, {"factory": metrics.address}, SOON) as watching:
        wait_for(lambda: watching.query("factory_metrics_up"), "the first scrape")
        fires_and_resolves(runs, watching, topic, 1_000_001)
