"""Promise 4: the same work is done once and found again, changed work is redone; a reader of a manifest sees only its writer's records."""

from __future__ import annotations

import time
from typing import Any, TypeVar

import msgspec
import pytest

from factory_agents.errors import AgentCrashedError
from factory_agents.kafka.ledger import Ledger, StageRecord, read_result
from factory_agents.protocol import AgentResult, AgentRun, Order, Shard, merge_results, shard_window
from tests.support.agents import mark, mark_again
from tests.support.runs import Runs, events
from tests.support.topics import recreate

_T = TypeVar("_T", AgentRun, Order)


class Watched:
    """An agent that remembers what it was shown, and can be told to break off once."""

    def __init__(self, break_at: int = 0) -> None:
        self.seen: list[int] = []
        self._break_at = break_at

    def __call__(self, event: dict[str, Any]) -> dict[str, Any]:
        self.seen.append(event["event_id"])
        if len(self.seen) == self._break_at:
            raise MemoryError  # which ends the attempt, and rejects no event
        return event | {"seen": True}


def watched(break_at: int = 0) -> tuple[list[int], Any]:
    state = Watched(break_at)

    def watch(event: dict[str, Any]) -> dict[str, Any]:
        return state(event)

    return state.seen, watch


def ids(runs: Runs, result: AgentResult) -> list[int]:
    return sorted(r.id for r in runs.manifest(result.manifest))


def again(run: _T, **changes: Any) -> _T:
    return msgspec.structs.replace(run, **changes)


def test_an_identical_run_returns_the_manifest_without_work(runs: Runs) -> None:
    run = runs.run(runs.filled(100), runs.topic("out"))
    first = runs.transform(run)
    seen, watch = watched()
    second = runs.transform(again(run, run_id="another", deadline_seconds=60.0, chunk_records=7, accept_loss=True), watch)
    assert second.reused
    assert not first.reused
    assert seen == []
    assert second.manifest == first.manifest
    assert second.counts == first.counts
    assert len(runs.everything(run.output_topic)) == 100


def test_a_result_is_found_again_when_the_input_is_long_gone(runs: Runs) -> None:
    window = runs.filled(10)
    run = runs.run(window, runs.topic("out"))
    first = runs.transform(run)
    runs.admin.delete_topics([window.topic])[window.topic].result()
    assert runs.transform(run).manifest == first.manifest


def test_a_changed_version_is_done_again_and_the_older_output_is_in_no_manifest(runs: Runs) -> None:
    run = runs.run(runs.filled(100), runs.topic("out"))
    first = runs.transform(run)
    changed = again(run, agent=msgspec.structs.replace(run.agent, name="tests.support.agents:mark_again"))
    second = runs.transform(changed, mark_again.function)
    assert not second.reused
    assert second.generation > first.generation
    assert {r.event["seen"] for r in runs.manifest(second.manifest)} == {2}
    assert ids(runs, second) == list(range(100))
    assert len(runs.everything(run.output_topic)) == 200
    assert read_result(runs.config, run.work, prefix=run.prefix) == second
    # and a stage that reads the manifest reads only what its writer wrote, though both lie in the same ranges
    next_run = runs.run(merge_results([second]), runs.topic("next"), stage="next")
    third = runs.transform(next_run, lambda e: e)
    assert [r.event["seen"] for r in runs.manifest(third.manifest)] == [2] * 100


def test_changed_parameters_are_done_again(runs: Runs) -> None:
    def with_factor(event: dict[str, Any], factor: int = 1) -> dict[str, Any]:
        return event | {"n": event["event_id"] * factor}

    run = runs.run(runs.filled(10), runs.topic("out"))
    first = runs.transform(run, with_factor)
    second = runs.transform(again(run, params={"factor": 3}), with_factor)
    assert first.fingerprint != second.fingerprint
    assert sorted(r.event["n"] for r in runs.manifest(second.manifest)) == [3 * n for n in range(10)]


def test_a_default_given_by_name_is_the_same_work(runs: Runs) -> None:
    def with_factor(event: dict[str, Any], factor: int = 1) -> dict[str, Any]:
        return event | {"n": event["event_id"] * factor}

    run = runs.run(runs.filled(10), runs.topic("out"))
    runs.transform(run, with_factor)
    assert runs.transform(again(run, params={"factor": "1"}), with_factor).reused


class TestAClear:
    """Scheduled and manual runs, backfills: each has counters of its own, and only its own are compared."""

    def test_does_the_work_again_once(self, runs: Runs) -> None:
        run = runs.run(runs.filled(20), runs.topic("out"), order=Order("scheduled", tries=2))
        first = runs.transform(run)
        assert runs.transform(run).reused, "a retry"
        cleared = runs.transform(again(run, order=Order("scheduled", tries=3, clears=1, again=True)))
        assert (cleared.reused, cleared.epoch) == (False, 1)
        assert cleared.generation > first.generation
        assert ids(runs, cleared) == list(range(20))
        assert runs.transform(again(run, order=Order("scheduled", tries=3, clears=1, again=True))).reused, "its retry"
        assert runs.transform(run).reused, "an attempt from before the clear, late"

    def test_of_a_run_that_was_made_again_under_its_name_is_counted_anew(self, runs: Runs) -> None:
        """As a DAG's runs are that was deleted, or those of an Airflow that was installed again."""
        run = runs.run(runs.filled(20), runs.topic("out"), order=Order("scheduled", tries=2, began=1))
        runs.transform(run)
        for n in (1, 2):
            assert not runs.transform(again(run, order=Order("scheduled", 2 + n, n, again=True, began=n))).reused
        assert runs.transform(again(run, order=Order("scheduled", tries=2, began=10))).reused, "it was not cleared yet"
        for n in (1, 2, 3):
            cleared = Order("scheduled", 2 + n, n, again=True, began=10 + n)
            assert not runs.transform(again(run, order=cleared)).reused
            assert runs.transform(again(run, order=cleared)).reused, "its retry"
        assert runs.transform(again(run, order=Order("scheduled", 4, 2, again=True, began=2))).reused, "a late attempt of the former one"

    def test_of_each_run_of_the_interval_does_it_again(self, runs: Runs) -> None:
        scheduled, manual = Order("scheduled", tries=2), Order("manual", tries=2)
        run = runs.run(runs.filled(10), runs.topic("out"), order=scheduled)
        runs.transform(run)
        assert runs.transform(again(run, order=manual)).reused
        for order in (
            again(manual, tries=3, clears=1, again=True),
            again(scheduled, tries=3, clears=1, again=True),
            again(manual, tries=4, clears=2, again=True),
            again(scheduled, tries=4, clears=2, again=True),
        ):
            assert not runs.transform(again(run, order=order)).reused, order
            assert runs.transform(again(run, order=order)).reused, order

    @pytest.mark.parametrize("tries", [1, 2, 5], ids=["to less", "to what comes out equal", "to more"])
    def test_after_the_retries_were_edited_does_it_again(self, runs: Runs, tries: int) -> None:
        run = runs.run(runs.filled(10), runs.topic("out"), order=Order("scheduled", tries=2))
        runs.transform(run)
        assert not runs.transform(again(run, order=Order("scheduled", tries=tries, clears=1))).reused

    def test_of_another_task_of_the_run_lets_a_retry_resume(self, runs: Runs) -> None:
        run = runs.run(runs.filled(60, partitions=1), runs.topic("out"), chunk_records=10, order=Order("scheduled", tries=2))
        _, broken = watched(break_at=30)
        with pytest.raises(AgentCrashedError):
            runs.transform(run, broken)
        assert runs.transform(again(run, order=Order("scheduled", tries=2, clears=1))).resumed

    def test_that_was_resumed_by_another_run_counts_as_obeyed(self, runs: Runs) -> None:
        cleared = Order("scheduled", tries=3, clears=1, again=True)
        run = runs.run(runs.filled(60, partitions=1), runs.topic("out"), chunk_records=10, order=cleared)
        _, broken = watched(break_at=30)
        with pytest.raises(AgentCrashedError):
            runs.transform(run, broken)
        resumed = runs.transform(again(run, order=Order("manual", tries=2)))
        assert (resumed.resumed, resumed.epoch) == (True, 1)
        assert runs.transform(run).reused


def test_a_run_told_to_redo_does_it_again_and_its_own_retry_resumes(runs: Runs) -> None:
    run = runs.run(runs.filled(60, partitions=1), runs.topic("out"), chunk_records=10)
    _, broken = watched(break_at=30)
    with pytest.raises(AgentCrashedError):
        runs.transform(run, broken)
    redo = again(run, rerun="redo", run_id="r1")
    seen, broken = watched(break_at=30)
    with pytest.raises(AgentCrashedError):
        runs.transform(redo, broken)
    assert len(seen) == 30  # from the start, although there was progress to resume
    seen, watch = watched()
    result = runs.transform(redo, watch)
    assert result.resumed
    assert len(seen) == 40
    assert ids(runs, result) == list(range(60))
    redone = runs.transform(again(redo, run_id="r2"))
    assert (redone.resumed, redone.reused) == (False, False)
    assert ids(runs, redone) == list(range(60))


def test_a_recreated_output_topic_gets_the_work_again_whole_or_half_done(runs: Runs) -> None:
    run = runs.run(runs.filled(60, partitions=1), runs.topic("out", partitions=2), chunk_records=10)
    _, broken = watched(break_at=30)
    with pytest.raises(AgentCrashedError):
        runs.transform(run, broken)
    recreate(runs.admin, run.output_topic, 2)
    result = runs.transform(run)
    assert not result.resumed
    assert ids(runs, result) == list(range(60))
    recreate(runs.admin, run.output_topic, 2)
    result = runs.transform(run)
    assert not result.reused
    assert ids(runs, result) == list(range(60))


def test_re_runs_put_each_event_into_the_same_partition_whatever_the_chunks(runs: Runs) -> None:
    topic = runs.topic("in", partitions=3)
    runs.produce(topic, events(50))
    for n in range(20):
        runs.produce(topic, events(1, 100 + n), key=f"k{n}".encode())
    run = runs.run(runs.window(topic), runs.topic("out", partitions=5))
    first = runs.transform(run)
    second = runs.transform(again(run, order=Order("r", again=True), chunk_records=3))
    assert {(r.id, r.partition) for r in runs.manifest(first.manifest)} == {(r.id, r.partition) for r in runs.manifest(second.manifest)}
    keyed = [r for r in runs.manifest(second.manifest) if r.key]
    assert len(keyed) == 20


def test_the_order_within_a_partition_is_kept(runs: Runs) -> None:
    run = runs.run(runs.filled(400, partitions=2), runs.topic("out", partitions=2), chunk_records=30)
    result = runs.transform(run)
    for partition in range(2):
        found = [r.id for r in runs.manifest(result.manifest) if r.partition == partition]
        assert found == sorted(found)
        assert {n % 2 for n in found} == {partition}


def test_every_record_names_its_writer_in_one_header(runs: Runs) -> None:
    topic = runs.topic("in", partitions=1)
    hostile = [("factory-writer", b"somebody/else/1"), ("factory-dead-letter", b"{}"), ("trace", b"t"), ("trace", None)]
    runs.produce(topic, events(1), headers=hostile)
    run = runs.run(runs.window(topic), runs.topic("out"))
    result = runs.transform(run)
    assert result.manifest is not None
    (record,) = runs.manifest(result.manifest)
    assert record.headers == {"factory-writer": result.manifest.writer.encode(), "trace": None}
    assert result.manifest.writer == f"stage/{result.fingerprint}/{result.generation}"


def test_a_reader_of_a_foreign_topic_takes_every_writers_records(runs: Runs) -> None:
    topic = runs.topic("in", partitions=1)
    runs.produce(topic, events(1), headers=[("factory-writer", b"somebody/else/1")])
    runs.produce(topic, events(1, 1))
    result = runs.transform(runs.run(runs.window(topic), runs.topic("out")))
    assert ids(runs, result) == [0, 1]


def test_generations_are_ordered_by_the_ledger_and_survive_a_resume(runs: Runs) -> None:
    run = runs.run(runs.filled(60, partitions=1), runs.topic("out"), chunk_records=10)
    _, broken = watched(break_at=30)
    with pytest.raises(AgentCrashedError):
        runs.transform(run, broken)
    view = Ledger(runs.config, runs.cluster, prefix=run.prefix, pipeline=run.pipeline).read(deadline=time.monotonic() + 30)
    (record,) = view.of(StageRecord)
    result = runs.transform(run)
    assert result.generation == record.generation
    generations = [runs.transform(again(run, order=Order("r", n, n, again=True))).generation for n in (1, 2, 3)]
    assert generations == sorted({result.generation, *generations})[1:]


def test_a_window_of_another_pipeline_does_not_hide_what_stands_in_the_own_ledger(runs: Runs) -> None:
    """A window's ledger offset counts in the partition of the pipeline that planned it, which is another one's."""
    window = msgspec.structs.replace(runs.filled(10), pipeline="planner-of-another", ledger_offset=1_000_000)
    run = runs.run(window, runs.topic("out"))
    runs.transform(run)
    assert runs.transform(run).reused


def test_a_result_found_again_belongs_to_the_plan_that_asks(runs: Runs) -> None:
    shards = shard_window(runs.filled(100), 2)
    out = runs.topic("out")
    work = [runs.run(w, out, shard=Shard(i, 2), plan="p1") for i, w in enumerate(shards)]
    runs.transform(work[0])
    results = [runs.transform(again(run, plan="p2")) for run in work]
    assert [r.reused for r in results] == [True, False]
    assert merge_results(results).size == 100


def test_the_same_input_gives_the_same_bytes(runs: Runs) -> None:
    run = runs.run(runs.filled(50), runs.topic("out"))
    first, second = runs.transform(run, mark), runs.transform(again(run, order=Order("r", again=True)), mark)
    one, other = ([(r.partition, r.key, r.value) for r in runs.manifest(result.manifest)] for result in (first, second))
    assert one == other
