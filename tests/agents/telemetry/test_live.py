"""A live agent tells of itself: the same names as the metrics server, and whether it is alive and has joined."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from factory_agents.errors import ConfigurationError
from factory_agents.runtime.agents import agent
from factory_agents.runtime.live import LiveSettings, run_live
from factory_agents.runtime.session import RunContext
from factory_agents.telemetry import Batch, Commit, Observer, Subject
from factory_agents.telemetry.live import LiveTelemetry
from tests.agents.telemetry.test_observer import odd_is_wrong
from tests.support.commands import Command
from tests.support.runs import Runs, events
from tests.support.scrapes import Increments, scrape, value
from tests.support.waiting import wait_for

SUBJECT = Subject("g", "live", "a", "1")


@pytest.fixture
def telemetry() -> Iterator[LiveTelemetry]:
    made = LiveTelemetry("127.0.0.1:0")
    yield made
    made.close()


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_of_a_live_agent_events_commits_and_partitions_are_told(runs: Runs, telemetry: LiveTelemetry) -> None:
    source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
    stop, seen, address = threading.Event(), Increments(), telemetry.address
    assert get(address, "/readyz")[0] == 503
    work = threading.Thread(
        target=lambda: run_live(
            RunContext(runs.config, stop=stop.is_set, observer=telemetry),
            agent(version="1", name="a")(odd_is_wrong).bind({}),
            LiveSettings(source, out, group=f"{runs.prefix}.g", prefix=runs.prefix),
        )
    )
    work.start()
    try:
        wait_for(lambda: get(address, "/readyz")[0] == 200, "the agent to join")
        runs.produce(source, events(10))
        seen.until(address, "factory_events_total", 10, agent="a", pipeline=f"{runs.prefix}.g", stage="live", outcome="consumed")
        runs.produce(source, events(10))
        seen.until(address, "factory_events_total", 20, outcome="consumed")
        wait_for(lambda: value(scrape(address), "factory_held_lag") == 0, "no lag")
        samples = scrape(address)
    finally:
        stop.set()
        work.join(30)
    assert seen.of("factory_events_total", outcome="rejected") == seen.of("factory_events_total", outcome="forwarded") == 10
    assert value(samples, "factory_partitions_held") == 2
    assert value(samples, "factory_batch_records_sum") == 20
    assert seen.of("factory_event_seconds_count") >= 2
    assert seen.of("factory_event_seconds_sum") < 30 * seen.of("factory_event_seconds_count")
    assert value(samples, "agent_success_total") == value(samples, "factory_commit_seconds_count")
    assert value(samples, "factory_transaction_age_seconds") == 0
    assert value(samples, "factory_agent_info", agent="a", version="1") == 1
    assert get(address, "/livez") == (200, "ok\n")


def test_an_open_transaction_ages_until_it_is_committed_or_dropped(telemetry: LiveTelemetry) -> None:
    telemetry.batch(SUBJECT, Batch(5, 2.0))
    assert (value(scrape(telemetry.address), "factory_transaction_age_seconds") or 0) >= 2
    telemetry.aborted(SUBJECT, 5, "why")
    assert value(scrape(telemetry.address), "factory_transaction_age_seconds") == 0
    for name in ("factory_batch_records_count", "factory_aborts_total"):  # once 0 has been seen
        wait_for(lambda name=name: value(scrape(telemetry.address), name) == 1, name)


def test_a_breaker_is_told_and_nothing_is_scaled_by_lag_while_it_is_open(telemetry: LiveTelemetry) -> None:
    telemetry.lag(SUBJECT, {0: 5, 1: 7})
    telemetry.breakers(SUBJECT, {"crm": "closed"})
    assert value(scrape(telemetry.address), "factory_scalable_lag") == 12
    telemetry.breakers(SUBJECT, {"crm": "open"})
    samples = scrape(telemetry.address)
    assert value(samples, "factory_breaker_open") == 1
    assert (value(samples, "factory_held_lag"), value(samples, "factory_scalable_lag")) == (12, 0)
    assert value(samples, "factory_transaction_age_seconds") == 0


def test_what_a_model_took_stands_in_its_own_metrics(telemetry: LiveTelemetry) -> None:
    seen = Increments()
    for n in (1, 3):  # what is told is of all the work so far
        counts = {"consumed": n, "asked": n, "prompt_tokens": 20 * n, "completion_tokens": 5 * n, "nanocost": n * 500_000_000}
        telemetry.committed(SUBJECT, Commit(1, 1, 10, 0.1, counts=counts))
    seen.until(telemetry.address, "agent_tokens_total", 60, kind="prompt")
    seen.until(telemetry.address, "agent_cost_total", 1.5)
    assert seen.of("agent_tokens_total", kind="completion") == 15
    assert seen.of("agent_calls_total") == seen.of("factory_events_total") == 3


def test_what_a_sink_does_over_windows_is_left_to_the_ledger(telemetry: LiveTelemetry) -> None:
    window = Subject("g", "publish", "publish", "1", window="w")
    telemetry.batch(window, Batch(5, 100.0))
    assert value(scrape(telemetry.address), "factory_transaction_age_seconds") == 0
    telemetry.committed(window, Commit(5, 5, 50, 0.1, done=5, counts={"consumed": 5}))
    wait_for(lambda: value(scrape(telemetry.address), "factory_commit_seconds_count") == 1, "a commit")
    samples = scrape(telemetry.address)
    assert value(samples, "factory_transaction_age_seconds") == 0
    assert value(samples, "agent_success_total") is value(samples, "factory_events_total") is None


def test_a_loop_that_hangs_is_not_alive(telemetry: LiveTelemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 1000)
    assert get(telemetry.address, "/livez")[0] == 503
    telemetry.turn(SUBJECT, joined=True)
    assert get(telemetry.address, "/livez")[0] == 200


def test_the_command_serves_while_the_agent_runs(factory: Command, runs: Runs) -> None:
    source, out = runs.topic("in"), runs.topic("out")
    live = factory.start(
        "agent", "run", "enrich", "--in-topic", source, "--out-topic", out, "--group", f"{runs.prefix}.g", "--metrics-listen", "0"
    )
    live.wait_logged("serving metrics")
    (address,) = [json.loads(line)["address"] for line in live.lines if "serving metrics" in line]
    assert address.startswith("127.0.0.1:")
    wait_for(lambda: get(address, "/readyz")[0] == 200, "the agent to join")
    runs.produce(source, events(3))
    Increments().until(address, "factory_events_total", 3, agent="enrich", outcome="consumed")
    assert live.stop().code == 0
    taken = factory("agent", "run", "enrich", "--in-topic", source, "--out-topic", out, "--metrics-listen", "256.0.0.1:1")
    assert taken.error.startswith("--metrics-listen: cannot listen on '256.0.0.1:1'")
    window = ("--since", "2026-01-01", "--until", "2026-01-02")
    assert "is for live agents" in factory("agent", "run", "enrich", "--in-topic", source, *window, "--metrics-listen", "0").error


def test_without_the_package_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'factory-agents\[metrics\]'"):
        LiveTelemetry("127.0.0.1:0")


@pytest.mark.parametrize("module", ["factory_agents", "factory_agents.run", "factory_agents.cli", "factory_agents.launch"])
def test_nothing_of_it_is_imported_before_it_is_asked_for(module: str) -> None:
    found = f"import sys, {module}; print([m for m in sys.modules if m in ('http.server', 'prometheus_client')])"
    assert subprocess.run([sys.executable, "-c", found], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_an_agent_with_metrics_is_not_slower(runs: Runs, telemetry: LiveTelemetry) -> None:
    """By its CPU time over many chunks; what is kept costs microseconds a chunk."""

    def seconds(observer: Observer) -> float:
        began = time.thread_time()
        for i in range(1000):
            observer.batch(SUBJECT, Batch(1000, 0.01))
            observer.turn(SUBJECT, joined=True)
            observer.committed(SUBJECT, Commit(1000, 1000, 9, 0.01, counts={"consumed": 1000 * i, "forwarded": 1000 * i}))
        return time.thread_time() - began

    told: list[Any] = [seconds(telemetry) - seconds(Observer()) for _ in range(3)]
    assert min(told) / 1000 < 200e-6  # of the 4 ms that a chunk of a thousand events takes at 250,000 a second
