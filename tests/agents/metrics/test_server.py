"""The metrics server: what it counts is what the ledger holds, whatever dies; no scrape waits for Kafka."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from factory_agents.errors import ConfigurationError, FactoryError
from factory_agents.kafka.config import KafkaConfig
from factory_agents.metrics.lags import LagChoice
from factory_agents.metrics.server import MetricsServer
from factory_agents.protocol import AgentResult
from factory_agents.run import execute
from factory_agents.runtime.session import RunContext
from tests.support.runs import Runs, events
from tests.support.scrapes import Increments, scrape, value
from tests.support.waiting import quickest, wait_for


class Servers:
    """Metrics servers over this test's ledger."""

    def __init__(self, runs: Runs) -> None:
        self.runs = runs
        self.started: list[MetricsServer] = []

    def start(self, config: KafkaConfig | None = None, **more: object) -> MetricsServer:
        own = LagChoice(groups=f"{self.runs.prefix}.*", topics=f"{self.runs.prefix}.*")
        settings = {"listen": "127.0.0.1:0", "prefix": self.runs.prefix, "every": 0.2, "lag": own, **more}
        server = MetricsServer(config or self.runs.config, **settings)  # type: ignore[arg-type]
        self.started.append(server)
        server.start()
        return server


@pytest.fixture
def servers(runs: Runs) -> Iterator[Servers]:
    made = Servers(runs)
    yield made
    for server in made.started:
        server.close()


def run_windows(runs: Runs, count: int, start: int = 0) -> list[AgentResult]:
    """Windows of ten events each, one of them refused."""
    topic, out = runs.topic("in", partitions=1), runs.topic("out", partitions=1)
    done = []
    for i in range(start, start + count):
        runs.produce(topic, [*events(9), b"no json"])
        window = msgspec.structs.replace(runs.window(topic), name=f"w{i}")
        done.append(execute(RunContext(runs.config), runs.run(window, out, max_rejected="100 %")))
    return done


def test_increments_are_what_the_ledger_holds(runs: Runs, servers: Servers) -> None:
    results = run_windows(runs, 3)
    bad = msgspec.structs.replace(runs.run(runs.filled(5, name="bad")), params={"no": "such"})
    with pytest.raises(FactoryError):
        execute(RunContext(runs.config), bad)
    server, seen = servers.start(), Increments()
    seen.until(server.address, "agent_success_total", 3, agent="mark", pipeline=runs.prefix, stage="stage")
    assert seen.of("factory_events_total", outcome="consumed") == sum(r.counts.consumed for r in results)
    assert seen.of("factory_events_total", outcome="rejected") == sum(r.counts.rejected for r in results) == sum(range(1, 4))
    assert seen.of("factory_run_seconds_count", pipeline=runs.prefix) == 3
    assert seen.of("factory_run_seconds_sum") == pytest.approx(sum(r.seconds for r in results))
    assert seen.of("factory_windows_finished_total") == 3
    assert seen.of("agent_failure_total", agent="mark", error="ConfigurationError") == 1


def test_a_new_series_is_shown_as_zero_once(runs: Runs, servers: Servers) -> None:
    server = servers.start()
    wait_for(lambda: value(scrape(server.address), "factory_metrics_up", part="ledger") == 1, "the server")
    run_windows(runs, 2)
    shown: list[float] = []

    def both() -> bool:
        found = value(scrape(server.address), "agent_success_total")
        shown.extend([found] if found is not None else [])
        return found == 2

    wait_for(both, "both runs")
    assert shown[0] == 0
    assert shown == sorted(shown)


def test_a_server_that_starts_again_counts_only_what_was_not_shown(runs: Runs, servers: Servers) -> None:
    seen = Increments()
    run_windows(runs, 2)
    first = servers.start()
    seen.until(first.address, "agent_success_total", 2)
    first.close()
    run_windows(runs, 3, start=2)
    second = servers.start()
    seen.until(second.address, "agent_success_total", 5)
    seen.take(scrape(second.address))
    assert seen.of("agent_success_total") == 5
    assert value(scrape(second.address), "agent_success_total") == 3


def test_what_no_scrape_has_seen_is_counted_by_the_next_life(runs: Runs, servers: Servers) -> None:
    first, seen = servers.start(), Increments()
    run_windows(runs, 2)
    wait_for(lambda: first._told.number, "the server to read the ledger")
    first.close()
    seen.until(servers.start().address, "agent_success_total", 2)
    assert seen.of("agent_success_total") == 2


def test_without_a_broker_it_answers_at_once_and_says_so(runs: Runs, servers: Servers) -> None:
    server = servers.start(KafkaConfig("127.0.0.1:1"))
    took, samples = quickest(lambda: scrape(server.address))
    assert took < 1
    assert value(samples, "factory_metrics_up", part="ledger") == value(samples, "factory_metrics_up", part="lag") == 0


def test_lag_is_told_of_groups_and_pipelines(runs: Runs, servers: Servers) -> None:
    from confluent_kafka import TopicPartition

    topic = runs.topic("lag", partitions=2)
    runs.produce(topic, events(10))
    onlooker = runs.config.onlooker(f"{runs.prefix}.g")
    onlooker.commit(offsets=[TopicPartition(topic, 0, 2)], asynchronous=False)
    onlooker.close()
    server = servers.start()
    labels = {"topic": topic, "group": f"{runs.prefix}.g"}
    wait_for(lambda: value(scrape(server.address), "kafka_consumer_lag", **labels) == 8, "the lag")
    samples = scrape(server.address)
    assert value(samples, "kafka_consumer_lag", **labels, partition="0") == 3
    whole = servers.start(group=f"{runs.prefix}.other", lag=LagChoice(groups=f"{runs.prefix}.g", topics=topic, by_partition=False))
    wait_for(lambda: value(scrape(whole.address), "kafka_consumer_lag", **labels, partition="") == 8, "the lag of the topic")


def test_before_there_is_a_ledger_nothing_is_wrong(runs: Runs, servers: Servers) -> None:
    server = servers.start()
    wait_for(lambda: value(scrape(server.address), "factory_metrics_up") == 3, "all parts")


@pytest.mark.parametrize("listen", ["nowhere", "127.0.0.1:99999", "::1:80", "127.0.0.1:-1", "256.1.1.1:1"])
def test_where_it_cannot_listen_it_says_so(listen: str) -> None:
    with pytest.raises(ConfigurationError, match="--listen"):
        MetricsServer(KafkaConfig("127.0.0.1:1"), listen=listen)
