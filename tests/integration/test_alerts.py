"""Prometheus over a real run: what is recorded has data, and the alert on lag fires on real records and resolves."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import uvicorn
import yaml
from confluent_kafka import TopicPartition

from airflow_provider_factory.alerts.receiver import create_receiver
from factory_agents.errors import FactoryError
from factory_agents.kafka.cuts import plan_window
from factory_agents.metrics.lags import LagChoice
from factory_agents.metrics.server import MetricsServer
from factory_agents.protocol import Interval, Shard
from factory_agents.run import execute
from factory_agents.runtime.agents import agent
from factory_agents.runtime.live import LiveSettings, run_live
from factory_agents.runtime.session import RunContext
from factory_agents.sandbox.processes import free_port
from factory_agents.telemetry.live import LiveTelemetry
from tests.support.prometheus import ALERTMANAGER, PROGRAM, Prometheus, alertmanager, prometheus
from tests.support.runs import Runs, events
from tests.support.waiting import wait_for
from tests.support.webhooks import webhooks

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
    work = threading.Thread(target=lambda: run_live(context, copy, LiveSettings(topic, out, group, prefix=runs.prefix)))
    work.start()
    try:
        yield
    finally:
        stop.set()
        work.join(30)
        telemetry.close()


def some_work(runs: Runs, source: str) -> None:
    """A window with a rejected event, planned and run, that failed at first; another one of which one shard of two is done."""
    end = datetime.now(UTC).replace(microsecond=0)
    hours = [Interval(end - timedelta(minutes=2), end - timedelta(minutes=1)), Interval(end - timedelta(minutes=1), end)]
    for interval in hours:
        runs.produce(source, [*events(9), b"no json"], timestamp=interval.start_ms + 1000)
    first, second = [plan_window(runs.config, pipeline=runs.prefix, topic=source, interval=hour, prefix=runs.prefix) for hour in hours]
    run = runs.run(first, runs.topic("out", partitions=1), max_rejected="100 %")
    with pytest.raises(FactoryError):
        execute(RunContext(runs.config), msgspec.structs.replace(run, params={"no": "such"}))
    execute(RunContext(runs.config), run)
    execute(RunContext(runs.config), msgspec.structs.replace(run, window=second, shard=Shard(0, 2), plan="p"))


def expressions() -> dict[str, str]:
    """What each panel and mark of the dashboards asks, as Grafana would send it with all pipelines and groups chosen."""
    found: dict[str, str] = {}
    for page in (ROOT / "deploy/grafana").glob("*.json"):
        read = json.loads(page.read_text())
        asked = {panel["title"]: panel["targets"][0]["expr"] for panel in read["panels"]}
        asked |= {f"{page.stem}: {mark['name']}": mark["expr"] for mark in read["annotations"]["list"]}
        found |= {title: re.sub(r"\$\w+", ".*", expression.replace("$__rate_interval", "1m")) for title, expression in asked.items()}
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
        for title, expression in asked.items():
            wait_for(lambda expression=expression: watching.query(expression), f"data of {title!r}: {expression}")  # type: ignore[misc]
        rejected = "pipeline_stage:factory_events_rejected:ratio1h"
        wait_for(lambda: 0.1 in [v for of, v in watching.query(rejected) if of["stage"] == "stage"], "the rejected share")
        fires_and_resolves(runs, watching, source, 20)


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The app that Airflow's API server mounts: its address."""
    monkeypatch.setenv("AIRFLOW__FACTORY__ALERTS_TOKEN", "s3cret")
    monkeypatch.setenv("AIRFLOW__FACTORY__RUNBOOKS_URL", "https://wiki/runbooks")
    host, port = "127.0.0.1", free_port("127.0.0.1")
    server = uvicorn.Server(uvicorn.Config(create_receiver(), host, port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_for(lambda: server.started, "the receiver")
    yield f"http://{host}:{port}"
    server.should_exit = True
    thread.join()


@pytest.mark.skipif(ALERTMANAGER is None, reason="Alertmanager is not installed (apt-get install prometheus-alertmanager)")
@pytest.mark.parametrize(
    ("records", "limit", "told_as"), [(20, "5", "20"), pytest.param(1_000_001, "1000000", "1M", marks=pytest.mark.soak)]
)
def test_an_alert_goes_through_alertmanager_and_the_receiver_to_slack_and_so_does_its_end(
    runs: Runs,
    metrics: MetricsServer,
    tmp_path: Path,
    receiver: str,
    monkeypatch: pytest.MonkeyPatch,
    records: int,
    limit: str,
    told_as: str,
) -> None:
    """With the configurations as they are in ``deploy``, but for times and addresses; with a million records for its limit, too."""
    told = yaml.safe_load((ROOT / "deploy/prometheus/alertmanager.yaml").read_text())
    told["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    (on_call,), (airflow,) = (one["webhook_configs"] for one in told["receivers"])
    (tmp_path / "token").write_text("s3cret\n")
    airflow["http_config"]["authorization"]["credentials_file"] = str(tmp_path / "token")
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, (b"{}" for _ in range(records)))
    with webhooks() as server:
        slack = {"conn_type": "slackwebhook", "host": server.url, "password": "/slack"}
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_DEFAULT", json.dumps(slack))
        on_call["url"], airflow["url"] = f"{server.url}/on-call", f"{receiver}/"
        with (
            alertmanager(tmp_path / "alertmanager", told) as alerts,
            prometheus(tmp_path / "prometheus", {"factory": metrics.address}, SOON.replace("> 1000000", f"> {limit}"), alerts) as watching,
        ):
            wait_for(lambda: watching.query("factory_metrics_up"), "the first scrape")
            for sign, state, offset in (("🔴", "firing", 0), ("🟢", "resolved", records)):
                commit(runs, f"{runs.prefix}.g", topic, offset)

                def came(sign: str = sign, state: str = state) -> bool:
                    page = any(body["status"] == state and topic in json.dumps(body) for body in server.bodies("/on-call"))
                    return page and any(text.startswith(f"*{sign}") and topic in text for text in server.texts())

                wait_for(came, f"{state} at the pager and in Slack", 60)
    first, *_, last = [text for text in server.texts() if topic in text]
    title, behind, links = first.splitlines()
    assert title == f"*🔴 KafkaConsumerLagHigh fires: {runs.prefix}.g, {topic}*"
    assert behind == f"{runs.prefix}.g is {told_as} records behind on {topic}"
    assert links.startswith("<https://wiki/runbooks#kafkaconsumerlaghigh|Runbook> · <http://")
    assert last.splitlines()[0] == f"*🟢 KafkaConsumerLagHigh is over: {runs.prefix}.g, {topic}*"
    assert not [text for text in server.texts() if "FactoryMetrics" in text], "nothing else is wrong"
