"""Traces: an event's is one from its producer to the table, a stage's leads to the one before, and what was dropped leaves no span."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
from confluent_kafka import Producer

from factory_agents.errors import UnavailableError
from factory_agents.kafka.writer import ChunkAbortedError, TransactionalWriter
from factory_agents.protocol import AgentRef, AgentResult, AgentRun, Interval, Window, merge_results
from factory_agents.run import execute
from factory_agents.runners.process import AgentProcess, child_environment
from factory_agents.runtime.agents import SourceRecord, agent
from factory_agents.runtime.live import LiveSettings, run_live
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.sink import run_sink
from factory_agents.runtime.source import run_source
from factory_agents.runtime.traced import traced as within
from factory_agents.telemetry import parse_traceparent, tracing
from factory_agents.telemetry.live import LiveTelemetry
from tests.support.agents import mark
from tests.support.commands import Command, clean_environment
from tests.support.otlp import Collector, SeenSpan
from tests.support.prometheus import PROGRAM, prometheus
from tests.support.runs import ROOT, Runs, events
from tests.support.sqlite_sink import SqliteSink
from tests.support.waiting import wait_for

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"
CONTRACT = {"name": "events", "id": "event_id", "columns": {"event_id": "bigint", "text": "text"}}


def traced_by_its_producer(n: int) -> str:
    return f"00-{n + 1:032x}-{n + 1:016x}-01"


def header(value: object) -> dict[str, Any]:
    return {"headers": {"traceparent": value, "theirs": b"1"}}


def by_stage(spans: list[SeenSpan], trace: str) -> dict[str, SeenSpan]:
    return {str(span.attributes["factory.stage"]): span for span in spans if span.trace_id == trace}


class Traced:
    """Runs in this process, or as processes, that send their traces to a collector."""

    def __init__(self, runs: Runs, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs, self.collector = runs, collector
        for name, value in collector.environment.items():
            monkeypatch.setenv(name, value)

    def here(self, run: AgentRun) -> AgentResult:
        with tracing("factory-agent") as traces:
            return execute(RunContext(self.runs.config, traces=traces), run)

    def as_process(self, run: AgentRun, **extra: str) -> AgentResult:
        environment = child_environment(os.environ, private=(), secrets=self.runs.config.to_env(), extra=extra, python_path=[Path.cwd()])
        result = AgentProcess(run, environment).run()
        assert result.error is None, result.error
        return result

    def headers(self, topic: str) -> list[Any]:
        return [record.headers.get("traceparent") for record in self.runs.everything(topic)]


@pytest.fixture
def traced(runs: Runs, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Traced:
    return Traced(runs, collector, monkeypatch)


def stages(runs: Runs, source: Path) -> list[AgentRun]:
    """The four stages, each without its window."""
    topics = {name: runs.topic(name, partitions=2) for name in ("raw", "enriched", "valid")}
    base = AgentRun(runs.prefix, "", AgentRef(""), prefix=runs.prefix)
    made = []
    for stage, output, params in (
        ("ingest", "raw", {"source": str(source)}),
        ("enrich", "enriched", {"function": "tests.support.agents:mark"}),
        ("validate", "valid", {"contract": {"name": "events", "id": "event_id"}}),
        ("publish", "", {"contract": CONTRACT, "table": f"t_{runs.prefix.replace('-', '_')}"}),
    ):
        run = msgspec.structs.replace(base, stage=stage, agent=AgentRef(stage), params=params, output_topic=topics.get(output, ""))
        made.append(run)
    return made


def test_an_event_is_one_trace_from_the_source_to_the_table_and_stages_lead_to_each_other(
    traced: Traced, collector: Collector, database_url: str, tmp_path: Path
) -> None:
    source = tmp_path / "events.jsonl"
    source.write_bytes(b"\n".join(events(500)))
    results: list[AgentResult] = []
    began = time.time_ns()
    pipeline = stages(traced.runs, source)
    for run in pipeline:
        window = merge_results(results[-1:]) if results else None
        given = {"window": window, "origin": window.origin} if window is not None else {"name": "all"}
        run = msgspec.structs.replace(run, traceparent=TRACEPARENT, **given)
        results.append(traced.as_process(run, DATABASE_URL=database_url, TRACEPARENT=traced_by_its_producer(7)))
    ended = time.time_ns()
    table = pipeline[-1].params["table"]
    with psycopg.connect(database_url) as connection:
        assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (500,)

    root = collector.one("ingest event")
    spans = by_stage(collector.spans, root.trace_id)
    names = ["ingest", "enrich", "validate", "publish"]
    assert sorted(spans) == sorted(names)
    assert root.parent_id == ""
    assert [spans[b].parent_id for b in names[1:]] == [spans[a].span_id for a in names[:-1]]
    assert began <= root.start <= root.end <= spans["enrich"].end <= spans["validate"].end <= spans["publish"].end <= ended
    first = next(r for r in traced.runs.everything(results[0].manifest.topic) if "traceparent" in r.headers)  # type: ignore[union-attr]
    assert first.headers["traceparent"] == root.traceparent.encode()

    of_runs = [collector.one(name) for name in names]
    assert [(span.trace_id, span.parent_id) for span in of_runs] == [(TRACE, SPAN)] * 4
    assert [result.traceparent for result in results] == [span.traceparent for span in of_runs]
    assert [span.links for span in of_runs[1:]] == [((TRACE, before.span_id),) for before in of_runs[:-1]]
    assert [span.attributes["factory.records"] for span in of_runs] == [500] * 4
    for span in of_runs[:-1]:
        chunk = collector.one(f"{span.name} chunk")
        assert (chunk.trace_id, chunk.parent_id, chunk.attributes["messaging.batch.message_count"]) == (TRACE, span.span_id, 500)
    assert {span.service for span in collector.spans} == {"factory-agent"}

    again = traced.as_process(msgspec.structs.replace(run, traceparent=traced_by_its_producer(1)), DATABASE_URL=database_url)
    assert again.reused
    assert again.traceparent == results[-1].traceparent, "the span of the run that did the work"
    assert len(collector.named("publish event")) == 1


def test_a_trace_begins_when_its_event_is_produced_however_long_the_source_took_for_it(traced: Traced, collector: Collector) -> None:
    class Slow:
        name, version = "slow", "1"

        def __init__(self) -> None:
            self.identity: dict[str, Any] = {}

        def read(self, interval: Interval | None, skip: int) -> Iterator[list[SourceRecord]]:
            read_at.append(time.time_ns())
            quiet = threading.Event()
            quiet.wait(1)
            yield [SourceRecord(None, event, "here") for event in events(1)]

        def close(self) -> None:
            pass

    read_at: list[int] = []
    hour = Interval(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, 1, tzinfo=UTC))
    run = traced.runs.run(None, traced.runs.topic("out", partitions=1), "ingest", stage="ingest", interval=hour)
    with tracing("factory-agent") as traces, within(RunContext(traced.runs.config, traces=traces), run) as context:
        run_source(context, run, Slow)
    (record,) = traced.runs.everything(run.output_topic)
    span, chunk = collector.one("ingest event"), collector.one("ingest chunk")
    assert read_at[0] + 1_000_000_000 <= span.start <= (record.timestamp + 1) * 1_000_000
    assert chunk.start <= read_at[0] + 500_000_000, "the chunk has the source's time, too"


def test_a_trace_ends_when_the_table_is_committed(traced: Traced, collector: Collector, tmp_path: Path) -> None:
    source = traced.runs.topic("in", partitions=1)
    traced.runs.produce(source, events(1), **header(TRACEPARENT))
    landed: list[int] = []

    class Noting(SqliteSink):
        def commit(self, *, rejected: int) -> Any:
            outcome = super().commit(rejected=rejected)
            landed.append(time.time_ns())
            return outcome

    run = traced.runs.run(traced.runs.window(source), name="publish", stage="publish", dead_letter_topic=f"{source}.dead")
    with tracing("factory-agent") as traces, within(RunContext(traced.runs.config, traces=traces), run) as context:
        run_sink(context, run, lambda: Noting(tmp_path / "d.sqlite"))
    span = collector.one("publish event")
    assert (span.trace_id, span.parent_id) == (TRACE, SPAN)
    assert abs(span.end - landed[0]) < 50_000_000
    assert collector.one("publish").end > span.end


def test_what_becomes_of_an_event_stands_in_its_span(traced: Traced, collector: Collector) -> None:
    source = traced.runs.topic("in", partitions=1)
    for n in (1, 3, 5, 9):  # forwarded, filtered, rejected, forwarded twice
        traced.runs.produce(source, events(1, n), **header(traced_by_its_producer(n)))
    traced.runs.produce(source, events(1, 11))
    run = traced.runs.run(traced.runs.window(source), traced.runs.topic("out"), "tests.support.agents:judge")
    traced.here(run)
    spans = {int(span.trace_id, 16) - 1: span for span in collector.named("stage event")}
    assert {n: span.attributes["factory.outcome"] for n, span in spans.items()} == {
        1: "forwarded",
        3: "filtered",
        5: "rejected",
        9: "forwarded",
    }
    assert all(int(span.parent_id, 16) == n + 1 for n, span in spans.items())
    written = [(r.headers.get("traceparent"), r.headers.get("theirs")) for r in traced.runs.everything(run.output_topic)]
    assert written == [*((spans[n].traceparent.encode(), b"1") for n in (1, 9, 9)), (None, None)]
    (letter,) = traced.runs.everything(f"{run.output_topic}.dead")
    assert letter.headers["traceparent"] == spans[5].traceparent.encode()
    chunk = collector.one("stage chunk")
    assert set(chunk.links) == {(span.trace_id, span.span_id) for span in spans.values()}


HOSTILE = [
    b"",
    None,
    b"\xff\xfe",
    b"00-" + b"0" * 32 + b"-" + b"0" * 16 + b"-01",
    b"x" * 100_000,
    TRACEPARENT.upper().encode(),
    TRACEPARENT.encode() + b"\n",
    f"00-{TRACE}-{SPAN}-00".encode(),  # not recorded
]


def test_headers_that_name_no_span_go_on_as_they_are(traced: Traced, collector: Collector) -> None:
    source = traced.runs.topic("in", partitions=1)
    for value in HOSTILE:
        traced.runs.produce(source, events(1), **header(value))
    traced.runs.produce(source, events(1), headers=[("traceparent", TRACEPARENT.encode())] * 2)
    run = traced.runs.run(traced.runs.window(source), traced.runs.topic("out"))
    result = traced.here(run)
    assert result.counts.forwarded == len(HOSTILE) + 1
    assert traced.headers(run.output_topic) == [*HOSTILE, TRACEPARENT.encode()]
    assert collector.named("stage event") == []
    assert len(collector.spans) == 2


def test_where_every_event_carries_a_trace_some_are_followed_at_every_stage_the_same(traced: Traced, collector: Collector) -> None:
    source = traced.runs.topic("in", partitions=2)
    producer = Producer({"bootstrap.servers": traced.runs.bootstrap, "log_level": 0})
    for n, event in enumerate(events(3000)):
        producer.produce(source, event, partition=n % 2, headers={"traceparent": f"00-{n * 2654435761 + 1:032x}-{n + 1:016x}-01"})
    assert producer.flush(60) == 0
    first = traced.runs.run(traced.runs.window(source), traced.runs.topic("mid", partitions=2), stage="first")
    window = merge_results([traced.here(first)])
    second = traced.runs.run(window, traced.runs.topic("out", partitions=2), stage="second")
    traced.here(second)
    found = {name: {span.trace_id for span in collector.named(f"{name} event")} for name in ("first", "second")}
    assert 20 <= len(found["first"]) <= 500
    assert len(found["first"] & found["second"]) >= 20
    of_second = {span.parent_id for span in collector.named("second event")}
    assert of_second & {span.span_id for span in collector.named("first event")}


@pytest.mark.parametrize("failpoint", ["chunk.before-ledger=kill@2", "chunk.before-commit=kill@2", "chunk.after-produce=kill@2"])
def test_a_killed_and_retried_stage_leaves_no_span_of_what_was_dropped(traced: Traced, collector: Collector, failpoint: str) -> None:
    source = traced.runs.topic("in", partitions=1)
    for n in range(4):
        traced.runs.produce(source, events(100, n * 100))
        traced.runs.produce(source, events(1, 1000 + n), **header(traced_by_its_producer(n)))
    out = traced.runs.topic("out", partitions=1)
    run = traced.runs.run(traced.runs.window(source), out, chunk_records=101, traceparent=TRACEPARENT)
    sent_soon = {"OTEL_BSP_SCHEDULE_DELAY": "20"}
    attempt = traced.runs.attempt(run, failpoint, secrets=sent_soon)
    assert attempt.wait() < 0, attempt.log
    before = len(collector.named("stage event"))
    result = traced.as_process(run)
    assert result.counts.forwarded == 404
    committed = {json.loads(r.value or b"")["event_id"]: r.headers.get("traceparent") for r in traced.runs.everything(out)}
    seen = {span.traceparent.encode() for span in collector.named("stage event")}
    of_records = {value for value in committed.values() if value is not None}
    assert len(of_records) == 4
    assert seen <= of_records, "a span stands for a committed record"
    assert len(of_records - seen) <= 1, "a kill may take spans that were not sent yet"
    assert before <= 1
    assert {span.trace_id for span in collector.named("stage chunk")} == {TRACE}
    assert sum(span.attributes["messaging.batch.message_count"] for span in collector.named("stage chunk")) <= 404


def test_a_chunk_that_is_aborted_and_tried_again_is_one_span(traced: Traced, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    source = traced.runs.topic("in", partitions=1)
    traced.runs.produce(source, events(1), **header(TRACEPARENT))
    commit = TransactionalWriter.commit

    def fail_once(self: TransactionalWriter, deadline: float) -> None:
        monkeypatch.setattr(TransactionalWriter, "commit", commit)
        raise ChunkAbortedError(UnavailableError("the coordinator was away"), refused=False)

    monkeypatch.setattr(TransactionalWriter, "commit", fail_once)
    run = traced.runs.run(traced.runs.window(source), traced.runs.topic("out"))
    traced.here(run)
    span = collector.one("stage event")
    assert traced.headers(run.output_topic) == [span.traceparent.encode()]
    assert collector.one("stage").events == ("chunk aborted",)
    assert len(collector.named("stage chunk")) == 1


def test_a_failure_is_marked_by_its_class_and_spans_hold_no_secret(traced: Traced, collector: Collector) -> None:
    run = traced.runs.run(traced.runs.filled(20), traced.runs.topic("out"), "tests.support.agents:judge", max_rejected="0")
    run = msgspec.structs.replace(run, params={})
    environment = {"DATABASE_URL": "postgresql://u:hunter2@h/x", "OTEL_EXPORTER_OTLP_HEADERS": "api-key=hunter2"}
    attempt = traced.runs.attempt(run, secrets=environment)
    assert attempt.wait() != 0
    span = collector.one("stage")
    assert span.failed
    assert span.attributes["error.type"] == "TooManyRejectedError"
    assert "hunter2" not in repr(collector.spans)
    assert {request["Api-Key"] for request in map(_titled, collector.requests)} == {"hunter2"}, "sent, where it belongs"
    assert "hunter2" not in attempt.log


def _titled(headers: dict[str, str]) -> dict[str, str]:
    return {name.title(): value for name, value in headers.items()}


def test_log_lines_carry_the_ids_of_the_run_that_the_collector_has(traced: Traced, collector: Collector) -> None:
    run = traced.runs.run(traced.runs.filled(20), traced.runs.topic("out"), traceparent=TRACEPARENT)
    attempt = traced.runs.attempt(run)
    assert attempt.wait() == 0, attempt.log
    lines = [json.loads(line) for line in attempt.lines]
    (done,) = [line for line in lines if line["message"] == "done"]
    assert (done["trace_id"], done["span_id"]) == (TRACE, collector.one("stage").span_id)


def test_without_traces_log_lines_carry_those_of_whoever_started_the_run(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    run = traced.runs.run(traced.runs.filled(20), traced.runs.topic("out"), traceparent=TRACEPARENT)
    attempt = traced.runs.attempt(run)
    assert attempt.wait() == 0, attempt.log
    done = json.loads(attempt.lines[-1])
    assert (done["trace_id"], done["span_id"]) == (TRACE, SPAN)
    assert attempt.result.traceparent == ""


def test_a_collector_that_is_away_costs_two_seconds_and_a_warning_and_nothing_else(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")  # for as long it would be waited for
    run = traced.runs.run(traced.runs.filled(1000), traced.runs.topic("out"))
    attempt = traced.runs.attempt(run)
    wait_for(lambda: '"done"' in attempt.log, "the end of the work")
    done = time.monotonic()
    assert attempt.wait() == 0, attempt.log
    assert time.monotonic() - done < 20  # 1.7 s, and Python's own end
    warnings = [line for line in map(json.loads, attempt.lines) if line["level"] != "info"]
    assert [line["message"].partition(":")[0] for line in warnings] == ["traces do not reach http"]
    assert attempt.result.counts.forwarded == 1000
    assert len(traced.runs.manifest(attempt.result.manifest)) == 1000


def test_traces_say_nothing_of_what_the_work_is(traced: Traced) -> None:
    window = traced.runs.filled(10)
    out = traced.runs.topic("out")
    run = traced.runs.run(window, out)
    told = msgspec.structs.replace(run, traceparent=TRACEPARENT, window=msgspec.structs.replace(window, spans=(TRACEPARENT,)))
    assert told.digest == run.digest
    assert not traced.here(run).reused
    assert traced.here(told).reused


def test_a_window_names_the_runs_that_wrote_it(traced: Traced) -> None:
    result = traced.here(traced.runs.run(traced.runs.filled(10), traced.runs.topic("out")))
    assert parse_traceparent(result.traceparent) is not None
    window: Window = merge_results([result])
    assert window.spans == (result.traceparent,)


def test_a_live_agent_follows_events_too_and_each_of_its_chunks_is_a_trace(traced: Traced, collector: Collector) -> None:
    source, out = traced.runs.topic("in", partitions=1), traced.runs.topic("out", partitions=1)
    traced.runs.produce(source, events(1), **header(TRACEPARENT))
    stop = threading.Event()
    with tracing("factory-agent") as traces:
        live = threading.Thread(
            target=lambda: run_live(
                RunContext(traced.runs.config, stop=stop.is_set, traces=traces),
                agent(version="1", name="a")(mark).bind({}),
                LiveSettings(source, out, group=f"{traced.runs.prefix}.g", prefix=traced.runs.prefix),
            )
        )
        live.start()
        try:
            wait_for(lambda: traced.runs.everything(out), "the event")
        finally:
            stop.set()
            live.join(30)
    span, chunk = collector.one("live event"), collector.one("live chunk")
    assert (span.trace_id, span.parent_id) == (TRACE, SPAN)
    assert traced.headers(out) == [span.traceparent.encode()]
    assert (chunk.parent_id, chunk.links) == ("", ((TRACE, span.span_id),))
    assert chunk.attributes["messaging.consumer.group.name"] == f"{traced.runs.prefix}.g"


@pytest.mark.skipif(PROGRAM is None, reason="Prometheus is not installed (apt-get install prometheus)")
def test_exemplars_of_the_age_of_events_name_their_traces(traced: Traced, collector: Collector, tmp_path: Path) -> None:
    source, out = traced.runs.topic("in", partitions=1), traced.runs.topic("out", partitions=1)
    stop, telemetry = threading.Event(), LiveTelemetry("0")
    with tracing("factory-agent") as traces:
        context = RunContext(traced.runs.config, stop=stop.is_set, traces=traces, observer=telemetry)
        settings = LiveSettings(source, out, group=f"{traced.runs.prefix}.g", prefix=traced.runs.prefix)
        live = threading.Thread(target=lambda: run_live(context, agent(version="1", name="a")(mark).bind({}), settings))
        live.start()
        try:
            with prometheus(tmp_path, {"live": telemetry.address}, "groups: []") as watching:
                traced.runs.produce(source, [*events(1), b"no event"], **header(TRACEPARENT))
                wait_for(lambda: watching.query("factory_event_seconds_count > 0"), "the ages")
                ((_, seen),) = watching.query("factory_event_seconds_count")
                assert seen >= 1
                traced.runs.produce(source, events(1), timestamp=int((time.time() - 7) * 1000), **header(traced_by_its_producer(3)))
                wait_for(lambda: len(watching.exemplars("factory_event_seconds_bucket")) >= 2, "the exemplars")
                found = {exemplar["trace_id"] for exemplar in watching.exemplars("factory_event_seconds_bucket")}
                assert found == {TRACE, f"{4:032x}"}
                wait_for(lambda: (watching.query("factory_event_seconds_sum") or [({}, 0.0)])[0][1] >= 7, "the old event's age")
        finally:
            stop.set()
            live.join(30)
            telemetry.close()
    assert found <= {span.trace_id for span in collector.named("live event")}


def test_the_documented_commands_leave_the_traces_that_the_page_speaks_of(traced: Traced, collector: Collector, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "telemetry.md").read_text()
    commands = [line.split() for line in page.splitlines() if line.startswith("factory agent run") and " --json > " in line]
    assert len(commands) == 2
    topics = {name: traced.runs.topic(name) for name in ("raw_events", "enriched_events")}
    (tmp_path / "include").symlink_to(ROOT / "include")
    environment = clean_environment(KAFKA_BOOTSTRAP=traced.runs.bootstrap, FACTORY_PREFIX=traced.runs.prefix, **collector.environment)
    command = Command(tmp_path, environment)
    for _, *arguments, _, file in commands:
        done = command(*(topics.get(word, word) for word in arguments))
        assert done.code == 0, done.err
        (tmp_path / file).write_text(done.out)
    first, second = collector.one("ingest"), collector.one("enrich")
    assert second.links == ((first.trace_id, first.span_id),)
    root = collector.named("ingest event")[0]
    assert sorted(by_stage(collector.spans, root.trace_id)) == ["enrich", "ingest"]
