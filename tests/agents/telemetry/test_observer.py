"""What an observer hears of a run: enough for progress, heartbeats and metrics, and nothing per record."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec

from factory_agents.errors import UnavailableError
from factory_agents.kafka.writer import ChunkAbortedError, TransactionalWriter
from factory_agents.runtime.agents import Reject, SinkOutcome, agent
from factory_agents.runtime.live import LiveSettings, run_live
from factory_agents.runtime.session import RunContext
from factory_agents.runtime.sink import run_sink
from factory_agents.runtime.source import run_source
from factory_agents.telemetry import Subject
from tests.support.observers import Recorder
from tests.support.runs import Runs, events
from tests.support.sqlite_sink import SqliteSink
from tests.support.waiting import wait_for


def odd_is_wrong(event: dict[str, Any]) -> dict[str, Any]:
    if event["event_id"] % 2:
        raise Reject("odd", rule="even")
    return event


def test_of_a_window_it_hears_batches_commits_and_the_end(runs: Runs) -> None:
    observed = Recorder()
    run = runs.run(runs.filled(1000), runs.topic("out"), chunk_records=300)
    result = runs.transform(run, odd_is_wrong, observer=observed)
    written_to = (run.output_topic, f"{run.output_topic}.dead")
    assert observed.subjects == {Subject(runs.prefix, "stage", "mark", result.version, "w", "0of1", 1000)}
    assert sum(batch.records for batch in observed.of("batch")) == 1000
    assert all(batch.seconds >= 0 for batch in observed.of("batch"))
    commits = observed.of("committed")
    assert len(commits) >= 4
    assert sum(commit.records for commit in commits) == sum(commit.written for commit in commits) == 1000
    assert sum(commit.bytes for commit in commits) == sum(len(r.value or b"") for topic in written_to for r in runs.everything(topic))
    assert sum(commit.rejected.get("even", 0) for commit in commits) == 500
    assert (commits[-1].done, commits[-1].rejected_in_all) == (1000, 500)
    assert all(commit.seconds > 0 for commit in commits)
    (done,) = observed.of("done")
    assert (done.records, done.rejected, done.seconds, done.reused) == (1000, 500, result.seconds, False)
    assert len(observed.calls) < 100
    again = Recorder()
    runs.transform(run, odd_is_wrong, observer=again)
    assert [(name, what.reused) for name, what in again.calls] == [("done", True)]


def test_it_hears_of_an_agent_that_is_busy(runs: Runs) -> None:
    observed = Recorder()

    def slow(event: dict[str, Any]) -> dict[str, Any]:
        wait_for(lambda: len(observed.of("busy")) >= 3, "three signs of life")
        return event

    runs.transform(runs.run(runs.filled(1), runs.topic("out")), slow, observer=observed)
    seconds = observed.of("busy")
    assert seconds == sorted(seconds)
    assert seconds[-1] > 0.2


def test_it_hears_why_a_chunk_was_dropped(runs: Runs, monkeypatch: Any) -> None:
    observed = Recorder()
    commit = TransactionalWriter.commit

    def fail_once(self: TransactionalWriter, deadline: float) -> None:
        monkeypatch.setattr(TransactionalWriter, "commit", commit)
        raise ChunkAbortedError(UnavailableError("the coordinator was away"), refused=False)

    monkeypatch.setattr(TransactionalWriter, "commit", fail_once)
    runs.transform(runs.run(runs.filled(10), runs.topic("out")), observer=observed)
    assert observed.of("aborted") == [(10, "the coordinator was away")]
    assert [commit.records for commit in observed.of("committed")] == [10]


def test_of_a_sink_it_hears_batches_dead_letters_and_that_it_is_busy(runs: Runs, tmp_path: Path) -> None:
    observed = Recorder()

    class Slow(SqliteSink):
        def commit(self, *, rejected: int) -> SinkOutcome:
            wait_for(lambda: observed.of("busy"), "a sign of life")
            return super().commit(rejected=rejected)

    topic = runs.topic("in")
    runs.produce(topic, [*events(100), b"no json", b"{}"])
    run = runs.run(runs.window(topic), name="publish")
    run_sink(RunContext(runs.config, observer=observed), run, lambda: Slow(tmp_path / "d.sqlite"))
    assert sum(batch.records for batch in observed.of("batch")) == 102
    rejected = [rule for commit in observed.of("committed") for rule in commit.rejected]
    assert sorted(rejected) == ["decode", "missing"]
    (done,) = observed.of("done")
    assert (done.records, done.rejected) == (102, 2)


def test_of_a_source_it_hears_batches_and_commits(runs: Runs, tmp_path: Path) -> None:
    from factory_agents.ingest import build

    file = tmp_path / "events.jsonl"
    file.write_bytes(b"\n".join(events(50)))
    observed = Recorder()
    run = msgspec.structs.replace(runs.run(None, runs.topic("out"), "ingest"), name="all")
    run_source(RunContext(runs.config, observer=observed), run, lambda: build({"source": str(file)}, run))
    assert sum(batch.records for batch in observed.of("batch")) == 50
    assert observed.commits[-1] == 50
    assert len(observed.of("done")) == 1


def test_of_a_live_agent_it_hears_partitions_and_lag(runs: Runs) -> None:
    source, out = runs.topic("in", partitions=2), runs.topic("out", partitions=2)
    runs.produce(source, events(10))
    observed, stop = Recorder(), threading.Event()
    work = threading.Thread(
        target=lambda: run_live(
            RunContext(runs.config, stop=stop.is_set, observer=observed),
            agent(version="1", name="a")(odd_is_wrong).bind({}),
            LiveSettings(source, out, group=f"{runs.prefix}.g", prefix=runs.prefix),
        )
    )
    work.start()
    try:
        wait_for(lambda: observed.commits and observed.commits[-1] == 10, "the events")
        wait_for(lambda: observed.of("lag") and observed.of("lag")[-1] == {0: 0, 1: 0}, "no lag")
    finally:
        stop.set()
        work.join(30)
    assert observed.subjects == {Subject(f"{runs.prefix}.g", "live", "a", "1")}
    assert observed.of("rebalanced") == [{0, 1}, set()]
    assert sum(commit.rejected.get("even", 0) for commit in observed.of("committed")) == 5
